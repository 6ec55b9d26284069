//! What an architecture costs: parameters by component, FLOPs a token, bytes of KV cache. Pure arithmetic.
//!
//! Parameter counts follow the paper's Table 9, and FLOPs its Tables 7 and 10, with the conventions of these tables:
//!
//! - the attention column leaves the router out,
//! - the "mask" is Kaplan's `2 · n_ctx · d_attn`,
//! - the feed-forward column has a term `3 · k · I` beside the matmuls.
//!
//! Biases, norms and the RoPE cost no FLOPs.

mod request;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

use safetensors::Dtype;
use serde::Serialize;

use super::{Architecture, AttentionKv, FamilyError, Layers, MlpType, QkNorm, Role, RouterBias};
use crate::Result;
use crate::checkpoint::dtype::torch_name;

pub use request::{CostedMethod, Request};
pub use table::{summary, table};

/// Context length of the paper's FLOPs table.
pub const PAPER_CONTEXT: u64 = 256;

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

/// Layers that are built alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerKind {
    /// Whether attention has experts here.
    pub attention_experts: bool,
    /// Whether the feed-forward network has experts here.
    pub ffn_experts: bool,
    /// Which layers.
    pub layers: Vec<u64>,
    /// Parameters of one layer of this kind.
    pub parameters: Vec<Parameters>,
    /// FLOPs of one token in one layer of this kind.
    pub flops_per_token: Flops,
}

/// What an architecture costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The architecture.
    pub architecture: Architecture,
    /// Tokens of context that the FLOPs are for.
    pub context: u64,
    /// What the config calls its dtype; `float32`, as transformers assumes, where it calls it nothing.
    pub dtype: String,
    /// Parameters of the whole model by component.
    pub parameters: Vec<Parameters>,
    /// All parameters.
    pub total_parameters: u64,
    /// Parameters that one token uses.
    pub active_parameters: u64,
    /// Bytes of all parameters in [`Self::dtype`].
    pub parameter_bytes: u64,
    /// The layers, by kind.
    pub layer_kinds: Vec<LayerKind>,
    /// FLOPs of one token through the whole model, the output head included.
    pub flops_per_token: u64,
    /// Of these, the output head.
    pub head_flops_per_token: u64,
    /// Values that one token leaves in the KV cache.
    pub kv_cache_values_per_token: u64,
    /// The same in bytes of [`Self::dtype`].
    pub kv_cache_bytes_per_token: u64,
}

impl Report {
    /// The cost of `architecture` where a token has `context` tokens to look at.
    pub fn new(architecture: &Architecture, context: u64) -> Result<Self> {
        let a = architecture;
        a.check()
            .map_err(|fault| FamilyError::Architecture { fault })?;
        let layer_kinds = layer_kinds(a, context)?;
        let d = a.hidden_size;
        let once = |component, count| Parameters {
            component,
            total: count,
            active: count,
        };
        let output = if a.tie_word_embeddings {
            0
        } else {
            a.vocab_size * d
        };
        let head_bias = if a.head_bias { a.vocab_size } else { 0 };
        let mut parameters = vec![
            once(Component::InputEmbedding, a.vocab_size * d),
            once(Component::OutputEmbedding, output + head_bias),
            once(Component::FinalNorm, norm_size(a)),
        ];
        for kind in &layer_kinds {
            let layers = kind.layers.len() as u64;
            for row in &kind.parameters {
                let (total, active) = (row.total * layers, row.active * layers);
                match parameters
                    .iter_mut()
                    .find(|sum| sum.component == row.component)
                {
                    Some(sum) => (sum.total, sum.active) = (sum.total + total, sum.active + active),
                    None => parameters.push(Parameters {
                        component: row.component,
                        total,
                        active,
                    }),
                }
            }
        }
        parameters.sort_by_key(|row| row.component);
        let total_parameters = parameters.iter().map(|row| row.total).sum();
        let active_parameters = parameters.iter().map(|row| row.active).sum();
        let dtype = a.dtype.unwrap_or(Dtype::F32);
        let bytes = |values: u64| (values * dtype.bitsize() as u64).div_ceil(8);
        let head_flops_per_token = 2 * d * a.vocab_size;
        let flops =
            |kind: &LayerKind| u128::from(kind.flops_per_token.total) * kind.layers.len() as u128;
        let flops: u128 = layer_kinds.iter().map(flops).sum();
        let kv = |kind: &LayerKind| {
            2 * a.kv_width() * kv_copies(a, kind.attention_experts) * kind.layers.len() as u64
        };
        let kv_cache_values_per_token = layer_kinds.iter().map(kv).sum();
        Ok(Self {
            context,
            dtype: torch_name(dtype).map_or_else(|| format!("{dtype:?}"), str::to_owned),
            total_parameters,
            active_parameters,
            parameter_bytes: bytes(total_parameters),
            flops_per_token: fit(flops + u128::from(head_flops_per_token))?,
            head_flops_per_token,
            kv_cache_values_per_token,
            kv_cache_bytes_per_token: bytes(kv_cache_values_per_token),
            parameters,
            layer_kinds,
            architecture: a.clone(),
        })
    }

    /// Parameters of one component of the whole model.
    pub fn component(&self, component: Component) -> Option<&Parameters> {
        self.parameters
            .iter()
            .find(|row| row.component == component)
    }
}

/// FLOPs too many to print are refused, not wrapped around.
fn fit(flops: u128) -> Result<u64> {
    u64::try_from(flops).map_err(|_| {
        FamilyError::ManyFlops {
            found: Box::new(flops),
        }
        .into()
    })
}

/// The kinds of layers that stand in the model, in order of their first layer.
fn layer_kinds(a: &Architecture, context: u64) -> Result<Vec<LayerKind>> {
    let none = Layers::List(Vec::new());
    let (attention, ffn) = match &a.mixture {
        Some(mixture) if mixture.attention_kv == AttentionKv::Merged => {
            (&none, &mixture.moe_layers)
        }
        Some(mixture) => (&mixture.attention_moe_layers, &mixture.moe_layers),
        None => (&none, &none),
    };
    let mut kinds: Vec<LayerKind> = Vec::new();
    let masks = attention
        .mask(a.num_layers)
        .into_iter()
        .zip(ffn.mask(a.num_layers));
    for (layer, (attention_experts, ffn_experts)) in (0..).zip(masks) {
        let same = |kind: &&mut LayerKind| {
            (kind.attention_experts, kind.ffn_experts) == (attention_experts, ffn_experts)
        };
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.layers.push(layer),
            None => kinds.push(LayerKind {
                attention_experts,
                ffn_experts,
                layers: vec![layer],
                parameters: layer_parameters(a, attention_experts, ffn_experts),
                flops_per_token: layer_flops(a, attention_experts, ffn_experts, context)?,
            }),
        }
    }
    Ok(kinds)
}

/// Attention experts of a layer and how many of them a token goes to.
fn attention_routing(a: &Architecture, experts: bool) -> (u64, u64) {
    match a.mixture.as_ref().filter(|_| experts) {
        Some(mixture) => (
            mixture.num_attention_experts,
            mixture.num_attention_experts_per_tok,
        ),
        None => (1, 1),
    }
}

/// Sets of keys and values of a layer.
fn kv_copies(a: &Architecture, experts: bool) -> u64 {
    match a.mixture.as_ref().filter(|_| experts) {
        Some(mixture) if mixture.attention_kv == AttentionKv::Expert => {
            mixture.num_attention_experts
        }
        _ => 1,
    }
}

/// Feed-forward experts of a layer, how many of them a token goes to, and the width of one.
fn ffn_routing(a: &Architecture, experts: bool) -> (u64, u64, u64) {
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
fn shared_expert(a: &Architecture, ffn_experts: bool) -> Option<(u64, bool)> {
    let mixture = a.mixture.as_ref().filter(|_| ffn_experts)?;
    mixture
        .shared_expert_intermediate_size
        .map(|width| (width, mixture.shared_expert_gate))
}

/// How many of `experts` attention and `ffns` feed-forward experts of a layer have an adapter: all or none.
fn adapted(
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
fn ffn_inputs(a: &Architecture) -> u64 {
    match a.mlp_type {
        MlpType::Gated => 2,
        MlpType::Plain => 1,
    }
}

/// Parameters of a norm of hidden states.
fn norm_size(a: &Architecture) -> u64 {
    a.hidden_size * (1 + u64::from(a.norm_bias))
}

fn layer_parameters(
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

/// Table 10 of the paper, with `d_attn` and the keys' width by themselves where they differ from `d`. Queries, scores
/// and outputs count for the routed number of attention experts.
fn layer_flops(
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
