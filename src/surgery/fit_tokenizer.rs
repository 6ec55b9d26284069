//! Whether models read text by the same tokenizer: the first token that differs, with both ids.

use std::path::Path;

use serde_json::{Map, Value};

use super::model::Model;
use crate::checkpoint::{hash, json as strict};
use crate::family::each_token_id;
use crate::{Error, Result};

const JSON: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
/// What a tokenizer may be in, beside [`JSON`].
const OTHERS: [&str; 6] = [
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.tiktoken",
    VOCAB,
    "vocab.txt",
];
const MERGES: &str = "merges.txt";
const HINT: &str = "experts must share the seed's tokenizer: embeddings are averaged by token id";

/// Compares two tokenizers by what turns text into ids; truncation, padding and templates may differ. What cannot be compared
/// is said in words.
pub(super) fn check_tokenizer(reference: &Model, other: &Model) -> Result<Vec<String>> {
    let file = |model: &Model, name: &str| Some(model.path(name)).filter(|path| path.is_file());
    if let (Some(a), Some(b)) = (file(reference, JSON), file(other, JSON)) {
        same_tokenizer(&a, &b)?;
        return Ok(Vec::new());
    }
    let mut compared = false;
    for name in OTHERS.into_iter().chain([MERGES]) {
        let (Some(a), Some(b)) = (file(reference, name), file(other, name)) else {
            continue;
        };
        if hash::sha256_file(&a)? != hash::sha256_file(&b)? {
            return Err(Error::file(&b, format!("differs from {}", a.display())).with_hint(HINT));
        }
        compared |= name != MERGES;
    }
    let vocab = |model: &Model| file(model, VOCAB).or_else(|| file(model, JSON));
    if let (false, Some(a), Some(b)) = (compared, vocab(reference), vocab(other)) {
        // One is vocab.json, which is the vocabulary of a tokenizer.json on its own.
        same_vocabulary(&a, &b)?;
        compared = true;
    }
    if compared {
        return Ok(Vec::new());
    }
    let kind = |model: &Model| {
        let names = [JSON].into_iter().chain(OTHERS);
        names
            .filter(|name| file(model, name).is_some())
            .map(|name| format!("has its tokenizer in {name}"))
            .next()
            .unwrap_or("has no tokenizer".to_owned())
    };
    Ok(vec![format!(
        "{} {}, and {} {}: they cannot be compared, but token ids must mean the same",
        other.source.name,
        kind(other),
        reference.source.name,
        kind(reference)
    )])
}

/// What to say where a model has no embedding for some ids of its own tokenizer.
pub(super) fn ids_beyond(model: &Model) -> Result<Option<String>> {
    let path = model.path(JSON);
    if !path.is_file() {
        return Ok(None);
    }
    let rows = model.architecture.vocab_size;
    let mut highest: Option<(u64, String)> = None;
    each_token_id(&strict::read_object(&path)?, &mut |_, token, id| {
        if let Some(id) = id.filter(|id| highest.as_ref().is_none_or(|(most, _)| id > most)) {
            highest = Some((id, token.to_owned()));
        }
    });
    Ok(highest.filter(|(id, _)| *id >= rows).map(|(id, token)| {
        format!(
            "{} has the token id {id} ({token:?}), but the embedding has {rows} rows: no text with this token can be read",
            path.display()
        )
    }))
}

fn same_vocabulary(a: &Path, b: &Path) -> Result<()> {
    let read = |path: &Path| {
        let mut object = strict::read_object(path)?;
        let model = object.get_mut("model").map(Value::take);
        Ok::<Value, Error>(match model {
            Some(Value::Object(mut model)) => model.remove("vocab").unwrap_or(Value::Null),
            _ => Value::Object(object),
        })
    };
    let (expected, found) = (read(a)?, read(b)?);
    // The same tokens in another order are the same vocabulary.
    if expected == found {
        return Ok(());
    }
    let problem = first_difference(Some(&expected), Some(&found), a);
    Err(Error::file(b, problem).with_hint(HINT))
}

fn same_tokenizer(a: &Path, b: &Path) -> Result<()> {
    let (left, right) = (strict::read_bytes(a)?, strict::read_bytes(b)?);
    if left == right {
        return Ok(());
    }
    let (left, right) = (
        strict::parse_object(a, &left)?,
        strict::parse_object(b, &right)?,
    );
    let model = |object: &Map<String, Value>, key: &str| {
        object.get("model").and_then(|m| m.get(key)).cloned()
    };
    let (vocabulary, other) = (model(&left, "vocab"), model(&right, "vocab"));
    if vocabulary != other {
        let problem = first_difference(vocabulary.as_ref(), other.as_ref(), a);
        return Err(Error::key(b, "model.vocab", problem).with_hint(HINT));
    }
    if model(&left, "merges") != model(&right, "merges") {
        return Err(
            Error::key(b, "model.merges", format!("differs from {}", a.display())).with_hint(HINT),
        );
    }
    for key in ["normalizer", "pre_tokenizer"] {
        if left.get(key) != right.get(key) {
            let problem = format!("differs from {}", a.display());
            return Err(Error::key(b, key, problem).with_hint(HINT));
        }
    }
    let tokens = |object: &Map<String, Value>| -> Vec<(Value, Value)> {
        let tokens = object
            .get("added_tokens")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        tokens
            .iter()
            .map(|token| (token["id"].clone(), token["content"].clone()))
            .collect()
    };
    let (expected, found) = (tokens(&left), tokens(&right));
    if expected != found {
        let differing = expected.iter().zip(&found).find(|(x, y)| x != y);
        let problem = match differing {
            Some(((id, token), (other_id, other))) => {
                format!(
                    "has {other} as {other_id}, but {} has {token} as {id}",
                    a.display()
                )
            }
            None => format!(
                "has {} tokens, but {} has {}",
                found.len(),
                a.display(),
                expected.len()
            ),
        };
        return Err(Error::key(b, "added_tokens", problem).with_hint(HINT));
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
            Some(other) => {
                return format!("maps {token:?} to {other}, but {reference} maps it to {id}");
            }
            None => return format!("lacks the token {token:?}, which {reference} maps to {id}"),
        }
    }
    format!(
        "has {} tokens, but {reference} has {}",
        found.len(),
        expected.len()
    )
}
