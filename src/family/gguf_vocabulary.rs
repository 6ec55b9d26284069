//! The tokenizer of a Hugging Face folder as metadata of a GGUF file: the inverse of [`super::gguf_tokenizer`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::gguf_bpe;
use super::gguf_error::GgufModelError;
use crate::checkpoint::GgufMetadata;
use crate::checkpoint::json::{read_bytes, read_object};
use crate::error::InputError;
use crate::{Error, Result};

/// Numbers of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The score of tokens that no merge makes: below every merge.
const UNMERGED: f32 = -1e9;

/// A `tokenizer.json`, taken apart.
struct Tokenizer {
    path: PathBuf,
    json: Map<String, Value>,
}

/// Adds the tokenizer of the folder to `metadata`, for an embedding of `vocab_size` rows; a model without tokenizer gets none.
///
/// # Errors
/// A tokenizer whose rules llama.cpp has no name for: the error names the key of `tokenizer.json`.
pub fn add(
    metadata: &mut GgufMetadata,
    folder: &Path,
    config: &Map<String, Value>,
    vocab_size: u64,
) -> Result<()> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        let others = ["tokenizer.model", "vocab.json"].map(|name| folder.join(name));
        if let Some(other) = others.iter().find(|other| other.exists()) {
            return Err(GgufModelError::SlowTokenizer {
                path: other.clone(),
            }
            .into());
        }
        metadata.text("tokenizer.ggml.model", "no_vocab");
        return Ok(());
    }
    let tokenizer = Tokenizer {
        json: read_object(&path)?,
        path,
    };
    let settings = folder.join("tokenizer_config.json");
    let settings = if settings.is_file() {
        read_object(&settings)?
    } else {
        Map::new()
    };
    let tokens = tokenizer.add_vocabulary(metadata, vocab_size)?;
    tokenizer.add_roles(metadata, config, &settings, &tokens)?;
    if let Some(template) = chat_template(folder, &settings)? {
        metadata.text("tokenizer.chat_template", &template);
    }
    Ok(())
}

/// The chat template of the folder, in a file of its own or in the settings of its tokenizer.
fn chat_template(folder: &Path, settings: &Map<String, Value>) -> Result<Option<String>> {
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        let bytes = read_bytes(&file)?;
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    let template = settings.get("chat_template").and_then(Value::as_str);
    Ok(template.map(str::to_owned))
}

impl Tokenizer {
    /// Adds the tokens, their kinds, and how texts are split into them; returns the tokens.
    fn add_vocabulary(&self, metadata: &mut GgufMetadata, vocab_size: u64) -> Result<Vec<String>> {
        let model = self.model()?;
        let marks_spaces = model.get("byte_fallback") == Some(&Value::Bool(true));
        let merges = self.merges(model)?;
        let (tokens, mut kinds) = self.tokens(model, vocab_size)?;
        if marks_spaces {
            let prefix = self.space_prefix()?;
            metadata.text("tokenizer.ggml.model", "llama");
            metadata.text("tokenizer.ggml.pre", "default");
            metadata.flag("tokenizer.ggml.add_space_prefix", prefix);
            let unknown = model.get("unk_token").and_then(Value::as_str);
            for (token, kind) in tokens.iter().zip(&mut kinds) {
                let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
                if byte && *kind == NORMAL {
                    *kind = BYTE;
                }
                if unknown == Some(token.as_str()) {
                    *kind = UNKNOWN;
                }
            }
        } else {
            let pre = gguf_bpe::name_of_split(&self.json, model).ok_or_else(|| {
                GgufModelError::UnnamedSplit {
                    path: self.path.clone(),
                }
            })?;
            metadata.text("tokenizer.ggml.model", "gpt2");
            metadata.text("tokenizer.ggml.pre", pre);
        }
        metadata.texts("tokenizer.ggml.tokens", &tokens);
        if marks_spaces {
            metadata.floats("tokenizer.ggml.scores", &scores(&tokens, &merges));
        }
        metadata.numbers("tokenizer.ggml.token_type", &kinds);
        if !marks_spaces {
            let merges: Vec<String> = merges
                .iter()
                .map(|(left, right)| format!("{left} {right}"))
                .collect();
            metadata.texts("tokenizer.ggml.merges", &merges);
        }
        Ok(tokens)
    }

    /// Adds the tokens with a role, and which of them stand around a text.
    fn add_roles(
        &self,
        metadata: &mut GgufMetadata,
        config: &Map<String, Value>,
        settings: &Map<String, Value>,
        tokens: &[String],
    ) -> Result<()> {
        let [bos, eos] = ["bos", "eos"].map(|name| role(config, settings, tokens, name));
        let [unknown, padding] = ["unk", "pad"].map(|name| role(config, settings, tokens, name));
        let roles = [
            ("bos", bos),
            ("eos", eos),
            ("unknown", unknown),
            ("padding", padding),
        ];
        for (key, id) in roles {
            if let Some(id) = id {
                metadata.number(&format!("tokenizer.ggml.{key}_token_id"), id)?;
            }
        }
        let named = |id: Option<u64>| Some(tokens.get(id? as usize)?.as_str());
        let (adds_bos, adds_eos) = self.adds(named(bos), named(eos))?;
        metadata.flag("tokenizer.ggml.add_bos_token", adds_bos);
        metadata.flag("tokenizer.ggml.add_eos_token", adds_eos);
        Ok(())
    }

    fn unexpected(
        &self,
        key: &str,
        expected: impl Into<Cow<'static, str>>,
        found: impl ToString,
    ) -> Error {
        InputError::wrong_value(&self.path, key, expected, found)
    }

    /// The byte-pair model.
    fn model(&self) -> Result<&Map<String, Value>> {
        let model = self.json.get("model").and_then(Value::as_object);
        match model
            .and_then(|model| model.get("type"))
            .and_then(Value::as_str)
        {
            Some("BPE") => model
                .ok_or_else(|| InputError::missing_key(&self.path, "model", "a byte-pair model")),
            found => Err(self.unexpected("model.type", "BPE", found.unwrap_or("none"))),
        }
    }

    /// Pairs of tokens in the order in which they are merged; both spellings of `tokenizers`.
    fn merges<'a>(&self, model: &'a Map<String, Value>) -> Result<Vec<(&'a str, &'a str)>> {
        let list = model
            .get("merges")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let pair = |merge: &'a Value| match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(parts) => Some((parts.first()?.as_str()?, parts.get(1)?.as_str()?)),
            _ => None,
        };
        list.iter()
            .map(|merge| pair(merge).ok_or_else(|| self.unexpected("model.merges", "pairs", merge)))
            .collect()
    }

    /// Tokens and their kinds by id; ids that no token has get names of their own.
    fn tokens(
        &self,
        model: &Map<String, Value>,
        vocab_size: u64,
    ) -> Result<(Vec<String>, Vec<i32>)> {
        let mut by_id: BTreeMap<u64, (String, i32)> = BTreeMap::new();
        for (token, id) in model
            .get("vocab")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let id = id
                .as_u64()
                .ok_or_else(|| self.unexpected("model.vocab", "ids", id))?;
            by_id.insert(id, (token.clone(), NORMAL));
        }
        for added in self
            .json
            .get("added_tokens")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let (id, token) = (
                added.get("id").and_then(Value::as_u64),
                added.get("content").and_then(Value::as_str),
            );
            let (Some(id), Some(token)) = (id, token) else {
                return Err(self.unexpected("added_tokens", "an id and a content", added));
            };
            let special = added.get("special") == Some(&Value::Bool(true));
            by_id.insert(
                id,
                (
                    token.to_owned(),
                    if special { CONTROL } else { USER_DEFINED },
                ),
            );
        }
        if let Some((id, (token, _))) = by_id.last_key_value()
            && *id >= vocab_size
        {
            let expected = format!("ids below the {vocab_size} rows of the embedding");
            let found = format!("{id} for {token:?}");
            return Err(self.unexpected("model.vocab", expected, found));
        }
        let taken: BTreeSet<String> = by_id.values().map(|(token, _)| token.clone()).collect();
        let free = |id: u64| {
            let mut name = format!("[PAD{id}]");
            while taken.contains(&name) {
                name.push('_');
            }
            (name, UNUSED)
        };
        Ok((0..vocab_size)
            .map(|id| by_id.remove(&id).unwrap_or_else(|| free(id)))
            .unzip())
    }

    /// Whether a space is put before the text; of vocabularies whose tokens have `▁` for a space.
    fn space_prefix(&self) -> Result<bool> {
        let steps = |key: &str, inner: &str| match self.json.get(key) {
            Some(Value::Object(step)) => match step.get(inner).and_then(Value::as_array) {
                Some(steps) => steps.clone(),
                None => vec![Value::Object(step.clone())],
            },
            _ => Vec::new(),
        };
        let kind =
            |step: &Value, name: &str| step.get("type").and_then(Value::as_str) == Some(name);
        let normalizers = steps("normalizer", "normalizers");
        let splits = steps("pre_tokenizer", "pretokenizers");
        let prepends = json!({"type": "Prepend", "prepend": "▁"});
        let marks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let expected = "spaces to become ▁ and nothing else";
        let known = |step: &&Value| **step == prepends || **step == marks;
        if let Some(other) = normalizers.iter().find(|step| !known(step)) {
            return Err(self.unexpected("normalizer", expected, other));
        }
        let has_marks = normalizers.contains(&marks);
        // Gemma's split finds nothing: no space is left.
        let splits_nothing = json!({
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
        });
        let is_metaspace = |step: &Value| {
            kind(step, "Metaspace") && step.get("replacement").is_none_or(|mark| mark == "▁")
        };
        let known = |step: &&Value| is_metaspace(step) || has_marks && **step == splits_nothing;
        if let Some(other) = splits.iter().find(|step| !known(step)) {
            return Err(self.unexpected("pre_tokenizer", "none or Metaspace", other));
        }
        let metaspace = splits.iter().find(|step| is_metaspace(step));
        if !has_marks && metaspace.is_none() {
            return Err(self.unexpected("normalizer", expected, "none"));
        }
        let is = |step: &Value, key: &str, value: Value| step.get(key) == Some(&value);
        let begins_words = metaspace.is_some_and(|step| {
            !is(step, "prepend_scheme", json!("never"))
                && !is(step, "add_prefix_space", json!(false))
        });
        Ok(normalizers.contains(&prepends) || begins_words)
    }

    /// Whether a text gets the token `bos` before it, and `eos` after it; nothing else can be said in a GGUF file.
    fn adds(&self, bos: Option<&str>, eos: Option<&str>) -> Result<(bool, bool)> {
        let mut open: Vec<&Value> = self.json.get("post_processor").into_iter().collect();
        let mut added = (false, false);
        while let Some(step) = open.pop() {
            match step.get("type").and_then(Value::as_str) {
                Some("Sequence") => open.extend(
                    step.get("processors")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten(),
                ),
                Some("TemplateProcessing") => {
                    let parts = step.get("single").and_then(Value::as_array);
                    let ids = parts.into_iter().flatten().map(|part| {
                        let token = part.get("SpecialToken");
                        token.and_then(|token| token.get("id")?.as_str())
                    });
                    // The text itself has no id.
                    let ids: Vec<Option<&str>> = ids.collect();
                    added = match ids[..] {
                        [None] => (false, false),
                        [first @ Some(_), None] if first == bos => (true, false),
                        [None, last @ Some(_)] if last == eos => (false, true),
                        [first @ Some(_), None, last @ Some(_)] if (first, last) == (bos, eos) => {
                            (true, true)
                        }
                        _ => return Err(self.adds_others(step)),
                    };
                }
                Some("ByteLevel") | None => {}
                Some(_) => return Err(self.adds_others(step)),
            }
        }
        Ok(added)
    }

    fn adds_others(&self, step: &Value) -> Error {
        GgufModelError::AddsOthers {
            path: self.path.clone(),
            kind: step.get("type").unwrap_or(&Value::Null).to_string(),
        }
        .into()
    }
}

/// Scores with which llama.cpp merges what the list merges: the earlier, the higher.
fn scores(tokens: &[String], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    tokens
        .iter()
        .map(|token| ranks.get(token).map_or(UNMERGED, |rank| -(*rank as f32)))
        .collect()
}

/// The id of the `bos`, `eos`, `pad` or `unk` token: of the configuration, or by name of the tokenizer's settings.
fn role(
    config: &Map<String, Value>,
    settings: &Map<String, Value>,
    tokens: &[String],
    name: &str,
) -> Option<u64> {
    let named = settings.get(&format!("{name}_token"));
    let text = named.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    let by_name = text
        .and_then(|text| tokens.iter().position(|token| token == text))
        .map(|id| id as u64);
    let by_config = match config.get(&format!("{name}_token_id")) {
        Some(Value::Array(ids)) => ids.first().and_then(Value::as_u64),
        other => other.and_then(Value::as_u64),
    };
    by_name.or(by_config).filter(|id| *id < tokens.len() as u64)
}
