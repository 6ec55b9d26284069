//! The named layouts: the few choices in which decoder families differ, spelled as in `config.json`.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::checkpoint::json::kind;
use crate::error::{Error, InputError, one_of};

/// A value that is none of those that a key may have, in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unexpected {
    /// The values that the key may have.
    pub(crate) expected: String,
    /// Its value.
    pub(crate) found: String,
}

impl Unexpected {
    /// The error of a file whose key has the value.
    pub(crate) fn at(self, path: &Path, key: &str) -> Error {
        InputError::wrong_value(path, key, self.expected, self.found)
    }
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

/// A choice among named layouts.
pub(crate) trait Choice: Sized + Copy + 'static {
    /// Every spelling with its meaning.
    const ALL: &'static [(&'static str, Self)];

    /// Reads a spelling; the error says what was expected and found.
    fn parse(value: &Value) -> Result<Self, Unexpected> {
        let text = value.as_str().unwrap_or_default();
        Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| Unexpected {
                expected: one_of(Self::ALL.iter().map(|choice| choice.0)),
                found: kind(value),
            })
    }
}

/// The value of a layout, as configurations say it.
pub(crate) trait LayoutValue: Sized {
    /// Reads it from a configuration; the error says what was expected and found.
    fn read(value: &Value) -> Result<Self, Unexpected>;
}

impl LayoutValue for bool {
    fn read(value: &Value) -> Result<Self, Unexpected> {
        value.as_bool().ok_or_else(|| Unexpected {
            expected: "true or false".to_owned(),
            found: kind(value),
        })
    }
}

macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$variant_about:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_about])* #[serde(rename = $text)] $variant,)* }

        impl Choice for $name {
            const ALL: &'static [(&'static str, Self)] = &[$(($text, Self::$variant),)*];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.pad(match self { $(Self::$variant => $text,)* })
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::parse(&Value::from(text)).map_err(|unexpected| unexpected.to_string())
            }
        }

        impl LayoutValue for $name {
            fn read(value: &Value) -> Result<Self, Unexpected> {
                Self::parse(value)
            }
        }
    };
}

choice! {
    /// How attention and feed-forward are joined in a block.
    Block {
        /// `x + attention(norm(x))`, then `x + ffn(norm(x))`.
        Sequential = "sequential",
        /// `x + attention(h) + ffn(h)` with `h = norm(x)` (paper, section 3.1).
        Parallel = "parallel",
        /// `x + attention(norm(x)) + ffn(norm(x))`, each with a norm of its own.
        ParallelTwoNorms = "parallel_two_norms",
    }
}
choice! {
    /// Which normalisation; both have a weight.
    NormType {
        /// Root mean square.
        Rms = "rms",
        /// Mean-subtracting layer norm.
        Layer = "layer",
    }
}
impl NormType {
    /// The key of its epsilon.
    pub(crate) fn eps_key(self) -> &'static str {
        match self {
            Self::Rms => "rms_norm_eps",
            Self::Layer => "layer_norm_eps",
        }
    }
}

choice! {
    /// Where a block normalises.
    NormPosition {
        /// The input of each sublayer.
        Pre = "pre",
        /// The output of each sublayer.
        Post = "post",
        /// Both.
        Sandwich = "sandwich",
    }
}
choice! {
    /// The feed-forward network.
    MlpType {
        /// `down(act(gate(x)) * up(x))`.
        Gated = "gated",
        /// `down(act(up(x)))`.
        Plain = "plain",
    }
}
choice! {
    /// Normalisation of queries and keys.
    QkNorm {
        /// Queries and keys are not normalised.
        None = "none",
        /// Root mean square with one weight `[head_dim]` for all heads (Qwen3).
        HeadDim = "head_dim",
        /// Layer norm of each head with a weight `[heads, head_dim]` (Cohere).
        PerHead = "per_head",
        /// Root mean square over all heads together with a weight `[heads · head_dim]` (OLMoE).
        Full = "full",
    }
}
choice! {
    /// Which layers rotate queries and keys, in a family whose configurations do not list them.
    Rotation {
        /// Every layer.
        All = "all",
        /// In a model with a sliding window, the layers that have it (Cohere2, EXAONE 4).
        SlidingOnly = "sliding_only",
    }
}
choice! {
    /// What happens to keys and values in a mixture.
    AttentionKv {
        /// Each attention expert has its own.
        Expert = "expert",
        /// One pair for all attention experts.
        Shared = "shared",
        /// Attention is one ordinary, averaged attention: no attention experts, no attention router (BTX).
        Merged = "merged",
    }
}

choice! {
    /// How the logits of attention routers become gates.
    AttentionGate {
        /// A softmax over all experts.
        Softmax = "softmax",
        /// The sigmoid of each expert's own logit, times a scale.
        Sigmoid = "sigmoid",
    }
}

impl AttentionGate {
    /// Whether files leave it out, because it is what they mean without it.
    #[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
    pub(crate) fn is_softmax(&self) -> bool {
        *self == Self::Softmax
    }
}

/// A value in the words of a message: its name, or one of two texts for false and true.
macro_rules! words {
    ($value:expr) => {
        $value.to_string()
    };
    ($value:expr, $off:literal, $on:literal) => {
        if $value { $on } else { $off }.to_owned()
    };
}

macro_rules! layouts {
    ($($(#[$about:meta])* $field:ident: $value:ty, $neutral:expr, $what:literal $(, [$off:literal, $on:literal])?;)*) => {
        /// The layouts of a family or of a model, each a difference in meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct Layouts { $($(#[$about])* pub(crate) $field: $value,)* }

        /// The layouts that a file says itself, each under the key of its name.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct SaidLayouts { $(pub(crate) $field: Option<$value>,)* }

        impl Layouts {
            /// The keys, in the order of the table.
            pub(crate) const NAMES: [&'static str; [$(stringify!($field)),*].len()] =
                [$(stringify!($field)),*];

            /// Each layout with its key, its value as JSON and the words of a message.
            pub(crate) fn rows(&self) -> [LayoutRow; Self::NAMES.len()] {
                [$(LayoutRow {
                    key: stringify!($field),
                    value: json!(self.$field),
                    is_neutral: $neutral == Some(self.$field),
                    what: $what,
                    words: words!(self.$field $(, $off, $on)?),
                }),*]
            }

            /// These, but for those that a file says.
            pub(crate) fn but(self, said: SaidLayouts) -> Self {
                Self { $($field: said.$field.unwrap_or(self.$field),)* }
            }
        }

        impl SaidLayouts {
            /// Those among the keys of an object; null counts as absent. The error is a key and what is wrong with it.
            pub(crate) fn read(object: &Map<String, Value>) -> Result<Self, (&'static str, Unexpected)> {
                Ok(Self {
                    $($field: match object.get(stringify!($field)) {
                        None | Some(Value::Null) => None,
                        Some(value) => {
                            Some(<$value>::read(value).map_err(|unexpected| (stringify!($field), unexpected))?)
                        }
                    },)*
                })
            }

            /// All of them, where each is said that must be; the error is the first that is not.
            pub(crate) fn complete(self) -> Result<Layouts, &'static str> {
                Ok(Layouts { $($field: self.$field.or($neutral).ok_or(stringify!($field))?,)* })
            }
        }
    };
}

// Each with the value that a file need not say, if there is one.
layouts! {
    /// How attention and feed-forward are joined.
    block: Block, None, "block is";
    /// Which normalisation.
    norm_type: NormType, None, "norm is";
    /// Where a block normalises.
    norm_position: NormPosition, None, "place of norms is";
    /// The feed-forward network.
    mlp_type: MlpType, None, "feed-forward network is";
    /// Whether rotary pairs are neighbours (`2i`, `2i + 1`) rather than half a head apart.
    rope_interleaved: bool, None, "rotary pairs are", ["half a head apart", "neighbours"];
    /// Normalisation of queries and keys.
    qk_norm: QkNorm, None, "norm of queries and keys is";
    /// Whether norms multiply by one plus their weight; norms of queries and keys do, too.
    norm_offset: bool, Some(false), "norms multiply", ["by their weight", "by one plus it"];
    /// Whether queries and keys are normalised after their rotation.
    qk_norm_after_rope: bool, Some(false), "norms of queries and keys come", ["before the rotation", "after it"];
}

/// One layout of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayoutRow {
    /// Its key in `config.json` and in format files.
    pub(crate) key: &'static str,
    /// Its value under that key.
    pub(crate) value: Value,
    /// Whether a file need not say the value.
    pub(crate) is_neutral: bool,
    /// The beginning of a sentence about it.
    pub(crate) what: &'static str,
    /// The end of that sentence.
    pub(crate) words: String,
}

/// A set of layers: all, or those listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// Every layer.
    All,
    /// These layers, counted from 0.
    List(Vec<u64>),
}

impl Layers {
    /// Whether it is every layer.
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Whether `layer` is one of them.
    pub fn contains(&self, layer: u64) -> bool {
        match self {
            Self::All => true,
            Self::List(layers) => layers.contains(&layer),
        }
    }

    /// Those layers whose flag is set.
    pub(crate) fn of(mask: &[bool]) -> Self {
        if mask.iter().all(|flag| *flag) {
            return Self::All;
        }
        Self::List(
            (0..)
                .zip(mask)
                .filter(|(_, flag)| **flag)
                .map(|(layer, _)| layer)
                .collect(),
        )
    }

    /// How many of `num_layers` layers they are.
    pub(crate) fn count(&self, num_layers: u64) -> u64 {
        match self {
            Self::All => num_layers,
            Self::List(layers) => layers.len() as u64,
        }
    }

    /// One flag a layer, for walking over many layers.
    pub(crate) fn mask(&self, num_layers: u64) -> Vec<bool> {
        let mut mask = vec![matches!(self, Self::All); num_layers as usize];
        if let Self::List(layers) = self {
            for layer in layers {
                if let Some(flag) = mask.get_mut(*layer as usize) {
                    *flag = true;
                }
            }
        }
        mask
    }

    /// Reads `"all"` or a list of distinct layers below `num_layers`.
    pub(crate) fn parse(value: &Value, num_layers: u64) -> Result<Self, Unexpected> {
        let unexpected = |found: String| Unexpected {
            expected: format!(
                "\"all\" or a list of layers from 0 to {}",
                num_layers.saturating_sub(1)
            ),
            found,
        };
        match value {
            Value::String(text) if text == "all" => Ok(Self::All),
            Value::Array(items) => {
                let mut seen = vec![false; num_layers as usize];
                let mut layers = Vec::with_capacity(items.len().min(seen.len()));
                for item in items {
                    let layer = item.as_u64().filter(|layer| *layer < num_layers);
                    let layer = layer.ok_or_else(|| unexpected(format!("{} in it", kind(item))))?;
                    if std::mem::replace(&mut seen[layer as usize], true) {
                        return Err(Unexpected {
                            expected: "distinct layers".to_owned(),
                            found: format!("{layer} twice"),
                        });
                    }
                    layers.push(layer);
                }
                Ok(Self::List(layers))
            }
            other => Err(unexpected(kind(other))),
        }
    }
}

/// Whether each of so many layers is not the last of a `period`.
pub(super) fn all_but_each(layers: u64, period: u64) -> Vec<bool> {
    (1..=layers).map(|number| number % period != 0).collect()
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::List(layers) => layers.serialize(serializer),
        }
    }
}
