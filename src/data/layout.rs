//! Names and small types of the token folder format, which `docs/reference/token-folder.md` describes.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the header within its folder.
pub const FILE: &str = crate::checkpoint::owned::TOKENS;

/// The version of the format of a folder in which every token carries loss.
pub const FORMAT_VERSION: u64 = 1;

/// The version of a folder with masks. Programs that read version 1 alone would train on every token of it.
pub const MASKED_VERSION: u64 = 2;

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
    pub(super) fn limit(self) -> u64 {
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

/// Name of the file beside a file of ids that says which of its tokens carry loss.
pub fn mask_file(split: Split, number: usize) -> String {
    format!("{split}-{number:05}.mask")
}
