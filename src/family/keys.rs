//! The one table of configuration keys: their names in format files, and what each holds of an architecture's numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::role::{listed, named};

/// One configuration key: the names it may have, and the value where a file has none of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Key {
    /// Alternative names, each with the same meaning; `a.b` is key `b` of the object `a`.
    pub(crate) names: Vec<String>,
    /// The value where `config.json` has none of the names.
    pub(crate) default: Option<Value>,
    /// The default of transformers 4, where transformers 5 has another.
    pub(crate) default_before_5: Option<Value>,
    /// Texts that the class reads as other values.
    pub(crate) read_as: BTreeMap<String, Value>,
    /// The first version of transformers that takes these texts literally; version 5 does not.
    pub(crate) literal_since: Option<String>,
}

impl Key {
    /// A key of one name without a default.
    pub(crate) fn called(name: &str) -> Self {
        Self {
            names: vec![name.to_owned()],
            ..Self::default()
        }
    }

    /// Whether it is read under that name.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// What the class reads in place of that value, if it reads another.
    pub(super) fn read_as(&self, value: &Value) -> Option<&Value> {
        self.read_as.get(value.as_str()?)
    }

    /// The name under which the key is written.
    pub(crate) fn name(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for Key {
    /// Reads one name, or a map of names and defaults.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            #[serde(default)]
            names: Option<Vec<String>>,
            #[serde(default)]
            default: Option<Value>,
            #[serde(default)]
            default_before_5: Option<Value>,
            #[serde(default)]
            read_as: Option<BTreeMap<String, Value>>,
            #[serde(default)]
            literal_since: Option<String>,
        }

        struct NameOrFields;

        impl<'de> Visitor<'de> for NameOrFields {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a key, or { names: […], default: … }")
            }

            fn visit_str<E>(self, name: &str) -> Result<Key, E> {
                Ok(Key::called(name))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Key, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Key {
                    names: fields.names.unwrap_or_default(),
                    default: fields.default,
                    default_before_5: fields.default_before_5,
                    read_as: fields.read_as.unwrap_or_default(),
                    literal_since: fields.literal_since,
                })
            }
        }

        deserializer.deserialize_any(NameOrFields)
    }
}

/// Where a format file lists a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// Under `keys`.
    Keys,
    /// Under `mixture`.
    Mixture,
}

/// Whether a family must list a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    Optional,
}

macro_rules! fields {
    ($($(#[$about:meta])* $field:ident = $name:literal, $section:ident, $need:ident;)*) => {
        /// A configuration key that the toolkit reads, whatever a family calls it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Field { $($(#[$about])* $field,)* }

        impl Field {
            /// Every key.
            pub(crate) const ALL: [Self; [$($name),*].len()] = [$(Self::$field),*];

            /// Their names in a format file.
            pub(crate) const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name in a format file.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$field => $name,)* }
            }

            /// Where a format file lists it.
            pub(crate) fn section(self) -> Section {
                match self { $(Self::$field => Section::$section,)* }
            }

            /// Whether a family must list it.
            pub(crate) fn need(self) -> Need {
                match self { $(Self::$field => Need::$need,)* }
            }
        }
    };
}

fields! {
    HiddenSize = "hidden_size", Keys, Required;
    IntermediateSize = "intermediate_size", Keys, Required;
    /// The width of layers without experts, where `intermediate_size` is the width of an expert.
    DenseIntermediateSize = "dense_intermediate_size", Keys, Optional;
    NumLayers = "num_layers", Keys, Required;
    NumHeads = "num_heads", Keys, Required;
    /// As many as heads where a family does not list it.
    NumKvHeads = "num_kv_heads", Keys, Optional;
    VocabSize = "vocab_size", Keys, Required;
    NormEps = "norm_eps", Keys, Required;
    /// Where it is a number, norms are root mean squares with this epsilon.
    RmsNormEps = "rms_norm_eps", Keys, Optional;
    TieWordEmbeddings = "tie_word_embeddings", Keys, Required;
    HeadDim = "head_dim", Keys, Optional;
    MaxPositionEmbeddings = "max_position_embeddings", Keys, Optional;
    HiddenAct = "hidden_act", Keys, Optional;
    RopeTheta = "rope_theta", Keys, Optional;
    InitializerRange = "initializer_range", Keys, Optional;
    Dtype = "dtype", Keys, Optional;
    LogitScale = "logit_scale", Keys, Optional;
    SlidingWindow = "sliding_window", Keys, Optional;
    UseSlidingWindow = "use_sliding_window", Keys, Optional;
    /// Layers below it see all positions.
    MaxWindowLayers = "max_window_layers", Keys, Optional;
    /// The list of kinds of layers, `sliding_attention` and `full_attention`.
    LayerTypes = "layer_types", Keys, Optional;
    /// Whether the block is the family's parallel one; where it is false, the block is sequential.
    ParallelBlock = "parallel_block", Keys, Optional;
    /// The period of layers, of which the last sees all positions.
    SlidingWindowPattern = "sliding_window_pattern", Keys, Optional;
    /// The same for the first layers, which have no experts; with a period of 1, layers without experts rotate in any case.
    PrefixWindowPattern = "prefix_window_pattern", Keys, Optional;
    /// `all`, or the list of layers that rotate queries and keys.
    RopeLayers = "rope_layers", Keys, Optional;
    /// The list of zeros and ones, with a zero for a layer that does not rotate.
    NoRopeLayers = "no_rope_layers", Keys, Optional;
    /// The period of layers, of which the last does not rotate.
    NoRopeLayerInterval = "no_rope_layer_interval", Keys, Optional;
    /// The base of rotary positions in layers with a window; a family with it has a rotation for each kind of layer.
    RopeLocalTheta = "rope_local_theta", Keys, Optional;
    /// The fixed factor of a `dynamic` scaling, which stretches the base alone.
    RopeAlpha = "rope_alpha", Keys, Optional;
    PartialRotaryFactor = "partial_rotary_factor", Keys, Optional;
    ClipQkv = "clip_qkv", Keys, Optional;
    EmbeddingMultiplier = "embedding_multiplier", Keys, Optional;
    ResidualMultiplier = "residual_multiplier", Keys, Optional;
    /// The factor on attention scores.
    AttentionMultiplier = "attention_multiplier", Keys, Optional;
    /// The number whose inverse root is the factor on attention scores.
    QueryPreAttnScalar = "query_pre_attn_scalar", Keys, Optional;
    LogitsDivisor = "logits_divisor", Keys, Optional;
    AttnLogitSoftcapping = "attn_logit_softcapping", Keys, Optional;
    FinalLogitSoftcapping = "final_logit_softcapping", Keys, Optional;
    /// The weight of a factor on queries that grows with their position.
    QueryScaleBeta = "query_scale_beta", Keys, Optional;
    /// The positions after which it grows.
    QueryScaleContext = "query_scale_context", Keys, Optional;
    NumExperts = "num_experts", Mixture, Required;
    NumExpertsPerTok = "num_experts_per_tok", Mixture, Required;
    MoeIntermediateSize = "moe_intermediate_size", Mixture, Required;
    NormTopkProb = "norm_topk_prob", Mixture, Required;
    RouterAuxLossCoef = "router_aux_loss_coef", Mixture, Required;
    /// The width of the shared expert.
    SharedExpertIntermediateSize = "shared_expert_intermediate_size", Mixture, Optional;
    /// How many experts the shared one is as wide as.
    NumSharedExperts = "num_shared_experts", Mixture, Optional;
    /// `sum`, or `average` where the outputs of the shared expert and of the others are halved.
    SharedCombination = "shared_combination", Mixture, Optional;
    /// What biases of routers mean, as a BAM says it.
    RouterBias = "router_bias", Mixture, Optional;
    /// The list of layers without experts.
    DenseLayers = "dense_layers", Mixture, Optional;
    /// The number `n` where only each `n`-th layer has experts.
    SparseStep = "sparse_step", Mixture, Optional;
    /// The first layer that may have experts.
    FirstSparseLayer = "first_sparse_layer", Mixture, Optional;
    /// The last one; -1 is the last layer.
    LastSparseLayer = "last_sparse_layer", Mixture, Optional;
    /// The list of kinds of layers, `dense` and `sparse`.
    SparseLayerTypes = "sparse_layer_types", Mixture, Optional;
    /// How many of the first layers have no experts, where no list says so.
    DensePrefix = "dense_prefix", Mixture, Optional;
}

impl Field {
    /// The keys that say factors or soft caps.
    pub(crate) const MULTIPLIERS: [Self; 9] = [
        Self::EmbeddingMultiplier,
        Self::ResidualMultiplier,
        Self::AttentionMultiplier,
        Self::QueryPreAttnScalar,
        Self::LogitsDivisor,
        Self::AttnLogitSoftcapping,
        Self::FinalLogitSoftcapping,
        Self::QueryScaleBeta,
        Self::QueryScaleContext,
    ];
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        named(deserializer, &Self::ALL, Self::NAMES)
    }
}

/// The keys that a family lists in one section of its format file; a key without names is fixed at its default.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Keys(BTreeMap<Field, Key>);

impl Keys {
    /// The fields and their keys, in the order of the table.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Field, &Key)> {
        self.0.iter().map(|(field, key)| (*field, key))
    }

    /// Whether a key is read under that name.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.iter().any(|(_, key)| key.is_called(name))
    }

    /// Whether the family lists the key.
    pub(crate) fn has(&self, field: Field) -> bool {
        self.0.contains_key(&field)
    }
}

/// A key that is not listed has no names and no default: nothing is ever found under it.
impl Index<Field> for Keys {
    type Output = Key;

    fn index(&self, field: Field) -> &Key {
        static UNLISTED: Key = Key {
            names: Vec::new(),
            default: None,
            default_before_5: None,
            read_as: BTreeMap::new(),
            literal_since: None,
        };
        self.0.get(&field).unwrap_or(&UNLISTED)
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        listed(deserializer).map(Self)
    }
}
