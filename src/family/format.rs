//! A family as data: what one file of `formats/`, or one that a user brings, says.

use std::path::Path;

use glob::Pattern;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::format_error::FormatError;
use super::keys::{Field, Keys, Need, Section};
use super::layout::{
    Block, Layouts, MlpType, NormPosition, NormType, QkNorm, Rotation, SaidLayouts,
};
use super::names::{FusedProjections, FusedTensorNames, GgufNames, Holds, RoleNames};
use super::role::Role;
use super::spelling::same_value;
use crate::{Error, Result};

/// What one family of models calls its tensors and configuration keys, and which layouts it uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Name of the family.
    pub name: String,
    /// Values of `model_type` that mean this family.
    pub(crate) model_types: Vec<String>,
    /// Classes in `architectures` that mean this family, for a config without `model_type`.
    pub(crate) architectures: Vec<String>,
    /// What its models compute.
    pub(crate) layouts: Layouts,
    /// Which layers rotate queries and keys, where configurations do not list them.
    pub(crate) rotation: Rotation,
    /// Which optional parameters exist.
    pub(crate) present: Present,
    /// Names of configuration keys.
    pub(crate) keys: Keys,
    /// Names of tensors.
    pub(crate) tensors: RoleNames,
    /// Names of the experts' tensors; a family with these is a mixture.
    pub(crate) expert_tensors: Option<RoleNames>,
    /// Configuration keys of the experts, in a mixture that is not a BAM: feed-forward experts beside ordinary attention.
    pub(crate) mixture: Option<Keys>,
    /// Names of the tensors that hold all experts of a layer at once, in the layout that transformers 5 writes.
    pub(crate) fused_tensors: Option<FusedTensorNames>,
    /// Names of the tensors that hold several projections of a layer, where the family has them.
    pub(crate) fused: Option<FusedProjections>,
    /// Patterns of names of tensors that no reader uses.
    pub(crate) ignored_tensors: Vec<Pattern>,
    /// Names in GGUF files, of a family that llama.cpp computes.
    pub(crate) gguf: Option<GgufNames>,
    /// Further keys of the configuration class, which change nothing that is computed here.
    pub(crate) other_keys: Vec<String>,
    /// Values of configuration keys that mean something which cannot be computed here.
    pub(crate) refused: Vec<Refused>,
}

/// A value of a configuration key that is refused.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refused {
    /// The key.
    pub(crate) key: String,
    /// The value, null included, where others are fine. Without one, each value but null is refused.
    #[serde(default, deserialize_with = "said")]
    pub(crate) value: Option<Value>,
    /// The values that are fine, where each other but null is refused. All entries of a list must be fine.
    #[serde(default)]
    pub(crate) except: Vec<Value>,
    /// Whether the absence of the key is refused, rather than a value.
    #[serde(default)]
    pub(crate) absent: bool,
    /// Whether null counts as absence.
    #[serde(default)]
    pub(crate) or_null: bool,
    /// Why.
    pub(crate) because: String,
}

/// A value that is there, though it may be null.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Refused {
    /// Whether it refuses that value of the key.
    pub(crate) fn refuses(&self, found: &Value) -> bool {
        let is_fine = |found: &Value| self.except.iter().any(|fine| same_value(fine, found));
        match (&self.value, found) {
            (Some(value), _) => same_value(found, value),
            (None, Value::Null) => false,
            (None, Value::Array(items)) if !self.except.is_empty() => !items.iter().all(is_fine),
            (None, _) => !is_fine(found),
        }
    }
}

/// When an optional parameter exists.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "PresenceText")]
pub(crate) enum Presence {
    /// In no checkpoint of the family.
    Never,
    /// In each.
    Always,
    /// Where this boolean key of `config.json`, under any of its names, is true, or as `default` says where it is absent.
    Key { names: Vec<String>, default: bool },
}

/// How a format file says it.
#[derive(Deserialize)]
#[serde(untagged)]
enum PresenceText {
    Word(String),
    Key {
        key: String,
        default: bool,
    },
    Keys {
        names: Vec<String>,
        #[serde(default)]
        default: bool,
    },
}

impl From<PresenceText> for Presence {
    fn from(text: PresenceText) -> Self {
        match text {
            PresenceText::Word(word) => match word.as_str() {
                "never" => Self::Never,
                "always" => Self::Always,
                _ => Self::Key {
                    names: vec![word],
                    default: false,
                },
            },
            PresenceText::Key { key, default } => Self::Key {
                names: vec![key],
                default,
            },
            PresenceText::Keys { names, default } => Self::Key { names, default },
        }
    }
}

/// Which optional parameters exist: `never`, `always`, the boolean key that says so (absent means false),
/// `{ key: NAME, default: true }`, or `{ names: [NAME, NAME] }`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Present {
    /// Biases of q, k and v.
    pub(crate) attention_bias: Presence,
    /// Bias of o.
    pub(crate) attention_output_bias: Presence,
    /// Biases of the feed-forward network.
    pub(crate) mlp_bias: Presence,
    /// Biases of norms; norms of queries and keys have none.
    pub(crate) norm_bias: Presence,
    /// Bias of the output embedding.
    pub(crate) head_bias: Presence,
    /// The norms of queries and keys.
    pub(crate) qk_norm: Presence,
}

impl Present {
    /// All of them, in the order of a format file.
    fn all(&self) -> [&Presence; 6] {
        [
            &self.attention_bias,
            &self.attention_output_bias,
            &self.mlp_bias,
            &self.norm_bias,
            &self.head_bias,
            &self.qk_norm,
        ]
    }
}

/// A format file as it is written: a file that extends another says only what differs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FamilyText {
    #[serde(default)]
    pub(super) extends: Option<String>,
    name: Option<String>,
    model_types: Option<Vec<String>>,
    architectures: Option<Vec<String>>,
    block: Option<Block>,
    norm_type: Option<NormType>,
    norm_position: Option<NormPosition>,
    mlp_type: Option<MlpType>,
    rope_interleaved: Option<bool>,
    qk_norm: Option<QkNorm>,
    norm_offset: Option<bool>,
    qk_norm_after_rope: Option<bool>,
    rotation: Option<Rotation>,
    present: Option<PresentText>,
    keys: Option<Keys>,
    tensors: Option<RoleNames>,
    expert_tensors: Option<RoleNames>,
    mixture: Option<Keys>,
    fused_tensors: Option<FusedTensorNames>,
    fused: Option<FusedProjections>,
    ignored_tensors: Option<Vec<String>>,
    gguf: Option<GgufNames>,
    other_keys: Option<Vec<String>>,
    refused: Option<Vec<Refused>>,
}

/// The section `present` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PresentText {
    attention_bias: Option<Presence>,
    attention_output_bias: Option<Presence>,
    mlp_bias: Option<Presence>,
    norm_bias: Option<Presence>,
    head_bias: Option<Presence>,
    qk_norm: Option<Presence>,
}

impl FamilyText {
    /// The family, complete; `path` names the place in errors.
    pub(super) fn resolve(self, path: &Path) -> Result<Family> {
        let missing = |key: &str| required(path, key);
        let said = SaidLayouts {
            block: self.block,
            norm_type: self.norm_type,
            norm_position: self.norm_position,
            mlp_type: self.mlp_type,
            rope_interleaved: self.rope_interleaved,
            qk_norm: self.qk_norm,
            norm_offset: self.norm_offset,
            qk_norm_after_rope: self.qk_norm_after_rope,
        };
        let present = self.present.ok_or_else(|| missing("present"))?;
        let presence = |presence: Option<Presence>, key: &str| {
            presence.ok_or_else(|| missing(&format!("present.{key}")))
        };

        let family = Family {
            name: self.name.ok_or_else(|| missing("name"))?,
            model_types: self.model_types.ok_or_else(|| missing("model_types"))?,
            architectures: self.architectures.ok_or_else(|| missing("architectures"))?,
            layouts: said.complete().map_err(missing)?,
            rotation: self.rotation.unwrap_or(Rotation::All),
            present: Present {
                attention_bias: presence(present.attention_bias, "attention_bias")?,
                attention_output_bias: presence(
                    present.attention_output_bias,
                    "attention_output_bias",
                )?,
                mlp_bias: presence(present.mlp_bias, "mlp_bias")?,
                norm_bias: present.norm_bias.unwrap_or(Presence::Never),
                head_bias: present.head_bias.unwrap_or(Presence::Never),
                qk_norm: presence(present.qk_norm, "qk_norm")?,
            },
            keys: self.keys.unwrap_or_default(),
            tensors: self.tensors.unwrap_or_default(),
            expert_tensors: self.expert_tensors,
            mixture: self.mixture,
            fused_tensors: self.fused_tensors,
            fused: self.fused,
            ignored_tensors: patterns(path, self.ignored_tensors.unwrap_or_default())?,
            gguf: self.gguf,
            other_keys: self.other_keys.unwrap_or_default(),
            refused: self.refused.unwrap_or_default(),
        };
        family.check(path)?;
        Ok(family)
    }
}

impl Family {
    /// The name of the output embedding.
    pub(crate) fn head(&self) -> &str {
        // The check of the format file has seen it.
        self.tensors.get(Role::Head).unwrap_or_default()
    }

    /// The name of the input embedding.
    pub(crate) fn embedding(&self) -> &str {
        self.tensors.get(Role::Embedding).unwrap_or_default()
    }

    /// Whether configurations of the family say themselves which layouts they use, as a BAM's do.
    pub(crate) fn says_layouts(&self) -> bool {
        self.expert_tensors.is_some() && self.mixture.is_none()
    }

    /// Whether its checkpoints are mixtures.
    pub fn is_mixture(&self) -> bool {
        self.expert_tensors.is_some()
    }

    /// Whether a configuration names this family, by `model_type`, or by its class where it has no `model_type`.
    pub(crate) fn is_named(&self, model_type: Option<&str>, class: Option<&str>) -> bool {
        let (names, found) = match (model_type, class) {
            (None, Some(class)) => (&self.architectures, class),
            (model_type, _) => (&self.model_types, model_type.unwrap_or_default()),
        };
        names.iter().any(|name| name == found)
    }

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
        self.says_layouts() || COMMON.contains(&name) || self.says(name)
    }

    /// Whether the description of the family says how it treats the key of that name.
    pub(crate) fn says(&self, name: &str) -> bool {
        let is_listed = |keys: &Keys| keys.names(name);
        self.other_keys.iter().any(|key| key == name)
            || self.refused.iter().any(|refused| refused.key == name)
            || is_listed(&self.keys)
            || self.mixture.as_ref().is_some_and(is_listed)
            || self
                .present
                .all()
                .into_iter()
                .any(|presence| matches!(presence, Presence::Key { names, .. } if names.iter().any(|key| key == name)))
    }

    /// The key of the base of rotary positions beside any object.
    pub(super) fn theta_name(&self) -> &str {
        let names = &self.keys[Field::RopeTheta].names;
        names
            .iter()
            .find(|name| !name.contains('.'))
            .map_or("rope_theta", String::as_str)
    }

    /// The value of a number that no key of the family says otherwise.
    pub(super) fn fixed(&self, field: Field) -> Option<&Value> {
        let key = &self.keys[field];
        key.default.as_ref().filter(|_| key.names.is_empty())
    }

    /// Whether no reader of the family uses a tensor of that name.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.ignored_tensors
            .iter()
            .any(|pattern| pattern.matches(name))
    }

    /// Refuses what the grammar allows and the toolkit could not use.
    fn check(&self, path: &Path) -> Result<()> {
        self.check_keys(path)?;
        self.tensors.check(path, "tensors", Holds::Model)?;
        if let Some(names) = &self.expert_tensors {
            names.check(path, "expert_tensors", Holds::OneExpert)?;
        }
        if let Some(names) = &self.fused_tensors {
            names.check(path)?;
        }
        if let Some(names) = &self.fused {
            names.check(path, "fused")?;
        }
        if let Some(names) = &self.gguf {
            names.check(path)?;
        }
        if self.keys.has(Field::ParallelBlock) && self.layouts.block == Block::Sequential {
            return Err(FormatError::SequentialBlock {
                path: path.to_path_buf(),
            }
            .into());
        }
        if self.mixture.is_some() && self.expert_tensors.is_none() {
            return Err(FormatError::NoExpertNames {
                path: path.to_path_buf(),
            }
            .into());
        }
        self.check_roles(path)
    }

    /// Each key that the reader needs is listed, in its section, and has a name or a default.
    fn check_keys(&self, path: &Path) -> Result<()> {
        let sections = [
            ("keys", Section::Keys, Some(&self.keys)),
            ("mixture", Section::Mixture, self.mixture.as_ref()),
        ];
        for (name, section, keys) in sections {
            let Some(keys) = keys else { continue };
            for (field, key) in keys.iter() {
                let at = format!("{name}.{}", field.name());
                if field.section() != section {
                    let section = match field.section() {
                        Section::Keys => "keys",
                        Section::Mixture => "mixture",
                    };
                    return Err(FormatError::OtherSection {
                        path: path.to_path_buf(),
                        key: at,
                        section,
                    }
                    .into());
                }
                if key.names.is_empty() && key.default.is_none() {
                    return Err(FormatError::NoNameOrDefault {
                        path: path.to_path_buf(),
                        key: at,
                    }
                    .into());
                }
            }
            for field in Field::ALL {
                let beside = field == Field::QueryScaleContext && keys.has(Field::QueryScaleBeta);
                let needed =
                    field.section() == section && (field.need() == Need::Required || beside);
                if needed && !keys.has(field) {
                    return Err(required(path, &format!("{name}.{}", field.name())));
                }
            }
        }
        Ok(())
    }

    /// Each tensor that the layouts need has a name.
    fn check_roles(&self, path: &Path) -> Result<()> {
        let layouts = &self.layouts;
        let sequential = self
            .keys
            .has(Field::ParallelBlock)
            .then_some(Block::Sequential);
        let blocks = [Some(layouts.block), sequential].into_iter().flatten();
        for role in Role::ALL {
            let is_in_dense = |block| {
                let place = (block, layouts.norm_position);
                role.is_in_dense(place, layouts.mlp_type, layouts.qk_norm)
            };
            let is_needed = blocks.clone().any(is_in_dense)
                || role == Role::FfnRouter && self.mixture.is_some();
            if is_needed && self.tensors.get(role).is_none() {
                return Err(FormatError::NoTensorName {
                    path: path.to_path_buf(),
                    key: format!("tensors.{role}"),
                    role,
                }
                .into());
            }
        }
        Ok(())
    }
}

/// The patterns of tensors that are ignored.
fn patterns(path: &Path, texts: Vec<String>) -> Result<Vec<Pattern>> {
    let pattern = |text: String| {
        Pattern::new(&text).map_err(|_| {
            FormatError::Pattern {
                path: path.to_path_buf(),
                key: "ignored_tensors".to_owned(),
                expected: "with `*` for any characters".to_owned(),
                found: text,
            }
            .into()
        })
    };
    texts.into_iter().map(pattern).collect()
}

/// The error of a key that each family needs.
fn required(path: &Path, key: &str) -> Error {
    FormatError::Required {
        path: path.to_path_buf(),
        key: key.to_owned(),
    }
    .into()
}
