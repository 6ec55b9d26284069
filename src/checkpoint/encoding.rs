//! Where a tensor is in its file and how its bytes encode numbers.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::ggml::GgmlType;

/// How a tensor's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One value after the other, little-endian.
    Plain(Dtype),
    /// Blocks of a GGML type, as GGUF files hold them.
    Ggml(GgmlType),
}

impl Encoding {
    /// The dtype, where values are stored plainly.
    pub fn plain(self) -> Option<Dtype> {
        match self {
            Self::Plain(dtype) => Some(dtype),
            Self::Ggml(_) => None,
        }
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype}"),
            Self::Ggml(ggml) => f.write_str(ggml.name()),
        }
    }
}

/// One tensor of a checkpoint: its place, its encoding, its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Index of the file among the checkpoint's files.
    pub file: usize,
    /// Offset of the first byte in that file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// How the bytes are to be read.
    pub encoding: Encoding,
    /// Extents, outermost first: `[out, in]` for a weight.
    pub shape: Vec<u64>,
}

impl TensorEntry {
    /// Number of values; readers have checked that it does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Two tensors of one file that share bytes, the one that begins first before the other. With shared bytes the tensors of a
/// file could together be larger than the file. Readers have checked that no tensor ends after the file.
pub(super) fn overlapping(
    tensors: &BTreeMap<String, TensorEntry>,
) -> Option<[(&String, &TensorEntry); 2]> {
    let mut spans: Vec<_> = tensors
        .iter()
        .filter(|(_, entry)| entry.length > 0)
        .collect();
    spans.sort_by_key(|(_, entry)| entry.offset);
    spans
        .array_windows()
        .find(|[(_, a), (_, b)]| a.offset + a.length > b.offset)
        .copied()
}
