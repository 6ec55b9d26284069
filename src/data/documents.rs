//! The documents of a file, one by one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::input::{Kind, Packing, kind};
use crate::checkpoint::{ReadAt, SourceFile, json};
use crate::error::nearest;
use crate::{Error, Result};

/// Largest document in bytes of text: tokenizing takes many times as much memory.
const LARGEST: u64 = 64 << 20;

/// The field of JSON lines, or the column of a table, that holds the text unless another is named.
pub const TEXT_KEY: &str = "text";

type Stream = Box<dyn BufRead + Send>;

/// The documents of a text file (one), of JSON lines, or of a parquet table; plain, or packed by gzip or zstd.
pub struct Documents {
    path: PathBuf,
    text_key: String,
    content: Content,
}

enum Content {
    /// A file that is one document, unless it has been read.
    Text(Option<Stream>),
    JsonLines(JsonLines),
    Parquet {
        rows: RowIter<'static>,
        number: u64,
    },
}

impl Documents {
    /// Opens a file; `text_key` is the field or column that holds the text.
    pub fn open(path: &Path, text_key: &str) -> Result<Self> {
        let content = match kind(path)? {
            (Kind::Text, packing) => Content::Text(Some(stream(path, packing)?)),
            (Kind::JsonLines, packing) => Content::JsonLines(JsonLines {
                path: path.to_path_buf(),
                stream: stream(path, packing)?,
                line: 0,
            }),
            (Kind::Parquet, Packing::Plain) => Content::Parquet {
                rows: guarded(path, || rows(path, text_key))?,
                number: 0,
            },
            (Kind::Parquet, _) => {
                return Err(Error::file(
                    path,
                    "is parquet packed once more: its pages cannot be reached",
                )
                .with_hint("unpack it; parquet is compressed within"));
            }
        };
        Ok(Self {
            path: path.to_path_buf(),
            text_key: text_key.to_owned(),
            content,
        })
    }

    fn read(&mut self) -> Result<Option<String>> {
        match &mut self.content {
            Content::Text(stream) => stream
                .take()
                .map(|stream| read_text(&self.path, stream))
                .transpose(),
            Content::JsonLines(lines) => {
                let Some(line) = lines.next() else {
                    return Ok(None);
                };
                let (number, mut object) = line?;
                match object.remove(&self.text_key) {
                    Some(Value::String(text)) => Ok(Some(text)),
                    found => {
                        let found = found.as_ref().map_or("no such key".to_owned(), json::kind);
                        let error = Error::key(
                            &self.path,
                            &self.text_key,
                            format!("line {number}: expected a string, found {found}"),
                        );
                        Err(key_hint(
                            error,
                            &self.text_key,
                            object.keys().map(String::as_str),
                        ))
                    }
                }
            }
            Content::Parquet { rows, number } => {
                let Some(row) = guarded(&self.path, || Ok(rows.next()))? else {
                    return Ok(None);
                };
                *number += 1;
                let row = row.map_err(|e| damaged_parquet(&self.path, &e))?;
                let value = row.get_column_iter().next().map(|(_, field)| field);
                match value {
                    Some(parquet::record::Field::Str(text)) if text.len() as u64 <= LARGEST => {
                        Ok(Some(text.clone()))
                    }
                    Some(parquet::record::Field::Str(text)) => Err(too_long(
                        &self.path,
                        &format!("row {number}"),
                        text.len() as u64,
                    )),
                    Some(parquet::record::Field::Bytes(bytes)) => {
                        String::from_utf8(bytes.data().to_vec())
                            .map(Some)
                            .map_err(|e| {
                                let at = e.utf8_error().valid_up_to();
                                Error::key(
                                    &self.path,
                                    &self.text_key,
                                    format!(
                                        "row {number}: expected text in UTF-8: byte {at} is none"
                                    ),
                                )
                            })
                    }
                    // A row without text is no document.
                    _ => Ok(Some(String::new())),
                }
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// The objects of a file of JSON lines with their line numbers; empty lines are skipped.
pub struct JsonLines {
    path: PathBuf,
    stream: Stream,
    line: usize,
}

impl JsonLines {
    /// Opens a file of JSON lines, plain or packed, whatever its ending.
    pub fn open(path: &Path) -> Result<Self> {
        let packing = kind(path).map_or(Packing::Plain, |(_, packing)| packing);
        Ok(Self {
            path: path.to_path_buf(),
            stream: stream(path, packing)?,
            line: 0,
        })
    }

    fn read(&mut self) -> Result<Option<(usize, Map<String, Value>)>> {
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.stream)
                .take(LARGEST + 1)
                .read_until(b'\n', &mut bytes);
            if read.map_err(|e| failed(&self.path, e))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            let line = self.line;
            if bytes.len() as u64 > LARGEST {
                return Err(too_long(
                    &self.path,
                    &format!("line {line}"),
                    bytes.len() as u64,
                ));
            }
            let text = std::str::from_utf8(&bytes).map_err(|e| {
                Error::file(
                    &self.path,
                    format!(
                        "line {line}: expected text in UTF-8: byte {} is none",
                        e.valid_up_to()
                    ),
                )
            })?;
            let text = text.trim_start_matches('\u{feff}').trim();
            if text.is_empty() {
                continue;
            }
            return serde_json::from_str(text).map(|object| Some((line, object))).map_err(|e| {
                Error::file(&self.path, format!("line {line}: expected a JSON object: {e}")).with_hint(
                    "each line must hold one whole object; leave other JSON out by a pattern such as 'texts/**/*.md'",
                )
            });
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// A file that is one document.
fn read_text(path: &Path, stream: Stream) -> Result<String> {
    let mut bytes = Vec::new();
    stream
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| failed(path, e))?;
    if bytes.len() as u64 > LARGEST {
        return Err(too_long(path, "the file", bytes.len() as u64));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::file(
            path,
            format!(
                "expected text in UTF-8: byte {} is none",
                e.utf8_error().valid_up_to()
            ),
        )
    })?;
    if let Some(at) = text.find('\0') {
        return Err(Error::file(
            path,
            format!("expected text, found a NUL at byte {at}"),
        ));
    }
    Ok(text
        .strip_prefix('\u{feff}')
        .map(str::to_owned)
        .unwrap_or(text))
}

/// The column of a table that holds the text.
fn rows(path: &Path, text_key: &str) -> Result<RowIter<'static>> {
    // Refuses folders and pipes.
    SourceFile::open(path)?;
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let reader = SerializedFileReader::new(file).map_err(|e| damaged_parquet(path, &e))?;
    let schema = reader.metadata().file_metadata().schema();
    let fields = schema.get_fields();
    let Some(field) = fields.iter().find(|field| field.name() == text_key) else {
        let error = Error::key(path, text_key, "the table has no such column");
        return Err(key_hint(
            error,
            text_key,
            fields.iter().map(|field| field.name()),
        ));
    };
    if !field.is_primitive() || field.get_physical_type() != parquet::basic::Type::BYTE_ARRAY {
        return Err(Error::key(path, text_key, "expected a column of strings"));
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(vec![field.clone()])
        .build();
    let projection = projection.map_err(|e| damaged_parquet(path, &e))?;
    RowIter::from_file_into(Box::new(reader))
        .project(Some(projection))
        .map_err(|e| damaged_parquet(path, &e))
}

fn stream(path: &Path, packing: Packing) -> Result<Stream> {
    let source = Sequential {
        source: SourceFile::open(path)?,
        position: 0,
    };
    let buffer = 1 << 18;
    Ok(match packing {
        Packing::Plain => Box::new(BufReader::with_capacity(buffer, source)),
        Packing::Gzip => {
            let packed = BufReader::with_capacity(buffer, source);
            Box::new(BufReader::with_capacity(
                buffer,
                flate2::bufread::MultiGzDecoder::new(packed),
            ))
        }
        Packing::Zstd => {
            let decoder = zstd::Decoder::new(source).map_err(|e| failed(path, e))?;
            Box::new(BufReader::with_capacity(buffer, decoder))
        }
    })
}

/// A file read from its beginning, which must not change meanwhile.
struct Sequential {
    source: SourceFile,
    position: u64,
}

impl Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = (self.source.len() - self.position).min(buf.len() as u64) as usize;
        self.source
            .read_exact_at(&mut buf[..count], self.position)
            .map_err(io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// The error of reading a packed or plain file: ours passed through, or what the unpacking found wrong.
fn failed(path: &Path, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::file(path, format!("cannot be unpacked: {error}"))
            .with_hint("is it cut or damaged? its ending (.gz, .zst) says how it is packed"),
    }
}

fn too_long(path: &Path, place: &str, found: u64) -> Error {
    let problem =
        format!("{place}: expected a document of at most {LARGEST} bytes, found {found} or more");
    Error::file(path, problem)
        .with_hint("split it into documents: one a file, or one a line of JSON lines")
}

/// What reading a table gives; where the `parquet` crate panics over a damaged one, that is an error like any other.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    // The reader is dropped with the error, so that nobody sees what the panic left of it.
    std::panic::catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(Error::file(path, "expected a parquet table: it is damaged")))
}

fn damaged_parquet(path: &Path, error: &parquet::errors::ParquetError) -> Error {
    Error::file(path, format!("expected a parquet table: {error}"))
}

fn key_hint<'a>(error: Error, wanted: &str, keys: impl Iterator<Item = &'a str>) -> Error {
    let keys: Vec<&str> = keys.take(20).collect();
    match (nearest(wanted, keys.iter().copied()), keys.is_empty()) {
        (Some(near), _) => error.with_hint(format!("did you mean --text-key {near}?")),
        (None, false) => error.with_hint(format!(
            "--text-key names the text; there are: {}",
            keys.join(", ")
        )),
        (None, true) => error,
    }
}
