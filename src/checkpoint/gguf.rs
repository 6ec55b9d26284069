//! Opens a GGUF file: metadata and the list of tensors, checked, without reading any tensor.
//!
//! Candle has a reader, too. It lets later duplicates win, divides by an alignment of zero and replaces bytes that are no
//! UTF-8. It also makes 32 bytes of memory of a one-byte array element. A model file is hostile input, so we have our own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::encoding::{Encoding, TensorEntry, overlapping};
use super::error::CheckpointError;
use super::ggml::{GgmlType, name_of_code};
use super::gguf_error::{GgufError, GgufRule};
use super::gguf_value::{Fault, Header, Value};
use crate::error::{Error, InputError, Result, nearest};

/// Where tensor data starts is a multiple of this many bytes, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The most dimensions that ggml knows.
const MAX_DIMENSIONS: u32 = 4;

/// The largest tensor that [`Gguf::small_tensor`] reads, in elements.
const SMALL_TENSOR: u64 = 64 * 1024;

/// What a GGUF file says before its tensor data.
#[derive(Debug)]
pub struct Gguf {
    /// The file.
    pub path: PathBuf,
    /// Its metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Its tensors by name, in the shapes that Hugging Face writes: `[out, in]`. Each is in file 0.
    pub tensors: BTreeMap<String, TensorEntry>,
}

impl Gguf {
    /// Opens the file at `path` and reads all but its tensor data.
    ///
    /// # Errors
    /// Where the file cannot be read, or breaks a rule of the format: the error names the metadata key or tensor.
    pub fn open(path: &Path) -> Result<Self> {
        // Opening a pipe would wait for a writer.
        let facts = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        if !facts.is_file() {
            let path = path.to_path_buf();
            return Err(GgufError::NotRegular { path }.into());
        }
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        Self::read(path, BufReader::new(file), facts.len())
    }

    /// Reads all but the tensor data of a GGUF file of `length` bytes from its start; `path` is for messages and
    /// for [`Gguf::small_tensor`].
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn read(path: &Path, reader: impl Read, length: u64) -> Result<Self> {
        let mut header = Header::new(reader, length);
        let (tensor_count, key_count) = counts(path, &mut header)?;
        let mut metadata = BTreeMap::new();
        for index in 0..key_count {
            let at = |fault: Fault| {
                fault.of_file(path, &format!("metadata entry {index} of {key_count}"))
            };
            let key = header.string().map_err(at)?;
            let value = header.value().map_err(|fault| fault.of_key(path, &key))?;
            if metadata.contains_key(&key) {
                return Err(Fault::Rule(GgufRule::RepeatedKey).of_key(path, &key));
            }
            metadata.insert(key, value);
        }
        refuse_parts(path, &metadata)?;
        let alignment = alignment(path, &metadata)?;
        let mut tensors = BTreeMap::new();
        for index in 0..tensor_count {
            let at = |fault: Fault| {
                fault.of_file(
                    path,
                    &format!("entry {index} of {tensor_count} in the tensor list"),
                )
            };
            let name = header.string().map_err(at)?;
            let entry = tensor_entry(&mut header, alignment)
                .map_err(|fault| fault.of_tensor(path, &name))?;
            if tensors.contains_key(&name) {
                return Err(Fault::Rule(GgufRule::RepeatedTensor).of_tensor(path, &name));
            }
            tensors.insert(name, entry);
        }
        let start = header.position().next_multiple_of(alignment);
        place(path, &mut tensors, start, length)?;
        Ok(Self {
            path: path.to_path_buf(),
            metadata,
            tensors,
        })
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// Where the file does not have it; the hint is the nearest name.
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry> {
        self.tensors.get(name).ok_or_else(|| {
            let known = self.tensors.keys().map(String::as_str);
            CheckpointError::NoTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                nearest: nearest(name, known).map(str::to_owned),
            }
            .into()
        })
    }

    /// The values of a small tensor of plain numbers.
    ///
    /// # Errors
    /// Where it is missing, quantised, larger than 65,536 elements, or cannot be read.
    pub fn small_tensor(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.tensor(name)?;
        let kind = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].into_iter().find(
            |kind| matches!((entry.encoding, kind.plain()), (Encoding::Plain(stored), Some(plain)) if stored == plain),
        );
        let kind = kind
            .filter(|_| entry.elements() <= SMALL_TENSOR)
            .ok_or_else(|| {
                let rule = GgufRule::NotSmall {
                    most: SMALL_TENSOR,
                    found: format!("{:?} {:?}", entry.encoding, entry.shape),
                };
                Fault::Rule(rule).of_tensor(&self.path, name)
            })?;
        let elements = usize::try_from(entry.elements()).unwrap_or_default();
        let mut bytes = vec![0; elements * kind.type_size()];
        let mut file =
            File::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
        file.seek(SeekFrom::Start(entry.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| Error::io("read", &self.path, error))?;
        let mut values = vec![0.0; elements];
        kind.dequantise(&bytes, &mut values)
            .map_err(|error| Fault::Rule(error.into()).of_tensor(&self.path, name))?;
        Ok(values)
    }

    /// The whole number under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is no whole number from zero up.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number from 0 up", |value| {
            value.integer().and_then(|value| u64::try_from(value).ok())
        })
    }

    /// The number under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is no finite number.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a finite number", |value| {
            value.float().filter(|value| value.is_finite())
        })
    }

    /// The truth value under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is none.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// The text under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "text", |value| match value {
            Value::String(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// The list of texts under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is another value.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key, "a list of texts", |value| match value {
            Value::Strings(values) => Some(values.as_slice()),
            Value::Numbers(numbers) if numbers.is_empty() => Some(&[]),
            _ => None,
        })
    }

    /// The list of whole numbers under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is another value.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i128>>> {
        self.get(key, "a list of whole numbers", |value| match value {
            Value::Numbers(numbers) => numbers.integers(),
            _ => None,
        })
    }

    /// The list of numbers under `key`, where it is there.
    ///
    /// # Errors
    /// Where it is there and is another value.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.get(key, "a list of numbers", |value| match value {
            Value::Numbers(numbers) => numbers.floats(),
            _ => None,
        })
    }

    /// The value under `key` as `of` takes it, or an error that says what was `expected`.
    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let refuse = || wrong_value(&self.path, key, expected, value);
        of(value).map(Some).ok_or_else(refuse)
    }
}

/// The error for a value of another type, or outside of its range.
fn wrong_value(path: &Path, key: &str, expected: &'static str, value: &Value) -> Error {
    InputError::WrongValue {
        at: path.into(),
        key: key.to_owned().into(),
        expected: expected.into(),
        found: value.describe(),
    }
    .into()
}

/// Magic, version, and how many tensors and metadata keys follow.
fn counts(path: &Path, header: &mut Header<impl Read>) -> Result<(u64, u64)> {
    let at = |fault: Fault| fault.of_file(path, "the GGUF header");
    let magic = header.bytes(4).map_err(at)?;
    if magic != b"GGUF" {
        return Err(GgufError::Magic {
            path: path.to_path_buf(),
            found: magic.escape_ascii().to_string(),
        }
        .into());
    }
    let version = header.u32().map_err(at)?;
    if version.swap_bytes() <= 3 && version != 0 {
        return Err(GgufError::BigEndian {
            path: path.to_path_buf(),
            version: version.swap_bytes(),
        }
        .into());
    }
    if version != 2 && version != 3 {
        let path = path.to_path_buf();
        return Err(GgufError::Version { path, version }.into());
    }
    let (tensors, keys) = (header.u64().map_err(at)?, header.u64().map_err(at)?);
    // A key takes at least a length, a type and a byte; a tensor a length, a rank, a type and an offset.
    let least = keys
        .saturating_mul(13)
        .saturating_add(tensors.saturating_mul(24));
    if least > header.left() {
        return Err(GgufError::Counts {
            path: path.to_path_buf(),
            keys,
            tensors,
            least,
            left: header.left(),
        }
        .into());
    }
    Ok((tensors, keys))
}

/// Refuses one part of a model that was split over several GGUF files.
fn refuse_parts(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<()> {
    match metadata.get("split.count").and_then(Value::integer) {
        Some(count) if count > 1 => {
            Err(Fault::Rule(GgufRule::OnePart { count }).of_key(path, "split.count"))
        }
        _ => Ok(()),
    }
}

/// Bytes to which tensor data is aligned.
fn alignment(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let key = "general.alignment";
    let Some(value) = metadata.get(key) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let alignment = value
        .integer()
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| value.is_power_of_two());
    alignment
        .map(u64::from)
        .ok_or_else(|| wrong_value(path, key, "a power of two", value))
}

/// One entry of the tensor list; its offset still counts from the start of the data.
fn tensor_entry(header: &mut Header<impl Read>, alignment: u64) -> Result<TensorEntry, Fault> {
    let rank = header.u32()?;
    if rank > MAX_DIMENSIONS {
        return Err(Fault::Rule(GgufRule::Dimensions {
            most: MAX_DIMENSIONS,
            found: rank,
        }));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        shape.push(header.u64()?);
    }
    shape.reverse();
    let code = header.u32()?;
    let offset = header.u64()?;
    let Some(kind) = GgmlType::from_code(code) else {
        let name = name_of_code(code).unwrap_or("unknown");
        return Err(Fault::Rule(GgufRule::ElementType { name, code }));
    };
    if !offset.is_multiple_of(alignment) {
        return Err(Fault::Rule(GgufRule::Unaligned { alignment, offset }));
    }
    let (block, size) = (kind.block_size() as u64, kind.type_size() as u64);
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(Fault::Rule(GgufRule::PartialBlock {
            block,
            kind,
            row,
            shape,
        }));
    }
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
    let Some(length) = elements.and_then(|elements| (elements / block).checked_mul(size)) else {
        return Err(Fault::Rule(GgufRule::LargeShape { shape }));
    };
    let encoding = kind.plain().map_or(Encoding::Ggml(kind), Encoding::Plain);
    Ok(TensorEntry {
        file: 0,
        offset,
        length,
        encoding,
        shape,
        runs: None,
    })
}

/// Makes the offsets of `tensors` count from the start of the file, where their data starts at `start`. Refuses data past the
/// end of the file, and data inside another tensor's.
fn place(
    path: &Path,
    tensors: &mut BTreeMap<String, TensorEntry>,
    start: u64,
    length: u64,
) -> Result<()> {
    for (name, entry) in tensors.iter_mut() {
        let offset = start.checked_add(entry.offset);
        let end = offset.and_then(|offset| offset.checked_add(entry.length));
        let (Some(offset), Some(_)) = (
            offset,
            end.filter(|end| *end <= length || entry.length == 0),
        ) else {
            let rule = GgufRule::PastEnd {
                length: entry.length,
                offset: entry.offset,
                start,
                file: length,
            };
            return Err(Fault::Rule(rule).of_tensor(path, name));
        };
        entry.offset = offset;
    }
    if let Some([(first, a), (second, b)]) = overlapping(tensors) {
        let rule = GgufRule::SharedData {
            start: b.offset,
            other: first.clone(),
            other_start: a.offset,
            other_end: a.offset + a.length,
        };
        return Err(Fault::Rule(rule).of_tensor(path, second));
    }
    Ok(())
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
