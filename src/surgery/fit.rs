//! Whether models can be put together: the first key, token or tensor that differs, with both values.

use std::path::Path;

use serde_json::Value;

use super::model::Model;
use crate::checkpoint::{hash, json};
use crate::family::{Role, TensorSpec};
use crate::{Error, Result};

/// Refuses `other` where it cannot be averaged with, or stand beside, `reference`.
pub fn check(reference: &Model, other: &Model) -> Result<()> {
    check_config(reference, other)?;
    check_tensors(reference, other)?;
    check_tokenizer(reference, other)
}

/// Refuses `other` where its feed-forward networks cannot be experts beside those of `reference`; what else differs, and
/// is not taken from it, is said in words.
pub fn check_feed_forward(reference: &Model, other: &Model) -> Result<Vec<String>> {
    const USED: [&str; 6] =
        ["model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "mlp_bias", "hidden_act"];
    let name = &other.source.name;
    let mut notes = Vec::new();
    for (key, expected, found) in differences(reference, other) {
        if USED.contains(&key.as_str()) {
            return Err(misfit(reference, other, &key, &expected, &found));
        }
        notes.push(format!(
            "{name}: {key} is {found}, the seed's {expected}; only its feed-forward weights are taken, trained beside its own"
        ));
    }
    let mine = other.by_role();
    for spec in reference.specs.iter().filter(|spec| matches!(spec.role, Role::Gate | Role::Up | Role::Down)) {
        let found = mine.get(&(spec.role, spec.bias, spec.layer));
        check_shape(reference, spec, other, found.map_or(spec, |found| found))?;
    }
    if let Err(error) = check_tokenizer(reference, other) {
        notes.push(format!("{name} has another tokenizer than the seed, whose ids reach its experts: {error}"));
    }
    Ok(notes)
}

/// Compares what two configurations say about the function that the model computes.
fn check_config(reference: &Model, other: &Model) -> Result<()> {
    match differences(reference, other).next() {
        Some((key, expected, found)) => Err(misfit(reference, other, &key, &expected, &found)),
        None => Ok(()),
    }
}

fn misfit(reference: &Model, other: &Model, key: &str, expected: &Value, found: &Value) -> Error {
    let problem = format!("is {found}, but {} has {expected}", reference.config.path.display());
    Error::key(&other.config.path, key, problem)
        .with_hint("experts must come from one seed: same shape, positions and norms")
}

/// Keys of which the configurations say different things, with the reference's value and the other's.
fn differences(reference: &Model, other: &Model) -> impl Iterator<Item = (String, Value, Value)> {
    let (a, b) = (&reference.architecture, &other.architecture);
    let key = |name: &str| name.to_owned();
    let eps = if reference.config.json.contains_key("layer_norm_eps") { "layer_norm_eps" } else { "rms_norm_eps" };
    let compared: Vec<(String, Value, Value)> = vec![
        (key("model_type"), a.family.clone().into(), b.family.clone().into()),
        (key("num_hidden_layers"), a.num_layers.into(), b.num_layers.into()),
        (key("hidden_size"), a.hidden_size.into(), b.hidden_size.into()),
        (key("intermediate_size"), a.intermediate_size.into(), b.intermediate_size.into()),
        (key("num_attention_heads"), a.num_heads.into(), b.num_heads.into()),
        (key("num_key_value_heads"), a.num_kv_heads.into(), b.num_kv_heads.into()),
        (key("head_dim"), a.head_dim.into(), b.head_dim.into()),
        (key("vocab_size"), a.vocab_size.into(), b.vocab_size.into()),
        (key("tie_word_embeddings"), a.tie_word_embeddings.into(), b.tie_word_embeddings.into()),
        (key("attention_bias"), a.attention_bias.into(), b.attention_bias.into()),
        (key("mlp_bias"), a.mlp_bias.into(), b.mlp_bias.into()),
        (key("qk_norm"), serde_json::json!(a.qk_norm), serde_json::json!(b.qk_norm)),
        (key(eps), a.norm_eps.into(), b.norm_eps.into()),
        (key("rope_theta"), a.rope_theta.into(), b.rope_theta.into()),
        (key("rope_scaling"), serde_json::json!(a.rope_scaling), serde_json::json!(b.rope_scaling)),
        (key("hidden_act"), a.hidden_act.clone().into(), b.hidden_act.clone().into()),
        (key("logit_scale"), a.logit_scale.into(), b.logit_scale.into()),
        (key("sliding_window"), a.sliding_window.into(), b.sliding_window.into()),
    ];
    let layers = |model: &Model, name: &str| match model.architecture.sliding_window {
        Some(_) => model.config.json.get(name).cloned().unwrap_or(Value::Null),
        None => Value::Null,
    };
    let windows =
        ["layer_types", "max_window_layers"].map(|name| (key(name), layers(reference, name), layers(other, name)));
    compared.into_iter().chain(windows).filter(|(_, expected, found)| expected != found)
}

/// The configurations agree; a tensor can still differ where a model is described by a format file.
fn check_tensors(reference: &Model, other: &Model) -> Result<()> {
    reference.specs.iter().try_for_each(|spec| check_shape(reference, spec, other, spec))
}

fn check_shape(reference: &Model, spec: &TensorSpec, other: &Model, of_other: &TensorSpec) -> Result<()> {
    let expected = &reference.entry(spec)?.shape;
    let found = other.entry(of_other)?;
    if found.shape == *expected {
        return Ok(());
    }
    let of_reference = reference.source.checkpoint.path.display();
    let problem = format!("has shape {:?}, but {of_reference} has {expected:?}", found.shape);
    Err(Error::tensor(other.source.checkpoint.files[found.file].path(), &of_other.name, problem))
}

/// Compares two tokenizers by what turns text into ids; truncation, padding and templates may differ.
fn check_tokenizer(reference: &Model, other: &Model) -> Result<()> {
    let (a, b) = (reference.path("tokenizer.json"), other.path("tokenizer.json"));
    if a.is_file() && b.is_file() {
        return same_tokenizer(&a, &b);
    }
    for name in ["tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"] {
        let (a, b) = (reference.path(name), other.path(name));
        if a.is_file() && b.is_file() && hash::sha256_file(&a)? != hash::sha256_file(&b)? {
            return Err(Error::file(&b, format!("differs from {}", a.display()))
                .with_hint("experts must share the seed's tokenizer: embeddings are averaged by token id"));
        }
    }
    Ok(())
}

fn same_tokenizer(a: &Path, b: &Path) -> Result<()> {
    let (left, right) = (json::read_bytes(a)?, json::read_bytes(b)?);
    if left == right {
        return Ok(());
    }
    let (left, right) = (json::parse_object(a, &left)?, json::parse_object(b, &right)?);
    let hint = "experts must share the seed's tokenizer: embeddings are averaged by token id";
    let model =
        |object: &serde_json::Map<String, Value>, key: &str| object.get("model").and_then(|m| m.get(key)).cloned();
    let (vocabulary, other) = (model(&left, "vocab"), model(&right, "vocab"));
    if vocabulary != other {
        let problem = first_difference(vocabulary.as_ref(), other.as_ref(), a);
        return Err(Error::key(b, "model.vocab", problem).with_hint(hint));
    }
    if model(&left, "merges") != model(&right, "merges") {
        return Err(Error::key(b, "model.merges", format!("differs from {}", a.display())).with_hint(hint));
    }
    for key in ["normalizer", "pre_tokenizer"] {
        if left.get(key) != right.get(key) {
            let problem = format!("differs from {}", a.display());
            return Err(Error::key(b, key, problem).with_hint(hint));
        }
    }
    let tokens = |object: &serde_json::Map<String, Value>| -> Vec<(Value, Value)> {
        let tokens = object.get("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
        tokens.iter().map(|token| (token["id"].clone(), token["content"].clone())).collect()
    };
    let (expected, found) = (tokens(&left), tokens(&right));
    if expected != found {
        let differing = expected.iter().zip(&found).find(|(x, y)| x != y);
        let problem = match differing {
            Some(((id, token), (other_id, other))) => {
                format!("has {other} as {other_id}, but {} has {token} as {id}", a.display())
            }
            None => format!("has {} tokens, but {} has {}", found.len(), a.display(), expected.len()),
        };
        return Err(Error::key(b, "added_tokens", problem).with_hint(hint));
    }
    Ok(())
}

fn first_difference(expected: Option<&Value>, found: Option<&Value>, reference: &Path) -> String {
    let reference = reference.display();
    let (Some(Value::Object(expected)), Some(Value::Object(found))) = (expected, found) else {
        return format!("differs from {reference}");
    };
    for (token, id) in expected {
        match found.get(token) {
            Some(other) if other == id => {}
            Some(other) => return format!("maps {token:?} to {other}, but {reference} maps it to {id}"),
            None => return format!("lacks the token {token:?}, which {reference} maps to {id}"),
        }
    }
    format!("has {} tokens, but {reference} has {}", found.len(), expected.len())
}
