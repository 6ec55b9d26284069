//! Where a tensor is in its file and how its bytes encode numbers.

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
