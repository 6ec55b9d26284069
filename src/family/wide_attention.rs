//! Attention experts as the heads of one attention, for programs whose heads have sigmoid gates.
//!
//! Attention experts side by side are one attention with more heads, and the gate of an expert weights its heads. Sigmoids are the
//! gates of sigmoid routing but for a factor, which the output projection takes. The softmax of two logits is the sigmoid of
//! their difference.

use super::architecture::Architecture;
use super::layout::{AttentionGate, AttentionKv};
use super::mixture::Mixture;

/// The attention of a layer with the heads of all experts side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WideAttention {
    /// Experts whose queries are side by side; 1 in a layer without attention experts.
    pub experts: u64,
    /// Sets of keys and values.
    pub sets: u64,
    /// Groups in which the rows of experts alternate: each head of shared keys meets the queries of all experts.
    pub groups: u64,
}

impl WideAttention {
    /// The attention of a layer.
    pub fn of(architecture: &Architecture, layer: u64) -> Self {
        let has_experts = |mixture: &&Mixture| {
            mixture.attention_kv != AttentionKv::Merged
                && mixture.attention_moe_layers.contains(layer)
        };
        match architecture.mixture.as_ref().filter(has_experts) {
            None => Self {
                experts: 1,
                sets: 1,
                groups: 1,
            },
            Some(mixture) if mixture.attention_kv == AttentionKv::Shared => Self {
                experts: mixture.num_attention_experts,
                sets: 1,
                groups: architecture.num_kv_heads,
            },
            Some(mixture) => Self {
                experts: mixture.num_attention_experts,
                sets: mixture.num_attention_experts,
                groups: 1,
            },
        }
    }
}

/// Why the gates of attention experts are no sigmoids of heads, each reason named.
pub(super) fn gates_that_differ(mixture: &Mixture) -> impl Iterator<Item = String> + use<> {
    let experts = mixture.num_attention_experts;
    let has_experts = mixture.attention_kv != AttentionKv::Merged;
    let chooses = has_experts && mixture.num_attention_experts_per_tok != experts;
    let is_softmax = has_experts && mixture.attention_gate == AttentionGate::Softmax && experts > 2;
    let reasons = [
        chooses.then(|| {
            "every token goes to all attention experts (--attention-top-k soft)".to_owned()
        }),
        is_softmax.then(|| {
            format!(
                "a softmax over {experts} attention experts is no sigmoid; two experts fit, and --attention-gate sigmoid"
            )
        }),
    ];
    reasons.into_iter().flatten()
}
