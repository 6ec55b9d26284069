//! Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261): copies of one network, a part of whose neurons is drawn again.
//!
//! For each layer and expert the neurons are put into a random order, one for all three matrices. Then ⌊r · width⌋ of them
//! are dropped: rows of gate and up, columns of down become N(μ, σ²). μ and σ are measured on the dropped values, for each
//! matrix alone. The paper reads as one set of neurons for all three matrices; the released code draws a set for each.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::rule::{
    ExpertCount, ExpertPart, ExpertRule, RuleContext, SurgeryMethod, check_ratio, gathered, group,
    only, share,
};
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};

/// Drop-Upcycling.
#[derive(Debug)]
pub(super) struct DropUpcycling;

#[derive(Clone, Debug, Args)]
struct DropFlags {
    /// The part of each expert's neurons that is drawn again (`drop`) [default: 0.5].
    #[arg(long, value_name = "R")]
    drop_ratio: Option<f64>,
    /// Whether gate, up and down drop the same neurons or each its own (`drop`) [default: shared].
    #[arg(long, value_enum)]
    drop_indices: Option<DropIndices>,
}

/// Which neurons are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum DropIndices {
    /// One set of neurons for the three matrices, as the paper reads.
    Shared,
    /// A set for each matrix, as the released code draws them.
    PerMatrix,
}

impl SurgeryMethod for DropUpcycling {
    fn name(&self) -> &'static str {
        "drop"
    }

    fn about(&self) -> &'static str {
        "A mixture by Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261): every expert is a copy of a dense model's feed-forward network, some of whose neurons are drawn again."
    }

    fn flags(&self, command: Command) -> Command {
        DropFlags::augment_args(ExpertCount::augment_args(command))
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        let own: DropFlags = group(flags)?;
        Ok(Arc::new(DroppedCopies {
            experts: group::<ExpertCount>(flags)?.of(self)?,
            ratio: own.drop_ratio.unwrap_or(0.5),
            indices: own.drop_indices.unwrap_or(DropIndices::Shared),
        }))
    }
}

/// Copies of one network, some of whose neurons are drawn again.
#[derive(Debug)]
struct DroppedCopies {
    experts: u64,
    /// The part of an expert's neurons that is drawn again, `r`.
    ratio: f64,
    indices: DropIndices,
}

impl ExpertRule for DroppedCopies {
    fn size(&self, _networks: u64, width: u64) -> Result<(u64, u64)> {
        check_ratio(self.ratio, "--drop-ratio")?;
        Ok((self.experts, width))
    }

    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        let of = only(of);
        let Some(axis) = part.neurons() else {
            return of;
        };

        let order = part.expert_key("order");
        let of = gathered(of, axis, context, order, 0, context.width);

        let dropped = share(self.ratio, context.width);
        if dropped == 0 {
            return of;
        }
        let key = match self.indices {
            DropIndices::Shared => part.expert_key("dropped"),
            DropIndices::PerMatrix => part.own_key("dropped"),
        };
        let seed = context.rng_seed;
        let at = Drawn {
            axis,
            seed,
            key,
            start: 0,
            length: dropped,
        };
        Expression::Redraw {
            of: Box::new(of),
            at,
            std: None,
            seed,
            key: part.own_key("redrawn"),
        }
    }

    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        vec![
            ("drop_ratio", json!(self.ratio)),
            ("drop_indices", json!(self.indices)),
        ]
    }
}
