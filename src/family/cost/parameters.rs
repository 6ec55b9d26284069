//! Parameters of a layer by component, as in the paper's Table 9.

use std::fmt;

use serde::Serialize;

use super::counts::{
    adapted, attention_routing, ffn_inputs, ffn_routing, kv_copies, norm_size, shared_expert,
};
use crate::family::{Architecture, QkNorm, Role, RouterBias};

/// A row of the parameter table, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Input embedding.
    InputEmbedding,
    /// Output embedding, its bias included; no matrix where it is tied to the input's.
    OutputEmbedding,
    /// Norms of the blocks, their biases included.
    Norms,
    /// Norm before the head.
    FinalNorm,
    /// Weights of q, k and v.
    QkvProjection,
    /// Weight of o.
    OutputProjection,
    /// Biases of q, k, v and o.
    AttentionBiases,
    /// Norms of queries and keys.
    QkNorms,
    /// Router of the attention experts, its bias included.
    AttentionRouter,
    /// Router of the feed-forward experts, its bias included.
    FfnRouter,
    /// Weights of gate and up.
    FfnIn,
    /// Weight of down.
    FfnOut,
    /// Biases of gate, up and down.
    FfnBiases,
    /// The shared expert, its biases and its gate.
    SharedExpert,
    /// Adapters of the experts of both kinds.
    Adapters,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::InputEmbedding => "input embedding",
            Self::OutputEmbedding => "output embedding",
            Self::Norms => "norms",
            Self::FinalNorm => "final norm",
            Self::QkvProjection => "QKV projection",
            Self::OutputProjection => "output projection",
            Self::AttentionBiases => "attention biases",
            Self::QkNorms => "QK norms",
            Self::AttentionRouter => "attention router",
            Self::FfnRouter => "FFN router",
            Self::FfnIn => "FFN in (gate + up)",
            Self::FfnOut => "FFN out (down)",
            Self::FfnBiases => "FFN biases",
            Self::SharedExpert => "shared expert",
            Self::Adapters => "adapters",
        })
    }
}

/// Parameters of one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Which component.
    pub component: Component,
    /// All parameters.
    pub total: u64,
    /// Parameters that one token uses; every router counts, and with top-k attention K and V of every expert do,
    /// because a later token may look at them.
    pub active: u64,
}

/// Parameters of one layer, by component.
pub(super) fn layer_parameters(
    a: &Architecture,
    attention_experts: bool,
    ffn_experts: bool,
) -> Vec<Parameters> {
    let (d, q, kv) = (a.hidden_size, a.query_width(), a.kv_width());
    let (experts, routed) = attention_routing(a, attention_experts);
    let copies = kv_copies(a, attention_experts);
    let (ffns, ffns_routed, ffn_width) = ffn_routing(a, ffn_experts);
    let inputs = ffn_inputs(a);
    // `each` counts once per expert, `always` whatever the routing.
    let row = |component, each: u64, experts: u64, routed: u64, always: u64| Parameters {
        component,
        total: each * experts + always,
        active: each * routed + always,
    };
    let if_present = |present: bool, count: u64| if present { count } else { 0 };
    let norms = Role::norms(a.block, a.norm_position).len() as u64 * norm_size(a);
    let (q_bias, kv_bias) = (
        if_present(a.attention_bias, q),
        if_present(a.attention_bias, 2 * kv * copies),
    );
    let (q_norm, k_norm) = match a.qk_norm {
        QkNorm::None => (0, 0),
        QkNorm::HeadDim => (a.head_dim, a.head_dim * copies),
        QkNorm::PerHead | QkNorm::Full => (q, kv * copies),
    };
    let attention_bias = q_bias + if_present(a.attention_output_bias, d);
    let ffn_bias = if_present(a.mlp_bias, inputs * ffn_width + d);
    let bias = a
        .mixture
        .as_ref()
        .map_or(RouterBias::None, |mixture| mixture.router_bias);
    let attention_router = if_present(
        attention_experts,
        experts * (d + u64::from(bias == RouterBias::Logits)),
    );
    let ffn_router = if_present(
        ffn_experts,
        ffns * (d + u64::from(bias != RouterBias::None)),
    );
    let shared = shared_expert(a, ffn_experts).map_or(0, |(width, gate)| {
        (inputs + 1) * width * d + if_present(a.mlp_bias, inputs * width + d) + if_present(gate, d)
    });
    let adapters =
        |experts: u64, ffns: u64| d * d * adapted(a, attention_experts, ffn_experts, experts, ffns);
    let mut rows = vec![
        row(Component::Norms, 0, 0, 0, norms),
        row(
            Component::QkvProjection,
            q * d,
            experts,
            routed,
            2 * kv * d * copies,
        ),
        row(Component::OutputProjection, d * q, experts, routed, 0),
        row(
            Component::AttentionBiases,
            attention_bias,
            experts,
            routed,
            kv_bias,
        ),
        row(Component::QkNorms, q_norm, experts, routed, k_norm),
        row(Component::AttentionRouter, 0, 0, 0, attention_router),
        row(Component::FfnRouter, 0, 0, 0, ffn_router),
        row(
            Component::FfnIn,
            inputs * ffn_width * d,
            ffns,
            ffns_routed,
            0,
        ),
        row(Component::FfnOut, d * ffn_width, ffns, ffns_routed, 0),
        row(Component::FfnBiases, ffn_bias, ffns, ffns_routed, 0),
    ];
    let adapters = Parameters {
        component: Component::Adapters,
        total: adapters(experts, ffns),
        active: adapters(routed, ffns_routed),
    };
    // Not rows of the paper's table, which shows those that a model does not have as zero.
    rows.extend(
        [row(Component::SharedExpert, 0, 0, 0, shared), adapters]
            .into_iter()
            .filter(|row| row.total > 0),
    );
    rows
}
