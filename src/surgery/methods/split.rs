//! Expert construction by splitting (LLaMA-MoE, Zhu et al. 2024, arXiv 2406.16554): the neurons of one network in random
//! sets of equal size, one an expert.
//!
//! LLaMA-MoE multiplies the output of the experts by n / k, which makes up for the neurons that are left out; here that
//! factor is in the down projections. A bias of the output is shared out among the experts.

use super::{Context, Part, cut, gathered, scaled};
use crate::checkpoint::expression::Expression;
use crate::{Error, Result};

/// Settings of splitting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// Number of experts, `n`.
    pub experts: u64,
    /// Factor on the output; n / k where absent.
    pub output_scale: Option<f64>,
}

impl Split {
    pub(super) fn size(&self, width: u64) -> Result<(u64, u64)> {
        if self
            .output_scale
            .is_some_and(|scale| !scale.is_finite() || scale <= 0.0)
        {
            return Err(Error::usage("--output-scale expects a positive number")
                .with_hint("1 leaves weights as they are"));
        }
        Ok((self.experts, cut(width, self.experts, "--experts")?))
    }

    /// The factor on the output.
    pub(super) fn factor(&self, context: &Context) -> f64 {
        self.output_scale
            .unwrap_or(self.experts as f64 / context.top_k as f64)
    }

    pub(super) fn expression(&self, part: &Part, context: &Context, of: Expression) -> Expression {
        let width = context.width / self.experts;
        let Some(axis) = part.neurons() else {
            return scaled(of, self.factor(context) / self.experts as f64);
        };
        let of = gathered(
            of,
            axis,
            context,
            part.layer_key("order"),
            part.expert * width,
            width,
        );
        scaled(
            of,
            if part.is_output() {
                self.factor(context)
            } else {
                1.0
            },
        )
    }
}
