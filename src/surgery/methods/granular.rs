//! Fine-grained upcycling with virtual groups (He et al. 2024, arXiv 2410.07524): E copies of one network, each cut into
//! G shards, are E · G experts; expert e · G + g is shard g of copy e.
//!
//! The G experts of a copy share a router row, so their logits tie and T = G experts a token are one whole copy. The mixture then
//! computes the dense network up to the factor of its gates. Scaling the weights makes up for that. The scale is
//! s = E · G² / T where the gate is a softmax over all experts. It is s = G where the gates of the chosen are divided by their sum.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::rule::{
    ExpertCount, ExpertPart, ExpertRule, RuleContext, SurgeryMethod, cut, group, needed, only,
    scaled, shard,
};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Fine-grained upcycling with virtual groups.
#[derive(Debug)]
pub(super) struct Granular;

#[derive(Clone, Debug, Args)]
struct GranularFlags {
    /// Shards that each copy is cut into (`granular`).
    #[arg(long, value_name = "G", value_parser = clap::value_parser!(u64).range(1..))]
    granularity: Option<u64>,
    /// Where the factor that makes up for the gates goes (`granular`) [default: spread].
    #[arg(long, value_enum)]
    weight_scaling: Option<WeightScaling>,
}

/// Where the factor `s` that makes up for the gates goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum WeightScaling {
    /// A root of the factor on every matrix, as in the paper.
    // s^⅓ where the network is gated or squares its activation, else s^½: exact where the activation is homogeneous.
    Spread,
    /// All of it on the down projections, which is exact for any activation.
    Down,
    /// No scaling.
    Off,
}

impl SurgeryMethod for Granular {
    fn name(&self) -> &'static str {
        "granular"
    }

    fn about(&self) -> &'static str {
        "A fine-grained mixture with virtual groups (He et al. 2024, arXiv 2410.07524): every expert is a shard of a dense model's feed-forward network."
    }

    fn flags(&self, command: Command) -> Command {
        GranularFlags::augment_args(ExpertCount::augment_args(command))
    }

    fn size_flags(&self) -> Option<&'static [&'static str]> {
        Some(&["granularity"])
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        let own: GranularFlags = group(flags)?;
        Ok(Arc::new(Shards {
            expansion: group::<ExpertCount>(flags)?.of(self)?,
            granularity: needed(
                own.granularity,
                "--granularity",
                self,
                "how many shards a copy is cut into",
            )?,
            scaling: own.weight_scaling.unwrap_or(WeightScaling::Spread),
        }))
    }
}

/// Shards of copies of one network.
#[derive(Debug)]
struct Shards {
    /// Copies of the network, `E`.
    expansion: u64,
    /// Shards of each copy, `G`.
    granularity: u64,
    scaling: WeightScaling,
}

impl ExpertRule for Shards {
    fn size(&self, _networks: u64, width: u64) -> Result<(u64, u64)> {
        Ok((
            self.expansion.saturating_mul(self.granularity),
            cut(width, self.granularity, "--granularity")?,
        ))
    }

    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        let shards = self.granularity;
        let of = shard(
            only(of),
            part,
            part.expert % shards,
            context.width / shards,
            context,
        );
        scaled(of, self.factor(part, context))
    }

    fn router_rows_each(&self) -> u64 {
        self.granularity
    }

    fn makes_up_for_gates(&self, context: &RuleContext) -> bool {
        !context.norm_topk_prob && self.scaling != WeightScaling::Off
    }

    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        vec![
            ("granularity", json!(self.granularity)),
            ("weight_scaling", json!(self.scaling)),
        ]
    }
}

impl Shards {
    /// The factor on a tensor.
    fn factor(&self, part: &ExpertPart, context: &RuleContext) -> f64 {
        let (experts, shards) = (self.expansion as f64, self.granularity as f64);
        let whole = if context.norm_topk_prob {
            shards
        } else {
            experts * shards * shards / context.top_k as f64
        };

        let is_output_bias = part.is_output() && part.bias;
        match self.scaling {
            WeightScaling::Off => 1.0,
            // No matmul follows the bias of the output, so it takes the whole factor.
            WeightScaling::Spread if !is_output_bias && context.cubic => libm::cbrt(whole),
            WeightScaling::Spread if !is_output_bias => libm::sqrt(whole),
            WeightScaling::Spread | WeightScaling::Down if part.is_output() => whole,
            WeightScaling::Spread | WeightScaling::Down => 1.0,
        }
    }
}
