//! FLOPs of one token in a layer, as in the paper's Table 10.

use serde::Serialize;

use super::counts::{
    adapted, attention_routing, ffn_inputs, ffn_routing, kv_copies, shared_expert,
};
use crate::Result;
use crate::family::{Architecture, FamilyError, MlpType};

/// FLOPs of one token in one layer, named as in the paper's Table 10.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Flops {
    /// Router of the attention experts.
    pub attention_router: u64,
    /// Projections to queries, keys and values.
    pub qkv_projection: u64,
    /// Scores against the context.
    pub attention_mask: u64,
    /// Projection of the heads' outputs.
    pub output_projection: u64,
    /// Router of the feed-forward experts.
    pub ffn_router: u64,
    /// Feed-forward networks.
    pub ffn: u64,
    /// The shared expert and its gate.
    pub shared_expert: u64,
    /// Adapters of the experts of both kinds.
    pub adapters: u64,
    /// QKV projection, mask and output projection: the attention column of Table 7.
    pub attention: u64,
    /// Everything.
    pub total: u64,
}

/// Table 10 of the paper, with `d_attn` and the keys' width by themselves where they differ from `d`. Queries, scores
/// and outputs count for the routed number of attention experts.
pub(super) fn layer_flops(
    a: &Architecture,
    attention_experts: bool,
    ffn_experts: bool,
    context: u64,
) -> Result<Flops> {
    let wide = |value: u64| u128::from(value);
    let (d, q, kv) = (
        wide(a.hidden_size),
        wide(a.query_width()),
        wide(a.kv_width()),
    );
    let (experts, routed) = attention_routing(a, attention_experts);
    let (ffns, ffns_routed, ffn_width) = ffn_routing(a, ffn_experts);
    let copies = wide(kv_copies(a, attention_experts));
    let router = |present: bool, experts: u64| if present { 2 * wide(experts) * d } else { 0 };
    let attention_router = router(attention_experts, experts);
    let ffn_router = router(ffn_experts, ffns);
    let qkv_projection = 2 * d * (q * wide(routed) + 2 * kv * copies);
    let attention_mask = 2 * wide(routed) * wide(context) * q;
    let output_projection = 2 * wide(routed) * q * d;
    let gating = if a.mlp_type == MlpType::Gated { 3 } else { 0 };
    let one_ffn = |width: u64| wide(width) * (2 * d * wide(ffn_inputs(a) + 1) + gating);
    let ffn = wide(ffns_routed) * one_ffn(ffn_width);
    let shared_expert = shared_expert(a, ffn_experts).map_or(0, |(width, gate)| {
        one_ffn(width) + if gate { 2 * d } else { 0 }
    });
    let adapters = 2
        * d
        * d
        * wide(adapted(
            a,
            attention_experts,
            ffn_experts,
            routed,
            ffns_routed,
        ));
    let attention = qkv_projection + attention_mask + output_projection;
    Ok(Flops {
        attention_router: fit(attention_router)?,
        qkv_projection: fit(qkv_projection)?,
        attention_mask: fit(attention_mask)?,
        output_projection: fit(output_projection)?,
        ffn_router: fit(ffn_router)?,
        ffn: fit(ffn)?,
        shared_expert: fit(shared_expert)?,
        adapters: fit(adapters)?,
        attention: fit(attention)?,
        total: fit(attention + attention_router + ffn_router + ffn + shared_expert + adapters)?,
    })
}

/// FLOPs too many to print are refused, not wrapped around.
pub(super) fn fit(flops: u128) -> Result<u64> {
    u64::try_from(flops).map_err(|_| {
        FamilyError::ManyFlops {
            found: Box::new(flops),
        }
        .into()
    })
}
