//! Strict JSON objects: what `serde_json` lets pass silently (a key twice) is refused here.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::CheckpointError;
use super::foreign;
use super::source_file::{ReadAt, SourceFile};
use crate::{Error, Result};

/// Largest JSON file read: tokenizers of 250,000 tokens stay below 40 MB.
const LARGEST: u64 = 256 << 20;

/// Most values that one JSON text may hold, keys counted. Each takes some 100 bytes in memory though two in the file
/// can be enough; tokenizers of 260,000 tokens and 515,000 merges, the largest there are, hold 2.2 million.
const MOST_VALUES: u32 = 6_000_000;

/// Reads a JSON file whose top level is an object; a repeated key is refused.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    parse_object(path, &read_bytes(path)?)
}

/// Reads a small file whole; more than 256 MiB is refused, and one that changes meanwhile.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    read_bytes_up_to(path, LARGEST)
}

/// As [`read_bytes`]; more than `largest` bytes are refused.
pub fn read_bytes_up_to(path: &Path, largest: u64) -> Result<Vec<u8>> {
    let (file, bytes) = begin(path, largest)?;
    file.check_unchanged()?;
    Ok(bytes)
}

/// As [`read_bytes_up_to`], of a file that may grow meanwhile: what it holds at first is read.
pub fn read_growing_up_to(path: &Path, largest: u64) -> Result<Vec<u8>> {
    begin(path, largest).map(|(_, bytes)| bytes)
}

/// A file, and the bytes that it holds when it is opened.
fn begin(path: &Path, largest: u64) -> Result<(SourceFile, Vec<u8>)> {
    let file = SourceFile::open(path)?;
    if file.len() > largest {
        return Err(CheckpointError::LargeFile {
            path: path.to_path_buf(),
            limit: largest,
            found: file.len(),
        }
        .into());
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok((file, bytes))
}

/// Parses an object; `path` only names the place in errors.
pub fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    let value = parse(bytes, MOST_VALUES).map_err(|error| {
        foreign::not_json(path, bytes).unwrap_or_else(|| syntax_error(path, bytes, &error))
    })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(CheckpointError::NotObject {
            path: path.to_path_buf(),
            found: kind(&other),
        }
        .into()),
    }
}

/// Parses any JSON of at most `most` values, keys counted; a repeated key is refused.
pub fn parse(bytes: &[u8], most: u32) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let left = Cell::new(most);
    let value = Strict { left: &left, most }.deserialize(&mut deserializer)?;
    deserializer.end().map(|()| value)
}

/// The error for a text that is not strict JSON. It names numbers that only Python's writer makes.
fn syntax_error(path: &Path, bytes: &[u8], error: &serde_json::Error) -> Error {
    /// Longest first, so that the minus is part of what is named.
    const NOT_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let line = error.line().saturating_sub(1);
    let text = bytes.split(|byte| *byte == b'\n').nth(line).unwrap_or(&[]);
    // The column counts from 1, and points at the letter after a minus.
    let starts = [
        error.column().saturating_sub(2),
        error.column().saturating_sub(1),
    ];
    let found = starts.into_iter().find_map(|start| {
        let rest = text.get(start..)?;
        NOT_NUMBERS
            .into_iter()
            .find(|word| rest.starts_with(word.as_bytes()))
    });
    let path = path.to_path_buf();
    let problem = error.to_string();
    match found {
        Some(word) => CheckpointError::PythonNumber {
            path,
            line: line + 1,
            word,
        },
        // Repeated keys and too many values are errors of ours, which serde_json calls errors of the data.
        None if error.is_data() => CheckpointError::StrictJson { path, problem },
        None => CheckpointError::NotJson { path, problem },
    }
    .into()
}

/// What a value is, in words, for error messages.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.chars().count() <= 60 => format!("the string \"{s}\""),
        Value::String(_) => "a long string".to_owned(),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
    }
}

/// Builds a [`Value`] as `serde_json` does, except that a repeated key is an error.
#[derive(Clone, Copy)]
struct Strict<'a> {
    /// Values that may still be built.
    left: &'a Cell<u32>,
    /// Values that may be built in all.
    most: u32,
}

impl Strict<'_> {
    fn count<E: serde::de::Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or_else(|| E::custom(format_args!("more than {} values", self.most)))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.count()?;
            let value = entries.next_value_seed(self)?;
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format_args!(
                    "key `{key}` is there twice"
                )));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
