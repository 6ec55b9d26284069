//! What a `tokenizer.json` asks for, checked before the library builds it.
//!
//! The library does what the file says: a normalizer may make gigabytes of a letter, and an allocation that fails ends the
//! process. So growth is bounded here, part by part, by what published tokenizers need many times over.

use std::borrow::Cow;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::tokenizer_error::{TokenizerError, TokenizerPartRule as Rule};
use crate::error::nearest;
use crate::{Error, Result};

/// Steps of a normalizer, pre-tokenizer, post-processor or decoder.
const MOST_STEPS: usize = 64;
/// Bytes that all steps together may make of one: ALBERT's steps may make 700.
const MOST_GROWTH: u64 = 4096;
/// Bytes of a regular expression: published ones have some 700.
const LONGEST_PATTERN: usize = 4096;
/// Tokens that a post-processor puts around a text.
const MOST_AROUND: usize = 1024;
/// Bytes that are put before or after each character before the vocabulary is asked.
const LONGEST_AFFIX: usize = 64;
/// Characters of a word for WordPiece, which takes their number to the third power; it is 100 everywhere.
const LONGEST_WORD: u64 = 512;
/// Bytes of a token of a unigram model: the library keeps a node within a node for each.
const LONGEST_UNIGRAM: usize = 1024;
/// Bytes that the normalizer may make of all added tokens.
const MOST_ADDED: u64 = 256 << 20;

/// What is known of a tokenizer's parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts {
    /// Bytes that the normalizer may make of one byte of text.
    pub growth: u64,
    /// Bytes that the decoder may make of one byte of a token.
    pub decoded: u64,
    /// What the post-processor puts around a text.
    pub around: Around,
    /// The share of merges that the model leaves out at random.
    pub dropout: Option<f64>,
}

/// The types of steps that the library reads.
const STEPS: [&str; 32] = [
    "BPEDecoder",
    "BertNormalizer",
    "BertPreTokenizer",
    "BertProcessing",
    "ByteFallback",
    "ByteLevel",
    "CTC",
    "CharDelimiterSplit",
    "Digits",
    "FixedLength",
    "Fuse",
    "Lowercase",
    "Metaspace",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Punctuation",
    "Replace",
    "RobertaProcessing",
    "Sequence",
    "Split",
    "Strip",
    "StripAccents",
    "TemplateProcessing",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
    "WordPiece",
];

/// Those that it reads by their keys alone.
const BY_KEYS: [&str; 2] = ["BertNormalizer", "CharDelimiterSplit"];

/// Checks the parts of a tokenizer; `path` only names the place in errors.
pub(super) fn check(path: &Path, object: &Map<String, Value>) -> Result<Parts> {
    let check = Check { path };
    let growth = check.growth(object, "normalizer", "normalizers", &|step, kind| {
        Ok(match kind {
            "NFC" | "NFD" => 3,
            // U+FDFA becomes 18 characters.
            "NFKC" | "NFKD" => 11,
            "Lowercase" | "ByteLevel" => 2,
            "BertNormalizer" | "Bert" => 6,
            "Prepend" => 1 + text_of(step, "prepend").len() as u64,
            "Replace" => check.replace(step, "normalizer")?,
            "Precompiled" => check.precompiled(step)?,
            _ => 1,
        })
    })?;
    for (step, kind) in check.steps(object, "pre_tokenizer", "pretokenizers")? {
        if kind == "Split" {
            check.pattern(step, "pre_tokenizer")?;
        }
        if kind == "FixedLength" && step.get("length").and_then(Value::as_u64) == Some(0) {
            return Err(check.refused("pre_tokenizer", Rule::EmptyPieces));
        }
    }
    let around = check.around(object)?;
    let decoded = check.growth(object, "decoder", "decoders", &|step, kind| {
        Ok(match kind {
            "Replace" => check.replace(step, "decoder")?,
            "BPEDecoder" | "ByteLevel" | "CTC" | "WordPiece" => 2,
            _ => 1,
        })
    })?;
    let dropout = check.model(object)?;
    check.added(object, growth)?;
    Ok(Parts {
        growth,
        decoded,
        around,
        dropout,
    })
}

/// The tokens that a post-processor puts around a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Around {
    /// How many.
    count: usize,
    /// How many of them after the text.
    pub behind: usize,
    /// The highest id among them, with its token.
    pub highest: Option<(String, u64)>,
}

impl Around {
    fn add(&mut self, token: &str, ids: &[u64], behind: bool) {
        self.count += ids.len();
        self.behind += if behind { ids.len() } else { 0 };
        let highest = ids.iter().max().map(|id| (token.to_owned(), *id));
        if highest.as_ref().map(|(_, id)| id) > self.highest.as_ref().map(|(_, id)| id) {
            self.highest = highest;
        }
    }
}

struct Check<'a> {
    path: &'a Path,
}

/// A step of a part with its type.
type Step<'v> = (&'v Map<String, Value>, &'v str);
/// The bytes that a step of a type may make of one.
type GrowthOf<'f> = &'f dyn Fn(&Map<String, Value>, &str) -> Result<u64>;

impl Check<'_> {
    fn refused(&self, key: impl Into<Cow<'static, str>>, rule: Rule) -> Error {
        TokenizerError::Part {
            path: self.path.to_path_buf(),
            key: key.into(),
            rule,
        }
        .into()
    }

    /// The steps of a part; sequences within sequences are listed one after the other.
    fn steps<'v>(
        &self,
        object: &'v Map<String, Value>,
        key: &'static str,
        list: &str,
    ) -> Result<Vec<Step<'v>>> {
        let mut found = Vec::new();
        let mut open: Vec<&Value> = object.get(key).into_iter().collect();
        while let Some(part) = open.pop() {
            let step = match part {
                Value::Null => continue,
                Value::Object(step) => step,
                _ => return Err(self.refused(key, Rule::NoObject)),
            };
            let Some(Value::String(kind)) = step.get("type") else {
                return Err(self.refused(key, Rule::NoType));
            };
            self.known(key, list, kind, step)?;
            match (kind.as_str(), step.get(list)) {
                ("Sequence", Some(Value::Array(steps))) => open.extend(steps.iter().rev()),
                _ => found.push((step, kind.as_str())),
            }
            if found.len() + open.len() > MOST_STEPS {
                return Err(self.refused(key, Rule::ManySteps { most: MOST_STEPS }));
            }
        }
        Ok(found)
    }

    /// Refuses a step whose type the library does not read: it then goes by the other keys, and takes the step for another one.
    fn known(
        &self,
        key: &'static str,
        list: &str,
        kind: &str,
        step: &Map<String, Value>,
    ) -> Result<()> {
        if !STEPS.contains(&kind) {
            let rule = Rule::UnknownType {
                found: kind.to_owned(),
                nearest: nearest(kind, STEPS).unwrap_or("Sequence"),
            };
            return Err(self.refused(key, rule));
        }
        let other = [
            list,
            "pattern",
            "content",
            "prepend",
            "precompiled_charsmap",
        ];
        match other.into_iter().find(|key| step.contains_key(*key)) {
            Some(other) if BY_KEYS.contains(&kind) => {
                let rule = Rule::OtherKey {
                    found: other.to_owned(),
                    kind: kind.to_owned(),
                };
                Err(self.refused(key, rule))
            }
            _ => Ok(()),
        }
    }

    /// The bytes that the steps of a part may make of one.
    fn growth(
        &self,
        object: &Map<String, Value>,
        key: &'static str,
        list: &str,
        of: GrowthOf<'_>,
    ) -> Result<u64> {
        let mut growth = 1u64;
        for (step, kind) in self.steps(object, key, list)? {
            growth = growth.saturating_mul(of(step, kind)?);
        }
        if growth > MOST_GROWTH {
            let rule = Rule::Growth {
                found: growth,
                most: MOST_GROWTH,
            };
            return Err(self.refused(key, rule));
        }
        Ok(growth)
    }

    /// The pattern of a step, and whether it is a regular expression.
    fn pattern<'v>(
        &self,
        step: &'v Map<String, Value>,
        key: &'static str,
    ) -> Result<(&'v str, bool)> {
        let pattern = step.get("pattern").and_then(Value::as_object);
        let text = |kind: &str| pattern?.get(kind)?.as_str();
        let (pattern, regex) = match (text("String"), text("Regex")) {
            (Some(text), None) => (text, false),
            (None, Some(text)) => (text, true),
            _ => return Err(self.refused(key, Rule::NoPattern)),
        };
        if pattern.is_empty() {
            return Err(self.refused(key, Rule::EmptyPattern));
        }
        if regex && pattern.len() > LONGEST_PATTERN {
            let rule = Rule::LongPattern {
                found: pattern.len(),
                most: LONGEST_PATTERN,
            };
            return Err(self.refused(key, rule));
        }
        Ok((pattern, regex))
    }

    fn replace(&self, step: &Map<String, Value>, key: &'static str) -> Result<u64> {
        let (pattern, regex) = self.pattern(step, key)?;
        let content = text_of(step, "content").len() as u64;
        // An expression may match between two characters, which both stay.
        Ok(if regex {
            1 + content
        } else {
            content.div_ceil(pattern.len() as u64).max(1)
        })
    }

    /// The longest text that a table of SentencePiece puts in the place of a character.
    fn precompiled(&self, step: &Map<String, Value>) -> Result<u64> {
        let key = "normalizer";
        let bytes = STANDARD.decode(text_of(step, "precompiled_charsmap"));
        let bytes = bytes.map_err(|e| self.refused(key, Rule::NotBase64(e)))?;
        let table = bytes.split_first_chunk::<4>();
        let table = table.map(|(size, rest)| (u32::from_le_bytes(*size) as usize, rest));
        let Some((size, rest)) = table.filter(|(size, rest)| *size > 0 && *size <= rest.len())
        else {
            let length = bytes.len();
            return Err(self.refused(key, Rule::CutCharsmap { length }));
        };
        let texts = rest[size..].split(|byte| *byte == 0);
        Ok(texts.map(<[u8]>::len).max().unwrap_or(0).max(1) as u64)
    }

    fn around(&self, object: &Map<String, Value>) -> Result<Around> {
        let key = "post_processor";
        let mut around = Around::default();
        for (step, kind) in self.steps(object, key, "processors")? {
            match kind {
                "TemplateProcessing" => self.template(step, &mut around)?,
                "BertProcessing" | "RobertaProcessing" => {
                    for (name, behind) in [("cls", false), ("sep", true)] {
                        let token = step.get(name).and_then(Value::as_array);
                        // What is no token with its id the library refuses.
                        if let Some([Value::String(token), id]) = token.map(Vec::as_slice) {
                            around.add(token, &[id.as_u64().unwrap_or_default()], behind);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(around)
    }

    fn template(&self, step: &Map<String, Value>, around: &mut Around) -> Result<()> {
        let key = "post_processor";
        let Some(Value::Array(pieces)) = step.get("single") else {
            return Err(self.refused(key, Rule::NoSingle));
        };
        let mut texts = 0;
        for piece in pieces {
            let piece = piece.as_object().and_then(|piece| piece.iter().next());
            let id = piece
                .and_then(|(_, piece)| piece.get("id"))
                .and_then(Value::as_str);
            match (piece.map(|(kind, _)| kind.as_str()), id) {
                (Some("Sequence"), Some("A")) => texts += 1,
                (Some("SpecialToken"), Some(name)) => {
                    around.add(name, &self.special(step, name)?, texts > 0);
                }
                _ => return Err(self.refused(key, Rule::UnknownPiece)),
            }
            if around.count > MOST_AROUND {
                return Err(self.refused(key, Rule::ManyAround { most: MOST_AROUND }));
            }
        }
        if texts != 1 {
            return Err(self.refused(key, Rule::TextTimes { found: texts }));
        }
        Ok(())
    }

    /// The ids of a special token of a template.
    fn special(&self, step: &Map<String, Value>, name: &str) -> Result<Vec<u64>> {
        let key = "post_processor";
        let token = step
            .get("special_tokens")
            .and_then(|tokens| tokens.get(name));
        let list = |list: &str| token?.get(list)?.as_array();
        match (list("ids"), list("tokens")) {
            (Some(ids), Some(tokens)) if ids.len() == tokens.len() => {
                Ok(ids.iter().filter_map(Value::as_u64).collect())
            }
            (Some(ids), Some(tokens)) => {
                let rule = Rule::IdsOfSpecial {
                    name: name.to_owned(),
                    ids: ids.len(),
                    tokens: tokens.len(),
                };
                Err(self.refused(key, rule))
            }
            _ => {
                let name = name.to_owned();
                Err(self.refused(key, Rule::NoIdsOfSpecial { name }))
            }
        }
    }

    /// The share of merges that the model leaves out.
    fn model(&self, object: &Map<String, Value>) -> Result<Option<f64>> {
        // What is no model the library refuses.
        let Some(Value::Object(model)) = object.get("model") else {
            return Ok(None);
        };
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
            let found = text_of(model, name).len();
            if found > LONGEST_AFFIX {
                let most = LONGEST_AFFIX;
                return Err(self.refused(format!("model.{name}"), Rule::LongAffix { found, most }));
            }
        }
        let longest = model
            .get("max_input_chars_per_word")
            .and_then(Value::as_u64);
        if let Some(found) = longest.filter(|longest| *longest > LONGEST_WORD) {
            let most = LONGEST_WORD;
            let rule = Rule::LongWord { found, most };
            return Err(self.refused("model.max_input_chars_per_word", rule));
        }
        if let Some(Value::Array(vocab)) = model.get("vocab") {
            let tokens = vocab.iter().filter_map(|token| token.get(0)?.as_str());
            if let Some(found) = tokens
                .map(str::len)
                .max()
                .filter(|found| *found > LONGEST_UNIGRAM)
            {
                let most = LONGEST_UNIGRAM;
                return Err(self.refused("model.vocab", Rule::LongToken { found, most }));
            }
        }
        self.merges(model)?;
        Ok(model
            .get("dropout")
            .and_then(Value::as_f64)
            .filter(|dropout| *dropout != 0.0))
    }

    /// The library cuts the prefix off the second part of a merge without looking.
    fn merges(&self, model: &Map<String, Value>) -> Result<()> {
        let prefix = text_of(model, "continuing_subword_prefix");
        let Some(Value::Array(merges)) = model.get("merges") else {
            return Ok(());
        };
        let second = |merge: &Value| match merge {
            Value::String(merge) => merge.split(' ').nth(1).map(str::to_owned),
            merge => merge.get(1).and_then(Value::as_str).map(str::to_owned),
        };
        let mut seconds = merges.iter().filter_map(second);
        match seconds.find(|second| !second.starts_with(prefix)) {
            Some(found) => {
                let prefix = prefix.to_owned();
                Err(self.refused("model.merges", Rule::MergeWithoutPrefix { found, prefix }))
            }
            None => Ok(()),
        }
    }

    /// Added tokens are brought into the normalizer's form when the tokenizer is built.
    fn added(&self, object: &Map<String, Value>, growth: u64) -> Result<()> {
        let added = object.get("added_tokens").and_then(Value::as_array);
        let bytes: u64 = added
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .filter(|token| token.get("normalized") == Some(&Value::Bool(true)))
            .map(|token| text_of(token, "content").len() as u64)
            .sum();
        if growth > 1 && bytes.saturating_mul(growth) > MOST_ADDED {
            return Err(self.refused("added_tokens", Rule::ManyAdded { bytes, growth }));
        }
        Ok(())
    }
}

/// A text of an object, empty where the object lacks it.
fn text_of<'v>(object: &'v Map<String, Value>, key: &str) -> &'v str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}
