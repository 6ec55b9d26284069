//! Configuration keys of a family as its format file lists them, and whether its class knows a key at all.

use serde::Deserialize;
use serde_json::Value;

use super::format::{Family, Presence};

/// One configuration key: the names it may have and the value where none of them stands.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Alternative names, each with the same meaning; `a.b` is key `b` of the object `a`.
    pub(crate) names: Vec<String>,
    /// The value where no name stands in `config.json`.
    #[serde(default)]
    pub(crate) default: Option<Value>,
    /// The default of transformers 4, where transformers 5 has another.
    #[serde(default)]
    pub(crate) default_before_5: Option<Value>,
}

/// The configuration keys that the toolkit reads, under the names of the fields of `Architecture`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keys {
    pub(crate) hidden_size: Key,
    pub(crate) intermediate_size: Key,
    pub(crate) num_layers: Key,
    pub(crate) num_heads: Key,
    pub(crate) num_kv_heads: Key,
    pub(crate) vocab_size: Key,
    pub(crate) norm_eps: Key,
    pub(crate) tie_word_embeddings: Key,
    #[serde(default)]
    pub(crate) head_dim: Key,
    #[serde(default)]
    pub(crate) max_position_embeddings: Key,
    #[serde(default)]
    pub(crate) hidden_act: Key,
    #[serde(default)]
    pub(crate) rope_theta: Key,
    #[serde(default)]
    pub(crate) initializer_range: Key,
    #[serde(default)]
    pub(crate) dtype: Key,
    #[serde(default)]
    pub(crate) logit_scale: Key,
    #[serde(default)]
    pub(crate) sliding_window: Key,
    #[serde(default)]
    pub(crate) use_sliding_window: Key,
    /// Layers below it see all positions, where the family has such a key.
    #[serde(default)]
    pub(crate) max_window_layers: Key,
    /// The list of kinds of layers, `sliding_attention` and `full_attention`.
    #[serde(default)]
    pub(crate) layer_types: Key,
    #[serde(default)]
    pub(crate) partial_rotary_factor: Key,
    #[serde(default)]
    pub(crate) clip_qkv: Key,
}

impl Keys {
    /// Every key.
    fn all(&self) -> [&Key; 21] {
        [
            &self.hidden_size,
            &self.intermediate_size,
            &self.num_layers,
            &self.num_heads,
            &self.num_kv_heads,
            &self.vocab_size,
            &self.norm_eps,
            &self.tie_word_embeddings,
            &self.head_dim,
            &self.max_position_embeddings,
            &self.hidden_act,
            &self.rope_theta,
            &self.initializer_range,
            &self.dtype,
            &self.logit_scale,
            &self.sliding_window,
            &self.use_sliding_window,
            &self.max_window_layers,
            &self.layer_types,
            &self.partial_rotary_factor,
            &self.clip_qkv,
        ]
    }
}

/// The configuration keys of a mixture's experts; a key without names is fixed at its default.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MixtureKeys {
    pub(crate) num_experts: Key,
    pub(crate) num_experts_per_tok: Key,
    pub(crate) moe_intermediate_size: Key,
    pub(crate) norm_topk_prob: Key,
    pub(crate) router_aux_loss_coef: Key,
    /// The width of the shared expert, which each checkpoint of such a family has.
    #[serde(default)]
    pub(crate) shared_expert_intermediate_size: Option<Key>,
    /// The list of layers without experts.
    #[serde(default)]
    pub(crate) dense_layers: Option<String>,
    /// The number `n` where only each `n`-th layer has experts.
    #[serde(default)]
    pub(crate) sparse_step: Option<String>,
}

impl MixtureKeys {
    /// Every key but those of lists of layers.
    fn all(&self) -> impl Iterator<Item = &Key> {
        [
            &self.num_experts,
            &self.num_experts_per_tok,
            &self.moe_intermediate_size,
            &self.norm_topk_prob,
            &self.router_aux_loss_coef,
        ]
        .into_iter()
        .chain(&self.shared_expert_intermediate_size)
    }
}

impl Family {
    /// Whether the configuration class of the family knows the key of that name. A BAM's holds what its seed's class knows.
    pub(crate) fn knows(&self, name: &str) -> bool {
        /// Keys of every configuration in transformers that change nothing that is computed here.
        const COMMON: [&str; 21] = [
            "_name_or_path",
            "architectures",
            "attn_implementation",
            "bos_token_id",
            "chunk_size_feed_forward",
            "eos_token_id",
            // Ours, in mixtures of every family.
            "expert_names",
            "id2label",
            "label2id",
            "model_type",
            "original_max_position_embeddings",
            "output_attentions",
            "output_hidden_states",
            "pad_token_id",
            "problem_type",
            "return_dict",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "transformers_version",
            "use_cache",
        ];
        let mixture = self.mixture.as_ref();
        let mut keys = self
            .keys
            .all()
            .into_iter()
            .chain(mixture.into_iter().flat_map(MixtureKeys::all))
            .flat_map(|key| key.names.iter());
        let presences = [
            &self.present.attention_bias,
            &self.present.attention_output_bias,
            &self.present.mlp_bias,
            &self.present.qk_norm,
        ];
        let lists = mixture
            .into_iter()
            .flat_map(|mixture| [&mixture.dense_layers, &mixture.sparse_step]);
        self.says_layouts()
            || COMMON.contains(&name)
            || self.other_keys.iter().any(|key| key == name)
            || self.refused.iter().any(|refused| refused.key == name)
            || keys.any(|key| key == name)
            || lists.flatten().any(|key| key == name)
            || presences
                .into_iter()
                .any(|presence| matches!(presence, Presence::Key { name: key, .. } if key == name))
    }
}
