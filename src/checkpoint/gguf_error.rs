//! What can be wrong with a GGUF file: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;
use std::str::Utf8Error;

use super::ggml::{GgmlError, GgmlType};
use crate::error::ErrorPlace;

/// Advice where elements cannot be read.
const REQUANTISE: &str =
    "take another file of this model, or: llama-quantize --allow-requantize IN.gguf OUT.gguf Q8_0";

/// A rule that a GGUF file breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A folder, a pipe or a device.
    #[error("{}: is not a file; expected a GGUF file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// A file of another format.
    #[error("{}: is no GGUF file: expected it to start with `GGUF`, found `{found}`", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
    /// A file for machines of the other byte order.
    #[error("{}: is a big-endian GGUF file (version {version})", path.display())]
    BigEndian {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A version that is not read.
    #[error("{}: is GGUF version {version}; expected version 2 or 3", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// More metadata and tensors than the file has bytes for.
    #[error(
        "{}: declares {keys} metadata keys and {tensors} tensors, which take at least {least} bytes, \
         but {left} bytes are left for them",
        path.display()
    )]
    Counts {
        /// The file.
        path: PathBuf,
        /// Number of metadata keys.
        keys: u64,
        /// Number of tensors.
        tensors: u64,
        /// The fewest bytes that they take.
        least: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// A part of the header that cannot be read.
    #[error("{}: {part}: {rule}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The part.
        part: String,
        /// The rule that it breaks.
        rule: Box<GgufRule>,
    },
    /// A metadata key that breaks a rule.
    #[error("{}: key `{key}`: {rule}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The rule that it breaks.
        rule: Box<GgufRule>,
    },
    /// A tensor that breaks a rule.
    #[error("{}: tensor `{tensor}`: {rule}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The rule that it breaks.
        rule: Box<GgufRule>,
    },
}

/// A rule about a part of a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufRule {
    // ---- values
    /// A value that is longer than the rest of the header.
    #[error("{value} takes {needed} bytes, but {left} are left {bound}")]
    Cut {
        /// The value.
        value: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are left.
        left: u64,
        /// The bound of these bytes.
        bound: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("a text of {length} bytes is not UTF-8: {error}")]
    NotUtf8 {
        /// Bytes of the text.
        length: u64,
        /// Where it breaks the encoding.
        error: Utf8Error,
    },
    /// A type that GGUF does not have.
    #[error("expected a value type from 0 to 12, found {code}")]
    ValueType {
        /// Its code.
        code: u32,
    },
    /// A truth value that is neither true nor false.
    #[error("expected a truth value of 0 or 1, found {found:?}")]
    TruthValue {
        /// Its bytes.
        found: Vec<u8>,
    },
    /// A list whose items are lists.
    #[error("is a list of lists, which no GGUF reader knows")]
    ListOfLists,
    /// An item of a list that breaks a rule.
    #[error("item {index}: {rule}")]
    Item {
        /// Its number.
        index: u64,
        /// The rule that it breaks.
        rule: Box<GgufRule>,
    },

    // ---- metadata
    /// A metadata key twice.
    #[error("is there twice; expected each metadata key once")]
    RepeatedKey,
    /// One of the files of a model that was split.
    #[error("this file is one of {count} parts; expected a whole model")]
    OnePart {
        /// Number of parts.
        count: i128,
    },

    // ---- tensors
    /// A tensor twice.
    #[error("is listed twice; expected each name once")]
    RepeatedTensor,
    /// More dimensions than ggml knows.
    #[error("expected at most {most} dimensions, found {found}")]
    Dimensions {
        /// The most dimensions.
        most: u32,
        /// The dimensions.
        found: u32,
    },
    /// Elements of a type whose size is not known.
    #[error("has elements of type {name} (ggml type {code}), whose size is not known here")]
    ElementType {
        /// Name of the type.
        name: &'static str,
        /// Its code.
        code: u32,
    },
    /// Data at a place that is not aligned.
    #[error("expected its data at a multiple of {alignment} bytes, found offset {offset}")]
    Unaligned {
        /// The alignment of the file.
        alignment: u64,
        /// The offset of the data.
        offset: u64,
    },
    /// Rows that are not whole blocks.
    #[error(
        "expected rows of a multiple of {block} elements ({kind}), found {row} in shape {shape:?}"
    )]
    PartialBlock {
        /// Elements of a block.
        block: u64,
        /// Type of the elements.
        kind: GgmlType,
        /// Elements of a row.
        row: u64,
        /// The shape.
        shape: Vec<u64>,
    },
    /// A shape whose elements cannot be counted.
    #[error("shape {shape:?} has more elements than can be counted")]
    LargeShape {
        /// The shape.
        shape: Vec<u64>,
    },
    /// Data that passes the end of the file.
    #[error(
        "its {length} bytes at offset {offset} of the data (which starts at byte {start}) pass the end of the file: {file} bytes"
    )]
    PastEnd {
        /// Bytes of the tensor.
        length: u64,
        /// Their offset in the data.
        offset: u64,
        /// Where the data of all tensors starts.
        start: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// Data that another tensor has, too.
    #[error(
        "its data starts at byte {start}, inside the data of `{other}` (bytes {other_start} to {other_end})"
    )]
    SharedData {
        /// Where its data starts.
        start: u64,
        /// The other tensor.
        other: String,
        /// Where the data of the other starts.
        other_start: u64,
        /// Where it ends.
        other_end: u64,
    },
    /// A tensor that is too large, or quantised, where a few plain numbers are needed.
    #[error("expected at most {most} F32, F16 or BF16 elements, found {found}")]
    NotSmall {
        /// The most elements.
        most: u64,
        /// Its type and shape.
        found: String,
    },
    /// Elements that cannot be decoded.
    #[error(transparent)]
    Elements(#[from] GgmlError),
}

impl GgufError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let advice = match self {
            Self::BigEndian { .. } => "convert it with gguf-py's `gguf-convert-endian FILE little`",
            Self::Version { .. } => "convert the original model again with a current llama.cpp",
            Self::Header { rule, .. } | Self::Key { rule, .. } | Self::Tensor { rule, .. } => {
                rule.hint()?
            }
            Self::NotRegular { .. } | Self::Magic { .. } | Self::Counts { .. } => return None,
        };
        Some(Cow::Borrowed(advice))
    }

    /// The file, and the key or tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NotRegular { path }
            | Self::Magic { path, .. }
            | Self::BigEndian { path, .. }
            | Self::Version { path, .. }
            | Self::Counts { path, .. }
            | Self::Header { path, .. } => ErrorPlace::of(path),
            Self::Key { path, key, .. } => ErrorPlace::of(path).with_key(key),
            Self::Tensor { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
        }
    }
}

impl GgufRule {
    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::OnePart { .. } => {
                "join the parts first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
            }
            Self::ElementType { .. } | Self::Elements(_) => REQUANTISE,
            Self::PastEnd { .. } => "the file may be truncated: fetch it again",
            Self::Item { rule, .. } => return rule.hint(),
            _ => return None,
        })
    }
}
