//! The header of a token folder: whose tokens they are, and how many.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checkpoint::hash::sha256;
use crate::checkpoint::{json, version};
use crate::{Error, Result};

/// Name of the header within its folder.
pub const FILE: &str = crate::checkpoint::owned::TOKENS;

/// The version of the format that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u64 = 1;

/// What a token folder holds; documented in `docs/reference/token-folder.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// 1.
    pub format_version: u64,
    /// SHA-256 of the `tokenizer.json` that made the ids, in hexadecimal.
    pub tokenizer_sha256: String,
    /// The tokenizer's highest id plus one; every id in the shards is below it.
    pub vocab_size: u64,
    /// How ids are stored.
    pub dtype: IdType,
    /// The id that stands behind each document.
    pub end_of_text: u32,
    /// Where the texts came from.
    pub sources: Vec<Source>,
    /// The shards of each split; a split that is missing has none.
    pub splits: BTreeMap<Split, Vec<Shard>>,
}

/// How token ids are stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdType {
    /// 16 bits, for vocabularies of up to 65,536.
    U16,
    /// 32 bits.
    U32,
}

/// Part of the documents.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To train on.
    Train,
    /// Held back, to measure on.
    Validation,
}

/// One path given to `tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
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
    /// Documents in it; none goes on in another shard.
    pub documents: u64,
    /// Bytes of UTF-8 text that the ids stand for.
    pub bytes_of_text: u64,
    /// SHA-256 of the file of ids.
    pub sha256: String,
    /// SHA-256 of the file of ends.
    pub ends_sha256: String,
}

impl Header {
    /// Reads and checks `header.json` of a token folder; also returns its SHA-256, which stands for the whole folder.
    pub fn read(folder: &Path) -> Result<(Self, String)> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Err(
                Error::file(folder, format!("expected a token folder: it has no {FILE}"))
                    .with_hint("`bam-convert tokenize` makes one of texts"),
            );
        }
        let bytes = json::read_bytes(&path)?;
        let object = json::parse_object(&path, &bytes)?;
        let key = "format_version";
        version::check(&path, key, object.get(key), FORMAT_VERSION)?;
        let header: Self =
            serde_json::from_value(serde_json::Value::Object(object)).map_err(|e| {
                Error::file(&path, format!("expected the header of a token folder: {e}"))
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

    fn check(&self, path: &Path) -> Result<()> {
        if self.vocab_size == 0 || self.vocab_size > self.dtype.limit() {
            let (limit, found) = (self.dtype.limit(), self.vocab_size);
            return Err(Error::key(
                path,
                "vocab_size",
                format!("expected 1 to {limit} for this dtype, found {found}"),
            ));
        }
        if u64::from(self.end_of_text) >= self.vocab_size {
            let problem = format!(
                "expected an id below {} (vocab_size), found {}",
                self.vocab_size, self.end_of_text
            );
            return Err(Error::key(path, "end_of_text", problem));
        }
        for (split, shards) in &self.splits {
            for (number, shard) in shards.iter().enumerate() {
                let expected = shard_file(*split, number);
                if shard.file != expected {
                    let problem = format!("expected {expected}, found {}", shard.file);
                    return Err(Error::key(
                        path,
                        &format!("splits.{split}.{number}.file"),
                        problem,
                    ));
                }
            }
        }
        Ok(())
    }
}

impl IdType {
    /// The smaller type that holds every id below `vocab_size`, if one does.
    pub fn of(vocab_size: u64) -> Option<Self> {
        [Self::U16, Self::U32]
            .into_iter()
            .find(|dtype| vocab_size <= dtype.limit())
    }

    /// Bytes of an id.
    pub fn width(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// One more than the largest id that fits.
    fn limit(self) -> u64 {
        1 << (8 * self.width())
    }
}

impl Split {
    /// Both, in the order of their names.
    pub const ALL: [Self; 2] = [Self::Train, Self::Validation];
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
        })
    }
}

/// Name of a file of ids.
pub fn shard_file(split: Split, number: usize) -> String {
    format!("{split}-{number:05}.bin")
}

/// Name of the file of document ends beside a file of ids.
pub fn ends_file(split: Split, number: usize) -> String {
    format!("{split}-{number:05}.ends")
}
