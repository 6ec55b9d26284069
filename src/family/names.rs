//! Names of tensors, by role: in Hugging Face checkpoints, in the fused layout of transformers 5, and in GGUF files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::{Deserialize, Deserializer};

use super::format_error::FormatError;
use super::gguf_error::GgufModelError;
use super::keys::Field;
use super::layout::{Layers, Rotation, all_but_each};
use super::role::{Role, listed};
use super::spelling::LONGROPE;
use crate::Result;
use crate::error::InputError;

/// The place of the layer's number in a name.
const LAYER: &str = "{l}";

/// The place of the expert's number in a name.
const EXPERT: &str = "{e}";

/// The metadata key of a value's width in a GGUF file, without the architecture's name. A value is as wide as a key.
pub(super) const VALUE_LENGTH: &str = "attention.value_length";

/// The metadata key of the rotated part of a head, without the architecture's name. Whole heads rotate.
pub(super) const ROTATED: &str = "rope.dimension_count";

/// The metadata key that says whether a block is parallel, without the architecture's name.
pub(super) const PARALLEL: &str = "use_parallel_residual";

/// The metadata key of the period of layers of which the last has no window, without the architecture's name.
pub(super) const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";

/// The name of the bias beside a weight.
pub(super) fn bias_of(weight: &str) -> String {
    format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// Names of weights by role; a name holds `{l}` for the layer and `{e}` for the expert.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct RoleNames(BTreeMap<Role, String>);

impl RoleNames {
    /// The pattern of a role's weight.
    pub(crate) fn get(&self, role: Role) -> Option<&str> {
        self.0.get(&role).map(String::as_str)
    }

    /// The name of a role's weight in that layer and expert, where it has them.
    pub(crate) fn name(
        &self,
        role: Role,
        layer: Option<u64>,
        expert: Option<u64>,
    ) -> Option<String> {
        let mut name = self.get(role)?.to_owned();
        for (place, number) in [(LAYER, layer), (EXPERT, expert)] {
            if let Some(number) = number {
                name = name.replace(place, &number.to_string());
            }
        }
        Some(name)
    }

    /// Refuses patterns without the places that their roles need; `section` is the key of these names in the file `path`.
    pub(crate) fn check(&self, path: &Path, section: &str, holds: Holds) -> Result<()> {
        for (role, pattern) in &self.0 {
            let key = format!("{section}.{role}");
            let fits = match holds {
                Holds::Model => role.outside_experts(),
                Holds::OneExpert | Holds::AllExperts => role.in_experts(),
            };
            if !fits {
                let path = path.to_path_buf();
                return Err(match holds {
                    Holds::Model => FormatError::ExpertTensor { path, key },
                    Holds::OneExpert | Holds::AllExperts => FormatError::NotOfExpert { path, key },
                }
                .into());
            }

            let places = [
                (LAYER, role.in_layer()),
                (EXPERT, holds == Holds::OneExpert),
            ];
            let wanted: Vec<&str> = places
                .iter()
                .filter(|(_, wanted)| *wanted)
                .map(|(place, _)| *place)
                .collect();
            let once = wanted
                .iter()
                .all(|place| pattern.matches(place).count() == 1);
            let braces = pattern.matches(['{', '}']).count();
            if once && braces == 2 * wanted.len() && pattern.ends_with(".weight") {
                continue;
            }

            let wanted = if wanted.is_empty() {
                "no {…}".to_owned()
            } else {
                wanted.join(" and ") + " once"
            };
            return Err(FormatError::Pattern {
                path: path.to_path_buf(),
                key,
                expected: format!("that ends in .weight with {wanted}"),
                found: pattern.clone(),
            }
            .into());
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RoleNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        listed(deserializer).map(Self)
    }
}

/// What the tensors of a section of names hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Weights outside the experts.
    Model,
    /// A weight of one expert.
    OneExpert,
    /// That weight of all experts of a layer.
    AllExperts,
}

/// Names of the tensors of the fused layout, in which one tensor holds gate and up projections of all experts `[experts, 2 · intermediate,
/// hidden]`, and another their down projections `[experts, hidden, intermediate]`.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FusedTensorNames {
    pub(crate) gate_up: String,
    pub(crate) down: String,
    /// The name of the router in this layout.
    pub(crate) ffn_router: String,
    /// `[1, experts]`, in a family whose routers have biases.
    pub(crate) ffn_router_bias: Option<String>,
}

impl FusedTensorNames {
    /// Refuses names without the place of the layer.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let names = [
            ("gate_up", Some(&self.gate_up)),
            ("down", Some(&self.down)),
            ("ffn_router", Some(&self.ffn_router)),
            ("ffn_router_bias", self.ffn_router_bias.as_ref()),
        ];
        for (key, pattern) in names {
            let Some(pattern) = pattern else { continue };
            if !has_layer_alone(pattern) {
                return Err(FormatError::Pattern {
                    path: path.to_path_buf(),
                    key: format!("fused_tensors.{key}"),
                    expected: format!("with {LAYER} once"),
                    found: pattern.clone(),
                }
                .into());
            }
        }
        Ok(())
    }
}

/// Whether a pattern has the place of the layer once, and no other.
fn has_layer_alone(pattern: &str) -> bool {
    pattern.matches(LAYER).count() == 1 && pattern.matches(['{', '}']).count() == 2
}

/// The name of a pattern's tensor in a layer.
pub(super) fn in_layer(pattern: &str, layer: u64) -> String {
    pattern.replace(LAYER, &layer.to_string())
}

/// Names of the tensors that hold several projections of a layer, in place of one tensor for each. The names of the projections
/// are then those by which plans, flags and comparisons know the parts.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FusedProjections {
    /// Queries, keys and values.
    pub(crate) qkv: Option<String>,
    /// The order of their rows.
    pub(crate) qkv_order: QkvOrder,
    /// Rows of the gate projection, and then rows of the up projection.
    pub(crate) gate_up: Option<String>,
    /// The same of the shared expert.
    pub(crate) shared_gate_up: Option<String>,
    /// The same of all experts of a layer, `[experts, 2 · intermediate, hidden]`.
    pub(crate) expert_gate_up: Option<String>,
    /// Down projections of all experts of a layer, `[experts, hidden, intermediate]`.
    pub(crate) expert_down: Option<String>,
    /// The bias of a router, `[1, experts]`.
    pub(crate) ffn_router_bias: Option<String>,
}

/// The order of the rows of queries, keys and values in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QkvOrder {
    /// All queries, all keys, all values.
    #[default]
    Stacked,
    /// For each key and value head the queries that it answers, its key and its value.
    PerGroup,
}

impl FusedProjections {
    /// The name of the tensor that holds the weights of a role outside the experts.
    pub(super) fn holder(&self, role: Role) -> Option<&str> {
        match role {
            Role::Q | Role::K | Role::V => self.qkv.as_deref(),
            Role::Gate | Role::Up => self.gate_up.as_deref(),
            Role::SharedGate | Role::SharedUp => self.shared_gate_up.as_deref(),
            _ => None,
        }
    }

    /// Refuses names that no weight of a layer has; `section` is the key of these names in the file `path`.
    pub(crate) fn check(&self, path: &Path, section: &str) -> Result<()> {
        let weights = [
            ("qkv", &self.qkv),
            ("gate_up", &self.gate_up),
            ("shared_gate_up", &self.shared_gate_up),
            ("expert_gate_up", &self.expert_gate_up),
            ("expert_down", &self.expert_down),
        ];
        let weights = weights.map(|(key, pattern)| (key, pattern, ".weight"));
        for (key, pattern, end) in
            weights
                .into_iter()
                .chain([("ffn_router_bias", &self.ffn_router_bias, "bias")])
        {
            let Some(pattern) = pattern else { continue };
            if !has_layer_alone(pattern) || !pattern.ends_with(end) {
                return Err(FormatError::Pattern {
                    path: path.to_path_buf(),
                    key: format!("{section}.{key}"),
                    expected: format!("that ends in {end} with {LAYER} once"),
                    found: pattern.clone(),
                }
                .into());
            }
        }
        Ok(())
    }
}

/// A part of a block whose projections may have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GgufPart {
    /// Queries, keys, values and the output projection.
    Attention,
    /// The output projection alone.
    AttentionOutput,
    FeedForward,
}

/// A scaling of rotary positions that llama.cpp computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GgufRope {
    /// Every position divided by a factor.
    Linear,
    /// YaRN with its usual settings.
    Yarn,
    /// YaRN with all settings.
    AllOfYarn,
    /// Factors on frequencies, one list.
    Llama3,
    /// Factors on frequencies, one list for short contexts and one for long ones.
    Longrope,
}

impl GgufRope {
    /// The scalings of most architectures.
    pub(super) const USUAL: [Self; 3] = [Self::Linear, Self::Yarn, Self::Llama3];

    /// Its `rope_type`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Yarn | Self::AllOfYarn => "yarn",
            Self::Llama3 => "llama3",
            Self::Longrope => LONGROPE,
        }
    }
}

/// What llama.cpp calls the tensors and numbers of a family; read in both directions.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GgufNames {
    /// The value of `general.architecture`, which also begins the names of the metadata keys.
    pub(crate) architecture: String,
    /// Whether llama.cpp rotates neighbouring rows of a head. Then the rows of a model that rotates halves are
    /// interleaved.
    pub(crate) rope_interleaved: bool,
    /// Parts whose projections have no bias there, whatever the family has.
    pub(crate) without_bias: Vec<GgufPart>,
    /// Parts whose projections all have a bias there.
    pub(crate) with_bias: Vec<GgufPart>,
    /// Whether all heads together are as wide there as the hidden states.
    pub(crate) heads_fill: bool,
    /// Whether there are as many heads of keys and values there as of queries.
    pub(crate) kv_heads_fill: bool,
    /// The activation there, where it approximates the one that the family has.
    pub(crate) activation: Option<String>,
    /// The scalings of rotary positions there; [`GgufRope::USUAL`] where it is absent.
    pub(crate) scalings: Option<Vec<GgufRope>>,
    /// The number of layers of the model whose attention scores are scaled there as if a head had the hidden size divided by heads.
    pub(crate) hidden_scale_layers: Option<u64>,
    /// Whether the gates of the chosen experts are divided by their sum there, where models of the family may have either.
    pub(crate) norm_topk_prob: Option<bool>,
    /// The key under which files say a window that llama.cpp does not obey; 0 means none.
    pub(crate) unused_window: Option<String>,
    /// Whether llama.cpp opens only files with a head of their own, and none whose head is the input embedding.
    pub(crate) untied_head: bool,
    /// The window there of a file that says none.
    pub(crate) usual_window: Option<u64>,
    /// The key of a flag that switches rotation off there.
    pub(crate) rotation_switch: Option<String>,
    /// The number of layers from which llama.cpp takes a file for another model.
    pub(crate) layers_below: Option<u64>,
    /// The period of layers of which the last has no window there, in a model with one.
    pub(crate) window_period: Option<u64>,
    /// The period of layers of which the last does not rotate there.
    pub(crate) rope_period: Option<u64>,
    /// Metadata keys, without the architecture's name.
    #[serde(deserialize_with = "listed")]
    pub(crate) keys: BTreeMap<Field, String>,
    /// Tensors outside the experts.
    pub(crate) tensors: RoleNames,
    /// Tensors that hold one projection of all experts of a layer.
    pub(crate) expert_tensors: RoleNames,
    /// Tensors that hold several projections of a layer.
    pub(crate) fused: FusedProjections,
}

impl GgufNames {
    /// The scalings of rotary positions there.
    pub(super) fn scalings(&self) -> &[GgufRope] {
        self.scalings.as_deref().unwrap_or(&GgufRope::USUAL)
    }

    /// Whether a scaling with that `rope_type` is among them.
    pub(super) fn has_scaling(&self, rope_type: &str) -> bool {
        self.scalings().iter().any(|kind| kind.name() == rope_type)
    }

    /// The factor on attention scores there in a model of these sizes, where it does not follow from the width of a head.
    pub(super) fn hidden_scale(&self, [layers, hidden, heads, width]: [u64; 4]) -> Option<f64> {
        let applies = self.hidden_scale_layers == Some(layers) && hidden != heads * width;
        applies.then(|| (hidden as f64 / heads as f64).powf(-0.5))
    }

    /// Names that the weight of a role may have in a layer: its own name, and the name of the tensor that holds it.
    pub(super) fn weights(&self, role: Role, layer: u64) -> impl Iterator<Item = String> + use<> {
        let own = self.tensors.name(role, Some(layer), None);
        let holder = self.fused.holder(role).map(|name| in_layer(name, layer));
        own.into_iter().chain(holder)
    }

    /// The layers with that window, of so many.
    pub(super) fn window_layers(&self, window: Option<u64>, layers: u64) -> Layers {
        match (window, self.window_period) {
            (Some(_), Some(period)) => Layers::of(&all_but_each(layers, period)),
            _ => Layers::All,
        }
    }

    /// The layers that rotate, of so many.
    pub(super) fn rope_layers(
        &self,
        rotation: Rotation,
        window_layers: &Layers,
        layers: u64,
    ) -> Layers {
        match (rotation, self.rope_period) {
            (Rotation::SlidingOnly, _) => window_layers.clone(),
            (Rotation::All, Some(period)) => Layers::of(&all_but_each(layers, period)),
            (Rotation::All, None) => Layers::All,
        }
    }

    /// The metadata key of a number.
    pub(crate) fn key(&self, field: Field) -> Result<String> {
        match self.keys.get(&field) {
            Some(key) => Ok(self.own_key(key)),
            None => Err(GgufModelError::NoKey {
                architecture: self.architecture.clone(),
                field: field.name(),
            }
            .into()),
        }
    }

    /// A metadata key of this architecture.
    pub(crate) fn own_key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// Refuses a section that names no architecture, or names tensors in a way that no file has.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        if self.architecture.is_empty() {
            return Err(FormatError::NoGgufArchitecture {
                path: path.to_path_buf(),
            }
            .into());
        }
        for (key, period) in [
            ("gguf.window_period", self.window_period),
            ("gguf.rope_period", self.rope_period),
        ] {
            if period == Some(0) {
                return Err(InputError::wrong_value(path, key, "a period above 0", 0));
            }
        }
        self.fused.check(path, "gguf.fused")?;
        self.tensors.check(path, "gguf.tensors", Holds::Model)?;
        self.expert_tensors
            .check(path, "gguf.expert_tensors", Holds::AllExperts)
    }
}
