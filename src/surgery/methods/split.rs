//! Expert construction by splitting (LLaMA-MoE, Zhu et al. 2024, arXiv 2406.16554): the neurons of one network in random
//! sets of equal size, one an expert.
//!
//! LLaMA-MoE multiplies the output of the experts by n / k, which makes up for the neurons that are left out; here that
//! factor is in the down projections. A bias of the output is shared out among the experts.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use serde_json::{Value, json};

use super::error::MethodError;
use super::rule::{
    ExpertCount, ExpertPart, ExpertRule, RuleContext, SurgeryMethod, cut, gathered, group, only,
    scaled,
};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Expert construction by splitting.
#[derive(Debug)]
pub(super) struct Split;

#[derive(Clone, Debug, Args)]
struct SplitFlags {
    /// Factor on the output of experts; 1 leaves the weights as they are (`split`) [default: experts / top-k].
    #[arg(long, value_name = "F")]
    output_scale: Option<f64>,
}

impl SurgeryMethod for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn about(&self) -> &'static str {
        "A mixture whose experts share out the neurons of a dense model's feed-forward network (LLaMA-MoE, Zhu et al. 2024, arXiv 2406.16554)."
    }

    fn flags(&self, command: Command) -> Command {
        SplitFlags::augment_args(ExpertCount::augment_args(command))
    }

    fn size_flags(&self) -> Option<&'static [&'static str]> {
        Some(&[])
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        Ok(Arc::new(NeuronSets {
            experts: group::<ExpertCount>(flags)?.of(self)?,
            output_scale: group::<SplitFlags>(flags)?.output_scale,
        }))
    }
}

/// Random sets of the neurons of one network.
#[derive(Debug)]
struct NeuronSets {
    /// Number of experts, `n`.
    experts: u64,
    /// Factor on the output; n / k where absent.
    output_scale: Option<f64>,
}

impl ExpertRule for NeuronSets {
    fn size(&self, _networks: u64, width: u64) -> Result<(u64, u64)> {
        if self
            .output_scale
            .is_some_and(|scale| !scale.is_finite() || scale <= 0.0)
        {
            return Err(MethodError::OutputScale.into());
        }
        Ok((self.experts, cut(width, self.experts, "--experts")?))
    }

    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        let of = only(of);
        let factor = self.factor(context);
        let Some(axis) = part.neurons() else {
            return scaled(of, factor / self.experts as f64);
        };

        let width = context.width / self.experts;
        let order = part.layer_key("order");
        let of = gathered(of, axis, context, order, part.expert * width, width);
        scaled(of, if part.is_output() { factor } else { 1.0 })
    }

    fn record(&self, context: &RuleContext) -> Vec<(&'static str, Value)> {
        vec![("output_scale", json!(self.factor(context)))]
    }
}

impl NeuronSets {
    /// The factor on the output.
    fn factor(&self, context: &RuleContext) -> f64 {
        self.output_scale
            .unwrap_or(self.experts as f64 / context.top_k as f64)
    }
}
