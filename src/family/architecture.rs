//! What a `config.json` says, with the differences between families resolved.

use std::sync::Arc;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::Value;

use super::config::{Config, Found};
use super::format::{Family, Presence, Refused};
use super::keys::Key;
use super::layout::{Block, Layers, MlpType, NormPosition, NormType, QkNorm};
use super::mixture::Mixture;
use super::rope::{RopeContext, partial_rotary_factor, rope_theta};
use super::spelling::same_value;
use super::windows::windows;
use crate::checkpoint::dtype::from_torch_name;
use crate::checkpoint::json::kind;
use crate::{Error, Result};

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
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
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
    /// Part of each head that is rotated, where not all of it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
    /// Largest magnitude of queries, keys and values, where limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_qkv: Option<f64>,
    /// Longest context that the model was made for.
    pub max_position_embeddings: Option<u64>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Dtype of the weights.
    pub dtype: Option<Dtype>,
    /// The experts, in a mixture.
    pub mixture: Option<Mixture>,
    /// The family that a user brought; `None` where [`Self::family`] names an embedded one.
    #[serde(skip)]
    pub format: Option<Arc<Family>>,
}

/// A rule that an architecture breaks, by the key that breaks it.
pub(crate) struct Fault {
    pub(crate) key: &'static str,
    pub(crate) problem: String,
}

impl Architecture {
    /// What `config` says, its family found by `model_type` among the embedded ones.
    pub fn of(config: &Config) -> Result<Self> {
        Self::read(config, &*Family::of(config)?)
    }

    /// What `config` says in a family that a user brought with `--format`.
    pub fn of_format(config: &Config, family: Family) -> Result<Self> {
        let architecture = Self::read(config, &family)?;
        Ok(Self {
            format: Some(Arc::new(family)),
            ..architecture
        })
    }

    fn read(config: &Config, family: &Family) -> Result<Self> {
        let keys = &family.keys;
        let present = |presence: &Presence| match presence {
            Presence::Never => Ok(false),
            Presence::Always => Ok(true),
            Presence::Key { name, default } => {
                let key = Key {
                    names: vec![name.clone()],
                    default: Some(Value::Bool(*default)),
                    ..Key::default()
                };
                config.flag(&key).map(Option::unwrap_or_default)
            }
        };
        refuse(config, family)?;
        for (key, expected) in [
            (&keys.norm_eps, "a number"),
            (&keys.rope_theta, "a number"),
            (&keys.logit_scale, "a number"),
            (&keys.hidden_act, "a string"),
            (&keys.head_dim, "a positive integer"),
        ] {
            config.not_null(key, expected)?;
        }
        let hidden_size = config.required_count(&keys.hidden_size)?;
        let num_heads = config.required_count(&keys.num_heads)?;
        let head_dim = match config.count(&keys.head_dim)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let name = keys
                    .num_heads
                    .names
                    .first()
                    .map_or("num_heads", String::as_str);
                let problem = format!(
                    "expected a divisor of the hidden size {hidden_size}, found {num_heads}"
                );
                return Err(Error::key(&config.path, name, problem).with_hint(
                    "a config whose heads do not fill the hidden size says `head_dim`",
                ));
            }
        };
        if let Found::Value(name, value) = config.find(["head_dim"])?
            && config.as_count(name, value)? != head_dim
        {
            let problem = format!(
                "is {}, but heads of the family {} fill the hidden size: {head_dim}",
                value, family.name
            );
            return Err(Error::key(&config.path, name, problem));
        }
        let num_layers = config.required_count(&keys.num_layers)?;
        let (sliding_window, window_layers) = windows(config, family, num_layers)?;
        let partial_rotary_factor = partial_rotary_factor(config, family)?;
        let max_position_embeddings = config.count(&keys.max_position_embeddings)?;
        let context = RopeContext {
            rotary: (head_dim as f64 * partial_rotary_factor.unwrap_or(1.0)) as u64,
            longest: max_position_embeddings,
            own_class: family.says_layouts(),
        };
        let qk_norm = if present(&family.present.qk_norm)? {
            family.qk_norm
        } else {
            QkNorm::None
        };
        // Keys of these names in the configuration of any other family mean nothing to it.
        let layouts = if family.says_layouts() {
            Layouts::said(config)?
        } else {
            Layouts::default()
        };
        let norm_type = layouts.norm_type.unwrap_or(family.norm_type);
        let mut architecture = Self {
            family: family.name.clone(),
            block: layouts.block.unwrap_or(family.block),
            norm_type,
            norm_position: layouts.norm_position.unwrap_or(family.norm_position),
            mlp_type: layouts.mlp_type.unwrap_or(family.mlp_type),
            rope_interleaved: layouts.rope_interleaved.unwrap_or(family.rope_interleaved),
            hidden_size,
            intermediate_size: config.required_count(&keys.intermediate_size)?,
            num_layers,
            num_heads,
            num_kv_heads: config.count(&keys.num_kv_heads)?.unwrap_or(num_heads),
            head_dim,
            vocab_size: config.required_count(&keys.vocab_size)?,
            tie_word_embeddings: config.flag(&keys.tie_word_embeddings)?.unwrap_or_default(),
            attention_bias: present(&family.present.attention_bias)?,
            attention_output_bias: present(&family.present.attention_output_bias)?,
            mlp_bias: present(&family.present.mlp_bias)?,
            qk_norm: layouts.qk_norm.unwrap_or(qk_norm),
            norm_eps: norm_eps(config, family, norm_type)?,
            rope_theta: rope_theta(config, family)?,
            rope_scaling: config.rope_scaling(&context)?,
            hidden_act: config.text(&keys.hidden_act)?.unwrap_or("silu").to_owned(),
            logit_scale: config.number(&keys.logit_scale, f64::MIN)?,
            sliding_window,
            window_layers,
            partial_rotary_factor,
            clip_qkv: config.number(&keys.clip_qkv, f64::MIN_POSITIVE)?,
            max_position_embeddings,
            initializer_range: config.number(&keys.initializer_range, 0.0)?.unwrap_or(0.02),
            dtype: dtype(config, &keys.dtype)?,
            mixture: None,
            format: None,
        };
        architecture.check_in(config)?;
        if family.is_mixture() {
            architecture.mixture = Some(match &family.mixture {
                Some(keys) => Mixture::read_keys(config, &architecture, keys)?,
                None => Mixture::read(config, &architecture)?,
            });
            architecture.check_in(config)?;
        }
        Ok(architecture)
    }

    /// This architecture with the layouts that `config` says in a BAM's own keys.
    ///
    /// For configurations of mixtures that do not exist yet: a model of another family ignores these keys.
    pub(crate) fn with_own_layouts(self, config: &Config) -> Result<Self> {
        let layouts = Layouts::said(config)?;
        Ok(Self {
            block: layouts.block.unwrap_or(self.block),
            norm_type: layouts.norm_type.unwrap_or(self.norm_type),
            norm_position: layouts.norm_position.unwrap_or(self.norm_position),
            mlp_type: layouts.mlp_type.unwrap_or(self.mlp_type),
            rope_interleaved: layouts.rope_interleaved.unwrap_or(self.rope_interleaved),
            qk_norm: layouts.qk_norm.unwrap_or(self.qk_norm),
            ..self
        })
    }

    /// The BAM architecture whose experts are copies of this dense one.
    pub fn upcycled(&self, mixture: Mixture) -> Self {
        Self {
            family: "bam".to_owned(),
            mixture: Some(mixture),
            format: None,
            ..self.clone()
        }
    }

    /// Whether it is a checkpoint of this program's own format, which transformers reads with the code beside it.
    pub fn is_bam(&self) -> bool {
        self.family == "bam"
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
        let key = family.mixture.as_ref().map(|keys| &keys.norm_topk_prob);
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

    fn check_in(&self, config: &Config) -> Result<()> {
        self.check()
            .map_err(|fault| Error::key(&config.path, fault.key, fault.problem))
    }

    /// Refuses what arithmetic on the architecture could not bear; afterwards a parameter count times 64 fits a `u64`.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        const LARGEST: u64 = 1 << 31;
        const MOST_LAYERS: u64 = 100_000;
        const MOST_TENSORS: u128 = 1_000_000;
        let fault = |key, problem: String| Err(Fault { key, problem });
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
                return fault(key, format!("expected 1 to {most}, found {size}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let problem = format!(
                "expected a divisor of the {} heads, found {}",
                self.num_heads, self.num_kv_heads
            );
            return fault("num_key_value_heads", problem);
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
        if tensors > MOST_TENSORS {
            let problem = format!(
                "expected layers and experts that make at most {MOST_TENSORS} tensors, found {tensors}"
            );
            return fault("num_hidden_layers", problem);
        }
        let attention = 4 * u128::from(width(self.num_heads)) * (d + 2);
        let mlp = |width: u128| 3 * (width + 1) * (d + 2) + 2 * d;
        let adapters = (attention_experts + experts) * adapter * d;
        let layer = attention_experts * (attention + 2 * d)
            + experts * mlp(ffn)
            + mlp(shared)
            + adapters
            + 4 * d;
        if layers * layer + 2 * d * u128::from(self.vocab_size) > 1 << 57 {
            return fault(
                "hidden_size",
                "expected a model of at most 2^57 parameters, found more".to_owned(),
            );
        }
        Ok(())
    }
}

/// The layouts that the config of a BAM says itself.
#[derive(Default)]
struct Layouts {
    block: Option<Block>,
    norm_type: Option<NormType>,
    norm_position: Option<NormPosition>,
    mlp_type: Option<MlpType>,
    rope_interleaved: Option<bool>,
    qk_norm: Option<QkNorm>,
}

impl Layouts {
    fn said(config: &Config) -> Result<Self> {
        Ok(Self {
            block: config.choice("block")?,
            norm_type: config.choice("norm_type")?,
            norm_position: config.choice("norm_position")?,
            mlp_type: config.choice("mlp_type")?,
            rope_interleaved: config.own_flag("rope_interleaved")?,
            qk_norm: config.choice("qk_norm")?,
        })
    }
}

/// Refuses values that mean something which cannot be computed here, whatever the family or in this one.
fn refuse(config: &Config, family: &Family) -> Result<()> {
    let refused = |key: &str, value: &Value, because: &str| {
        let problem = format!(
            "is {}, which cannot be computed here: {because}",
            kind(value)
        );
        Err(Error::key(&config.path, key, problem))
    };
    // Both are obeyed by every class of transformers 5.
    if let Some(value) = config
        .json
        .get("is_causal")
        .filter(|value| **value != Value::Bool(true))
    {
        return refused("is_causal", value, "attention looks back only");
    }
    if let Some(value) = config
        .json
        .get("per_layer_config")
        .filter(|value| !value.is_null())
    {
        return refused(
            "per_layer_config",
            value,
            "all layers have one configuration",
        );
    }
    for Refused {
        key,
        value,
        because,
    } in &family.refused
    {
        let refuses = |found: &Value| match value {
            Some(value) => same_value(found, value),
            None => !found.is_null(),
        };
        if let Some(found) = config.json.get(key).filter(|found| refuses(found)) {
            return refused(key, found, because);
        }
    }
    Ok(())
}

/// Epsilon of the norms; where a mixture's config has the keys of both norms, that of its own norm counts.
fn norm_eps(config: &Config, family: &Family, norm_type: NormType) -> Result<f64> {
    let own = match norm_type {
        NormType::Rms => "rms_norm_eps",
        NormType::Layer => "layer_norm_eps",
    };
    if family.says_layouts()
        && let Found::Value(name, value) = config.find([own])?
    {
        return config.as_number(name, value, 0.0);
    }
    Ok(config.number(&family.keys.norm_eps, 0.0)?.unwrap_or(1e-6))
}

fn dtype(config: &Config, key: &Key) -> Result<Option<Dtype>> {
    match config.text(key)? {
        None | Some("auto") => Ok(None),
        Some(name) => match (from_torch_name(name), config.lookup(key)?) {
            (None, Found::Value(name, value)) => {
                Err(config.wrong(name, "a floating-point dtype such as \"bfloat16\"", value))
            }
            (dtype, _) => Ok(dtype),
        },
    }
}
