//! A model in the words of llama.cpp: metadata and names of tensors; `gguf_check` says which models fit.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::architecture::Architecture;
use super::format::Family;
use super::gguf_error::GgufModelError;
use super::gguf_scaling::{FrequencyFactors, GgufScaling, rotated};
use super::keys::Field;
use super::layout::{Block, QkNorm};
use super::names::{GgufNames, PARALLEL, ROTATED, VALUE_LENGTH, WINDOW_PATTERN, bias_of};
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Result;
use crate::checkpoint::{FusedTensor, GgufMetadata};

/// A tensor of the GGUF file, and the tensors of the model that it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<u64>,
    /// The tensors of the model: one, one per expert, or several projections.
    pub parts: Vec<NamedPart>,
    /// Whether it is small and stays in float32: norms, biases, routers.
    pub exact: bool,
}

/// A tensor of the model on its way into a file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPart {
    /// Its name in the model.
    pub name: String,
    /// Heads whose rows are interleaved for the rotary embedding.
    pub heads: Option<u64>,
    /// Whether the file has one plus its values.
    pub plus_one: bool,
}

/// Whether the file has one plus the values of a tensor: what norms multiply by.
pub(super) fn has_one_added(architecture: &Architecture, spec: &TensorSpec) -> bool {
    architecture.norm_offset && spec.role.is_norm() && !spec.bias
}

/// The activation that llama.cpp has for a family: the default of its class.
pub(super) fn default_activation(family: &Family) -> &str {
    let default = family.keys[Field::HiddenAct].default.as_ref();
    default.and_then(Value::as_str).unwrap_or("silu")
}

/// The soft cap of a family where nothing says another one.
pub(super) fn usual_cap(family: &Family, field: Field) -> Option<f64> {
    family.keys[field].default.as_ref()?.as_f64()
}

/// What llama.cpp calls the parts of the model.
pub(super) fn names_of(architecture: &Architecture) -> Result<GgufNames> {
    let family = architecture.names()?;
    family.gguf.clone().ok_or_else(|| {
        GgufModelError::NoNames {
            family: family.name.clone(),
        }
        .into()
    })
}

/// Adds what the model in the folder `path` is to `metadata`; returns the tensors of frequency factors, where its rotary embedding
/// has some.
pub fn describe(
    metadata: &mut GgufMetadata,
    path: &Path,
    architecture: &Architecture,
    name: &str,
) -> Result<Vec<FrequencyFactors>> {
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
    let of_experts = |field| names.keys.contains_key(&field);
    let width = match &a.mixture {
        Some(mixture) if !of_experts(Field::MoeIntermediateSize) => mixture.moe_intermediate_size,
        _ => a.intermediate_size,
    };
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
    // The context of a factor on queries is the one of YaRN.
    let factors = factors
        .into_iter()
        .filter(|(field, _)| *field != Field::QueryScaleContext);
    for (field, value) in factors.chain([(Field::LogitScale, a.logit_scale)]) {
        // llama.cpp opens no file without a factor on logits where it reads one.
        let needed = [Field::LogitsDivisor, Field::LogitScale].contains(&field);
        let value = value.or(needed.then_some(1.0));
        if let (Some(value), true) = (value, names.keys.contains_key(&field)) {
            metadata.float(&names.key(field)?, value);
        }
    }
    if names.keys.contains_key(&Field::RopeLocalTheta) {
        let local = a.window_rope.as_ref();
        let theta = local.map_or(a.rope_theta, |rope| rope.theta);
        metadata.float(&names.key(Field::RopeLocalTheta)?, theta);
    }
    if let (Some(window), true) = (
        a.sliding_window,
        names.keys.contains_key(&Field::SlidingWindow),
    ) {
        metadata.number(&names.key(Field::SlidingWindow)?, window)?;
        if let Some(period) = names.window_period {
            metadata.number(&names.own_key(WINDOW_PATTERN), period)?;
        }
    }
    if let Some(key) = &names.unused_window {
        metadata.number(&names.own_key(key), a.sliding_window.unwrap_or(0))?;
    }
    if a.names()?.keys.has(Field::ParallelBlock) {
        let key = names.own_key(PARALLEL);
        metadata.flag(&key, a.block != Block::Sequential);
    }
    if let Some(mixture) = &a.mixture {
        metadata.number(&names.key(Field::NumExperts)?, mixture.num_experts)?;
        let used = names.key(Field::NumExpertsPerTok)?;
        metadata.number(&used, mixture.num_experts_per_tok)?;
        let widths = [
            (
                Field::MoeIntermediateSize,
                Some(mixture.moe_intermediate_size),
            ),
            (
                Field::SharedExpertIntermediateSize,
                mixture.shared_expert_intermediate_size,
            ),
        ];
        for (field, width) in widths {
            if let (Some(width), true) = (width, of_experts(field)) {
                metadata.number(&names.key(field)?, width)?;
            }
        }
    }
    let scaling = GgufScaling::of(a, names.scalings());
    let scaling = scaling.or_else(|reason| {
        GgufModelError::of_reasons(path, &names.architecture, a, vec![reason]).map(|()| None)
    })?;
    match scaling {
        Some(scaling) => scaling.add(metadata, &names.architecture),
        None => Ok(Vec::new()),
    }
}

/// The tensors of the file, in the order of the model's, for `specs`, the tensors of the architecture.
pub fn tensors(architecture: &Architecture, specs: &[TensorSpec]) -> Result<Vec<NamedTensor>> {
    let names = names_of(architecture)?;
    let wholes = architecture.fused_under(&names.fused, specs);
    let holder: BTreeMap<&str, &FusedTensor> = wholes
        .iter()
        .flat_map(|whole| {
            whole
                .parts
                .iter()
                .map(move |(part, _)| (part.as_str(), whole))
        })
        .collect();
    let mut found: Vec<NamedTensor> = Vec::new();
    let mut joined: BTreeMap<String, usize> = BTreeMap::new();
    for spec in specs {
        let part = NamedPart {
            name: spec.name.clone(),
            heads: permuted_heads(&names, architecture, spec.role),
            plus_one: has_one_added(architecture, spec),
        };
        let whole = holder.get(spec.name.as_str());
        let name = match whole {
            Some(whole) => whole.name.clone(),
            None => file_name(&names, spec)?,
        };
        if let Some(number) = joined.get(&name) {
            let tensor = &mut found[*number];
            tensor.parts.push(part);
            tensor.shape[0] += u64::from(spec.expert.is_some());
            continue;
        }
        let mut shape = match whole {
            Some(whole) => whole.shape.clone(),
            None => spec.shape.clone(),
        };
        if spec.expert.is_some() {
            shape.insert(0, 1);
        }
        if whole.is_some() || spec.expert.is_some() {
            joined.insert(name.clone(), found.len());
        }
        let exact = spec.shape.len() < 2 || spec.role.is_router() || spec.role.is_norm();
        found.push(NamedTensor {
            name,
            shape,
            parts: vec![part],
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

/// The heads whose rows llama.cpp keeps interleaved: it rotates neighbours where the model rotates halves. The weights of their
/// norms follow: one head's for all heads, or all of them; `check` refuses rows of weights.
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
        Role::QNorm | Role::KNorm if architecture.qk_norm == QkNorm::HeadDim => Some(1),
        Role::QNorm => Some(architecture.num_heads),
        Role::KNorm => Some(architecture.num_kv_heads),
        _ => None,
    }
}
