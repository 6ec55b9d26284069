//! The header of a token folder: whose tokens they are, and how many.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layout::{FILE, FORMAT_VERSION, IdType, MASKED_VERSION, Split, shard_file};
use super::token_error::TokenError;
use crate::checkpoint::hash::sha256;
use crate::checkpoint::{json, version};
use crate::error::InputError;
use crate::{Error, Result};

/// What a token folder holds; documented in `docs/reference/token-folder.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Header")]
pub struct TokenHeader {
    /// 1, or 2 where shards have masks.
    pub format_version: u64,
    /// SHA-256 of the `tokenizer.json` that made the ids, in hexadecimal.
    pub tokenizer_sha256: String,
    /// The tokenizer's highest id plus one; every id in the shards is below it.
    pub vocab_size: u64,
    /// How ids are stored.
    pub dtype: IdType,
    /// The id that ends each text; the documents of version 2 end as their template ends them.
    pub end_of_text: u32,
    /// SHA-256 of the chat template that laid out the conversations, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_sha256: Option<String>,
    /// Where the texts came from.
    pub sources: Vec<TextSource>,
    /// The shards of each split; a split that is missing has none.
    pub splits: BTreeMap<Split, Vec<Shard>>,
}

/// One path given to `tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Source")]
pub struct TextSource {
    /// The path as it was given.
    pub path: String,
    /// Files found there.
    pub files: u64,
    /// Their length in bytes, as they lie on disk.
    pub bytes: u64,
    /// SHA-256 over the SHA-256 of the files (64 hexadecimal digits each), in the order in which they were read.
    pub sha256: String,
}

/// A file of token ids and its file of document ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// `train-00000.bin`; the ends of its documents are in `train-00000.ends`.
    pub file: String,
    /// Token ids in it, ends of text counted.
    pub tokens: u64,
    /// Documents in it. Documents never span shards.
    pub documents: u64,
    /// Bytes of UTF-8 text that the ids stand for.
    pub bytes_of_text: u64,
    /// SHA-256 of the file of ids.
    pub sha256: String,
    /// SHA-256 of the file of ends.
    pub ends_sha256: String,
    /// Which tokens carry loss; without it, all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<ShardMask>,
}

/// The tokens of a shard that carry loss: the tokens of answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Mask")]
pub struct ShardMask {
    /// SHA-256 of the mask's file.
    pub sha256: String,
    /// Tokens that carry loss.
    pub tokens: u64,
    /// Bytes of UTF-8 text that they stand for.
    pub bytes_of_text: u64,
}

impl TokenHeader {
    /// Reads and checks `header.json` of a token folder; also returns its SHA-256, which identifies the whole folder.
    pub fn read(folder: &Path) -> Result<(Self, String)> {
        let path = folder.join(FILE);
        if !path.exists() {
            let path = folder.to_path_buf();
            return Err(TokenError::NotTokenFolder { path }.into());
        }
        let bytes = json::read_bytes(&path)?;
        let object = json::parse_object(&path, &bytes)?;
        let key = "format_version";
        let found = object.get(key);
        let known = match found.and_then(serde_json::Value::as_u64) {
            Some(FORMAT_VERSION) => FORMAT_VERSION,
            _ => MASKED_VERSION,
        };
        version::check(&path, key, found, known)?;
        let header: Self =
            serde_json::from_value(serde_json::Value::Object(object)).map_err(|e| {
                TokenError::NotHeader {
                    path: path.clone(),
                    problem: e.to_string(),
                }
            })?;
        header.check(&path)?;
        Ok((header, sha256(&bytes)))
    }

    /// Tokens of a split, ends of text counted.
    pub fn tokens(&self, split: Split) -> u64 {
        self.splits
            .get(&split)
            .into_iter()
            .flatten()
            .map(|shard| shard.tokens)
            .sum()
    }

    /// Whether the folder says which tokens carry loss.
    pub fn has_masks(&self) -> bool {
        self.format_version == MASKED_VERSION
    }

    /// The header as the text of its file, without the last line break.
    pub(super) fn to_text(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::compute("write the header", e))
    }

    fn check(&self, path: &Path) -> Result<()> {
        let wrong = |key: Cow<'static, str>, expected: String, found: String| {
            Err(InputError::WrongValue {
                at: path.into(),
                key,
                expected: expected.into(),
                found,
            }
            .into())
        };
        let vocab_size = self.vocab_size;
        if vocab_size == 0 || vocab_size > self.dtype.limit() {
            let expected = format!("1 to {} for this dtype", self.dtype.limit());
            return wrong("vocab_size".into(), expected, vocab_size.to_string());
        }
        if u64::from(self.end_of_text) >= vocab_size {
            let expected = format!("an id below {vocab_size} (vocab_size)");
            return wrong("end_of_text".into(), expected, self.end_of_text.to_string());
        }
        if self.chat_template_sha256.is_some() && !self.has_masks() {
            let expected = format!("none in format_version {FORMAT_VERSION}");
            return wrong("chat_template_sha256".into(), expected, "one".to_owned());
        }
        for (split, shards) in &self.splits {
            for (number, shard) in shards.iter().enumerate() {
                if shard.mask.is_some() != self.has_masks() {
                    let key = format!("splits.{split}.{number}.mask");
                    let (expected, found) = if self.has_masks() {
                        (format!("a mask in format_version {MASKED_VERSION}"), "none")
                    } else {
                        (format!("none in format_version {FORMAT_VERSION}"), "one")
                    };
                    return wrong(key.into(), expected, found.to_owned());
                }
                if let Some(mask) = &shard.mask {
                    let key = format!("splits.{split}.{number}.mask.tokens");
                    let most = shard.tokens;
                    if mask.tokens > most {
                        let expected = format!("at most {most} (tokens of the shard)");
                        return wrong(key.into(), expected, mask.tokens.to_string());
                    }
                }
                let expected = shard_file(*split, number);
                if shard.file != expected {
                    let key = format!("splits.{split}.{number}.file");
                    return wrong(key.into(), expected, shard.file.clone());
                }
            }
        }
        Ok(())
    }
}
