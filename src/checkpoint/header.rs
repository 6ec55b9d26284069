//! The safetensors header, read strictly.
//!
//! The `safetensors` crate accepts a repeated key (the last one wins) and needs the whole file to
//! check the offsets. Here only the header is read, and each invariant of the format that a file can
//! break has an error that names the file, the tensor, what was expected and what was found.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::encoding::{Encoding, TensorEntry};
use super::source_file::{ReadAt, SourceFile};
use super::{dtype, foreign, json};
use crate::{Error, Result};

/// The format's limit on the header's length in bytes.
pub(crate) const LONGEST: u64 = 100_000_000;

/// What one safetensors file says of itself.
#[derive(Debug)]
pub struct Header {
    /// Tensors by name; `file` is what [`read`] was given.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `source`; entries point to file number `file`.
pub fn read(source: &SourceFile, file: usize) -> Result<Header> {
    let path = source.path();
    let cut = |what: String| {
        Error::file(path, what)
            .with_hint("the file is cut short or is no safetensors file: copy or download it again")
    };
    let head = foreign::head(source)?;
    // Some lengths of a header look like the first bytes of a pickle.
    if head.get(8) != Some(&b'{')
        && let Some(error) = foreign::not_weights(path, &head)
    {
        return Err(error);
    }
    if source.len() < 8 {
        return Err(cut(format!(
            "expected an 8-byte header length, found a file of {} bytes",
            source.len()
        )));
    }
    let mut prefix = [0; 8];
    source.read_exact_at(&mut prefix, 0)?;
    let length = u64::from_le_bytes(prefix);
    if length > LONGEST {
        return Err(cut(format!(
            "expected a header of at most {LONGEST} bytes, found a header length of {length}"
        )));
    }
    if length > source.len() - 8 {
        let rest = source.len() - 8;
        return Err(cut(format!(
            "expected a header of {length} bytes, found {rest} bytes in the file after its length"
        )));
    }
    let mut bytes = vec![0; length as usize];
    source.read_exact_at(&mut bytes, 8)?;
    if bytes.first() != Some(&b'{') {
        return Err(Error::file(
            path,
            "expected the header to begin with `{`: not a safetensors file",
        ));
    }
    let object = json::parse_object(path, &bytes)?;
    parse(path, object, 8 + length, source.len(), file)
}

/// Checks a header's entries against each other and against the file's length.
fn parse(
    path: &Path,
    object: Map<String, Value>,
    data_start: u64,
    file_length: u64,
    file: usize,
) -> Result<Header> {
    let mut header = Header {
        tensors: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    let mut spans = Vec::with_capacity(object.len());
    for (name, value) in object {
        if name == "__metadata__" {
            header.metadata = serde_json::from_value(value).map_err(|_| {
                Error::key(
                    path,
                    "__metadata__",
                    "expected an object whose values are all strings",
                )
            })?;
            continue;
        }
        let (entry, begin, end) = parse_entry(path, &name, &value, data_start, file)?;
        spans.push((begin, end, name.clone()));
        header.tensors.insert(name, entry);
    }
    // The format asks for data without holes: sorted by offset, each tensor begins where the last ended.
    spans.sort();
    let mut expected = 0;
    for (begin, end, name) in &spans {
        if *begin != expected {
            let fault = if *begin < expected {
                "overlaps the tensor before it"
            } else {
                "leaves a hole before it"
            };
            return Err(Error::tensor(
                path,
                name,
                format!("{fault}: expected data offset {expected}, found {begin}"),
            ));
        }
        expected = *end;
    }
    let held = file_length - data_start;
    if expected != held {
        let what = format!("expected {expected} bytes of tensor data, found {held}");
        return Err(match spans.last() {
            Some((_, _, name)) if expected > held => {
                Error::tensor(path, name, format!("is cut short: {what}"))
            }
            _ => Error::file(path, format!("bytes after the last tensor: {what}")),
        }
        .with_hint("the file was cut or appended to: copy or download it again"));
    }
    Ok(header)
}

fn parse_entry(
    path: &Path,
    name: &str,
    value: &Value,
    data_start: u64,
    file: usize,
) -> Result<(TensorEntry, u64, u64)> {
    let fault = |problem: String| Error::tensor(path, name, problem);
    let Value::Object(fields) = value else {
        return Err(fault(format!(
            "expected an object with dtype, shape and data_offsets, found {}",
            json::kind(value)
        )));
    };
    if let Some(other) = fields
        .keys()
        .find(|key| !["dtype", "shape", "data_offsets"].contains(&key.as_str()))
    {
        return Err(fault(format!(
            "expected only dtype, shape and data_offsets, found `{other}`"
        )));
    }
    let field = |key: &str| {
        fields
            .get(key)
            .ok_or_else(|| fault(format!("expected the field `{key}`, which is missing")))
    };
    let stored = field("dtype")?;
    let dtype: Dtype = serde_json::from_value(stored.clone()).map_err(|_| {
        fault(format!(
            "expected a safetensors dtype, found {}",
            json::kind(stored)
        ))
    })?;
    let integers = |key: &str| -> Result<Vec<u64>> {
        serde_json::from_value(field(key)?.clone()).map_err(|_| {
            fault(format!(
                "expected `{key}` to be an array of non-negative integers"
            ))
        })
    };
    let shape = integers("shape")?;
    let offsets = integers("data_offsets")?;
    let [begin, end] = offsets[..] else {
        return Err(fault(format!(
            "expected two data_offsets, found {}",
            offsets.len()
        )));
    };
    if begin > end {
        return Err(fault(format!(
            "expected data_offsets in order, found [{begin}, {end}]"
        )));
    }
    let bytes = shape
        .iter()
        .try_fold(1u64, |product, extent| product.checked_mul(*extent))
        .and_then(|elements| dtype::byte_length(dtype, elements))
        .ok_or_else(|| {
            fault(format!(
                "shape {shape:?} of {dtype} is not a whole number of bytes below 2^64"
            ))
        })?;
    if bytes != end - begin {
        let found = end - begin;
        return Err(fault(format!(
            "shape {shape:?} of {dtype} takes {bytes} bytes, but its data_offsets span {found}"
        )));
    }
    let offset = data_start
        .checked_add(begin)
        .ok_or_else(|| fault(format!("data offset {begin} overflows")))?;
    Ok((
        TensorEntry {
            file,
            offset,
            length: bytes,
            encoding: Encoding::Plain(dtype),
            shape,
        },
        begin,
        end,
    ))
}

/// Header bytes for tensors laid out in the given order, as the format prescribes them: padded with
/// spaces so that the data begins at a multiple of 8.
pub fn write<'a>(tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [u64])>) -> Vec<u8> {
    let mut object = Map::new();
    object.insert(
        "__metadata__".to_owned(),
        serde_json::json!({"format": "pt"}),
    );
    let mut begin = 0;
    for (name, dtype, shape) in tensors {
        // The plan has checked that every tensor takes whole bytes.
        let length = dtype::byte_length(dtype, shape.iter().product()).unwrap_or(0);
        let entry = serde_json::json!({
            "dtype": dtype::name(dtype), "shape": shape, "data_offsets": [begin, begin + length],
        });
        object.insert(name.to_owned(), entry);
        begin += length;
    }
    let mut json = Value::Object(object).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    bytes
}
