//! Routers: which experts a token goes to, with what weight, and the losses that keep routers in balance.

use candle_core::{Result, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::backend::{ReadValues, Reading, Readings};

/// Changes to a model's routing while it runs; the default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Feed-forward experts that a token goes to.
    pub top_k: Option<usize>,
    /// Attention experts that a token goes to.
    pub attention_top_k: Option<usize>,
    /// Experts that no token goes to, feed-forward and attention alike. Gates are a softmax over the others; sigmoid gates of
    /// the others grow by the same factor, so that the sum of equal gates stays.
    pub dropped: Vec<usize>,
}

/// How one router sent the tokens of a pass, in float32 (float64 where the model computes in it).
#[derive(Debug, Clone)]
pub struct Routing {
    /// Router logits `[batch, seq, experts]`.
    pub logits: Tensor,
    /// Their softmax over all experts; where gates are sigmoids, the share of each in their sum.
    pub probabilities: Tensor,
    /// Weights of the experts' outputs, zero for those not chosen `[batch, seq, experts]`.
    pub gates: Tensor,
    /// Numbers (u32) of the chosen experts, the best first `[batch, seq, top_k]`; in order where all are chosen.
    pub chosen: Tensor,
}

impl Routing {
    /// The same numbers outside candle's graph.
    pub(super) fn detach(&self) -> Self {
        Self {
            logits: self.logits.detach(),
            probabilities: self.probabilities.detach(),
            gates: self.gates.detach(),
            chosen: self.chosen.detach(),
        }
    }
}

/// The routing of one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerRouting {
    /// Of the feed-forward experts.
    pub feed_forward: Option<Routing>,
    /// Of the attention experts.
    pub attention: Option<Routing>,
}

impl LayerRouting {
    /// The routing with `change` on each tensor.
    pub(super) fn each(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let of = |routing: &Routing| -> Result<Routing> {
            Ok(Routing {
                logits: change(&routing.logits)?,
                probabilities: change(&routing.probabilities)?,
                gates: change(&routing.gates)?,
                chosen: change(&routing.chosen)?,
            })
        };
        Ok(Self {
            feed_forward: self.feed_forward.as_ref().map(of).transpose()?,
            attention: self.attention.as_ref().map(of).transpose()?,
        })
    }
}

/// How load balance is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LoadBalance {
    /// `E · Σ fᵢ Pᵢ`: `f` is the share of the tokens that chose expert i, without gradient; `P` the mean probability
    /// (BAM, equation 2; Switch).
    Hard,
    /// `E · Σ uᵢ Pᵢ`: `u` is the mean gate of expert i, zero for tokens that did not choose it, with gradient (BTX).
    Soft,
}

/// The losses that training adds for feed-forward routers, with their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterLosses {
    /// How load balance is measured.
    pub kind: LoadBalance,
    /// Weight of the load-balancing loss.
    pub load_balance: f64,
    /// Weight of the z-loss.
    pub z: f64,
    /// Factor on both: the share of this batch in the tokens of its step.
    pub share: f64,
}

/// The losses of one layer's feed-forward router over the tokens of one batch, without their weights.
#[derive(Debug, Clone)]
pub struct RouterLoss {
    /// The load-balancing loss, a scalar.
    pub(super) load_balance: Tensor,
    /// The z-loss, a scalar.
    pub(super) z: Tensor,
    /// Tokens that chose each expert `[experts]`.
    pub(super) counts: Tensor,
}

/// A [`RouterLoss`] on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterLossValues {
    /// The load-balancing loss.
    pub load_balance: f64,
    /// The z-loss.
    pub z: f64,
    /// Tokens that chose each expert.
    pub chosen: Vec<u64>,
}

/// A [`RouterLoss`] whose values wait among readings.
#[derive(Debug)]
pub struct RouterLossReading {
    load_balance: Reading,
    z: Reading,
    counts: Reading,
}

impl RouterLoss {
    /// Wants the values on the host.
    pub fn want(&self, readings: &mut Readings) -> Result<RouterLossReading> {
        Ok(RouterLossReading {
            load_balance: readings.want(&self.load_balance)?,
            z: readings.want(&self.z)?,
            counts: readings.want(&self.counts)?,
        })
    }
}

impl RouterLossReading {
    /// The values, out of those that were read.
    pub fn values(&self, read: &ReadValues) -> RouterLossValues {
        let scalar = |reading: &Reading| read.of(reading).iter().sum();
        RouterLossValues {
            load_balance: scalar(&self.load_balance),
            z: scalar(&self.z),
            chosen: read
                .of(&self.counts)
                .iter()
                .map(|count| *count as u64)
                .collect(),
        }
    }
}
