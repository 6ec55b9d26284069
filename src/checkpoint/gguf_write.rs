//! Writes a GGUF file: metadata, the list of tensors, their data one after the other.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::ahead::for_each_piece;
use super::dtype::{self, Dtype};
use super::error::CheckpointError;
use super::ggml::GgmlType;
use super::writer::TensorBytes;
use crate::{Error, Result};

/// Where each tensor starts is a multiple of this, in bytes: the default of the format.
const ALIGNMENT: u64 = 32;

/// Values of a block of [`GgufDtype::Q8_0`]: each is a byte, after the scale of two bytes.
const BLOCK: usize = 32;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufDtype {
    /// Plain numbers.
    F32,
    /// Plain numbers.
    F16,
    /// Plain numbers.
    BF16,
    /// Blocks of 32 whole numbers with a scale.
    Q8_0,
}

impl GgufDtype {
    fn ggml(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::BF16 => GgmlType::BF16,
            Self::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// The dtype in which values are handed over.
    pub fn values(self) -> Dtype {
        match self {
            Self::F32 | Self::Q8_0 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    /// Bytes of so many values, which are whole blocks.
    fn bytes(self, values: u64) -> u64 {
        let ggml = self.ggml();
        values / ggml.block_size() as u64 * ggml.type_size() as u64
    }

    /// Whether rows of this length can be stored so.
    pub fn holds_rows_of(self, columns: u64) -> bool {
        columns.is_multiple_of(self.ggml().block_size() as u64)
    }
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufLayout {
    /// Name in the file.
    pub name: String,
    /// How it is stored.
    pub dtype: GgufDtype,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Its values where no source has them.
    pub values: Option<Vec<f32>>,
}

impl GgufLayout {
    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of its data.
    pub fn length(&self) -> u64 {
        self.dtype.bytes(self.elements())
    }
}

/// Metadata of a file to be, in the order in which it was added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufMetadata {
    keys: u64,
    bytes: Vec<u8>,
}

impl GgufMetadata {
    fn text_bytes(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.keys += 1;
        self.text_bytes(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn list(&mut self, key: &str, kind: u32, length: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u64).to_le_bytes());
    }

    /// Adds a whole number; one that does not fit 32 bits is an error.
    pub fn number(&mut self, key: &str, value: u64) -> Result<()> {
        let value = narrow(key, value)?;
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
        Ok(())
    }

    /// Adds a 32-bit float.
    pub fn float(&mut self, key: &str, value: f64) {
        self.key(key, 6);
        self.bytes.extend((value as f32).to_le_bytes());
    }

    /// Adds a truth value.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(value.into());
    }

    /// Adds a text.
    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        self.text_bytes(value);
    }

    /// Adds a list of texts.
    pub fn texts(&mut self, key: &str, values: &[String]) {
        self.list(key, 8, values.len());
        values.iter().for_each(|value| self.text_bytes(value));
    }

    /// Adds a list of 32-bit whole numbers.
    pub fn numbers(&mut self, key: &str, values: &[i32]) {
        self.list(key, 5, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Adds a list of whole numbers; one that does not fit 32 bits is an error.
    pub fn unsigned(&mut self, key: &str, values: &[u64]) -> Result<()> {
        self.list(key, 4, values.len());
        for value in values {
            self.bytes.extend(narrow(key, *value)?.to_le_bytes());
        }
        Ok(())
    }

    /// Adds a list of truth values.
    pub fn flags(&mut self, key: &str, values: &[bool]) {
        self.list(key, 7, values.len());
        self.bytes
            .extend(values.iter().map(|value| u8::from(*value)));
    }

    /// Adds a list of 32-bit floats.
    pub fn floats(&mut self, key: &str, values: &[f32]) {
        self.list(key, 6, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
}

/// A whole number in 32 bits.
fn narrow(key: &str, value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| {
        let key = key.to_owned();
        CheckpointError::LargeGgufNumber { value, key }.into()
    })
}

/// Writes these tensors to the new `file`, which errors call `path`.
///
/// A tensor without values of its own takes them from `source` under the same number, in the dtype that [`GgufDtype::values`]
/// says. `progress` is called with each number of bytes written.
pub fn write<B: TensorBytes>(
    (file, path): (&mut File, &Path),
    metadata: &GgufMetadata,
    tensors: &[GgufLayout],
    source: &B,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(metadata.keys.to_le_bytes());
    header.extend(&metadata.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        header.extend((tensor.name.len() as u64).to_le_bytes());
        header.extend(tensor.name.as_bytes());
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor
            .shape
            .iter()
            .rev()
            .for_each(|extent| header.extend(extent.to_le_bytes()));
        header.extend(tensor.dtype.ggml().code().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.length().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    let fault = |e| Error::io("write", path, e);
    file.write_all(&header).map_err(fault)?;
    for (number, tensor) in tensors.iter().enumerate() {
        let make =
            |range, scratch: &mut B::Scratch| piece_bytes((number, tensor), source, range, scratch);
        for_each_piece::<B>(tensor.elements(), make, |bytes| {
            file.write_all(bytes).map_err(fault)?;
            progress(bytes.len() as u64);
            Ok(())
        })?;
        let padding = tensor.length().next_multiple_of(ALIGNMENT) - tensor.length();
        file.write_all(&vec![0; padding as usize]).map_err(fault)?;
    }
    Ok(())
}

/// The bytes of `count` values of a tensor from `first` on.
fn piece_bytes<B: TensorBytes>(
    (number, tensor): (usize, &GgufLayout),
    source: &B,
    (first, count): (u64, usize),
    scratch: &mut B::Scratch,
) -> Result<Vec<u8>> {
    let values = tensor.dtype.values();
    let width = values.bitsize() / 8;
    let mut bytes = vec![0; count * width];
    match &tensor.values {
        Some(own) => {
            let own: Vec<f64> = own[first as usize..][..count]
                .iter()
                .map(|value| f64::from(*value))
                .collect();
            // Every dtype that values are handed over in is a float.
            let _ = dtype::encode(values, &own, &mut bytes);
        }
        None => source.fill(number, first * width as u64, &mut bytes, scratch)?,
    }
    if tensor.dtype != GgufDtype::Q8_0 {
        return Ok(bytes);
    }
    let floats: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Ok(floats.chunks_exact(BLOCK).flat_map(q8_0).collect())
}

/// A block: the scale in half precision, and each value as a multiple of it. candle's own differs by kind of processor.
fn q8_0(values: &[f32]) -> [u8; 2 + BLOCK] {
    let largest = values
        .iter()
        .fold(0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 2 + BLOCK];
    let _ = dtype::encode(Dtype::F16, &[f64::from(scale)], &mut block[..2]);
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round() as i8).cast_unsigned();
    }
    block
}
