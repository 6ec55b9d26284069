//! Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261): copies of one network, a part of whose neurons is drawn again.
//!
//! For each layer and expert the neurons are put into a random order, one for all three matrices. Then ⌊r · width⌋ of them
//! are dropped: rows of gate and up, columns of down become N(μ, σ²), μ and σ being those of the very values dropped, for each matrix
//! alone. The paper reads as one set of neurons for all three matrices; the released code draws a set for each.

use serde::Serialize;

use super::{Context, Part, gathered, share};
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};

/// Settings of Drop-Upcycling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drop {
    /// Number of experts.
    pub experts: u64,
    /// The part of an expert's neurons that is drawn again, `r`.
    pub ratio: f64,
    /// Which neurons these are.
    pub indices: DropIndices,
}

/// Which neurons are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropIndices {
    /// The same in all matrices of an expert.
    Shared,
    /// Others in each matrix.
    PerMatrix,
}

impl Drop {
    pub(super) fn size(&self, width: u64) -> Result<(u64, u64)> {
        share(self.ratio, width, "--drop-ratio")?;
        Ok((self.experts, width))
    }

    pub(super) fn expression(&self, part: &Part, context: &Context, of: Expression) -> Expression {
        let dropped = (self.ratio * context.width as f64).floor() as u64;
        let Some(axis) = part.neurons() else {
            return of;
        };
        let of = gathered(
            of,
            axis,
            context,
            part.expert_key("order"),
            0,
            context.width,
        );
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
}
