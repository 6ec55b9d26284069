//! Attention experts as the heads of one attention, for programs whose heads have sigmoid gates.
//!
//! Attention experts side by side are one attention with more heads, and the gate of an expert weights its heads. A gate of sigmoid
//! routing is a sigmoid times a factor, and the output projection takes the factor. Of two logits, a softmax is the sigmoid
//! of their difference.

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

/// The number of layers with attention experts.
pub(super) fn expert_layers(mixture: &Mixture, num_layers: u64) -> u64 {
    match mixture.attention_kv {
        AttentionKv::Merged => 0,
        _ => mixture.attention_moe_layers.count(num_layers),
    }
}

/// Why sigmoids of heads cannot compute the gates of attention experts, each reason named.
pub(super) fn gates_that_differ(
    mixture: &Mixture,
    num_layers: u64,
) -> impl Iterator<Item = String> + use<> {
    let experts = mixture.num_attention_experts;
    let has_experts = expert_layers(mixture, num_layers) > 0;
    let chooses = has_experts && mixture.num_attention_experts_per_tok != experts;
    let is_softmax = has_experts && mixture.attention_gate == AttentionGate::Softmax && experts > 2;
    let reasons = [
        chooses.then(|| {
            "every token goes to all attention experts (upcycle --attention-top-k soft)".to_owned()
        }),
        is_softmax.then(|| {
            format!(
                "a softmax over {experts} attention experts is no sigmoid; two experts fit, and any number made by upcycle --attention-gate sigmoid"
            )
        }),
    ];
    reasons.into_iter().flatten()
}
