//! A family as data: one file of `formats/`, embedded here or brought by a user.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::Value;

use super::config::Config;
use super::keys::{Keys, MixtureKeys};
use super::layout::{Block, MlpType, NormPosition, NormType, QkNorm};
use super::tensors::Role;
use crate::checkpoint::json::kind;
use crate::checkpoint::yaml;
use crate::error::{nearest, one_of};
use crate::{Error, Result};

/// What one family of models calls its tensors and configuration keys, and which layouts it uses.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Name of the family.
    pub name: String,
    /// Values of `model_type` that mean this family.
    pub(crate) model_types: Vec<String>,
    /// Classes in `architectures` that mean this family, for a config without `model_type`.
    pub(crate) architectures: Vec<String>,
    /// How attention and feed-forward are joined.
    pub(crate) block: Block,
    /// Which normalisation.
    pub(crate) norm_type: NormType,
    /// Where a block normalises.
    pub(crate) norm_position: NormPosition,
    /// The feed-forward network.
    pub(crate) mlp_type: MlpType,
    /// Whether rotary pairs are neighbours (`2i`, `2i + 1`) rather than half a head apart.
    pub(crate) rope_interleaved: bool,
    /// Normalisation of queries and keys, where [`Present::qk_norm`] says there is one.
    pub(crate) qk_norm: QkNorm,
    /// Which optional parameters exist.
    pub(crate) present: Present,
    /// Names of configuration keys.
    pub(crate) keys: Keys,
    /// Names of tensors.
    pub(crate) tensors: TensorNames,
    /// Names of the experts' tensors; a family with these is a mixture.
    #[serde(default)]
    pub(crate) expert_tensors: Option<ExpertTensorNames>,
    /// Configuration keys of the experts, in a mixture that is not a BAM: feed-forward experts beside ordinary attention.
    #[serde(default)]
    pub(crate) mixture: Option<MixtureKeys>,
    /// Names of the tensors that hold all experts of a layer at once, in the layout that transformers 5 writes.
    #[serde(default)]
    pub(crate) fused_tensors: Option<FusedTensorNames>,
    /// Further keys of the configuration class, which change nothing that is computed here.
    #[serde(default)]
    pub(crate) other_keys: Vec<String>,
    /// Values of configuration keys that mean something which cannot be computed here.
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
}

/// A value of a configuration key that is refused.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refused {
    /// The key.
    pub(crate) key: String,
    /// The value, where others are fine; any but null is refused where absent.
    #[serde(default)]
    pub(crate) value: Option<Value>,
    /// Why.
    pub(crate) because: String,
}

/// When an optional parameter exists.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "PresenceText")]
pub(crate) enum Presence {
    /// In no checkpoint of the family.
    Never,
    /// In each.
    Always,
    /// Where this boolean key of `config.json` is true, or as `default` says where it is absent.
    Key { name: String, default: bool },
}

/// How a format file says it.
#[derive(Deserialize)]
#[serde(untagged)]
enum PresenceText {
    Word(String),
    Key { key: String, default: bool },
}

impl From<PresenceText> for Presence {
    fn from(text: PresenceText) -> Self {
        match text {
            PresenceText::Word(word) => match word.as_str() {
                "never" => Self::Never,
                "always" => Self::Always,
                _ => Self::Key {
                    name: word,
                    default: false,
                },
            },
            PresenceText::Key { key, default } => Self::Key { name: key, default },
        }
    }
}

/// Which optional parameters exist: `never`, `always`, the boolean key that says so (absent means false), or
/// `{ key: NAME, default: true }`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Present {
    /// Biases of q, k and v.
    pub(crate) attention_bias: Presence,
    /// Bias of o.
    pub(crate) attention_output_bias: Presence,
    /// Biases of the feed-forward network.
    pub(crate) mlp_bias: Presence,
    /// The norms of queries and keys.
    pub(crate) qk_norm: Presence,
}

/// Names of the tensors of the fused layout: gate and up projections of all experts `[experts, 2 · intermediate, hidden]`, down
/// projections `[experts, hidden, intermediate]`, and the router under the name that it has there.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FusedTensorNames {
    pub(crate) gate_up: String,
    pub(crate) down: String,
    pub(crate) ffn_router: String,
}

/// Names of the tensors outside experts, one field a [`Role`]; `{l}` stands for the layer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TensorNames {
    pub(crate) embedding: String,
    pub(crate) final_norm: String,
    pub(crate) head: String,
    pub(crate) input_norm: Option<String>,
    pub(crate) post_attention_norm: Option<String>,
    pub(crate) pre_feedforward_norm: Option<String>,
    pub(crate) post_feedforward_norm: Option<String>,
    pub(crate) q: String,
    pub(crate) k: String,
    pub(crate) v: String,
    pub(crate) o: String,
    pub(crate) q_norm: Option<String>,
    pub(crate) k_norm: Option<String>,
    pub(crate) gate: Option<String>,
    pub(crate) up: String,
    pub(crate) down: String,
    pub(crate) ffn_router: Option<String>,
    pub(crate) attention_router: Option<String>,
    pub(crate) shared_gate: Option<String>,
    pub(crate) shared_up: Option<String>,
    pub(crate) shared_down: Option<String>,
    pub(crate) shared_expert_gate: Option<String>,
}

/// Names of the tensors of one expert, one field a [`Role`]; `{l}` stands for the layer, `{e}` for the expert.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpertTensorNames {
    pub(crate) q: Option<String>,
    pub(crate) k: Option<String>,
    pub(crate) v: Option<String>,
    pub(crate) o: Option<String>,
    pub(crate) q_norm: Option<String>,
    pub(crate) k_norm: Option<String>,
    pub(crate) gate: String,
    pub(crate) up: String,
    pub(crate) down: String,
    pub(crate) attention_adapter: Option<String>,
    pub(crate) ffn_adapter: Option<String>,
}

impl TensorNames {
    /// The pattern of a role's weight.
    pub(crate) fn get(&self, role: Role) -> Option<&str> {
        match role {
            Role::Embedding => Some(&self.embedding),
            Role::FinalNorm => Some(&self.final_norm),
            Role::Head => Some(&self.head),
            Role::InputNorm => self.input_norm.as_deref(),
            Role::PostAttentionNorm => self.post_attention_norm.as_deref(),
            Role::PreFeedforwardNorm => self.pre_feedforward_norm.as_deref(),
            Role::PostFeedforwardNorm => self.post_feedforward_norm.as_deref(),
            Role::Q => Some(&self.q),
            Role::K => Some(&self.k),
            Role::V => Some(&self.v),
            Role::O => Some(&self.o),
            Role::QNorm => self.q_norm.as_deref(),
            Role::KNorm => self.k_norm.as_deref(),
            Role::Gate => self.gate.as_deref(),
            Role::Up => Some(&self.up),
            Role::Down => Some(&self.down),
            Role::FfnRouter => self.ffn_router.as_deref(),
            Role::AttentionRouter => self.attention_router.as_deref(),
            Role::SharedGate => self.shared_gate.as_deref(),
            Role::SharedUp => self.shared_up.as_deref(),
            Role::SharedDown => self.shared_down.as_deref(),
            Role::SharedExpertGate => self.shared_expert_gate.as_deref(),
            Role::AttentionAdapter | Role::FfnAdapter => None,
        }
    }
}

impl ExpertTensorNames {
    /// The pattern of a role's weight in an expert.
    pub(crate) fn get(&self, role: Role) -> Option<&str> {
        match role {
            Role::Q => self.q.as_deref(),
            Role::K => self.k.as_deref(),
            Role::V => self.v.as_deref(),
            Role::O => self.o.as_deref(),
            Role::QNorm => self.q_norm.as_deref(),
            Role::KNorm => self.k_norm.as_deref(),
            Role::Gate => Some(&self.gate),
            Role::Up => Some(&self.up),
            Role::Down => Some(&self.down),
            Role::AttentionAdapter => self.attention_adapter.as_deref(),
            Role::FfnAdapter => self.ffn_adapter.as_deref(),
            _ => None,
        }
    }
}

macro_rules! embedded {
    ($($name:literal),*) => {
        [$((concat!("formats/", $name, ".yaml"), include_str!(concat!("../../formats/", $name, ".yaml")))),*]
    };
}

/// The embedded files, in the order in which they are listed to users.
static EMBEDDED: [(&str, &str); 10] = embedded!(
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "cohere",
    "bam",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe"
);

static FAMILIES: LazyLock<std::result::Result<Vec<Arc<Family>>, String>> = LazyLock::new(|| {
    let parse =
        |(path, text): &(&str, &str)| Family::from_yaml(Path::new(path), text).map(Arc::new);
    EMBEDDED
        .iter()
        .map(parse)
        .collect::<Result<_>>()
        .map_err(|e| e.to_string())
});

/// The families that the toolkit knows by itself.
pub fn families() -> Result<&'static [Arc<Family>]> {
    FAMILIES.as_deref().map_err(Error::usage)
}

impl Family {
    /// Reads a family from the text of a format file; `path` only names the place in errors.
    pub fn from_yaml(path: &Path, text: &str) -> Result<Self> {
        let family: Self = yaml::parse(path, text)?;
        family.check(path)?;
        Ok(family)
    }

    /// Reads a family from a format file.
    pub fn read(path: &Path) -> Result<Self> {
        let family: Self = yaml::read(path)?;
        family.check(path)?;
        Ok(family)
    }

    /// The embedded family of that name.
    pub fn named(name: &str) -> Result<Arc<Self>> {
        let known = families()?;
        known
            .iter()
            .find(|family| family.name == name)
            .cloned()
            .ok_or_else(|| {
                Error::usage(format!(
                    "expected a family: {}; found `{name}`",
                    one_of(known.iter().map(|family| family.name.as_str()))
                ))
            })
    }

    /// The embedded family of a `config.json`, by `model_type` or, where it has none, by `architectures`.
    pub fn of(config: &Config) -> Result<Arc<Self>> {
        let known = families()?;
        let class = config
            .json
            .get("architectures")
            .and_then(|classes| classes.get(0))
            .and_then(Value::as_str);
        if let (false, Some(class)) = (config.json.contains_key("model_type"), class)
            && let Some(family) = known
                .iter()
                .find(|family| family.architectures.iter().any(|name| name == class))
        {
            return Ok(Arc::clone(family));
        }
        let found = config.model_type()?;
        if let Some(family) = known
            .iter()
            .find(|family| family.model_types.iter().any(|name| name == found))
        {
            return Ok(Arc::clone(family));
        }
        let names = || {
            known
                .iter()
                .flat_map(|family| family.model_types.iter().map(String::as_str))
        };
        let bring = "a family that differs in names only can be brought with --format FILE (see formats/ for examples)";
        let hint = match nearest(found, names()) {
            Some(name) => format!("the nearest known one is `{name}`; {bring}"),
            None => bring.to_owned(),
        };
        let problem = format!(
            "expected a known family: {}; found {}",
            one_of(names()),
            kind(&Value::from(found))
        );
        Err(Error::key(&config.path, "model_type", problem).with_hint(hint))
    }

    /// Whether configurations of the family say themselves which layouts they use, as a BAM's do.
    pub(crate) fn says_layouts(&self) -> bool {
        self.expert_tensors.is_some() && self.mixture.is_none()
    }

    /// Whether its checkpoints are mixtures.
    pub fn is_mixture(&self) -> bool {
        self.expert_tensors.is_some()
    }

    /// Refuses what the grammar allows and the toolkit could not use.
    fn check(&self, path: &Path) -> Result<()> {
        for role in Role::ALL {
            for (section, pattern, expert) in [
                ("tensors", self.tensors.get(role), false),
                (
                    "expert_tensors",
                    self.expert_tensors
                        .as_ref()
                        .and_then(|names| names.get(role)),
                    true,
                ),
            ] {
                let Some(pattern) = pattern else { continue };
                let places = [("{l}", role.in_layer()), ("{e}", expert)];
                let fits = places
                    .iter()
                    .all(|(hole, wanted)| pattern.matches(hole).count() == usize::from(*wanted));
                let holes: usize = places.iter().map(|(_, wanted)| usize::from(*wanted)).sum();
                if !fits
                    || pattern.matches(['{', '}']).count() != 2 * holes
                    || !pattern.ends_with(".weight")
                {
                    let wanted: Vec<&str> = places
                        .iter()
                        .filter(|(_, wanted)| *wanted)
                        .map(|(hole, _)| *hole)
                        .collect();
                    let wanted = if wanted.is_empty() {
                        "no {…}".to_owned()
                    } else {
                        wanted.join(" and ") + " once"
                    };
                    return Err(Error::key(
                        path,
                        &format!("{section}.{role}"),
                        format!(
                            "expected a name that ends in .weight with {wanted}, found \"{pattern}\""
                        ),
                    ));
                }
            }
        }
        if self.mixture.is_some() && self.tensors.ffn_router.is_none() {
            return Err(Error::key(
                path,
                "tensors.ffn_router",
                "expected a name, because this family is a mixture",
            ));
        }
        if self.mixture.is_some() && self.expert_tensors.is_none() {
            return Err(Error::key(
                path,
                "expert_tensors",
                "expected names, because this family is a mixture",
            ));
        }
        for (key, pattern) in self.fused_tensors.iter().flat_map(FusedTensorNames::all) {
            if pattern.matches("{l}").count() != 1 || pattern.matches(['{', '}']).count() != 2 {
                let problem = format!("expected a name with {{l}} once, found \"{pattern}\"");
                return Err(Error::key(path, &format!("fused_tensors.{key}"), problem));
            }
        }
        let needed = Role::norms(self.block, self.norm_position)
            .into_iter()
            .chain((self.mlp_type == MlpType::Gated).then_some(Role::Gate))
            .chain((self.qk_norm != QkNorm::None).then_some(Role::QNorm))
            .chain((self.qk_norm != QkNorm::None).then_some(Role::KNorm));
        for role in needed {
            if self.tensors.get(role).is_none() {
                let problem = "expected a name, because the layout of this family has such a tensor; found none";
                return Err(Error::key(path, &format!("tensors.{role}"), problem));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_formats_are_sound() {
        let names: Vec<_> = families()
            .unwrap()
            .iter()
            .map(|family| family.name.clone())
            .collect();
        let dense = ["llama", "mistral", "qwen2", "qwen3", "cohere"];
        let mixtures = ["bam", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"];
        assert_eq!(names, [dense, mixtures].concat());
    }

    fn refused(change: impl Fn(&str) -> String) -> Error {
        Family::from_yaml(Path::new("my.yaml"), &change(EMBEDDED[0].1)).unwrap_err()
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let error = refused(|text| text.replace("  num_heads:", "  nun_heads:"));
        assert!(error.to_string().contains("key `nun_heads`"), "{error}");
        assert!(error.to_string().contains("my.yaml:"), "{error}");
        assert_eq!(
            error.hint().as_deref(),
            Some("the nearest known key is `num_heads`")
        );
        let error = refused(|text| text.replace("block: sequential", "block: sequentail"));
        assert!(error.to_string().contains("sequential"), "{error}");
    }

    #[test]
    fn patterns_are_checked() {
        let error = refused(|text| {
            text.replace("layers.{l}.self_attn.q_proj", "layers.{n}.self_attn.q_proj")
        });
        assert!(
            error
                .to_string()
                .contains("key `tensors.q`: expected a name that ends in .weight with {l}"),
            "{error}"
        );
        let error = refused(|text| {
            text.replace(
                "block: sequential",
                "block: sequential\nnorm_position: sandwich",
            )
        });
        assert!(error.to_string().contains("norm_position"), "{error}");
        let error = refused(|text| text.replace("norm_position: pre", "norm_position: sandwich"));
        assert!(
            error.to_string().contains("tensors.pre_feedforward_norm"),
            "{error}"
        );
    }
}
