//! What a mixture becomes in the format of another program: a stock family of transformers, or this program's own.
//!
//! A family holds a mixture exactly or not at all. What it cannot hold is refused with the reason; nothing is dropped.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::cannot_hold::{self, Shared, Windows, router_bias, width_is_dense};
use super::config::{BAM_VERSION, Config};
use super::error::FamilyError;
use super::format::{Family, Presence};
use super::keys::{Field, Keys};
use super::known::{MIXTURES, mixture_names};
use super::layout::{Layers, Layouts};
use super::mixture::Mixture;
use super::optional_bias::biases;
use super::spelling::same_value;
use super::target::bam_config;
use super::write::{ConfigWriter, carried, notes};
use crate::Result;
use crate::printable::excerpt;

/// A mixture as a checkpoint of a family.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Its architecture, with all that the family insists on.
    pub architecture: Architecture,
    /// Its `config.json`.
    pub config: Map<String, Value>,
    /// What a user should know: keys of the source that its family does not have.
    pub notes: Vec<String>,
}

/// The names of the families that can hold a mixture.
pub fn targets() -> &'static [&'static str] {
    &MIXTURES
}

/// `dense` with the experts of `mixture` as a checkpoint of the family called `target`; `source` is the configuration that
/// `dense` was read from, whose other keys are kept.
///
/// Parameters that only the family has are neutral: a bias is zero, and so is the down projection of a shared expert.
///
/// # Errors
/// An unknown family, and whatever about the model the family has no place for, each reason named.
pub fn output(
    dense: &Architecture,
    source: &Config,
    mixture: Mixture,
    target: &str,
) -> Result<Output> {
    let known = targets();
    if !known.contains(&target) {
        return Err(FamilyError::UnknownName {
            what: "a target",
            found: target.to_owned(),
            known: known.iter().map(|name| (*name).to_owned()).collect(),
        }
        .into());
    }
    let family = Family::named(target)?;
    dense.check_computable(source)?;
    let notes = notes(source, dense)?;
    let Some(keys) = &family.mixture else {
        let architecture = dense.upcycled(mixture);
        let config = bam_config(source, dense, &architecture)?;
        return Ok(Output {
            architecture,
            config,
            notes,
        });
    };
    let reasons = cannot_hold::reasons(dense, &mixture, &family, keys);
    if !reasons.is_empty() {
        return Err(FamilyError::CannotHold {
            target: target.to_owned(),
            reasons,
        }
        .into());
    }
    let wanted = fitted(dense, mixture, &family, keys);
    let config = config(carried(source, dense)?, &wanted, &family);
    let mut read = Architecture::read(&Config::from_json(&source.path, config.clone()), &family)?;
    // A default of the family may stand where the source says nothing.
    read.max_position_embeddings = wanted.max_position_embeddings;
    read.dtype = wanted.dtype;
    if let (Some(read), Some(wanted)) = (&mut read.mixture, &wanted.mixture) {
        let weight = wanted.router_aux_loss_coef;
        // Of more digits than a product with the number of layers leads back to.
        if (read.router_aux_loss_coef - weight).abs() <= 1e-12 * weight {
            read.router_aux_loss_coef = weight;
        }
    }
    if let Some(field) = first_difference(&wanted, &read) {
        return Err(FamilyError::CannotSay {
            target: target.to_owned(),
            field,
        }
        .into());
    }
    Ok(Output {
        architecture: wanted,
        config,
        notes,
    })
}

/// The architecture in the family, with what it insists on.
fn fitted(
    dense: &Architecture,
    mut mixture: Mixture,
    family: &Family,
    keys: &Keys,
) -> Architecture {
    // One key may switch two kinds of biases on.
    let flags = biases(family, dense);
    let there = |presence: &Presence| match presence {
        Presence::Never => false,
        Presence::Always => true,
        Presence::Key { default, .. } => {
            *default
                || flags
                    .iter()
                    .any(|bias| bias.there && bias.presence == presence)
        }
    };
    let soft = mixture.num_experts_per_tok == mixture.num_experts;
    if let (true, true, Some(fixed)) = (
        soft,
        keys[Field::NormTopkProb].names.is_empty(),
        &keys[Field::NormTopkProb].default,
    ) {
        mixture.norm_topk_prob = fixed == true;
    }
    if let (Some(shared), None) = (
        Shared::of(family, keys).required(mixture.moe_intermediate_size),
        mixture.shared_expert_intermediate_size,
    ) {
        mixture.shared_expert_intermediate_size = Some(shared.width);
        mixture.shared_expert_gate = shared.is_gated;
    }
    mixture.router_bias = router_bias(keys);
    mixture.num_attention_experts = 1;
    mixture.num_attention_experts_per_tok = 1;
    mixture.attention_moe_layers = Layers::All;
    mixture.norm_topk_prob_attention = false;
    if mixture
        .moe_layers
        .mask(dense.num_layers)
        .iter()
        .all(|sparse| *sparse)
    {
        mixture.moe_layers = Layers::All;
    }
    let windows = Windows::of(dense, family);
    Architecture {
        family: family.name.clone(),
        attention_bias: there(&family.present.attention_bias),
        attention_output_bias: there(&family.present.attention_output_bias),
        mlp_bias: there(&family.present.mlp_bias),
        norm_bias: there(&family.present.norm_bias),
        head_bias: there(&family.present.head_bias),
        intermediate_size: if width_is_dense(family, keys) {
            mixture.moe_intermediate_size
        } else {
            dense.intermediate_size
        },
        logit_scale: (!family.keys[Field::LogitScale].names.is_empty())
            .then(|| dense.logit_scale.unwrap_or(1.0)),
        sliding_window: windows.window,
        window_layers: windows.layers,
        mixture: Some(mixture),
        multimodal: None,
        format: None,
        ..dense.clone()
    }
}

/// Keys of other families that a reader of the target would misunderstand, and keys of code that is not copied.
const STRAY: [&str; 14] = [
    "auto_map",
    BAM_VERSION,
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "layer_types",
    "max_window_layers",
    "mlp_only_layers",
    "decoder_sparse_step",
    "sliding_window",
    "use_sliding_window",
    "rope_layers",
    "qkv_bias",
    "attention_output_bias",
    // Said again, with every value, in both spellings.
    "rope_scaling",
];

/// Numbers of the architecture, in the order in which a source that does not say them gets them.
const NUMBERS: [Field; 18] = [
    Field::HiddenSize,
    Field::IntermediateSize,
    Field::NumLayers,
    Field::NumHeads,
    Field::NumKvHeads,
    Field::VocabSize,
    Field::TieWordEmbeddings,
    Field::HiddenAct,
    Field::NormEps,
    Field::InitializerRange,
    Field::SlidingWindow,
    Field::UseSlidingWindow,
    Field::ClipQkv,
    Field::LogitScale,
    Field::MaxPositionEmbeddings,
    Field::DenseIntermediateSize,
    Field::LayerTypes,
    Field::PrefixWindowPattern,
];

/// The `config.json` of `wanted`: the keys of the source, `base`, in their order, changed where the family differs.
fn config(base: Map<String, Value>, wanted: &Architecture, family: &Family) -> Map<String, Value> {
    let both_dtypes = base.contains_key("torch_dtype");
    let strays = STRAY
        .into_iter()
        .chain(Mixture::KEYS)
        .chain(Layouts::NAMES)
        .chain(Field::MULTIPLIERS.map(Field::name))
        .chain(mixture_names());
    let mut config = ConfigWriter::new(base, strays, family, wanted);
    config.rope();
    config.identity(None);
    config.keys(&NUMBERS);
    config.optional(&[Field::RmsNormEps]);
    config.keys(&Field::MULTIPLIERS);
    config.dtype(both_dtypes);
    config.keys(&[Field::HeadDim]);
    config.biases();
    config.mixture();
    config.finish()
}

/// The first field in which two architectures differ, with what it should be.
fn first_difference(wanted: &Architecture, found: &Architecture) -> Option<String> {
    let fields = |architecture: &Architecture| match json!(architecture) {
        Value::Object(mut fields) => {
            let mixture = fields.remove("mixture");
            fields.extend(
                mixture
                    .as_ref()
                    .and_then(Value::as_object)
                    .cloned()
                    .unwrap_or_default(),
            );
            fields
        }
        _ => Map::new(),
    };
    let found = fields(found);
    fields(wanted)
        .into_iter()
        .find(|(name, value)| !same_value(found.get(name).unwrap_or(&Value::Null), value))
        .map(|(name, value)| format!("that {name} is {}", excerpt(&value.to_string())))
}
