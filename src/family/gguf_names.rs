//! A model in the words of llama.cpp: metadata, names of tensors, and what its architectures cannot compute.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::activation::Activation;
use super::architecture::Architecture;
use super::format::Family;
use super::gguf_architecture::written;
use super::gguf_error::GgufModelError;
use super::gguf_scaling::{GgufScaling, rotated};
use super::keys::Field;
use super::layout::{Block, Layers, QkNorm};
use super::names::{GgufNames, GgufPart, ROTATED, VALUE_LENGTH, bias_of};
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Result;
use crate::checkpoint::GgufMetadata;

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
    refuse(
        a.tie_word_embeddings && names.untied_head,
        "its head is a tensor of its own (tie_word_embeddings)",
    );
    refuse(
        names.rope_interleaved != a.rope_interleaved && a.qk_norm == QkNorm::PerHead,
        "its rotary pairs are other numbers of a head, whose norms have weights of their own",
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
    let holds = |field| names.keys.contains_key(&field);
    for what in a.multipliers.not_done(holds) {
        refuse(true, &format!("it does not {what}"));
    }
    refuse(
        !a.head_dim.is_multiple_of(2),
        "its heads have an even width",
    );
    reasons.extend(GgufScaling::of(a).err());
    GgufModelError::of_reasons(path, &names.architecture, a, reasons)
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
    GgufScaling::add(metadata, path, &names.architecture, a)
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
