//! Values of GGUF metadata, and the reader that never allocates more than the file has bytes for.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::gguf_error::{GgufError, GgufRule};
use crate::error::Error;

/// The most bytes of metadata and tensor list that are read: several times what the largest vocabularies take.
pub(super) const HEADER_LIMIT: u64 = 64 * 1024 * 1024;

/// A value of GGUF metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Integer(i128),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    String(String),
    /// A list of texts.
    Strings(Vec<String>),
    /// A list of numbers or truth values.
    Numbers(Numbers),
}

/// A list of numbers, kept as the bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    kind: Kind,
    bytes: Vec<u8>,
}

/// The types that GGUF numbers its values by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// Kinds in the order of their numbers.
const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::String,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    /// Bytes of one value; of the length before it, for texts and lists.
    fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String | Self::Array => 8,
        }
    }

    /// One number from its bytes; `None` for texts, lists, bad truth values and the wrong number of bytes.
    fn number(self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::U8 => Value::Integer(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I8 => Value::Integer(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U16 => Value::Integer(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I16 => Value::Integer(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U32 => Value::Integer(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I32 => Value::Integer(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U64 => Value::Integer(u64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I64 => Value::Integer(i64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F32 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            Self::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            Self::Bool => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            Self::String | Self::Array => return None,
        })
    }
}

impl Value {
    /// The whole number, if it is one.
    pub fn integer(&self) -> Option<i128> {
        match self {
            Self::Integer(value) => Some(*value),
            _ => None,
        }
    }

    /// The number, if it is one. A 32-bit float becomes the shortest decimal that reads back as it, so that
    /// 1e-5 stored in 32 bits is 1e-5.
    pub fn float(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::F32(value) => Some(shortest(*value)),
            Self::F64(value) => Some(*value),
            _ => None,
        }
    }

    /// What it is, for messages: short, whatever the file holds.
    pub fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::F32(value) => value.to_string(),
            Self::F64(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::String(value) if value.chars().count() <= 60 => format!("{value:?}"),
            Self::String(value) => format!("{:?}…", value.chars().take(60).collect::<String>()),
            Self::Strings(values) => format!("a list of {} texts", values.len()),
            Self::Numbers(numbers) => {
                format!("a list of {} {:?} values", numbers.len(), numbers.kind)
            }
        }
    }
}

/// The shortest decimal that reads back as `value`, as an `f64`.
fn shortest(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / usize::try_from(self.kind.size()).unwrap_or(1)
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The whole numbers, if all are.
    pub fn integers(&self) -> Option<Vec<i128>> {
        self.values().map(|value| value?.integer()).collect()
    }

    /// The numbers, if all are.
    pub fn floats(&self) -> Option<Vec<f64>> {
        self.values().map(|value| value?.float()).collect()
    }

    fn values(&self) -> impl Iterator<Item = Option<Value>> {
        let size = usize::try_from(self.kind.size()).unwrap_or(1);
        self.bytes.chunks(size).map(|bytes| self.kind.number(bytes))
    }
}

/// What was wrong while reading, before it is known where.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    Rule(GgufRule),
}

impl Fault {
    pub(super) fn of_file(self, path: &Path, part: &str) -> Error {
        self.at(path, |path, rule| GgufError::Header {
            path,
            part: part.to_owned(),
            rule,
        })
    }

    pub(super) fn of_key(self, path: &Path, key: &str) -> Error {
        self.at(path, |path, rule| GgufError::Key {
            path,
            key: key.to_owned(),
            rule,
        })
    }

    pub(super) fn of_tensor(self, path: &Path, name: &str) -> Error {
        self.at(path, |path, rule| GgufError::Tensor {
            path,
            tensor: name.to_owned(),
            rule,
        })
    }

    fn at(self, path: &Path, error: impl FnOnce(PathBuf, Box<GgufRule>) -> GgufError) -> Error {
        match self {
            Self::Io(io) => Error::io("read", path, io),
            Self::Rule(rule) => error(path.to_path_buf(), Box::new(rule)).into(),
        }
    }
}

/// Reads a GGUF header forwards, and knows how many bytes are left for it.
pub(super) struct Header<R> {
    reader: R,
    position: u64,
    file: u64,
}

impl<R: Read> Header<R> {
    /// A header at the start of a file of `file` bytes.
    pub(super) fn new(reader: R, file: u64) -> Self {
        Self {
            reader,
            position: 0,
            file,
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that may still be read.
    pub(super) fn left(&self) -> u64 {
        self.file.min(HEADER_LIMIT).saturating_sub(self.position)
    }

    /// Refuses to continue if fewer than `count` bytes are left for `what`.
    fn expect(&self, count: u64, what: &str) -> Result<(), Fault> {
        if count <= self.left() {
            return Ok(());
        }
        let bound = if self.file <= HEADER_LIMIT {
            "in the file"
        } else {
            "of the 64 MiB that a header may take"
        };
        Err(Fault::Rule(GgufRule::Cut {
            value: what.to_owned(),
            needed: count,
            left: self.left(),
            bound,
        }))
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Fault> {
        self.expect(count, "the next value")?;
        let mut bytes = Vec::new();
        let read = self
            .reader
            .by_ref()
            .take(count)
            .read_to_end(&mut bytes)
            .map_err(Fault::Io)?;
        if read as u64 != count {
            return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.expect(N as u64, "the next value")?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(Fault::Io)?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text with its length before it.
    pub(super) fn string(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        self.expect(length, "a text")?;
        String::from_utf8(self.bytes(length)?).map_err(|error| {
            Fault::Rule(GgufRule::NotUtf8 {
                length,
                error: error.utf8_error(),
            })
        })
    }

    fn kind(&mut self) -> Result<Kind, Fault> {
        let code = self.u32()?;
        let kind = usize::try_from(code).ok().and_then(|code| KINDS.get(code));
        kind.copied()
            .ok_or(Fault::Rule(GgufRule::ValueType { code }))
    }

    /// A value with its type before it.
    pub(super) fn value(&mut self) -> Result<Value, Fault> {
        match self.kind()? {
            Kind::String => self.string().map(Value::String),
            Kind::Array => self.list(),
            kind => {
                let bytes = self.bytes(kind.size())?;
                kind.number(&bytes)
                    .ok_or(Fault::Rule(GgufRule::TruthValue { found: bytes }))
            }
        }
    }

    fn list(&mut self) -> Result<Value, Fault> {
        let kind = self.kind()?;
        let length = self.u64()?;
        let bytes = length.saturating_mul(kind.size());
        self.expect(bytes, &format!("a list of {length} values"))?;
        match kind {
            Kind::Array => Err(Fault::Rule(GgufRule::ListOfLists)),
            Kind::String => {
                let mut values = Vec::new();
                for index in 0..length {
                    let value = self.string().map_err(|fault| match fault {
                        Fault::Rule(rule) => Fault::Rule(GgufRule::Item {
                            index,
                            rule: Box::new(rule),
                        }),
                        io => io,
                    })?;
                    values.push(value);
                }
                Ok(Value::Strings(values))
            }
            kind => Ok(Value::Numbers(Numbers {
                kind,
                bytes: self.bytes(bytes)?,
            })),
        }
    }
}
