//! A model in the words of llama.cpp: metadata, names of tensors, and what its architectures cannot compute.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::activation::Activation;
use super::architecture::Architecture;
use super::format::Family;
use super::gguf_architecture::written;
use super::gguf_error::GgufModelError;
use super::gguf_rope;
use super::keys::Field;
use super::layout::{Block, Layers, QkNorm};
use super::names::{GgufNames, GgufPart, ROTATED, VALUE_LENGTH, bias_of};
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Result;
use crate::checkpoint::GgufMetadata;
use crate::error::InputError;

/// A tensor of the GGUF file, and the tensors of the model that it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<u64>,
    /// Names in the model: one, or one per expert.
    pub parts: Vec<String>,
    /// Heads whose rows are interleaved for the rotary embedding.
    pub heads: Option<u64>,
    /// Whether it is small and stays in float32: norms, biases, routers.
    pub exact: bool,
}

/// Refuses what llama.cpp would compute otherwise, each reason named; `path` is the folder of the model.
pub fn check(path: &Path, architecture: &Architecture) -> Result<()> {
    let a = architecture;
    let family = a.names()?;
    let Some(names) = &family.gguf else {
        return Err(GgufModelError::NotWritten {
            path: path.to_path_buf(),
            family: a.family.as_str().into(),
            known: written()?.map(|(family, _)| family.name.clone()).collect(),
        }
        .into());
    };
    let mut reasons = Vec::new();
    let mut refuse =
        |refused: bool, reason: &str| reasons.extend(refused.then(|| reason.to_owned()));
    let has_bias = |part: &GgufPart| match part {
        GgufPart::Attention => a.attention_bias || a.attention_output_bias,
        GgufPart::AttentionOutput => a.attention_output_bias,
        GgufPart::FeedForward => a.mlp_bias,
    };
    refuse(
        names.without_bias.iter().any(has_bias),
        "it has fewer biases",
    );
    // The section belongs to a family, so llama.cpp computes its layouts.
    refuse(
        a.block != family.layouts.block && !family.keys.has(Field::ParallelBlock),
        "attention and feed-forward network are joined otherwise",
    );
    refuse(
        a.qk_norm != QkNorm::None && names.tensors.get(Role::QNorm).is_none(),
        "it has no norms of queries and keys",
    );
    refuse(
        !a.tie_word_embeddings && names.tensors.get(Role::Head).is_none(),
        "its head is its input embedding",
    );
    let usual = default_activation(&family);
    refuse(
        Activation::named(&a.hidden_act) != Activation::named(usual),
        &format!("its activation is {usual}"),
    );
    let context = a.max_position_embeddings.unwrap_or(u64::MAX);
    let has_window = names.keys.contains_key(&Field::SlidingWindow);
    refuse(
        a.sliding_window.is_some_and(|window| window < context) && !has_window,
        "it has no sliding window",
    );
    let same = |a: &Layers, b: &Layers, layers| a.mask(layers) == b.mask(layers);
    let window_layers = names.window_layers(a.sliding_window, a.num_layers);
    refuse(
        has_window && !same(&a.window_layers, &window_layers, a.num_layers),
        "other layers have its sliding window",
    );
    let rope_layers = names.rope_layers(family.rotation, &window_layers, a.num_layers);
    refuse(
        !same(&a.rope_layers, &rope_layers, a.num_layers),
        "other layers rotate queries and keys",
    );
    refuse(a.window_rope.is_some(), "its layers rotate in one way");
    refuse(
        a.partial_rotary_factor.is_some() && !names.keys.contains_key(&Field::PartialRotaryFactor),
        "it rotates whole heads (`partial_rotary_factor`)",
    );
    let scales = a.logit_scale.is_some_and(|scale| scale != 1.0)
        && !names.keys.contains_key(&Field::LogitScale);
    refuse(
        a.clip_qkv.is_some() || scales,
        "it neither clips nor scales",
    );
    for row in a.multipliers.rows() {
        let refused = row.value.is_some() && !names.keys.contains_key(&row.field);
        refuse(refused, &format!("it does not {}", row.what));
    }
    refuse(
        !a.head_dim.is_multiple_of(2),
        "its heads have an even width",
    );
    if reasons.is_empty() {
        return Ok(());
    }
    Err(GgufModelError::CannotHold {
        path: path.to_path_buf(),
        architecture: names.architecture.as_str().into(),
        family: a.family.as_str().into(),
        reasons,
    }
    .into())
}

/// The activation that llama.cpp has for a family: the default of its class.
pub(super) fn default_activation(family: &Family) -> &str {
    let default = family.keys[Field::HiddenAct].default.as_ref();
    default.and_then(Value::as_str).unwrap_or("silu")
}

/// What llama.cpp calls the parts of the model.
fn names_of(architecture: &Architecture) -> Result<GgufNames> {
    let family = architecture.names()?;
    family.gguf.clone().ok_or_else(|| {
        GgufModelError::NoNames {
            family: family.name.clone(),
        }
        .into()
    })
}

/// Adds what the model in the folder `path` is to `metadata`; returns the values of the tensor of frequency factors, where its
/// rotary embedding has them.
pub fn describe(
    metadata: &mut GgufMetadata,
    path: &Path,
    architecture: &Architecture,
    name: &str,
) -> Result<Option<Vec<f32>>> {
    let a = architecture;
    let names = names_of(a)?;
    metadata.text("general.architecture", &names.architecture);
    metadata.text("general.type", "model");
    metadata.text("general.name", name);
    metadata.number(&names.key(Field::NumLayers)?, a.num_layers)?;
    if let Some(context) = a.max_position_embeddings {
        metadata.number(&names.key(Field::MaxPositionEmbeddings)?, context)?;
    }
    metadata.number(&names.key(Field::HiddenSize)?, a.hidden_size)?;
    let width = a
        .mixture
        .as_ref()
        .map_or(a.intermediate_size, |mixture| mixture.moe_intermediate_size);
    metadata.number(&names.key(Field::IntermediateSize)?, width)?;
    metadata.number(&names.key(Field::NumHeads)?, a.num_heads)?;
    metadata.number(&names.key(Field::NumKvHeads)?, a.num_kv_heads)?;
    metadata.float(&names.key(Field::RopeTheta)?, a.rope_theta);
    metadata.float(&names.key(Field::NormEps)?, a.norm_eps);
    metadata.number(&names.key(Field::HeadDim)?, a.head_dim)?;
    metadata.number(&names.own_key(VALUE_LENGTH), a.head_dim)?;
    metadata.number(&names.own_key(ROTATED), rotated(a))?;
    metadata.number(&names.key(Field::VocabSize)?, a.vocab_size)?;
    let factors = a.multipliers.rows().map(|row| (row.field, row.value));
    for (field, value) in factors
        .into_iter()
        .chain([(Field::LogitScale, a.logit_scale)])
    {
        if let (Some(value), true) = (value, names.keys.contains_key(&field)) {
            metadata.float(&names.key(field)?, value);
        }
    }
    if let (Some(window), true) = (
        a.sliding_window,
        names.keys.contains_key(&Field::SlidingWindow),
    ) {
        metadata.number(&names.key(Field::SlidingWindow)?, window)?;
    }
    if a.names()?.keys.has(Field::ParallelBlock) {
        let key = names.own_key("use_parallel_residual");
        metadata.flag(&key, a.block != Block::Sequential);
    }
    if let Some(mixture) = &a.mixture {
        metadata.number(&names.key(Field::NumExperts)?, mixture.num_experts)?;
        let used = names.key(Field::NumExpertsPerTok)?;
        metadata.number(&used, mixture.num_experts_per_tok)?;
    }
    rope(metadata, &names.architecture, &path.join("config.json"), a)
}

/// Dimensions of each head that rotate.
fn rotated(a: &Architecture) -> u64 {
    (a.head_dim as f64 * a.partial_rotary_factor.unwrap_or(1.0)) as u64
}

/// Adds the scaling of the rotary embedding under the keys of `architecture`; returns its factors, where it has them.
pub(super) fn rope(
    metadata: &mut GgufMetadata,
    architecture: &str,
    config: &Path,
    a: &Architecture,
) -> Result<Option<Vec<f32>>> {
    let Some(Value::Object(scaling)) = &a.rope_scaling else {
        return Ok(None);
    };
    let own_key = |key: &str| format!("{architecture}.{key}");
    let number = |key: &str| scaling.get(key).and_then(Value::as_f64);
    let needed =
        |key: &str| number(key).ok_or_else(|| InputError::missing_key(config, key, "a number"));
    let mut factors = None;
    let known: &[&str] = match scaling.get("rope_type").and_then(Value::as_str) {
        Some(kind @ ("linear" | "yarn")) => {
            metadata.text(&own_key("rope.scaling.type"), kind);
            metadata.float(&own_key("rope.scaling.factor"), needed("factor")?);
            if kind == "yarn" {
                let original =
                    number("original_max_position_embeddings").map(|length| length as u64);
                if let Some(original) = original.or(a.max_position_embeddings) {
                    let key = own_key("rope.scaling.original_context_length");
                    metadata.number(&key, original)?;
                }
                // llama.cpp does not read them for this architecture: it takes YaRN's usual values.
                for (name, usual) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
                    if let Some(value) = number(name).filter(|value| *value != usual) {
                        return Err(GgufModelError::OtherYarn {
                            path: config.to_path_buf(),
                            key: name,
                            found: value,
                            usual,
                        }
                        .into());
                    }
                }
            }
            &[
                "rope_type",
                "factor",
                "original_max_position_embeddings",
                "beta_fast",
                "beta_slow",
            ]
        }
        Some("llama3") => {
            let [factor, low, high, original] = [
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ]
            .map(needed);
            let limits = (low?, high?);
            factors = Some(gguf_rope::llama3_factors(
                a.rope_theta,
                rotated(a),
                factor?,
                limits,
                original?,
            ));
            &[
                "rope_type",
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ]
        }
        other => {
            return Err(GgufModelError::UnwrittenScaling {
                path: config.to_path_buf(),
                found: other.unwrap_or("none").to_owned(),
            }
            .into());
        }
    };
    match scaling.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(factors),
        Some(key) => Err(GgufModelError::UnwrittenKey {
            path: config.to_path_buf(),
            key: key.clone(),
        }
        .into()),
    }
}

/// The tensors of the file, in the order of the model's, for `specs`, the tensors of the architecture.
pub fn tensors(architecture: &Architecture, specs: &[TensorSpec]) -> Result<Vec<NamedTensor>> {
    let names = names_of(architecture)?;
    let mut found: Vec<NamedTensor> = Vec::new();
    let mut experts: BTreeMap<String, usize> = BTreeMap::new();
    for spec in specs {
        let name = file_name(&names, spec)?;
        let heads = permuted_heads(&names, architecture, spec.role);
        if spec.expert.is_some()
            && let Some(number) = experts.get(&name)
        {
            found[*number].parts.push(spec.name.clone());
            found[*number].shape[0] += 1;
            continue;
        }
        let mut shape = spec.shape.clone();
        if spec.expert.is_some() {
            experts.insert(name.clone(), found.len());
            shape.insert(0, 1);
        }
        let exact = spec.shape.len() < 2 || spec.role.is_router() || spec.role.is_norm();
        found.push(NamedTensor {
            name,
            shape,
            parts: vec![spec.name.clone()],
            heads,
            exact,
        });
    }
    Ok(found)
}

/// The name of a tensor in the file. One tensor holds a projection of all experts of a layer.
pub(super) fn file_name(names: &GgufNames, spec: &TensorSpec) -> Result<String> {
    let names = if spec.expert.is_some() {
        &names.expert_tensors
    } else {
        &names.tensors
    };
    let weight =
        names
            .name(spec.role, spec.layer, None)
            .ok_or_else(|| GgufModelError::NoTensorName {
                role: spec.role,
                tensor: spec.name.clone(),
            })?;
    Ok(if spec.bias { bias_of(&weight) } else { weight })
}

/// The heads whose rows llama.cpp keeps interleaved: it rotates neighbours where the model rotates halves.
pub(super) fn permuted_heads(
    names: &GgufNames,
    architecture: &Architecture,
    role: Role,
) -> Option<u64> {
    if names.rope_interleaved == architecture.rope_interleaved {
        return None;
    }
    match role {
        Role::Q => Some(architecture.num_heads),
        Role::K => Some(architecture.num_kv_heads),
        _ => None,
    }
}
