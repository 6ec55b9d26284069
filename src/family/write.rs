//! The one writer of `config.json`: what an architecture is, under the names that its family has for it.
//!
//! It starts from a configuration that is there (a seed's, a mixture's, or an empty one). Keys keep their place, and a value that
//! means the same keeps its spelling, so that a file changes only where the model does.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::both_spellings::both_spellings;
use super::config::Config;
use super::format::{Family, Presence};
use super::keys::{Field, Section};
use super::layout::{Block, NormType};
use super::mixture::{AVERAGE, weight_of_mean};
use super::optional_bias::biases;
use super::sparse_layers::{SparseRange, forces_rotation};
use super::spelling::same_value;
use crate::Result;
use crate::checkpoint::dtype::{Dtype, torch_name};

/// A configuration in the making.
pub(super) struct ConfigWriter<'a> {
    pub(super) family: &'a Family,
    pub(super) of: &'a Architecture,
    pub(super) json: Map<String, Value>,
}

impl<'a> ConfigWriter<'a> {
    /// Writes the configuration of `of`, a model of `family`, over the keys of `base` but for `strays`.
    pub(super) fn new(
        mut base: Map<String, Value>,
        strays: impl IntoIterator<Item = &'static str>,
        family: &'a Family,
        of: &'a Architecture,
    ) -> Self {
        for stray in strays {
            base.shift_remove(stray);
        }
        Self {
            family,
            of,
            json: base,
        }
    }

    /// The configuration, in both spellings of the keys that have two.
    pub(super) fn finish(mut self) -> Map<String, Value> {
        both_spellings(&mut self.json);
        // A BAM has it all in rope_parameters. With rope_scaling, transformers 5 cannot read the tokenizer of a model
        // type that it does not know.
        if self.family.says_layouts() && self.has("rope_scaling") {
            self.json.shift_remove("rope_scaling");
        }
        self.json
    }

    /// Says a value under a name; one that means the same stays as it is.
    pub(super) fn put(&mut self, name: &str, value: Value) {
        let says = self.json.get(name);
        if !says.is_some_and(|present| same_value(present, &value)) {
            self.json.insert(name.to_owned(), value);
        }
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, name: &str) {
        self.json.shift_remove(name);
    }

    /// Whether a key is there, though it may be null.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.json.contains_key(name)
    }

    /// Whether a key holds a value.
    fn has(&self, name: &str) -> bool {
        self.json.get(name).is_some_and(|value| !value.is_null())
    }

    /// Says which family it is: its first `model_type` where none is given.
    pub(super) fn identity(&mut self, model_type: Option<&str>) {
        let first = self.family.model_types.first().map(String::as_str);
        self.put("model_type", json!(model_type.or(first)));
        self.put("architectures", json!(self.family.architectures));
    }

    /// Says the numbers of these keys, where the family has names for them and the architecture has a value.
    ///
    /// A mixture's key is said under all its names, because programs differ in the one that they read.
    pub(super) fn keys(&mut self, fields: &[Field]) {
        for field in fields {
            let value = self.value(*field);
            // No window and no soft cap are values: a family may have one where the key is absent.
            let is_value = match field {
                Field::SlidingWindow => true,
                Field::AttnLogitSoftcapping | Field::FinalLogitSoftcapping => {
                    self.family.keys[*field].default.is_some()
                }
                _ => false,
            };
            if value.is_null() && !is_value {
                continue;
            }
            for name in self.names(*field) {
                self.put(name, value.clone());
            }
        }
    }

    /// As [`Self::keys`], but a value under a name that the architecture does not have is removed: the family would obey it.
    pub(super) fn optional(&mut self, fields: &[Field]) {
        self.keys(fields);
        for field in fields {
            if self.value(*field).is_null() {
                for name in self.names(*field) {
                    if self.has(name) {
                        self.remove(name);
                    }
                }
            }
        }
    }

    /// The names under which a key is written. Names inside the object of rotary positions are written with that.
    fn names(&self, field: Field) -> Vec<&'a str> {
        let family = self.family;
        if field.section() == Section::Mixture {
            let names = family.mixture.iter().flat_map(|keys| &keys[field].names);
            return names.map(String::as_str).collect();
        }
        let names = family.keys[field].names.iter().map(String::as_str);
        let own = self.of.norm_type.eps_key();
        match field {
            Field::NormEps if names.clone().any(|name| name == own) => vec![own],
            // Some readers compute it only where the key is absent rather than null.
            Field::HeadDim if names.len() == 0 => vec!["head_dim"],
            _ => names.take(1).filter(|name| !name.contains('.')).collect(),
        }
    }

    /// What a key holds; null where the architecture has nothing for it.
    pub(super) fn value(&self, field: Field) -> Value {
        let of = self.of;
        let mixture = of.mixture.as_ref();
        let multipliers = &of.multipliers;
        // A BAM says only what changes something.
        let said = |value: Option<f64>, neutral: f64| {
            let neutral = (!self.family.says_layouts()).then_some(neutral);
            json!(value.or(neutral))
        };
        match field {
            Field::HiddenSize => json!(of.hidden_size),
            Field::IntermediateSize | Field::DenseIntermediateSize => {
                json!(of.intermediate_size)
            }
            Field::NumLayers => json!(of.num_layers),
            Field::NumHeads => json!(of.num_heads),
            Field::NumKvHeads => json!(of.num_kv_heads),
            Field::VocabSize => json!(of.vocab_size),
            Field::NormEps => json!(of.norm_eps),
            Field::RmsNormEps => json!((of.norm_type == NormType::Rms).then_some(of.norm_eps)),
            Field::TieWordEmbeddings => json!(of.tie_word_embeddings),
            Field::HeadDim => json!(of.head_dim),
            Field::MaxPositionEmbeddings => json!(of.max_position_embeddings),
            Field::HiddenAct => json!(of.hidden_act),
            Field::RopeTheta => json!(of.rope_theta),
            Field::InitializerRange => json!(of.initializer_range),
            Field::Dtype => json!(of.dtype.and_then(torch_name)),
            Field::LogitScale => json!(of.logit_scale),
            Field::SlidingWindow => json!(of.sliding_window),
            Field::UseSlidingWindow => json!(of.sliding_window.is_some()),
            Field::LayerTypes => json!(self.layer_types()),
            Field::ParallelBlock => json!(of.block != Block::Sequential),
            // Said by the kinds of layers.
            Field::MaxWindowLayers | Field::SlidingWindowPattern | Field::NoRopeLayerInterval => {
                Value::Null
            }
            // Said by the base.
            Field::RopeAlpha => Value::Null,
            Field::PrefixWindowPattern => json!(if forces_rotation(of) { 1 } else { 2 }),
            Field::RopeLayers => json!(of.rope_layers),
            Field::NoRopeLayers => {
                let rotates = of.rope_layers.mask(of.num_layers);
                json!(rotates.into_iter().map(u8::from).collect::<Vec<_>>())
            }
            Field::RopeLocalTheta => {
                let rope = of.window_rope.as_ref();
                json!(rope.map_or(of.rope_theta, |rope| rope.theta))
            }
            Field::PartialRotaryFactor => json!(of.partial_rotary_factor.unwrap_or(1.0)),
            Field::ClipQkv => json!(of.clip_qkv),
            Field::EmbeddingMultiplier => said(multipliers.embedding_multiplier, 1.0),
            Field::ResidualMultiplier => said(multipliers.residual_multiplier, 1.0),
            Field::AttentionMultiplier => {
                said(multipliers.attention_multiplier, of.attention_scale())
            }
            Field::QueryPreAttnScalar => query_scalar(of.attention_scale()),
            Field::LogitsDivisor => said(multipliers.logits_divisor, 1.0),
            Field::AttnLogitSoftcapping => json!(multipliers.attn_logit_softcapping),
            Field::FinalLogitSoftcapping => json!(multipliers.final_logit_softcapping),
            Field::QueryScaleBeta => said(multipliers.query_scale_beta, 0.0),
            Field::QueryScaleContext => json!(multipliers.query_scale_context),
            Field::NumExperts => json!(mixture.map(|mixture| mixture.num_experts)),
            Field::NumExpertsPerTok => json!(mixture.map(|mixture| mixture.num_experts_per_tok)),
            Field::MoeIntermediateSize => {
                json!(mixture.map(|mixture| mixture.moe_intermediate_size))
            }
            Field::NormTopkProb => json!(mixture.map(|mixture| mixture.norm_topk_prob)),
            Field::RouterAuxLossCoef => json!(mixture.map(|mixture| {
                let routers = mixture.moe_layers.count(of.num_layers);
                weight_of_mean(mixture.router_aux_loss_coef, routers)
            })),
            Field::SharedExpertIntermediateSize => {
                json!(mixture.map(|mixture| mixture.shared_expert_intermediate_size.unwrap_or(0)))
            }
            Field::NumSharedExperts => json!(mixture.map(|mixture| {
                mixture.shared_expert_intermediate_size.unwrap_or(0) / mixture.moe_intermediate_size
            })),
            Field::SharedCombination => json!(mixture.map(|mixture| {
                match mixture.moe_output_multiplier {
                    Some(AVERAGE) => "average",
                    _ => "sum",
                }
            })),
            // Fixed in the families that have them.
            Field::RouterBias => Value::Null,
            Field::DenseLayers
            | Field::SparseStep
            | Field::FirstSparseLayer
            | Field::LastSparseLayer
            | Field::SparseLayerTypes => self.sparse_layers(field),
            // Said by the list of kinds.
            Field::DensePrefix => Value::Null,
        }
    }

    /// What a key says of the layers with experts.
    fn sparse_layers(&self, field: Field) -> Value {
        let Some(mixture) = &self.of.mixture else {
            return Value::Null;
        };
        let sparse = mixture.moe_layers.mask(self.of.num_layers);
        let range = SparseRange::of(&sparse);
        match field {
            Field::DenseLayers => {
                let dense = (0..self.of.num_layers).filter(|layer| !sparse[*layer as usize]);
                json!(dense.collect::<Vec<_>>())
            }
            Field::FirstSparseLayer => json!(range.map(|range| range.first)),
            Field::LastSparseLayer => json!(range.map(|range| range.last)),
            // Beside a list of layers, each may have experts.
            Field::SparseStep => match range {
                Some(range) if self.has_range() => json!(range.step),
                _ => json!(1),
            },
            _ => {
                let kind = |sparse| if sparse { "sparse" } else { "dense" };
                json!(sparse.into_iter().map(kind).collect::<Vec<_>>())
            }
        }
    }

    /// Whether the family says the layers with experts as a range.
    fn has_range(&self) -> bool {
        let keys = self.family.mixture.as_ref();
        keys.is_some_and(|keys| keys.has(Field::FirstSparseLayer))
    }

    /// Says the dtype, under both of its names where `both`.
    pub(super) fn dtype(&mut self, both: bool) {
        self.keys(&[Field::Dtype]);
        let value = self.value(Field::Dtype);
        if both && !value.is_null() {
            self.put("torch_dtype", value);
        }
    }

    /// Says those layouts whose keys are `wanted`; a neutral one only in place of another value.
    pub(super) fn layouts(&mut self, wanted: impl Fn(&str) -> bool) {
        for row in self.of.layouts().rows() {
            if wanted(row.key) && (!row.is_neutral || self.contains(row.key)) {
                self.put(row.key, row.value);
            }
        }
    }

    /// Says which biases there are, where the family has keys for that.
    pub(super) fn biases(&mut self) {
        for bias in biases(self.family, self.of) {
            if let Presence::Key { names, .. } = bias.presence
                && let Some(name) = names.first()
                && (bias.there || bias.always_said || self.contains(name))
            {
                self.put(name, json!(bias.there));
            }
        }
    }

    /// Says the experts: in the keys of the family, or in the keys of a BAM.
    pub(super) fn mixture(&mut self) {
        let Some(mixture) = &self.of.mixture else {
            return;
        };
        match &self.family.mixture {
            Some(keys) => {
                let fields: Vec<Field> = keys.iter().map(|(field, _)| field).collect();
                self.keys(&fields);
                self.put("router_z_loss_coef", json!(mixture.router_z_loss_coef));
            }
            None => {
                if let Value::Object(said) = json!(mixture) {
                    for (key, value) in said {
                        self.put(&key, value);
                    }
                }
            }
        }
    }

    /// Says the window of a BAM, and a list of its layers where the seed has one or not all have it.
    pub(super) fn windows(&mut self) {
        let unused = self.has("sliding_window") || self.has("use_sliding_window");
        match self.of.sliding_window {
            Some(window) => {
                self.put("sliding_window", json!(window));
                if self.contains("use_sliding_window") {
                    self.put("use_sliding_window", json!(true));
                }
            }
            None if unused => self.put("use_sliding_window", json!(false)),
            None => {}
        }
        let listed = self.contains("layer_types") || self.contains("max_window_layers");
        if listed || !self.of.window_layers.is_all() {
            let kinds = self.layer_types();
            self.put("layer_types", json!(kinds));
        }
    }

    fn layer_types(&self) -> Vec<&'static str> {
        let of = self.of;
        let slides = |layer: u64| of.sliding_window.is_some() && of.window_layers.contains(layer);
        (0..of.num_layers)
            .map(|layer| {
                if slides(layer) {
                    "sliding_attention"
                } else {
                    "full_attention"
                }
            })
            .collect()
    }
}

/// The number whose inverse root is this factor on attention scores; classes expect an integer where it is one.
fn query_scalar(scale: f64) -> Value {
    let scalar = scale.powi(-2);
    let whole = scalar.round();
    if (scalar - whole).abs() <= 1e-9 * whole {
        json!(whole as u64)
    } else {
        json!(scalar)
    }
}

/// The keys of `source` that the family of `architecture` knows, in their order. Other programs could obey the others, and
/// make another model of the same weights.
pub(super) fn carried(source: &Config, architecture: &Architecture) -> Result<Map<String, Value>> {
    let family = architecture.names()?;
    let mut config = source.json.clone();
    config.retain(|key, _| family.knows(key));
    Ok(config)
}

/// Whether a key says that something is absent which its family does not have. Our own GGUF conversion writes these.
fn is_inert(key: &str, value: &Value) -> bool {
    match key {
        "attention_bias" | "mlp_bias" => *value == Value::Bool(false),
        "pretraining_tp" => *value == json!(1),
        _ => false,
    }
}

/// What a user should know of `source`: keys that its family does not have, and a default that depends on the version.
pub(super) fn notes(source: &Config, architecture: &Architecture) -> Result<Vec<String>> {
    let family = architecture.names()?;
    let unknown: Vec<&str> = source
        .json
        .iter()
        .filter(|(key, value)| !value.is_null() && !is_inert(key, value) && !family.knows(key))
        .map(|(key, _)| key.as_str())
        .collect();
    let left_out = (!unknown.is_empty()).then(|| {
        format!(
            "{}: models of the family {} do not have these keys, which are left out: {}",
            source.path.display(),
            family.name,
            unknown.join(", ")
        )
    });
    let assumed = source.decided_assumptions(&family)?;
    Ok(left_out.into_iter().chain(assumed).collect())
}

/// Says the dtype of a checkpoint in its configuration, in the spellings of transformers 4 and 5.
pub fn say_dtype(config: &mut Map<String, Value>, dtype: Dtype) {
    for key in ["dtype", "torch_dtype"] {
        config.insert(key.to_owned(), json!(torch_name(dtype)));
    }
}
