//! Models in GGUF: which Hugging Face tensor each GGUF tensor is, and the `config.json` that its metadata means.
//!
//! What llama.cpp calls the parts of a family is a section of the family's format file; a family without one is not read.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config_error::ORIGINAL;
use super::gguf_error::{GgufModelError, TOKENS};
use super::gguf_metadata::Metadata;
use super::gguf_names::{file_name, has_one_added, permuted_heads};
use super::gguf_rope;
use super::keys::Field;
use super::role::Role;
use super::tensors::TensorSpec;
use super::write::ConfigWriter;
use crate::checkpoint::{Encoding, Gguf, GgufError, TensorEntry};
use crate::error::{Error, InputError, Result};

/// One tensor of the model under its Hugging Face name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Hugging Face name: `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Name in the GGUF file: `blk.0.attn_q.weight`.
    pub source: String,
    /// Shape in both: `[out, in]`.
    pub shape: Vec<u64>,
    /// Heads whose rows llama.cpp has permuted for its rotary embedding; see [`source_row`].
    pub unpermute_heads: Option<u64>,
    /// Its number in a tensor that holds all experts of a layer.
    pub expert: Option<u64>,
    /// Its first row in a tensor that holds several projections of a layer; it has all rows of any other.
    pub first_row: Option<u64>,
    /// Whether the file has one plus its values.
    pub plus_one: bool,
    /// Whether the file has its one row as a vector.
    pub flat: bool,
}

/// The row of a permuted GGUF tensor that is `row` of the Hugging Face tensor. The tensor has `rows` rows, and each of
/// its `heads` heads has an even number of them.
///
/// Hugging Face rotates the halves of a head, llama.cpp neighbouring rows: row `i` of half `j` there is row `2 i + j` here.
pub fn source_row(row: u64, rows: u64, heads: u64) -> u64 {
    let head_dim = (rows / heads.max(1)).max(2);
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

/// Every tensor of the model in layer order, by its Hugging Face name; shapes agree with the metadata.
///
/// # Errors
/// Where no family has the file's architecture; where a tensor is missing, unknown or of another shape than the metadata says:
/// the error names it.
pub fn tensors(gguf: &Gguf) -> Result<Vec<GgufTensor>> {
    let metadata = Metadata::of(gguf)?;
    let architecture = metadata.architecture()?;
    matched(&metadata, &architecture)
}

/// The tensors of `architecture`, which the metadata describes, each with its place in the file.
fn matched(metadata: &Metadata, architecture: &Architecture) -> Result<Vec<GgufTensor>> {
    let mut found = Found {
        metadata,
        architecture,
        left: metadata.gguf.tensors.keys().map(String::as_str).collect(),
        held: BTreeMap::new(),
        tensors: Vec::new(),
    };
    // As many experts as the file has bytes for, before any of them is listed.
    found.check_experts()?;
    let specs = architecture.unchecked_tensors()?;
    found.take_apart(&specs)?;
    for spec in in_file_order(specs) {
        found.take(spec)?;
    }

    let layers = architecture.num_layers;
    found.left.retain(|name| !is_rope_factors(name, layers));
    match found.left.first() {
        None => Ok(found.tensors),
        Some(name) => Err(GgufModelError::UnknownTensor {
            path: metadata.gguf.path.clone(),
            tensor: (*name).to_owned(),
            architecture: metadata.names()?.architecture.clone(),
        }
        .into()),
    }
}

/// The order in which a converted checkpoint holds its tensors: one projection of all experts after the other, as in the file, and
/// routers after the layers. It never changes: the same file gives the same bytes in every release.
fn in_file_order(mut specs: Vec<TensorSpec>) -> Vec<TensorSpec> {
    let mut roles: Vec<Role> = Vec::new();
    for spec in &specs {
        if !roles.contains(&spec.role) {
            roles.push(spec.role);
        }
    }
    let rank = |role: Role| roles.iter().position(|known| *known == role);
    let part = |spec: &TensorSpec| match spec.role {
        Role::Embedding => 0,
        role if role.is_router() => 2,
        role if role.in_layer() => 1,
        _ => 3,
    };
    specs.sort_by_key(|spec| {
        (
            part(spec),
            spec.layer,
            rank(spec.role),
            spec.expert,
            spec.bias,
        )
    });
    specs
}

/// Whether `name` holds the frequency factors of the rotary embedding, which belong into the configuration.
fn is_rope_factors(name: &str, layers: u64) -> bool {
    [gguf_rope::FACTORS, gguf_rope::SHORT, gguf_rope::LONG].contains(&name)
        || name
            .strip_prefix("blk.")
            .and_then(|rest| rest.strip_suffix(".rope_freqs.weight"))
            .is_some_and(|layer| layer.parse::<u64>().is_ok_and(|layer| layer < layers))
}

/// Tensors matched so far, and the names that none has asked for.
struct Found<'a> {
    metadata: &'a Metadata<'a>,
    architecture: &'a Architecture,
    left: BTreeSet<&'a str>,
    /// Where projections are that another tensor holds, by their Hugging Face names: its name, and their first row in it.
    held: BTreeMap<String, (String, u64)>,
    tensors: Vec<GgufTensor>,
}

impl Found<'_> {
    /// Finds the tensors of the file that hold several projections.
    fn take_apart(&mut self, specs: &[TensorSpec]) -> Result<()> {
        let (gguf, names) = (self.metadata.gguf, self.metadata.names()?);
        for whole in self.architecture.fused_under(&names.fused, specs) {
            // A file may also have the projections of attention as tensors of their own.
            if !gguf.tensors.contains_key(&whole.name) {
                continue;
            }
            self.check_shape(&whole.name, &whole.shape)?;
            self.left.remove(whole.name.as_str());
            let mut first = 0;
            for (part, shape) in whole.parts {
                self.held.insert(part, (whole.name.clone(), first));
                first += shape.first().copied().unwrap_or_default();
            }
        }
        Ok(())
    }

    fn take(&mut self, spec: TensorSpec) -> Result<()> {
        let gguf = self.metadata.gguf;
        let names = self.metadata.names()?;
        let (source, first_row) = match self.held.remove(&spec.name) {
            Some((whole, first)) => (whole, Some(first)),
            None => (file_name(names, &spec)?, None),
        };
        if spec.bias && !gguf.tensors.contains_key(&source) {
            return Err(self.missing_bias(&spec, &source)?);
        }
        let flat = spec.shape.len() == 2
            && spec.shape[0] == 1
            && gguf
                .tensors
                .get(&source)
                .is_some_and(|entry| entry.shape == spec.shape[1..]);
        if spec.expert.is_none() && first_row.is_none() && !flat {
            self.check_shape(&source, &spec.shape)?;
        }
        self.left.remove(source.as_str());
        self.tensors.push(GgufTensor {
            unpermute_heads: permuted_heads(names, self.architecture, spec.role),
            plus_one: has_one_added(self.architecture, &spec),
            name: spec.name,
            source,
            shape: spec.shape,
            expert: spec.expert,
            first_row,
            flat,
        });
        Ok(())
    }

    /// Holds the tensors of experts against the metadata: each has one for all experts of a layer.
    fn check_experts(&self) -> Result<()> {
        let Some(mixture) = &self.architecture.mixture else {
            return Ok(());
        };
        let names = self.metadata.names()?;
        for layer in 0..self.architecture.num_layers {
            for role in Role::ALL {
                let Some(source) = names.expert_tensors.name(role, Some(layer), None) else {
                    continue;
                };
                let one = self.architecture.shape(role, true);
                self.check_shape(&source, &[&[mixture.num_experts], &one[..]].concat())?;
            }
        }
        Ok(())
    }

    fn check_shape(&self, source: &str, expected: &[u64]) -> Result<()> {
        let gguf = self.metadata.gguf;
        let found = &gguf.tensor(source)?.shape;
        if found == expected {
            return Ok(());
        }
        Err(GgufModelError::WrongShape {
            path: gguf.path.clone(),
            tensor: source.to_owned(),
            expected: expected.into(),
            found: found.clone().into(),
        }
        .into())
    }

    /// transformers knows only all biases of a module in all layers, or none.
    fn missing_bias(&self, spec: &TensorSpec, source: &str) -> Result<Error> {
        let metadata = self.metadata;
        let like = |role: &Role| self.architecture.has_bias(*role) && !role.only_in_mixtures();
        let roles = Role::ALL.into_iter().filter(like);
        // Of the same module where that has one: `attention_bias` says nothing about the feed-forward network.
        let same = roles
            .clone()
            .filter(|role| role.of_attention() == spec.role.of_attention());
        let layers = self.architecture.num_layers;
        Ok(GgufModelError::NoBias {
            path: metadata.gguf.path.clone(),
            tensor: source.to_owned(),
            present: metadata.first_bias(same, layers)?,
            family: metadata.family.name.as_str().into(),
        }
        .into())
    }
}

/// Refuses elements whose values cannot be computed.
///
/// # Errors
/// The first tensor whose values cannot be computed.
pub fn refuse_unreadable(gguf: &Gguf) -> Result<()> {
    let unreadable = |entry: &TensorEntry| match entry.encoding {
        Encoding::Ggml(kind) if !kind.is_readable() => Some(kind.unreadable()),
        _ => None,
    };
    let found = gguf
        .tensors
        .iter()
        .find_map(|(name, entry)| Some((name, unreadable(entry)?)));
    match found {
        Some((name, error)) => Err(GgufError::Tensor {
            path: gguf.path.clone(),
            tensor: name.clone(),
            rule: Box::new(error.into()),
        }
        .into()),
        None => Ok(()),
    }
}

/// The model's `config.json`, with the keys of transformers 4 and of transformers 5.
///
/// `dtype` is the embedding's dtype, and `bfloat16` where any tensor is quantised.
///
/// # Errors
/// As [`tensors`]; and where the scaling of the rotary embedding is none that transformers has.
pub fn config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let metadata = Metadata::of(gguf)?;
    let architecture = metadata.architecture()?;
    matched(&metadata, &architecture)?;

    let family = &metadata.family;
    let mut config = ConfigWriter::new(Map::new(), [], family, &architecture);
    config.put("architectures", json!(family.architectures));
    config.identity(None);
    config.keys(&[
        Field::NumExperts,
        Field::NumExpertsPerTok,
        Field::NormTopkProb,
        Field::SharedExpertIntermediateSize,
        Field::SlidingWindow,
        Field::HiddenSize,
        Field::IntermediateSize,
        Field::MoeIntermediateSize,
        Field::NumLayers,
        Field::NumHeads,
        Field::NumKvHeads,
        Field::HeadDim,
        Field::HiddenAct,
        Field::MaxPositionEmbeddings,
        Field::NormEps,
        Field::LogitScale,
        Field::PartialRotaryFactor,
        Field::EmbeddingMultiplier,
        Field::ResidualMultiplier,
        Field::AttentionMultiplier,
        Field::LogitsDivisor,
        Field::QueryPreAttnScalar,
        Field::AttnLogitSoftcapping,
        Field::FinalLogitSoftcapping,
        Field::RopeLocalTheta,
        Field::ParallelBlock,
    ]);
    config.put(family.theta_name(), json!(architecture.rope_theta));
    // Some classes of transformers 4 take another spelling, or none.
    let is_refused = family
        .refused
        .iter()
        .any(|refused| refused.key == "rope_scaling");
    if architecture.rope_scaling.is_none() || !is_refused && !family.says(ORIGINAL) {
        config.put("rope_scaling", json!(architecture.rope_scaling));
    }
    config.rope();
    config.keys(&[Field::VocabSize, Field::TieWordEmbeddings]);
    config.biases();
    // Keys that transformers writes for every llama, and no reader needs.
    config.put("attention_bias", json!(architecture.attention_bias));
    config.put("mlp_bias", json!(architecture.mlp_bias));
    config.put("attention_dropout", json!(0.0));
    config.put("initializer_range", json!(architecture.initializer_range));
    config.put("pretraining_tp", json!(1));
    config.put("use_cache", json!(true));
    for (key, source) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        config.put(&format!("{key}_token_id"), json!(token_id(gguf, source)?));
    }
    config.put("torch_dtype", Value::Null);
    config.dtype(true);
    Ok(config.finish())
}

/// The id of the `bos`, `eos`, `padding`, `unknown`, … token, where the metadata has one that the vocabulary holds.
pub(super) fn token_id(gguf: &Gguf, which: &str) -> Result<Option<u64>> {
    let key = format!("tokenizer.ggml.{which}_token_id");
    // llama.cpp writes an id of -1 for "none".
    if gguf
        .metadata
        .get(&key)
        .and_then(|value| value.integer())
        .is_some_and(|id| id == -1 || id == u32::MAX.into())
    {
        return Ok(None);
    }
    let id = gguf.unsigned(&key)?;
    let tokens = gguf.texts(TOKENS)?.map(|tokens| tokens.len() as u64);
    if let (Some(id), Some(tokens)) = (id, tokens)
        && id >= tokens
    {
        let expected = format!("an id below the {tokens} tokens");
        return Err(InputError::wrong_value(&gguf.path, &key, expected, id));
    }
    Ok(id)
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
pub(super) mod tests;
