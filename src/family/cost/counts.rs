//! Numbers of a layer that both parameters and FLOPs are made of: experts, copies of keys and values, widths.

use crate::family::{Architecture, AttentionKv, MlpType};

/// Attention experts of a layer and how many of them a token goes to.
pub(super) fn attention_routing(a: &Architecture, experts: bool) -> (u64, u64) {
    match a.mixture.as_ref().filter(|_| experts) {
        Some(mixture) => (
            mixture.num_attention_experts,
            mixture.num_attention_experts_per_tok,
        ),
        None => (1, 1),
    }
}

/// Sets of keys and values of a layer.
pub(super) fn kv_copies(a: &Architecture, experts: bool) -> u64 {
    match a.mixture.as_ref().filter(|_| experts) {
        Some(mixture) if mixture.attention_kv == AttentionKv::Expert => {
            mixture.num_attention_experts
        }
        _ => 1,
    }
}

/// Feed-forward experts of a layer, how many of them a token goes to, and the width of one.
pub(super) fn ffn_routing(a: &Architecture, experts: bool) -> (u64, u64, u64) {
    match a.mixture.as_ref().filter(|_| experts) {
        Some(mixture) => (
            mixture.num_experts,
            mixture.num_experts_per_tok,
            mixture.moe_intermediate_size,
        ),
        None => (1, 1, a.intermediate_size),
    }
}

/// Width of the shared expert of a layer with feed-forward experts, and whether it has a gate.
pub(super) fn shared_expert(a: &Architecture, ffn_experts: bool) -> Option<(u64, bool)> {
    let mixture = a.mixture.as_ref().filter(|_| ffn_experts)?;
    mixture
        .shared_expert_intermediate_size
        .map(|width| (width, mixture.shared_expert_gate))
}

/// How many of `experts` attention and `ffns` feed-forward experts of a layer have an adapter: all or none.
pub(super) fn adapted(
    a: &Architecture,
    attention_experts: bool,
    ffn_experts: bool,
    experts: u64,
    ffns: u64,
) -> u64 {
    match a
        .mixture
        .as_ref()
        .is_some_and(|mixture| mixture.expert_adapters)
    {
        true => u64::from(attention_experts) * experts + u64::from(ffn_experts) * ffns,
        false => 0,
    }
}

/// Projections of a feed-forward network from the residual stream inwards.
pub(super) fn ffn_inputs(a: &Architecture) -> u64 {
    match a.mlp_type {
        MlpType::Gated => 2,
        MlpType::Plain => 1,
    }
}

/// Parameters of a norm of hidden states.
pub(super) fn norm_size(a: &Architecture) -> u64 {
    a.hidden_size * (1 + u64::from(a.norm_bias))
}
