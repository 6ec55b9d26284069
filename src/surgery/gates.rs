//! The sum of a token's gates before any training.
//!
//! Each layer was trained with its output counted once. So a fresh mixture works best where the gates of the experts of a
//! token sum to 1. They do where all experts are chosen, and where gates are divided by their sum. Raw gates of the top k
//! sum to k/E at least. How much more depends on how far apart the logits are; only an estimate needs no model.

use serde::Serialize;

use super::methods::RuleContext;
use super::random::Draws;
use super::router::RouterInit;
use super::settings::UpcycleSettings;
use crate::family::{Architecture, AttentionGate, AttentionKv};
use crate::table::number;

/// What the gates of a token sum to in a mixture that no training has changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FreshGates {
    /// Gates of the feed-forward experts, the shared expert left out.
    pub feed_forward: GateSum,
    /// Gates of the attention experts, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<GateSum>,
}

/// What the gates of one kind of routers sum to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GateSum {
    /// Experts of a layer.
    pub experts: u64,
    /// Experts that a token goes to.
    pub experts_per_token: u64,
    /// How logits become gates.
    #[serde(skip_serializing_if = "AttentionGate::is_softmax")]
    pub gate: AttentionGate,
    /// Whether gates are divided by their sum.
    pub normalised: bool,
    /// The mean sum over tokens; none where it depends on rows that a file holds.
    pub sum: Option<f64>,
    /// Whether `sum` holds for each token and any router, and is no estimate.
    pub exact: bool,
    /// The least that the gates of a token can sum to.
    pub at_least: f64,
    /// Whether the weights of the experts make up for a sum that is not 1.
    pub weights_make_up: bool,
}

impl FreshGates {
    /// The sums in the mixture `architecture` that these settings make.
    pub(super) fn of(
        architecture: &Architecture,
        settings: &UpcycleSettings,
        context: &RuleContext,
    ) -> Self {
        let hidden = architecture.hidden_size;
        let rows_each = settings.expert_rule.router_rows_each();
        let feed_forward = GateSum {
            weights_make_up: settings.expert_rule.makes_up_for_gates(context),
            ..GateSum::new(context.experts, context.top_k, context.norm_topk_prob).estimated(
                &settings.router,
                rows_each,
                hidden,
            )
        };
        let attention = architecture
            .mixture
            .as_ref()
            .filter(|mixture| mixture.attention_kv != AttentionKv::Merged)
            .map(|mixture| match mixture.attention_gate {
                AttentionGate::Softmax => GateSum::new(
                    mixture.num_attention_experts,
                    mixture.num_attention_experts_per_tok,
                    mixture.norm_topk_prob_attention,
                )
                .estimated(&settings.attention_router, 1, hidden),
                AttentionGate::Sigmoid => GateSum::of_sigmoids(
                    mixture.num_attention_experts,
                    &settings.attention_router,
                    hidden,
                ),
            });
        Self {
            feed_forward,
            attention,
        }
    }

    /// What a user should know of gates that do not sum to 1, and which flags make them.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(text) = self.feed_forward.shortfall() {
            let flags = if self.feed_forward.experts_per_token > 1 {
                "--norm-topk-prob true"
            } else {
                "--top-k 2 --norm-topk-prob true"
            };
            warnings.push(format!(
                "the gates of a token's feed-forward experts sum to {text} at step 0, not to 1. \
                 Layers then add less than they learned, and the untrained mixture predicts badly. {flags} makes the sum 1"
            ));
        }
        if let Some(text) = self.attention.as_ref().and_then(GateSum::shortfall) {
            warnings.push(format!(
                "the gates of a token's attention experts sum to {text} at step 0, not to 1. \
                 --attention-top-k soft makes the sum 1"
            ));
        }
        let sigmoids = self.attention.filter(|sum| sum.is_unknown_sigmoid());
        if let Some(sum) = sigmoids {
            warnings.push(format!(
                "the sigmoid gates of a token's attention experts sum to {} at step 0: it depends on the rows of their router. \
                 Layers work best where the sum is 1. --attention-router normal makes it about 1",
                sum.text()
            ));
        }
        warnings
    }
}

impl std::fmt::Display for FreshGates {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "feed-forward {}", self.feed_forward)?;
        match &self.attention {
            Some(attention) => write!(f, "; attention {attention}"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for GateSum {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (chosen, experts) = (self.experts_per_token, self.experts);
        write!(f, "sum {} ({chosen} of {experts} experts", self.text())?;
        if self.gate == AttentionGate::Sigmoid {
            f.write_str(", sigmoid gates")?;
        }
        if self.weights_make_up {
            f.write_str("; the weights make up for it")?;
        }
        f.write_str(")")
    }
}

impl GateSum {
    fn new(experts: u64, experts_per_token: u64, normalised: bool) -> Self {
        let exact = normalised || experts_per_token == experts;
        let share = experts_per_token as f64 / experts as f64;
        Self {
            experts,
            experts_per_token,
            gate: AttentionGate::Softmax,
            normalised,
            sum: exact.then_some(1.0),
            exact,
            at_least: if exact { 1.0 } else { share },
            weights_make_up: false,
        }
    }

    /// Sigmoids with their usual scale, whose mean is 1 where logits are drawn as often above zero as below it.
    fn of_sigmoids(experts: u64, router: &RouterInit, hidden: u64) -> Self {
        Self {
            gate: AttentionGate::Sigmoid,
            sum: spread(router, hidden).map(|_| 1.0),
            exact: false,
            at_least: 0.0,
            ..Self::new(experts, experts, false)
        }
    }

    /// The same with an estimate of the sum, where the router is drawn.
    fn estimated(self, router: &RouterInit, rows_each: u64, hidden: u64) -> Self {
        let sum = || {
            spread(router, hidden)
                .map(|spread| top_sum(self.experts, self.experts_per_token, rows_each, spread))
        };
        Self {
            sum: self.sum.or_else(sum),
            ..self
        }
    }

    /// The sum in words, where it is not 1 and nothing makes up for that.
    fn shortfall(&self) -> Option<String> {
        let is_sigmoid = self.gate == AttentionGate::Sigmoid;
        (!self.exact && !self.weights_make_up && !is_sigmoid).then(|| self.text())
    }

    /// Whether gates are sigmoids of rows that nothing here knows.
    fn is_unknown_sigmoid(&self) -> bool {
        self.gate == AttentionGate::Sigmoid && self.sum.is_none()
    }

    fn text(&self) -> String {
        match self.sum {
            Some(_) if self.exact => "1".to_owned(),
            Some(sum) => format!("about {}", number(sum)),
            // The largest sigmoid is twice its mean.
            None if self.gate == AttentionGate::Sigmoid => "0 to 2".to_owned(),
            None => format!("{} to 1", number(self.at_least)),
        }
    }
}

/// The standard deviation of the logits of a fresh router, whose inputs are normed to a mean square of 1; the weights of
/// norms are left out.
fn spread(router: &RouterInit, hidden: u64) -> Option<f64> {
    match router {
        RouterInit::Normal(std) | RouterInit::Uniform(std) => Some(std * libm::sqrt(hidden as f64)),
        RouterInit::Orthogonal(gain) => Some(*gain),
        RouterInit::Zeros => Some(0.0),
        RouterInit::File(_) | RouterInit::Prompts(_) => None,
    }
}

/// The mean sum of the `chosen` largest of a softmax over `experts` logits from N(0, `spread`²), of which each
/// `rows_each` in a row are equal.
fn top_sum(experts: u64, chosen: u64, rows_each: u64, spread: f64) -> f64 {
    /// Logits that are drawn in all: enough for two digits, and no time.
    const DRAWN: u64 = 1 << 16;
    let rows = (experts / rows_each).max(1);
    let tokens = (DRAWN / rows).max(1);
    let draws = Draws::new(0, "gates before training");
    let mut logits = vec![0.0; rows as usize];
    let mut sum = 0.0;
    for token in 0..tokens {
        draws.normal(token * rows, &mut logits);
        logits.sort_by(|a, b| b.total_cmp(a));
        let weight = |logit: &f64| libm::exp(spread * (logit - logits[0]));
        let all: f64 = logits.iter().map(weight).sum::<f64>() * rows_each as f64;
        let whole = (chosen / rows_each) as usize;
        let part = (chosen % rows_each) as f64;
        let of_whole: f64 = logits[..whole].iter().map(weight).sum::<f64>() * rows_each as f64;
        let of_part = logits.get(whole).map_or(0.0, |logit| part * weight(logit));
        sum += (of_whole + of_part) / all;
    }
    sum / tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_of_zeros_gives_every_expert_the_same_gate() {
        assert!((top_sum(8, 2, 1, 0.0) - 0.25).abs() < 1e-12);
        assert!((top_sum(8, 3, 4, 0.0) - 0.375).abs() < 1e-12);
    }

    #[test]
    fn wide_logits_leave_one_expert() {
        let [narrow, wide] = [0.1, 10.0].map(|spread| top_sum(4, 1, 1, spread));
        assert!((0.25..0.3).contains(&narrow), "{narrow}");
        assert!((0.85..1.0).contains(&wide), "{wide}");
    }

    #[test]
    fn two_gates_of_two_logits_are_a_logistic() {
        // E[max(p, 1 − p)] for p = logistic(z), z from N(0, 2 · 0.5²), by a sum over a fine grid.
        let step = 1e-3;
        let expected: f64 = (-8000..8000)
            .map(|i| {
                let z = f64::from(i) * step;
                let density = libm::exp(-z * z) / libm::sqrt(std::f64::consts::PI);
                density * step / (1.0 + libm::exp(-z.abs()))
            })
            .sum();
        // z has a variance of 2 · 0.5² = 0.5, whose density is exp(−z²)/√π.
        assert!(
            (top_sum(2, 1, 1, 0.5) - expected).abs() < 5e-3,
            "{expected}"
        );
    }
}
