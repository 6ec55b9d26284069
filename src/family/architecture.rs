//! What a `config.json` says, with the differences between families resolved.

use std::ops::Not;
use std::sync::Arc;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};

use super::architecture_fault::ArchitectureFault;
use super::config::{FIRST_BAM_VERSION, LAST_BAM_VERSION};
use super::format::Family;
use super::keys::Field;
use super::known::BAM;
use super::layout::{
    AttentionGate, Block, Layers, Layouts, MlpType, NormPosition, NormType, QkNorm,
};
use super::mixture::Mixture;
use super::multimodal::Multimodal;
use super::multipliers::Multipliers;
use super::rope_kinds::LayerRope;
use crate::Result;

/// The most layers of a model. Lists of layers are made only after a comparison with this.
pub(super) const MOST_LAYERS: u64 = 100_000;

/// A decoder as its configuration describes it, dense or a mixture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    /// Name of the family.
    pub family: String,
    /// How attention and feed-forward are joined.
    pub block: Block,
    /// Which normalisation.
    pub norm_type: NormType,
    /// Where a block normalises.
    pub norm_position: NormPosition,
    /// The feed-forward network.
    pub mlp_type: MlpType,
    /// Whether rotary pairs are neighbours rather than half a head apart.
    pub rope_interleaved: bool,
    /// Whether norms multiply by one plus their weight; norms of queries and keys do, too.
    #[serde(skip_serializing_if = "Not::not")]
    pub norm_offset: bool,
    /// Width of the residual stream, `d`.
    pub hidden_size: u64,
    /// Inner width of a dense feed-forward network.
    pub intermediate_size: u64,
    /// Number of blocks.
    pub num_layers: u64,
    /// Query heads.
    pub num_heads: u64,
    /// Key and value heads; divides [`Self::num_heads`].
    pub num_kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// Whether the output embedding is the input embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether o has a bias.
    pub attention_output_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Whether norms have biases; norms of queries and keys have none.
    #[serde(skip_serializing_if = "Not::not")]
    pub norm_bias: bool,
    /// Whether the output embedding has a bias.
    #[serde(skip_serializing_if = "Not::not")]
    pub head_bias: bool,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Whether queries and keys are normalised after their rotation.
    #[serde(skip_serializing_if = "Not::not")]
    pub qk_norm_after_rope: bool,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies with `rope_type` first; `None` for the plain RoPE.
    pub rope_scaling: Option<Value>,
    /// Activation of the feed-forward network.
    pub hidden_act: String,
    /// Factor on the logits.
    pub logit_scale: Option<f64>,
    /// Positions that attention looks back, where limited.
    pub sliding_window: Option<u64>,
    /// Layers that [`Self::sliding_window`] limits.
    #[serde(skip_serializing_if = "Layers::is_all")]
    pub window_layers: Layers,
    /// Layers that rotate queries and keys.
    #[serde(skip_serializing_if = "Layers::is_all")]
    pub rope_layers: Layers,
    /// Rotation of the layers with a window, where the others rotate in another way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_rope: Option<LayerRope>,
    /// Part of each head that is rotated, where not all of it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
    /// Largest magnitude of queries, keys and values, where limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_qkv: Option<f64>,
    /// Factors and soft caps.
    #[serde(flatten)]
    pub multipliers: Multipliers,
    /// Longest context that the model was made for.
    pub max_position_embeddings: Option<u64>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Dtype of the weights.
    pub dtype: Option<Dtype>,
    /// The experts, in a mixture.
    pub mixture: Option<Mixture>,
    /// The kind of the model that it is the language model of, where that has further inputs.
    #[serde(skip)]
    pub multimodal: Option<&'static Multimodal>,
    /// The family that a user brought; `None` where [`Self::family`] names an embedded one.
    #[serde(skip)]
    pub format: Option<Arc<Family>>,
}

impl Architecture {
    /// The BAM architecture whose experts are copies of this dense one.
    pub fn upcycled(&self, mixture: Mixture) -> Self {
        Self {
            family: BAM.to_owned(),
            mixture: Some(mixture),
            multimodal: None,
            format: None,
            ..self.clone()
        }
    }

    /// The version of a BAM of this architecture: the second where a reader of the first would ignore what some key means.
    pub(super) fn bam_version(&self) -> u64 {
        let is_first = self.block != Block::ParallelTwoNorms
            && !self.norm_bias
            && !self.norm_offset
            && !self.head_bias
            && !self.qk_norm_after_rope
            && self.rope_layers.is_all()
            && self.window_rope.is_none()
            && self.multipliers == Multipliers::default()
            && self.mixture.as_ref().is_none_or(|mixture| {
                mixture.moe_output_multiplier.is_none()
                    && mixture.attention_gate == AttentionGate::Softmax
            });
        if is_first {
            FIRST_BAM_VERSION
        } else {
            LAST_BAM_VERSION
        }
    }

    /// Whether it is a checkpoint of this program's own format, which transformers reads with the code beside it.
    pub fn is_bam(&self) -> bool {
        self.names().is_ok_and(|family| family.says_layouts())
    }

    /// What the model computes, by the keys of a BAM's configuration: models in which all of it is equal fit together.
    pub(crate) fn meaning(&self) -> Vec<(&'static str, Value)> {
        let mut meaning = vec![("model_type", json!(self.family))];
        meaning.extend(self.layouts().rows().map(|row| (row.key, row.value)));
        meaning.extend([
            ("num_hidden_layers", json!(self.num_layers)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_attention_heads", json!(self.num_heads)),
            ("num_key_value_heads", json!(self.num_kv_heads)),
            ("head_dim", json!(self.head_dim)),
            ("vocab_size", json!(self.vocab_size)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("attention_bias", json!(self.attention_bias)),
            ("attention_output_bias", json!(self.attention_output_bias)),
            ("mlp_bias", json!(self.mlp_bias)),
            ("norm_bias", json!(self.norm_bias)),
            ("head_bias", json!(self.head_bias)),
            (self.norm_type.eps_key(), json!(self.norm_eps)),
            ("rope_theta", json!(self.rope_theta)),
            ("rope_scaling", json!(self.rope_scaling)),
            ("hidden_act", json!(self.hidden_act)),
            ("logit_scale", json!(self.logit_scale.unwrap_or(1.0))),
            ("sliding_window", json!(self.sliding_window)),
            ("layer_types", json!(self.window_layers)),
            ("rope_layers", json!(self.rope_layers)),
            ("rope_parameters.sliding_attention", json!(self.window_rope)),
            ("clip_qkv", json!(self.clip_qkv)),
            ("partial_rotary_factor", json!(self.partial_rotary_factor)),
        ]);
        let multipliers = self.multipliers.rows();
        meaning.extend(multipliers.map(|row| (row.field.name(), json!(row.value))));
        meaning
    }

    /// Its layouts.
    pub(crate) fn layouts(&self) -> Layouts {
        Layouts {
            block: self.block,
            norm_type: self.norm_type,
            norm_position: self.norm_position,
            mlp_type: self.mlp_type,
            rope_interleaved: self.rope_interleaved,
            qk_norm: self.qk_norm,
            norm_offset: self.norm_offset,
            qk_norm_after_rope: self.qk_norm_after_rope,
        }
    }

    /// The same model with other layouts.
    pub(crate) fn with_layouts(self, layouts: Layouts) -> Self {
        Self {
            block: layouts.block,
            norm_type: layouts.norm_type,
            norm_position: layouts.norm_position,
            mlp_type: layouts.mlp_type,
            rope_interleaved: layouts.rope_interleaved,
            qk_norm: layouts.qk_norm,
            norm_offset: layouts.norm_offset,
            qk_norm_after_rope: layouts.qk_norm_after_rope,
            ..self
        }
    }

    /// The family that names the tensors.
    pub(crate) fn names(&self) -> Result<Arc<Family>> {
        self.format
            .clone()
            .map_or_else(|| Family::named(&self.family), Ok)
    }

    /// Whether the family divides gates by their sum without a key that could say otherwise.
    pub(crate) fn always_renormalises(&self) -> Result<bool> {
        let family = self.names()?;
        let key = family
            .mixture
            .as_ref()
            .map(|keys| &keys[Field::NormTopkProb]);
        Ok(key.is_some_and(|key| key.names.is_empty() && key.default == Some(Value::Bool(true))))
    }

    /// Width of all queries, `num_heads · head_dim`.
    pub fn query_width(&self) -> u64 {
        self.num_heads * self.head_dim
    }

    /// Width of all keys, `num_kv_heads · head_dim`.
    pub fn kv_width(&self) -> u64 {
        self.num_kv_heads * self.head_dim
    }

    /// The factor on attention scores.
    pub(crate) fn attention_scale(&self) -> f64 {
        self.multipliers.attention_scale(self.head_dim)
    }

    /// Refuses what arithmetic on the architecture could not bear; afterwards a parameter count times 64 fits a `u64`.
    pub(crate) fn check(&self) -> Result<(), ArchitectureFault> {
        const LARGEST: u64 = 1 << 31;
        const MOST_TENSORS: u64 = 1_000_000;
        let width = |heads: u64| heads.saturating_mul(self.head_dim);
        let sizes = [
            ("hidden_size", self.hidden_size, LARGEST),
            ("intermediate_size", self.intermediate_size, LARGEST),
            ("num_hidden_layers", self.num_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_heads, LARGEST),
            ("num_key_value_heads", self.num_kv_heads, self.num_heads),
            ("head_dim", self.head_dim, LARGEST),
            ("vocab_size", self.vocab_size, LARGEST),
            (
                "num_attention_heads x head_dim",
                width(self.num_heads),
                LARGEST,
            ),
        ];
        for (key, size, most) in sizes {
            if size == 0 || size > most {
                return Err(ArchitectureFault::OutOfRange {
                    key,
                    least: 1,
                    most,
                    found: size,
                });
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(ArchitectureFault::KvHeads {
                heads: self.num_heads,
                found: self.num_kv_heads,
            });
        }
        let (mut experts, mut attention_experts, mut ffn_width) = (1, 1, self.intermediate_size);
        let (mut adapter, mut shared, mut more) = (0, 0, 0);
        if let Some(mixture) = &self.mixture {
            mixture.check(self.num_layers)?;
            experts = mixture.num_experts;
            attention_experts = mixture.num_attention_experts.max(1);
            ffn_width = ffn_width.max(mixture.moe_intermediate_size);
            adapter = if mixture.expert_adapters {
                self.hidden_size
            } else {
                0
            };
            shared = mixture.shared_expert_intermediate_size.unwrap_or(0);
            // Adapters, biases of routers, the shared expert.
            more = u128::from(experts + attention_experts + 9);
        }
        // Upper bounds: every layer as if it had every kind of tensor.
        let [layers, d, experts, attention_experts, ffn, adapter, shared] = [
            self.num_layers,
            self.hidden_size,
            experts,
            attention_experts,
            ffn_width,
            adapter,
            shared,
        ]
        .map(u128::from);
        let tensors = layers * (12 + 10 * attention_experts + 6 * experts + more);
        if tensors > u128::from(MOST_TENSORS) {
            return Err(ArchitectureFault::ManyTensors {
                most: MOST_TENSORS,
                found: u64::try_from(tensors).unwrap_or(u64::MAX),
            });
        }
        let attention = 4 * u128::from(width(self.num_heads)) * (d + 2);
        let mlp = |width: u128| 3 * (width + 1) * (d + 2) + 2 * d;
        let adapters = (attention_experts + experts) * adapter * d;
        let layer = attention_experts * (attention + 2 * d)
            + experts * mlp(ffn)
            + mlp(shared)
            + adapters
            + 8 * d;
        if layers * layer + (2 * d + 1) * u128::from(self.vocab_size) > 1 << 57 {
            return Err(ArchitectureFault::ManyParameters);
        }
        Ok(())
    }
}
