//! Fine-grained upcycling with virtual groups (He et al. 2024, arXiv 2410.07524): E copies of one network, each cut into
//! G shards, are E · G experts; expert e · G + g is shard g of copy e.
//!
//! The G experts of a copy share a router row, so their logits tie and T = G experts a token are one whole copy: the mixture computes
//! the dense network up to the factor of its gates. Scaling the weights makes up for that: s = E · G² / T where the gate is a
//! softmax over all experts, s = G where the gates of the chosen are divided by their sum.

use serde::Serialize;

use super::{Context, Part, cut, scaled, shard};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Settings of granular upcycling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Granular {
    /// Copies of the network, `E`.
    pub expansion: u64,
    /// Shards of each copy, `G`.
    pub granularity: u64,
    /// Where the factor `s` goes.
    pub scaling: WeightScaling,
}

/// Where the factor that makes up for the gates goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightScaling {
    /// On every matrix, as in the paper: s^⅓ where the network is gated or squares its activation, else s^½. Exact where
    /// the activation is homogeneous.
    Spread,
    /// All of it on the down projection: exact for any activation.
    Down,
    /// Nowhere.
    Off,
}

impl Granular {
    pub(super) fn size(&self, width: u64) -> Result<(u64, u64)> {
        Ok((
            self.expansion.saturating_mul(self.granularity),
            cut(width, self.granularity, "--granularity")?,
        ))
    }

    pub(super) fn expression(&self, part: &Part, context: &Context, of: Expression) -> Expression {
        let shards = self.granularity;
        let of = shard(
            of,
            part,
            part.expert % shards,
            context.width / shards,
            context,
        );
        scaled(of, self.factor(part, context))
    }

    /// The factor on a tensor.
    fn factor(&self, part: &Part, context: &Context) -> f64 {
        let (experts, shards) = (self.expansion as f64, self.granularity as f64);
        let whole = match context.norm_topk_prob {
            true => shards,
            false => experts * shards * shards / context.top_k as f64,
        };
        match self.scaling {
            WeightScaling::Off => 1.0,
            // The bias of the output is no product of matrices.
            WeightScaling::Spread if !(part.is_output() && part.bias) => match context.cubic {
                true => libm::cbrt(whole),
                false => libm::sqrt(whole),
            },
            WeightScaling::Spread | WeightScaling::Down if part.is_output() => whole,
            WeightScaling::Spread | WeightScaling::Down => 1.0,
        }
    }
}
