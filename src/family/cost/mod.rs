//! What an architecture costs: parameters by component, FLOPs a token, bytes of KV cache. Pure arithmetic.
//!
//! Parameter counts follow the paper's Table 9, and FLOPs its Tables 7 and 10, with the conventions of these tables:
//!
//! - the attention column leaves the router out,
//! - the "mask" is Kaplan's `2 · n_ctx · d_attn`,
//! - the feed-forward column has a term `3 · k · I` beside the matmuls.
//!
//! Biases, norms and the RoPE cost no FLOPs.

mod counts;
mod flops;
mod parameters;
mod request;
mod table;
#[cfg(test)]
mod tests;

use safetensors::Dtype;
use serde::Serialize;

use self::counts::{kv_copies, norm_size};
use self::flops::{fit, layer_flops};
use self::parameters::layer_parameters;
use super::{Architecture, AttentionKv, FamilyError, Layers};
use crate::Result;
use crate::checkpoint::dtype::torch_name;

pub use flops::Flops;
pub use parameters::{Component, Parameters};
pub use request::{CostedMethod, Request};
pub use table::{summary, table};

/// Context length of the paper's FLOPs table.
pub const PAPER_CONTEXT: u64 = 256;

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
