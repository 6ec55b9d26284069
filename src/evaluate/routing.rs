//! Where routers send the tokens of a text.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::{LayerRouting, Routing};
use crate::{Error, Result};

/// What a router chooses among.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    /// Feed-forward experts.
    FeedForward,
    /// Attention experts.
    Attention,
}

impl RouterKind {
    /// In a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::FeedForward => "feed-forward",
            Self::Attention => "attention",
        }
    }

    /// What [`RouterReport::shares`] are, in words.
    pub(crate) fn shares_name(self) -> &'static str {
        match self {
            Self::FeedForward => "load of feed-forward experts",
            Self::Attention => "mean gate of attention experts",
        }
    }
}

/// What one router did with a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterReport {
    /// Layer, from 0.
    pub layer: usize,
    /// Which of its routers.
    pub router: RouterKind,
    /// Tokens routed.
    pub tokens: usize,
    /// Share of the assignments that each expert got; they sum to 1.
    pub load: Vec<f64>,
    /// Mean weight of each expert's output over all tokens, 0 for tokens that did not go there.
    pub mean_gate: Vec<f64>,
    /// Mean of the softmax over all experts.
    pub mean_probability: Vec<f64>,
    /// Entropy of the load by its largest value: 1 is an even load, 0 a single expert.
    pub load_entropy: f64,
    /// Mean entropy of a token's softmax by its largest value: 0 is a router without doubt.
    pub token_entropy: f64,
    /// Experts that no token went to.
    pub dead: Vec<usize>,
}

impl RouterReport {
    /// What tells experts apart: the load, or the mean gate of attention, which may send every token everywhere.
    pub(crate) fn shares(&self) -> &[f64] {
        match self.router {
            RouterKind::FeedForward => &self.load,
            RouterKind::Attention => &self.mean_gate,
        }
    }
}

/// Counts what routers do.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    routers: BTreeMap<(usize, RouterKind), Sums>,
}

#[derive(Debug, Clone, Default)]
struct Sums {
    tokens: usize,
    chosen: Vec<f64>,
    gates: Vec<f64>,
    probabilities: Vec<f64>,
    entropy: f64,
}

impl Recorder {
    /// Counts the tokens of one pass through `layer`.
    pub fn add(&mut self, layer: usize, routing: &LayerRouting) -> Result<()> {
        let both = [
            (RouterKind::FeedForward, &routing.feed_forward),
            (RouterKind::Attention, &routing.attention),
        ];
        for (kind, routing) in both {
            if let Some(routing) = routing {
                let sums = self.routers.entry((layer, kind)).or_default();
                sums.add(routing)
                    .map_err(|e| Error::compute("read the routing", e))?;
            }
        }
        Ok(())
    }

    /// The reports, by layer.
    pub fn finish(self) -> Vec<RouterReport> {
        self.routers
            .into_iter()
            .map(|((layer, router), sums)| sums.report(layer, router))
            .collect()
    }
}

impl Sums {
    fn add(&mut self, routing: &Routing) -> candle_core::Result<()> {
        let rows = |t: &Tensor| t.flatten(0, 1)?.to_dtype(DType::F64)?.to_vec2::<f64>();
        let (gates, probabilities) = (rows(&routing.gates)?, rows(&routing.probabilities)?);
        let experts = routing.gates.dim(2)?;
        for sums in [&mut self.chosen, &mut self.gates, &mut self.probabilities] {
            sums.resize(experts, 0.0);
        }
        // With a dropped expert, soft routing lists it among the chosen, with gate 0.
        let soft = routing.chosen.dim(2)? == experts;
        for expert in routing
            .chosen
            .flatten_all()?
            .to_vec1::<u32>()?
            .into_iter()
            .filter(|_| !soft)
        {
            self.chosen[expert as usize] += 1.0;
        }
        for (gates, probabilities) in gates.iter().zip(&probabilities) {
            for expert in 0..experts {
                self.gates[expert] += gates[expert];
                self.probabilities[expert] += probabilities[expert];
                self.chosen[expert] += if soft && gates[expert] > 0.0 {
                    1.0
                } else {
                    0.0
                };
            }
            self.entropy += entropy(probabilities);
        }
        self.tokens += gates.len();
        Ok(())
    }

    fn report(self, layer: usize, router: RouterKind) -> RouterReport {
        let mean = |sums: Vec<f64>| {
            sums.into_iter()
                .map(|sum| sum / self.tokens as f64)
                .collect()
        };
        let assignments: f64 = self.chosen.iter().sum();
        let load: Vec<f64> = self
            .chosen
            .iter()
            .map(|count| count / assignments)
            .collect();
        RouterReport {
            layer,
            router,
            tokens: self.tokens,
            load_entropy: entropy(&load),
            dead: (0..load.len())
                .filter(|expert| self.chosen[*expert] == 0.0)
                .collect(),
            load,
            mean_gate: mean(self.gates),
            mean_probability: mean(self.probabilities),
            token_entropy: self.entropy / self.tokens as f64,
        }
    }
}

/// The entropy of `shares`, which sum to 1, divided by the entropy of equal shares.
fn entropy(shares: &[f64]) -> f64 {
    if shares.len() < 2 {
        return 0.0;
    }
    let nats: f64 = shares
        .iter()
        .filter(|share| **share > 0.0)
        .map(|share| -share * share.ln())
        .sum();
    // Rounding can go beyond either end.
    (nats / (shares.len() as f64).ln()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn load_gates_and_dead_experts_are_counted() {
        let tensor = |values: &[f64]| {
            Tensor::new(values, &Device::Cpu)
                .unwrap()
                .reshape((1, 2, 3))
                .unwrap()
        };
        let probabilities = tensor(&[0.5, 0.25, 0.25, 0.75, 0.25, 0.0]);
        let routing = Routing {
            logits: probabilities.clone(),
            probabilities,
            gates: tensor(&[0.5, 0.0, 0.0, 0.75, 0.0, 0.0]),
            chosen: Tensor::new(&[[[0u32], [0]]], &Device::Cpu).unwrap(),
        };
        let mut recorder = Recorder::default();
        recorder
            .add(
                3,
                &LayerRouting {
                    feed_forward: Some(routing),
                    attention: None,
                },
            )
            .unwrap();
        let reports = recorder.finish();
        let [report] = &reports[..] else {
            panic!("one report")
        };
        assert_eq!(
            (report.layer, report.tokens, report.load_entropy),
            (3, 2, 0.0)
        );
        assert_eq!(report.load, [1.0, 0.0, 0.0]);
        assert_eq!(report.mean_gate, [0.625, 0.0, 0.0]);
        assert_eq!(report.mean_probability, [0.625, 0.25, 0.125]);
        assert_eq!(report.dead, [1, 2]);
    }

    #[test]
    fn entropy_is_of_the_largest() {
        assert_eq!(entropy(&[1.0, 0.0]), 0.0);
        assert!((entropy(&[0.25; 4]) - 1.0).abs() < 1e-12);
        assert!((entropy(&[0.5, 0.5, 0.0, 0.0]) - 0.5).abs() < 1e-12);
    }
}
