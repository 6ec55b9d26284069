//! What a mixture becomes in the format of another program: a stock family of transformers, or this program's own.
//!
//! A family holds a mixture exactly or not at all. What it cannot hold is refused with the reason; nothing is dropped.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::{BAM_VERSION, Config};
use super::error::FamilyError;
use super::format::{Family, Presence};
use super::keys::{Field, Keys};
use super::known::MIXTURES;
use super::layout::{AttentionKv, Layers, Layouts, QkNorm};
use super::mixture::{Mixture, RouterBias};
use super::spelling::same_value;
use super::target::bam_config;
use super::write::{ConfigWriter, biases, carried, notes};
use crate::Result;
use crate::printable::excerpt;

/// Width of the shared expert where a family requires one and the mixture has none. It is just large enough for the
/// blocks of quantised formats, and for a few devices to share it.
const NEUTRAL_WIDTH: u64 = 256;

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
    let reasons = reasons(dense, &mixture, &family, keys);
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

/// Why a family cannot hold a mixture.
fn reasons(dense: &Architecture, mixture: &Mixture, family: &Family, keys: &Keys) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut refuse = |refused: bool, reason: String| reasons.extend(refused.then_some(reason));
    for (held, found) in family
        .layouts
        .rows()
        .into_iter()
        .zip(dense.layouts().rows())
    {
        // The norms of queries and keys have words of their own, below.
        if held.key != "qk_norm" {
            refuse(
                held.value != found.value,
                format!(
                    "its {} {}, the model's {}",
                    held.what, held.words, found.words
                ),
            );
        }
    }
    let held = if family.present.qk_norm == Presence::Never {
        QkNorm::None
    } else {
        family.layouts.qk_norm
    };
    let norm = |norm: QkNorm| match norm {
        QkNorm::None => "no norm of queries and keys",
        QkNorm::HeadDim => "a norm of each head's queries and keys",
        QkNorm::PerHead => "a layer norm with weights of its own for each head's queries and keys",
        QkNorm::Full => "a norm over all heads' queries, and one over their keys",
    };
    refuse(
        dense.qk_norm != held,
        format!("it has {}, the model {}", norm(held), norm(dense.qk_norm)),
    );
    for bias in biases(family, dense) {
        refuse(
            bias.there && *bias.presence == Presence::Never,
            format!("it has no place for {}", bias.what),
        );
    }
    refuse(
        family.keys[Field::HeadDim].names.is_empty() && dense.query_width() != dense.hidden_size,
        format!(
            "its heads fill the hidden size {}, the model's are {} wide",
            dense.hidden_size,
            dense.query_width()
        ),
    );
    let window = family.keys[Field::SlidingWindow].names.is_empty();
    refuse(
        dense.sliding_window.is_some() && window,
        "it has no sliding window".to_owned(),
    );
    refuse(
        !dense.window_layers.is_all() && !window,
        "its sliding window is the same in all layers".to_owned(),
    );
    refuse(
        !dense.rope_layers.is_all(),
        "all its layers rotate queries and keys".to_owned(),
    );
    refuse(
        dense.window_rope.is_some(),
        "its layers rotate in one way, with a window and without".to_owned(),
    );
    refuse(
        dense.logit_scale.is_some_and(|scale| scale != 1.0)
            && family.keys[Field::LogitScale].names.is_empty(),
        "it does not scale logits".to_owned(),
    );
    refuse(
        dense.clip_qkv.is_some() && family.keys[Field::ClipQkv].names.is_empty(),
        "it does not clip queries, keys and values".to_owned(),
    );
    for row in dense.multipliers.rows() {
        refuse(row.value.is_some(), format!("it does not {}", row.what));
    }
    refuse(
        mixture.attention_kv != AttentionKv::Merged,
        "it has no attention experts (--method btx has none)".to_owned(),
    );
    refuse(
        !keys.has(Field::DenseLayers) && mixture.moe_layers.mask(dense.num_layers).contains(&false),
        "it has experts in every layer".to_owned(),
    );
    refuse(mixture.expert_adapters, "it has no adapters".to_owned());
    refuse(
        mixture.router_bias != RouterBias::None,
        "its routers have no bias".to_owned(),
    );
    // Gates that sum to 1 are the same renormalised.
    let soft = mixture.num_experts_per_tok == mixture.num_experts;
    if let (true, Some(fixed)) = (
        keys[Field::NormTopkProb].names.is_empty(),
        &keys[Field::NormTopkProb].default,
    ) {
        let reason = match (fixed == true, mixture.num_experts_per_tok) {
            (false, _) => "it never renormalises gates",
            (true, 1) => {
                "it always renormalises gates, and with one expert a token no gradient reaches its router"
            }
            (true, _) => "it always renormalises gates (--norm-topk-prob true)",
        };
        refuse(
            !soft && *fixed != json!(mixture.norm_topk_prob),
            reason.to_owned(),
        );
    }
    let shared = mixture.shared_expert_intermediate_size.is_some();
    let holds_shared = keys.has(Field::SharedExpertIntermediateSize);
    refuse(
        shared && !holds_shared,
        "it has no shared expert".to_owned(),
    );
    refuse(
        shared && holds_shared && !mixture.shared_expert_gate,
        "it weights its shared expert by a gate".to_owned(),
    );
    let width_is_dense =
        keys[Field::MoeIntermediateSize].names == family.keys[Field::IntermediateSize].names;
    refuse(
        width_is_dense
            && mixture.moe_intermediate_size != dense.intermediate_size
            && mixture.moe_layers.mask(dense.num_layers).contains(&false),
        "its experts are as wide as its ordinary feed-forward networks".to_owned(),
    );
    reasons
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
    if keys.has(Field::SharedExpertIntermediateSize)
        && mixture.shared_expert_intermediate_size.is_none()
    {
        mixture.shared_expert_intermediate_size =
            Some(mixture.moe_intermediate_size.min(NEUTRAL_WIDTH));
        mixture.shared_expert_gate = true;
    }
    mixture.num_attention_experts = 1;
    mixture.num_attention_experts_per_tok = 1;
    mixture.attention_moe_layers = Layers::All;
    mixture.norm_topk_prob_attention = false;
    let width_is_dense =
        keys[Field::MoeIntermediateSize].names == family.keys[Field::IntermediateSize].names;
    if mixture
        .moe_layers
        .mask(dense.num_layers)
        .iter()
        .all(|sparse| *sparse)
    {
        mixture.moe_layers = Layers::All;
    }
    Architecture {
        family: family.name.clone(),
        attention_bias: there(&family.present.attention_bias),
        attention_output_bias: there(&family.present.attention_output_bias),
        mlp_bias: there(&family.present.mlp_bias),
        norm_bias: there(&family.present.norm_bias),
        head_bias: there(&family.present.head_bias),
        intermediate_size: if width_is_dense {
            mixture.moe_intermediate_size
        } else {
            dense.intermediate_size
        },
        logit_scale: dense
            .logit_scale
            .filter(|_| !family.keys[Field::LogitScale].names.is_empty()),
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
const NUMBERS: [Field; 15] = [
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
];

/// The `config.json` of `wanted`: the keys of the source, `base`, in their order, changed where the family differs.
fn config(base: Map<String, Value>, wanted: &Architecture, family: &Family) -> Map<String, Value> {
    let both_dtypes = base.contains_key("torch_dtype");
    let strays = STRAY
        .into_iter()
        .chain(Mixture::KEYS)
        .chain(Layouts::NAMES)
        .chain(Field::MULTIPLIERS.map(Field::name));
    let mut config = ConfigWriter::new(base, strays, family, wanted);
    config.rope();
    config.identity(None);
    config.keys(&NUMBERS);
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
