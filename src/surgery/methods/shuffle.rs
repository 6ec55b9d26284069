//! Shuffle and cut, as in Qwen2-57B-A14B (Yang et al. 2024, arXiv 2407.10671): copies of one network are put one after another,
//! each in a random order of its neurons. Experts of any width are cut through them, and part of each is drawn again.
//!
//! ⌈n · expert width / width⌉ copies are needed; the rest of the last copy is not used. The report does not say which half
//! is drawn again, nor from what. Here neurons are drawn from N(0, std²) with the family's standard deviation of fresh weights.
//! Their biases become 0.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use serde_json::{Value, json};

use super::error::MethodError;
use super::rule::{
    ExpertCount, ExpertPart, ExpertRule, RuleContext, SurgeryMethod, check_ratio, gathered, group,
    needed, only, scaled, share,
};
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};

/// Copies that one expert spans, at most: each is a part of an expression of the manifest, and replaying needs few parts.
const MOST_COPIES: u64 = 500;

/// Shuffle and cut.
#[derive(Debug)]
pub(super) struct Shuffle;

#[derive(Clone, Debug, Args)]
struct ShuffleFlags {
    /// Inner width of an expert (`shuffle`).
    #[arg(long, value_name = "WIDTH", value_parser = clap::value_parser!(u64).range(1..))]
    expert_width: Option<u64>,
    /// The part of each expert's neurons that is drawn again (`shuffle`) [default: 0.5].
    #[arg(long, value_name = "R")]
    reinit_ratio: Option<f64>,
}

impl SurgeryMethod for Shuffle {
    fn name(&self) -> &'static str {
        "shuffle"
    }

    fn about(&self) -> &'static str {
        "A fine-grained mixture as in Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671): experts are cut out of shuffled copies of a dense model's feed-forward network, and part of each is drawn again."
    }

    fn flags(&self, command: Command) -> Command {
        ShuffleFlags::augment_args(ExpertCount::augment_args(command))
    }

    fn size_flags(&self) -> Option<&'static [&'static str]> {
        Some(&["expert_width"])
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        let own: ShuffleFlags = group(flags)?;
        Ok(Arc::new(Cuts {
            experts: group::<ExpertCount>(flags)?.of(self)?,
            width: needed(
                own.expert_width,
                "--expert-width",
                self,
                "how wide an expert is",
            )?,
            reinit_ratio: own.reinit_ratio.unwrap_or(0.5),
        }))
    }
}

/// Cuts through shuffled copies of one network.
#[derive(Debug)]
struct Cuts {
    experts: u64,
    /// Inner width of one.
    width: u64,
    /// The part of an expert's neurons that is drawn again.
    reinit_ratio: f64,
}

impl ExpertRule for Cuts {
    fn size(&self, _networks: u64, width: u64) -> Result<(u64, u64)> {
        check_ratio(self.reinit_ratio, "--reinit-ratio")?;

        if self.width == 0 || self.experts.checked_mul(self.width).is_none() {
            let (experts, width) = (self.experts, self.width);
            return Err(MethodError::NoCuts { experts, width }.into());
        }

        if self.width / MOST_COPIES > width {
            return Err(MethodError::ManyCopies {
                width: self.width,
                most: MOST_COPIES,
                network: width,
            }
            .into());
        }

        Ok((self.experts, self.width))
    }

    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        let of = only(of);
        let Some(axis) = part.neurons() else {
            return scaled(of, self.width as f64 / context.width as f64);
        };
        let cut = self.cut(part, context, of, axis);

        let fresh = share(self.reinit_ratio, self.width);
        if fresh == 0 {
            return cut;
        }
        let seed = context.rng_seed;
        let at = Drawn {
            axis,
            seed,
            key: part.expert_key("fresh"),
            start: 0,
            length: fresh,
        };
        let std = if part.bias {
            0.0
        } else {
            context.initializer_range
        };
        Expression::Redraw {
            of: Box::new(cut),
            at,
            std: Some(std),
            seed,
            key: part.own_key("redrawn"),
        }
    }

    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        vec![
            ("expert_width", json!(self.width)),
            ("reinit_ratio", json!(self.reinit_ratio)),
        ]
    }
}

impl Cuts {
    /// The neurons of an expert, out of as many copies as it spans.
    fn cut(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Expression,
        axis: u64,
    ) -> Expression {
        let (mut place, end) = (part.expert * self.width, (part.expert + 1) * self.width);
        let mut pieces = Vec::new();
        while place < end {
            let (copy, start) = (place / context.width, place % context.width);
            let length = (context.width - start).min(end - place);
            let key = part.layer_key(&format!("copies.{copy}.order"));
            pieces.push(gathered(of.clone(), axis, context, key, start, length));
            place += length;
        }

        if pieces.len() == 1 {
            pieces.remove(0)
        } else {
            Expression::Concat {
                of: pieces,
                axis,
                blocks: 1,
            }
        }
    }
}
