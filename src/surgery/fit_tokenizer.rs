//! Whether models read text by the same tokenizer: the first token that differs, with both ids.

use std::path::Path;

use serde_json::{Map, Value};

use super::fit_error::{FitError, TokenEntry, TokenizerDifference};
use super::model::Model;
use super::tokenizer_meaning::{other_option, same_merges, same_steps};
use crate::checkpoint::{hash, json as strict};
use crate::family::{each_token_id, same_value};
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
            return Err(differs_in_file(&a, &b, TokenizerDifference::Anywhere));
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
    let difference = first_difference(Some(&expected), Some(&found));
    Err(differs_in_file(a, b, difference))
}

/// The error for the file `b`, which differs from `a`.
fn differs_in_file(a: &Path, b: &Path, difference: TokenizerDifference) -> Error {
    FitError::TokenizerFile {
        path: b.to_path_buf(),
        reference: a.to_path_buf(),
        difference: Box::new(difference),
    }
    .into()
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
    let refuse = |key, difference| {
        Err(FitError::TokenizerKey {
            path: b.to_path_buf(),
            key,
            reference: a.to_path_buf(),
            difference: Box::new(difference),
        }
        .into())
    };

    let (vocabulary, other) = (model(&left, "vocab"), model(&right, "vocab"));
    if !same_or_absent(vocabulary.as_ref(), other.as_ref()) {
        let difference = first_difference(vocabulary.as_ref(), other.as_ref());
        return refuse("model.vocab", difference);
    }
    let (ours, theirs) = (model(&left, "merges"), model(&right, "merges"));
    if !same_merges(ours.as_ref(), theirs.as_ref()) {
        return refuse("model.merges", TokenizerDifference::Anywhere);
    }
    if let Some(option) = other_option(&left, &right) {
        return refuse(option, TokenizerDifference::Anywhere);
    }
    for key in ["normalizer", "pre_tokenizer"] {
        if !same_steps(left.get(key), right.get(key)) {
            return refuse(key, TokenizerDifference::Anywhere);
        }
    }

    let (expected, found) = (added_tokens(&left), added_tokens(&right));
    if expected == found {
        return Ok(());
    }
    let counts = TokenizerDifference::Count {
        expected: expected.len(),
        found: found.len(),
    };
    let differing = expected.into_iter().zip(found).find(|(x, y)| x != y);
    refuse(
        "added_tokens",
        differing.map_or(counts, |(expected, found)| TokenizerDifference::Added {
            expected,
            found,
        }),
    )
}

/// Whether two values mean the same, or both are absent.
fn same_or_absent(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same_value(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// The added tokens of a tokenizer file, in the order of their ids.
fn added_tokens(object: &Map<String, Value>) -> Vec<TokenEntry> {
    let tokens = object.get("added_tokens").and_then(Value::as_array);
    let entry = |token: &Value| TokenEntry {
        token: token["content"].clone(),
        id: token["id"].clone(),
    };
    let mut entries: Vec<TokenEntry> = tokens.into_iter().flatten().map(entry).collect();
    entries.sort_by_key(|entry| entry.id.as_u64());
    entries
}

/// The first difference of two vocabularies.
fn first_difference(expected: Option<&Value>, found: Option<&Value>) -> TokenizerDifference {
    let (Some(Value::Object(expected)), Some(Value::Object(found))) = (expected, found) else {
        return TokenizerDifference::Anywhere;
    };
    for (token, id) in expected {
        match found.get(token) {
            Some(other) if other == id => {}
            Some(other) => {
                return TokenizerDifference::Id {
                    token: token.clone(),
                    expected: id.clone(),
                    found: other.clone(),
                };
            }
            None => {
                return TokenizerDifference::Missing {
                    token: token.clone(),
                    expected: id.clone(),
                };
            }
        }
    }
    TokenizerDifference::Count {
        expected: expected.len(),
        found: found.len(),
    }
}
