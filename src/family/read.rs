//! An architecture as a `config.json` describes it, with the keys and defaults of its family.

use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use super::architecture::{Architecture, MOST_LAYERS};
use super::architecture_fault::ArchitectureFault;
use super::config::{Config, Found};
use super::config_error::{ConfigError, ORIGINAL};
use super::format::{Family, Presence};
use super::keys::{Field, Key};
use super::known::is_embedded;
use super::layer_kinds::LayerKinds;
use super::layout::{Block, Layouts, NormType, QkNorm, SaidLayouts};
use super::mixture::Mixture;
use super::multimodal::{Multimodal, TEXT_CONFIG};
use super::multipliers::Multipliers;
use super::rope::RopeContext;
use super::rope_kinds::Ropes;
use super::rope_place::partial_rotary_factor;
use super::unsaid::{refuse_type, refuse_unsaid};
use crate::Result;
use crate::checkpoint::dtype::from_torch_name;
use crate::checkpoint::json::kind;

impl Architecture {
    /// What `config` says, in the family that its `model_type` names.
    ///
    /// ```
    /// use bam_convert::family::{Architecture, Config};
    ///
    /// let config = Config::read("fixtures/llama/seed".as_ref())?;
    /// let architecture = Architecture::of(&config)?;
    /// assert_eq!(architecture.family, "llama");
    /// assert_eq!(architecture.tensors()?[0].name, "model.embed_tokens.weight");
    /// # Ok::<(), bam_convert::Error>(())
    /// ```
    pub fn of(config: &Config) -> Result<Self> {
        let multimodal = Multimodal::of(config);
        let inner = &*config.language_model()?;
        let architecture = Self::of_language_model(inner, multimodal.is_some());
        let architecture = match multimodal {
            None => architecture?,
            Some(_) => architecture.map_err(|error| ConfigError::inside(TEXT_CONFIG, error))?,
        };
        Ok(Self {
            multimodal,
            ..architecture
        })
    }

    /// What the configuration of a language model says, which is alone or a part of a model with further inputs.
    fn of_language_model(config: &Config, is_part: bool) -> Result<Self> {
        let family = Family::of(config)?;
        let is_embedded = is_embedded(&family);
        if !is_embedded {
            refuse_type(config, &family)?;
        }
        let architecture = Self::read(config, &family)?;
        if !is_embedded {
            refuse_unsaid(config, &family, &architecture)?;
        }
        if is_part {
            architecture.refuse_changed_logits(config)?;
        }
        config.note_assumptions(&family)?;
        Ok(Self {
            format: (!is_embedded).then_some(family),
            ..architecture
        })
    }

    /// What `config` says in a family that is not one of the program's own.
    pub fn of_format(config: &Config, family: Family) -> Result<Self> {
        refuse_type(config, &family)?;
        let architecture = Self::read(config, &family)?;
        refuse_unsaid(config, &family, &architecture)?;
        Ok(Self {
            format: Some(Arc::new(family)),
            ..architecture
        })
    }

    /// What `config` says in that family, as [`Self::of_format`] without the family itself.
    pub(super) fn read(config: &Config, family: &Family) -> Result<Self> {
        refuse(config, family)?;
        let keys = &family.keys;
        for (field, expected) in [
            (Field::RopeTheta, "a number"),
            (Field::RopeLocalTheta, "a number"),
            (Field::PartialRotaryFactor, "a number"),
            (Field::LogitScale, "a number"),
            (Field::HiddenAct, "a string"),
            (Field::HeadDim, "a positive integer"),
        ] {
            config.not_null(&keys[field], expected)?;
        }

        let count = |field| config.count(&keys[field]);
        let required = |field| config.required_count(&keys[field]);
        let present = |presence| is_present(config, presence);
        let hidden_size = required(Field::HiddenSize)?;
        let num_heads = required(Field::NumHeads)?;
        let head_dim = head_dim(config, family, hidden_size, num_heads)?;
        let num_layers = required(Field::NumLayers)?;
        if num_layers > MOST_LAYERS {
            return Err(ConfigError::Architecture {
                path: config.path.clone(),
                fault: ArchitectureFault::OutOfRange {
                    key: "num_hidden_layers",
                    least: 1,
                    most: MOST_LAYERS,
                    found: num_layers,
                },
            }
            .into());
        }
        let kinds = LayerKinds::read(config, family, num_layers)?;
        let partial_rotary_factor = partial_rotary_factor(config, family)?;
        let max_position_embeddings = count(Field::MaxPositionEmbeddings)?;
        let context = RopeContext {
            rotary: (head_dim as f64 * partial_rotary_factor.unwrap_or(1.0)) as u64,
            longest: max_position_embeddings,
            own_class: family.says_layouts(),
            has_outer_original: family.says(ORIGINAL),
        };
        let ropes = Ropes::read(config, family, &kinds, &context)?;
        let layouts = layouts(config, family)?;

        let mut architecture = Self {
            family: family.name.clone(),
            block: layouts.block,
            norm_type: layouts.norm_type,
            norm_position: layouts.norm_position,
            mlp_type: layouts.mlp_type,
            rope_interleaved: layouts.rope_interleaved,
            norm_offset: layouts.norm_offset,
            hidden_size,
            intermediate_size: match count(Field::DenseIntermediateSize)? {
                Some(width) => width,
                None => required(Field::IntermediateSize)?,
            },
            num_layers,
            num_heads,
            num_kv_heads: count(Field::NumKvHeads)?.unwrap_or(num_heads),
            head_dim,
            vocab_size: required(Field::VocabSize)?,
            tie_word_embeddings: config
                .flag(&keys[Field::TieWordEmbeddings])?
                .unwrap_or_default(),
            attention_bias: present(&family.present.attention_bias)?,
            attention_output_bias: present(&family.present.attention_output_bias)?,
            mlp_bias: present(&family.present.mlp_bias)?,
            norm_bias: present(&family.present.norm_bias)?,
            head_bias: present(&family.present.head_bias)?,
            qk_norm: layouts.qk_norm,
            qk_norm_after_rope: layouts.qk_norm_after_rope,
            norm_eps: norm_eps(config, family, layouts.norm_type)?,
            rope_theta: ropes.full.theta,
            rope_scaling: ropes.full.scaling,
            hidden_act: config
                .text(&keys[Field::HiddenAct])?
                .unwrap_or("silu")
                .to_owned(),
            logit_scale: config.number(&keys[Field::LogitScale], f64::MIN)?,
            sliding_window: kinds.window,
            window_layers: kinds.window_layers,
            rope_layers: kinds.rope_layers,
            window_rope: ropes.window,
            partial_rotary_factor,
            clip_qkv: config.number(&keys[Field::ClipQkv], f64::MIN_POSITIVE)?,
            multipliers: Multipliers::read(config, family, hidden_size, head_dim)?,
            max_position_embeddings,
            initializer_range: config
                .number(&keys[Field::InitializerRange], 0.0)?
                .unwrap_or(0.02),
            dtype: dtype(config, &keys[Field::Dtype])?,
            mixture: None,
            multimodal: None,
            format: None,
        };
        architecture.check_in(config)?;

        if family.is_mixture() {
            architecture.mixture = Some(match &family.mixture {
                Some(keys) => Mixture::read_keys(config, &architecture, family, keys)?,
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
        let layouts = self.layouts().but(said_layouts(config)?);
        Ok(self.with_layouts(layouts))
    }

    /// Refuses a language model whose logits are scaled or bounded: classes with further inputs pass that step over.
    fn refuse_changed_logits(&self, config: &Config) -> Result<()> {
        let scale = self.logit_scale.filter(|scale| *scale != 1.0);
        let changed = [
            ("logit_scale", scale),
            ("logits_scaling", self.multipliers.logits_divisor),
            (
                "final_logit_softcapping",
                self.multipliers.final_logit_softcapping,
            ),
        ];
        for (key, value) in changed {
            if let Some(value) = value {
                return Err(ConfigError::NotComputed {
                    path: config.path.clone(),
                    key: format!("text_config.{key}"),
                    found: kind(&Value::from(value)),
                    because: "transformers does not change logits in models with further inputs"
                        .into(),
                }
                .into());
            }
        }
        Ok(())
    }

    fn check_in(&self, config: &Config) -> Result<()> {
        self.check().map_err(|fault| {
            ConfigError::Architecture {
                path: config.path.clone(),
                fault,
            }
            .into()
        })
    }
}

/// Whether an optional parameter exists.
fn is_present(config: &Config, presence: &Presence) -> Result<bool> {
    match presence {
        Presence::Never => Ok(false),
        Presence::Always => Ok(true),
        Presence::Key { names, default } => {
            let key = Key {
                names: names.clone(),
                default: Some(Value::Bool(*default)),
                ..Key::default()
            };
            config.flag(&key).map(Option::unwrap_or_default)
        }
    }
}

/// The width of a head: as the configuration says, else the heads fill the hidden size.
fn head_dim(config: &Config, family: &Family, hidden_size: u64, num_heads: u64) -> Result<u64> {
    let head_dim = match config.count(&family.keys[Field::HeadDim])? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let name = family.keys[Field::NumHeads].name().unwrap_or("num_heads");
            return Err(ConfigError::UnevenHeads {
                path: config.path.clone(),
                key: name.to_owned(),
                hidden_size,
                found: num_heads,
            }
            .into());
        }
    };
    // A family without the key ignores it, but a file that has it means something by it.
    match config.own_count("head_dim")? {
        Some(found) if found != head_dim => Err(ConfigError::IgnoredHeadDim {
            path: config.path.clone(),
            family: family.name.clone(),
            found,
            expected: head_dim,
        }
        .into()),
        _ => Ok(head_dim),
    }
}

/// The family's layouts, but for those that the configuration of a BAM says itself. Keys of these names mean nothing in any other
/// family.
fn layouts(config: &Config, family: &Family) -> Result<Layouts> {
    let mut layouts = family.layouts;
    if !is_present(config, &family.present.qk_norm)? {
        layouts.qk_norm = QkNorm::None;
        layouts.qk_norm_after_rope = false;
    }
    if config
        .number(&family.keys[Field::RmsNormEps], 0.0)?
        .is_some()
    {
        layouts.norm_type = NormType::Rms;
    }
    if config.flag(&family.keys[Field::ParallelBlock])? == Some(false) {
        layouts.block = Block::Sequential;
    }
    if family.says_layouts() {
        layouts = layouts.but(said_layouts(config)?);
    }
    Ok(layouts)
}

fn said_layouts(config: &Config) -> Result<SaidLayouts> {
    SaidLayouts::read(&config.json).map_err(|(key, unexpected)| unexpected.at(&config.path, key))
}

/// Refuses values that mean something which cannot be computed here, whatever the family or in this one.
fn refuse(config: &Config, family: &Family) -> Result<()> {
    let refused = |key: &str, value: &Value, because: &str| {
        Err(ConfigError::NotComputed {
            path: config.path.clone(),
            key: key.to_owned(),
            found: kind(value),
            because: because.into(),
        }
        .into())
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
    for rule in &family.refused {
        let (key, because) = (&rule.key, &rule.because);
        if rule.absent {
            refuse_absent(config, key, rule.or_null, because)?;
            continue;
        }
        if let Some(found) = config.at(key).filter(|found| rule.refuses(found)) {
            return refused(key, found, because);
        }
    }
    Ok(())
}

/// Refuses a configuration without `key`, and with null if `null`, because the class then takes another meaning.
fn refuse_absent(config: &Config, key: &str, null: bool, means: &str) -> Result<()> {
    match config.find([key])? {
        Found::Value(..) => Ok(()),
        Found::Null if !null => Ok(()),
        Found::Absent | Found::Null => Err(ConfigError::AbsentKey {
            path: config.path.clone(),
            key: key.to_owned(),
            model_type: config.model_type()?.to_owned(),
            means: means.into(),
        }
        .into()),
    }
}

/// Epsilon of the norms. Where a mixture's config has the keys of both norms, the key of its own norm counts.
fn norm_eps(config: &Config, family: &Family, norm_type: NormType) -> Result<f64> {
    if family.says_layouts()
        && let Found::Value(name, value) = config.find([norm_type.eps_key()])?
    {
        return config.as_number(name, value, 0.0);
    }
    if !family.says_layouts() {
        config.not_null(&family.keys[Field::NormEps], "a number")?;
    }
    let of_rms = config.number(&family.keys[Field::RmsNormEps], 0.0)?;
    let eps = match of_rms {
        Some(_) => of_rms,
        None => config.number(&family.keys[Field::NormEps], 0.0)?,
    };
    Ok(eps.unwrap_or(1e-6))
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
