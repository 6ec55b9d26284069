//! A model in the words of llama.cpp: metadata, names of tensors, and what its architecture `llama` cannot compute.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::architecture::Architecture;
use super::gguf_rope;
use super::layout::QkNorm;
use super::tensors::{Role, TensorSpec};
use crate::checkpoint::GgufMetadata;
use crate::{Error, Result};

/// Families that are llama.cpp's `llama`, with experts or without.
const FAMILIES: [&str; 3] = ["llama", "mistral", "mixtral"];

/// A tensor of the GGUF file, and the tensors of the model that it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<u64>,
    /// Names in the model: one, or that of each expert.
    pub parts: Vec<String>,
    /// Heads whose rows are interleaved for the rotary embedding.
    pub heads: Option<u64>,
    /// Whether it is small and stays in float32: norms, biases, routers.
    pub exact: bool,
}

/// What to do with a model that llama.cpp would compute otherwise.
const ELSEWHERE: &str = "llama.cpp would compute other logits: run the Hugging Face folder";

/// Refuses what llama.cpp would compute otherwise, each reason named; `path` is the folder of the model.
pub fn check(path: &Path, architecture: &Architecture) -> Result<()> {
    let a = architecture;
    let mut reasons = Vec::new();
    let mut refuse =
        |refused: bool, reason: &str| reasons.extend(refused.then(|| reason.to_owned()));
    refuse(
        !FAMILIES.contains(&a.family.as_str()),
        "only llama, mistral and mixtral are written",
    );
    refuse(
        a.qk_norm != QkNorm::None,
        "it has no norms of queries and keys",
    );
    let context = a.max_position_embeddings.unwrap_or(u64::MAX);
    refuse(
        a.sliding_window.is_some_and(|window| window < context),
        "it has no sliding window",
    );
    refuse(
        a.partial_rotary_factor.is_some(),
        "it rotates whole heads (`partial_rotary_factor`)",
    );
    refuse(a.hidden_act != "silu", "its activation is silu");
    refuse(
        a.clip_qkv.is_some() || a.logit_scale.is_some_and(|scale| scale != 1.0),
        "it neither clips nor scales",
    );
    refuse(
        !a.head_dim.is_multiple_of(2),
        "its heads have an even width",
    );
    if reasons.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "the GGUF architecture `llama` cannot hold this {} model: {}",
        a.family,
        reasons.join("; ")
    );
    let error = Error::file(path, problem);
    Err(match a.family.as_str() {
        "bam" => error.with_hint("`convert --to mixtral` where that holds it, then --to gguf"),
        _ => error.with_hint(ELSEWHERE),
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
    metadata.text("general.architecture", "llama");
    metadata.text("general.type", "model");
    metadata.text("general.name", name);
    metadata.number("llama.block_count", a.num_layers)?;
    if let Some(context) = a.max_position_embeddings {
        metadata.number("llama.context_length", context)?;
    }
    metadata.number("llama.embedding_length", a.hidden_size)?;
    let width = a
        .mixture
        .as_ref()
        .map_or(a.intermediate_size, |mixture| mixture.moe_intermediate_size);
    metadata.number("llama.feed_forward_length", width)?;
    metadata.number("llama.attention.head_count", a.num_heads)?;
    metadata.number("llama.attention.head_count_kv", a.num_kv_heads)?;
    metadata.float("llama.rope.freq_base", a.rope_theta);
    metadata.float("llama.attention.layer_norm_rms_epsilon", a.norm_eps);
    metadata.number("llama.attention.key_length", a.head_dim)?;
    metadata.number("llama.attention.value_length", a.head_dim)?;
    metadata.number("llama.rope.dimension_count", a.head_dim)?;
    metadata.number("llama.vocab_size", a.vocab_size)?;
    if let Some(mixture) = &a.mixture {
        metadata.number("llama.expert_count", mixture.num_experts)?;
        metadata.number("llama.expert_used_count", mixture.num_experts_per_tok)?;
    }
    rope(metadata, &path.join("config.json"), a)
}

fn rope(metadata: &mut GgufMetadata, config: &Path, a: &Architecture) -> Result<Option<Vec<f32>>> {
    let Some(Value::Object(scaling)) = &a.rope_scaling else {
        return Ok(None);
    };
    let number = |key: &str| scaling.get(key).and_then(Value::as_f64);
    let needed = |key: &str| {
        number(key).ok_or_else(|| Error::key(config, key, "expected a number, found none"))
    };
    let mut factors = None;
    let known: &[&str] = match scaling.get("rope_type").and_then(Value::as_str) {
        Some(kind @ ("linear" | "yarn")) => {
            metadata.text("llama.rope.scaling.type", kind);
            metadata.float("llama.rope.scaling.factor", needed("factor")?);
            if kind == "yarn" {
                let original =
                    number("original_max_position_embeddings").map(|length| length as u64);
                if let Some(original) = original.or(a.max_position_embeddings) {
                    metadata.number("llama.rope.scaling.original_context_length", original)?;
                }
                // llama.cpp does not read them for this architecture: it takes YaRN's usual values.
                for (name, usual) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
                    if let Some(value) = number(name).filter(|value| *value != usual) {
                        let problem = format!("is {value}, but llama.cpp computes with {usual}");
                        return Err(Error::key(config, name, problem).with_hint(ELSEWHERE));
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
                a.head_dim,
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
            let kind = other.unwrap_or("none");
            let problem = format!(
                "expected `linear`, `yarn` or `llama3`, found `{kind}`, which has no place in GGUF"
            );
            return Err(Error::key(config, "rope_type", problem).with_hint(ELSEWHERE));
        }
    };
    match scaling.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(factors),
        Some(key) => Err(Error::key(config, key, "has no place in GGUF").with_hint(ELSEWHERE)),
    }
}

/// The tensors of the file, in the order of the model's, for `specs`, the tensors of the architecture.
pub fn tensors(architecture: &Architecture, specs: &[TensorSpec]) -> Result<Vec<NamedTensor>> {
    let mut found: Vec<NamedTensor> = Vec::new();
    let mut experts: BTreeMap<String, usize> = BTreeMap::new();
    for spec in specs {
        let (stem, heads) = stem(spec, architecture)?;
        let end = if spec.bias { "bias" } else { "weight" };
        let name = match spec.layer {
            Some(layer) => format!("blk.{layer}.{stem}.{end}"),
            None => format!("{stem}.{end}"),
        };
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
        let exact = spec.shape.len() < 2 || spec.role.is_router();
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

fn stem(spec: &TensorSpec, a: &Architecture) -> Result<(&'static str, Option<u64>)> {
    Ok(match (spec.role, spec.expert.is_some()) {
        (Role::Embedding, _) => ("token_embd", None),
        (Role::FinalNorm, _) => ("output_norm", None),
        (Role::Head, _) => ("output", None),
        (Role::InputNorm, _) => ("attn_norm", None),
        (Role::PostAttentionNorm, _) => ("ffn_norm", None),
        (Role::Q, _) => ("attn_q", Some(a.num_heads)),
        (Role::K, _) => ("attn_k", Some(a.num_kv_heads)),
        (Role::V, _) => ("attn_v", None),
        (Role::O, _) => ("attn_output", None),
        (Role::Gate, false) => ("ffn_gate", None),
        (Role::Up, false) => ("ffn_up", None),
        (Role::Down, false) => ("ffn_down", None),
        (Role::Gate, true) => ("ffn_gate_exps", None),
        (Role::Up, true) => ("ffn_up_exps", None),
        (Role::Down, true) => ("ffn_down_exps", None),
        (Role::FfnRouter, _) => ("ffn_gate_inp", None),
        (role, _) => {
            return Err(Error::usage(format!(
                "`{role}` tensors such as `{}` have no place in GGUF",
                spec.name
            )));
        }
    })
}
