//! How a tensor's bytes are stored, and where.

use safetensors::Dtype;

use super::ggml::GgmlType;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One little-endian number an element.
    Plain(Dtype),
    /// Blocks of quantised elements with a scale each, as llama.cpp stores them.
    Ggml(GgmlType),
}

/// One tensor of a checkpoint: where its bytes lie and how to read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Index of the file that holds it.
    pub file: usize,
    /// First byte of its data, from the start of that file.
    pub offset: u64,
    /// Bytes of data.
    pub length: u64,
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Dimensions, the slowest first: `[out, in]` for a weight.
    pub shape: Vec<u64>,
}

impl TensorEntry {
    /// Number of elements. Readers check that it does not overflow before they make an entry.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
