//! The safetensors header, read strictly.
//!
//! The `safetensors` crate accepts a repeated key (the last one wins) and needs the whole file to check the offsets.
//! Here only the header is read. Each invariant of the format that a file can break is a variant of [`HeaderError`].

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::encoding::{Encoding, TensorEntry};
use super::header_error::HeaderError;
use super::source_file::{ReadAt, SourceFile};
use super::{dtype, foreign, format, json};
use crate::Result;

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
    let head = format::head(source)?;
    // Some lengths of a header look like the first bytes of a pickle.
    if head.get(8) != Some(&b'{')
        && let Some(error) = foreign::not_weights(path, &head)
    {
        return Err(error);
    }
    let at = || path.to_path_buf();
    if source.len() < 8 {
        return Err(HeaderError::ShortFile {
            path: at(),
            length: source.len(),
        }
        .into());
    }

    let mut prefix = [0; 8];
    source.read_exact_at(&mut prefix, 0)?;
    let length = u64::from_le_bytes(prefix);
    if length > LONGEST {
        return Err(HeaderError::LongHeader {
            path: at(),
            limit: LONGEST,
            found: length,
        }
        .into());
    }
    if length > source.len() - 8 {
        return Err(HeaderError::CutHeader {
            path: at(),
            expected: length,
            found: source.len() - 8,
        }
        .into());
    }

    let mut bytes = vec![0; length as usize];
    source.read_exact_at(&mut bytes, 8)?;
    if bytes.first() != Some(&b'{') {
        return Err(HeaderError::NoObject { path: at() }.into());
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
            header.metadata = serde_json::from_value(value).map_err(|_| HeaderError::Metadata {
                path: path.to_path_buf(),
            })?;
            continue;
        }
        let (entry, begin, end) = parse_entry(path, &name, &value, data_start, file)?;
        spans.push((begin, end, name.clone()));
        header.tensors.insert(name, entry);
    }
    spans.sort();
    check_spans(path, &spans, file_length - data_start)?;
    Ok(header)
}

/// The format asks for data without holes: sorted by offset, each tensor begins where the last one ended, and the last
/// one ends with the `held` bytes of data.
fn check_spans(path: &Path, spans: &[(u64, u64, String)], held: u64) -> Result<()> {
    let path = path.to_path_buf();
    let mut expected = 0;
    for (begin, end, name) in spans {
        let (tensor, found) = (name.clone(), *begin);
        if found < expected {
            return Err(HeaderError::Overlap {
                path,
                tensor,
                expected,
                found,
            }
            .into());
        }
        if found > expected {
            return Err(HeaderError::Hole {
                path,
                tensor,
                expected,
                found,
            }
            .into());
        }
        expected = *end;
    }
    match spans.last() {
        _ if expected == held => Ok(()),
        Some((_, _, name)) if expected > held => Err(HeaderError::CutData {
            path,
            tensor: name.clone(),
            expected,
            found: held,
        }
        .into()),
        _ => Err(HeaderError::TrailingData {
            path,
            expected,
            found: held,
        }
        .into()),
    }
}

/// Reads an entry of the header. Returns the tensor, and where its data begins and ends, counted from the first data byte.
fn parse_entry(
    path: &Path,
    name: &str,
    value: &Value,
    data_start: u64,
    file: usize,
) -> Result<(TensorEntry, u64, u64)> {
    let fields = EntryFields::of(path, name, value)?;
    let dtype = fields.dtype()?;
    let shape = fields.integers("shape")?;
    let (begin, end) = fields.offsets()?;
    let (path, tensor) = (path.to_path_buf(), name.to_owned());

    let bytes = shape
        .iter()
        .try_fold(1u64, |product, extent| product.checked_mul(*extent))
        .and_then(|elements| dtype::byte_length(dtype, elements));
    let Some(bytes) = bytes else {
        return Err(HeaderError::UncountableShape {
            path,
            tensor,
            shape,
            dtype,
        }
        .into());
    };
    if bytes != end - begin {
        return Err(HeaderError::WrongSpan {
            path,
            tensor,
            shape,
            dtype,
            bytes,
            span: end - begin,
        }
        .into());
    }
    let Some(offset) = data_start.checked_add(begin) else {
        return Err(HeaderError::OffsetOverflow {
            path,
            tensor,
            begin,
        }
        .into());
    };
    let entry = TensorEntry {
        file,
        offset,
        length: bytes,
        encoding: Encoding::Plain(dtype),
        shape,
        runs: None,
    };
    Ok((entry, begin, end))
}

/// What the header says of one tensor.
struct EntryFields<'a> {
    path: &'a Path,
    tensor: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> EntryFields<'a> {
    /// The fields of a tensor that has no others than it may have.
    fn of(path: &'a Path, tensor: &'a str, value: &'a Value) -> Result<Self, HeaderError> {
        let Value::Object(fields) = value else {
            return Err(HeaderError::NotEntry {
                path: path.to_path_buf(),
                tensor: tensor.to_owned(),
                found: json::kind(value),
            });
        };
        let known = ["dtype", "shape", "data_offsets"];
        if let Some(field) = fields.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(HeaderError::UnknownField {
                path: path.to_path_buf(),
                tensor: tensor.to_owned(),
                field: field.clone(),
            });
        }
        Ok(Self {
            path,
            tensor,
            fields,
        })
    }

    fn field(&self, field: &'static str) -> Result<&Value, HeaderError> {
        self.fields.get(field).ok_or_else(|| HeaderError::NoField {
            path: self.path.to_path_buf(),
            tensor: self.tensor.to_owned(),
            field,
        })
    }

    fn dtype(&self) -> Result<Dtype, HeaderError> {
        let stored = self.field("dtype")?;
        serde_json::from_value(stored.clone()).map_err(|_| HeaderError::UnknownDtype {
            path: self.path.to_path_buf(),
            tensor: self.tensor.to_owned(),
            found: json::kind(stored),
        })
    }

    fn integers(&self, field: &'static str) -> Result<Vec<u64>, HeaderError> {
        let stored = self.field(field)?;
        serde_json::from_value(stored.clone()).map_err(|_| HeaderError::NotIntegers {
            path: self.path.to_path_buf(),
            tensor: self.tensor.to_owned(),
            field,
        })
    }

    /// Where the data begins and ends, in this order.
    fn offsets(&self) -> Result<(u64, u64), HeaderError> {
        let offsets = self.integers("data_offsets")?;
        let (path, tensor) = (self.path.to_path_buf(), self.tensor.to_owned());
        match offsets[..] {
            [begin, end] if begin <= end => Ok((begin, end)),
            [begin, end] => Err(HeaderError::OffsetOrder {
                path,
                tensor,
                begin,
                end,
            }),
            _ => Err(HeaderError::OffsetCount {
                path,
                tensor,
                found: offsets.len(),
            }),
        }
    }
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
