//! The documents of a file, one by one.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::conversation::{self, TurnProblem};
use super::error::{DataError, DocumentPlace};
use super::input::{Kind, Packing, kind};
use super::limits::{LARGEST, most_text};
use super::table::TableTexts;
use super::table_chat::TableChats;
use crate::checkpoint::{ReadAt, SourceFile, json};
use crate::{Error, Result};

/// The field of JSON lines, or the column of a table, that holds the text unless another is named.
pub const TEXT_KEY: &str = "text";

type Stream = Box<dyn BufRead + Send>;

/// What documents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentForm {
    /// Texts: files, and what this field of JSON lines or this column of a table holds.
    Texts(String),
    /// Conversations in JSON lines or tables. Each document is a [`Conversation`](crate::model::chat::Conversation) as JSON.
    Conversations,
}

/// A document, or why a line has none.
#[derive(Debug)]
pub enum Document {
    /// A text that holds more than white space.
    Text(String),
    /// No text, or white space alone; or a conversation without an answer.
    Empty,
    /// A line that holds no readable text although it is written as JSON lines are: what is wrong with it.
    Unreadable(Error),
}

/// The documents of a text file (one), of JSON lines, or of a parquet table; plain, or packed by gzip or zstd.
pub struct Documents {
    path: PathBuf,
    form: DocumentForm,
    content: Content,
    /// The rows of a table that were read.
    rows: u64,
}

enum Content {
    /// A file that is one document, unless it has been read.
    Text(Option<Stream>),
    JsonLines(JsonLines),
    Table(Box<TableTexts>),
    Chats(Box<TableChats>),
}

impl Documents {
    /// Opens a file of texts; `text_key` is the field or column that holds the text.
    pub fn open(path: &Path, text_key: &str) -> Result<Self> {
        Self::open_as(path, &DocumentForm::Texts(text_key.to_owned()))
    }

    /// Opens a file whose documents have this form.
    pub fn open_as(path: &Path, form: &DocumentForm) -> Result<Self> {
        let kind = form.kind(path)?;
        let content = match kind {
            (Kind::Text, packing) => Content::Text(Some(stream(path, packing)?)),
            (Kind::JsonLines, packing) => Content::JsonLines(JsonLines {
                path: path.to_path_buf(),
                stream: stream(path, packing)?,
                line: 0,
            }),
            (Kind::Parquet, Packing::Plain) => match form {
                DocumentForm::Texts(key) => Content::Table(Box::new(TableTexts::open(path, key)?)),
                DocumentForm::Conversations => Content::Chats(Box::new(TableChats::open(path)?)),
            },
            (Kind::Parquet, _) => {
                let path = path.to_path_buf();
                return Err(DataError::PackedParquet { path }.into());
            }
        };
        Ok(Self {
            path: path.to_path_buf(),
            form: form.clone(),
            content,
            rows: 0,
        })
    }

    /// Where in the file the last document was.
    pub fn place(&self) -> DocumentPlace {
        match &self.content {
            Content::Text(_) => DocumentPlace::File,
            Content::JsonLines(lines) => DocumentPlace::Line(lines.line),
            Content::Table(_) | Content::Chats(_) => DocumentPlace::Row(self.rows),
        }
    }

    fn read(&mut self) -> Result<Option<Document>> {
        let text = match &mut self.content {
            Content::Text(stream) => stream
                .take()
                .map(|stream| read_text(&self.path, stream))
                .transpose()?,
            Content::JsonLines(lines) => {
                let Some((number, line)) = lines.next_line()? else {
                    return Ok(None);
                };
                return self.of_line(number, &line).map(Some);
            }
            Content::Table(table) => {
                self.rows += 1;
                table.next_text()?
            }
            Content::Chats(table) => {
                self.rows += 1;
                let Some(row) = table.next_row()? else {
                    return Ok(None);
                };
                return self
                    .of_conversation(DocumentPlace::Row(self.rows), &row)
                    .map(Some);
            }
        };
        Ok(text.map(Document::of))
    }

    /// The document of a line of JSON lines.
    fn of_line(&self, number: usize, line: &str) -> Result<Document> {
        let mut object = match serde_json::from_str::<Map<String, Value>>(line) {
            Ok(object) => object,
            Err(error) => return self.of_broken_line(number, line, &error),
        };
        let text_key = match &self.form {
            DocumentForm::Texts(key) => key,
            DocumentForm::Conversations => {
                return self.of_conversation(DocumentPlace::Line(number), &object);
            }
        };
        match object.remove(text_key) {
            Some(Value::String(text)) => Ok(Document::of(text)),
            Some(Value::Null) => Ok(Document::Empty),
            found => {
                let found = found.as_ref().map_or("no such key".to_owned(), json::kind);
                Err(DataError::NoTextInLine {
                    path: self.path.clone(),
                    key: text_key.clone(),
                    line: number,
                    found,
                    keys: object.keys().cloned().collect(),
                }
                .into())
            }
        }
    }

    fn of_conversation(
        &self,
        place: DocumentPlace,
        object: &Map<String, Value>,
    ) -> Result<Document> {
        let path = self.path.clone();
        match conversation::conversation(object) {
            Ok(Some(conversation)) => serde_json::to_string(&conversation)
                .map(Document::Text)
                .map_err(|e| Error::compute("keep a conversation", e)),
            Ok(None) => Ok(Document::Empty),
            Err(TurnProblem::NoConversation) => Err(DataError::NoConversation {
                path,
                place,
                keys: object.keys().cloned().collect(),
            }
            .into()),
            Err(TurnProblem::Wrong {
                key,
                expected,
                found,
            }) => Err(DataError::WrongTurn {
                path,
                place,
                key,
                expected,
                found,
            }
            .into()),
        }
    }

    /// The document of a line that is not JSON. Python writes NaN and lone surrogates; a corpus of millions of lines has
    /// some, and they are no reason to refuse the rest.
    fn of_broken_line(
        &self,
        number: usize,
        line: &str,
        error: &serde_json::Error,
    ) -> Result<Document> {
        let broken = not_json(&self.path, number, error);
        // What is ignored may nest without end.
        if error.to_string().starts_with("recursion limit") {
            return Err(broken);
        }
        // Of what is ignored, only the form is checked: halves of characters and huge numbers elsewhere harm nobody.
        let mut json = serde_json::Deserializer::from_str(line);
        match &self.form {
            DocumentForm::Texts(key) => {
                let text = TextOf(key).deserialize(&mut json);
                if let Ok(Some(text)) = text.and_then(|text| json.end().map(|()| text)) {
                    return Ok(text.map_or(Document::Empty, Document::of));
                }
            }
            DocumentForm::Conversations => {
                let object = ChatKeys.deserialize(&mut json);
                if let Ok(object) = object.and_then(|object| json.end().map(|()| object)) {
                    return self.of_conversation(DocumentPlace::Line(number), &object);
                }
            }
        }
        let holds_document = |keys: &HashMap<String, IgnoredAny>| match &self.form {
            DocumentForm::Texts(key) => keys.contains_key(key),
            DocumentForm::Conversations => conversation::has_key(|key| keys.contains_key(key)),
        };
        match serde_json::from_str::<HashMap<String, IgnoredAny>>(&without_nan(line)) {
            Ok(keys) if holds_document(&keys) => Ok(Document::Unreadable(
                DataError::PythonJson {
                    path: self.path.clone(),
                    line: number,
                    column: error.column(),
                }
                .into(),
            )),
            _ => Err(broken),
        }
    }
}

impl DocumentForm {
    /// What a file is, by its name.
    ///
    /// # Errors
    /// A file that cannot hold documents of this form.
    pub(super) fn kind(&self, path: &Path) -> Result<(Kind, Packing)> {
        let kind = kind(path)?;
        if *self == Self::Conversations && kind.0 == Kind::Text {
            let path = path.to_path_buf();
            return Err(DataError::NotConversations { path }.into());
        }
        Ok(kind)
    }
}

/// Reads one key of an object, which may be null, and ignores the others.
struct TextOf<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for TextOf<'_> {
    type Value = Option<Option<String>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextOf<'_> {
    type Value = Option<Option<String>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(key) = entries.next_key::<String>()? {
            if key == self.0 {
                text = Some(entries.next_value()?);
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

/// Reads the keys of an object that a conversation may have, and ignores the others.
struct ChatKeys;

impl<'de> DeserializeSeed<'de> for ChatKeys {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ChatKeys {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut found = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if conversation::keys().any(|known| known == key) {
                found.insert(key, entries.next_value()?);
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

impl Document {
    fn of(text: String) -> Self {
        if text.trim().is_empty() {
            Self::Empty
        } else {
            Self::Text(text)
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// A line of JSON with Python's names for what is no number replaced by zeros.
fn without_nan(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    let (mut inside, mut escaped) = (false, false);
    while let Some(first) = rest.chars().next() {
        let name = ["NaN", "Infinity"]
            .into_iter()
            .find(|name| !inside && rest.starts_with(name));
        if let Some(name) = name {
            plain.push('0');
            rest = &rest[name.len()..];
            continue;
        }
        inside ^= first == '"' && !escaped;
        escaped = inside && first == '\\' && !escaped;
        plain.push(first);
        rest = &rest[first.len_utf8()..];
    }
    plain
}

fn not_json(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    DataError::NotJson {
        path: path.to_path_buf(),
        line,
        problem: error.to_string(),
    }
    .into()
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

    /// The next line that is not empty, with its number.
    fn next_line(&mut self) -> Result<Option<(usize, String)>> {
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
                return Err(DataError::LongDocument {
                    path: self.path.clone(),
                    place: DocumentPlace::Line(line),
                    found: bytes.len() as u64,
                }
                .into());
            }
            let text = String::from_utf8(bytes).map_err(|e| DataError::NotUtf8 {
                path: self.path.clone(),
                place: DocumentPlace::Line(line),
                byte: e.utf8_error().valid_up_to(),
            })?;
            let trimmed = text.trim_start_matches('\u{feff}').trim();
            if trimmed.len() == text.len() {
                return Ok(Some((line, text)));
            }
            if !trimmed.is_empty() {
                return Ok(Some((line, trimmed.to_owned())));
            }
        }
    }

    fn read(&mut self) -> Result<Option<(usize, Map<String, Value>)>> {
        let Some((line, text)) = self.next_line()? else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(|object| Some((line, object)))
            .map_err(|e| not_json(&self.path, line, &e))
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
        return Err(DataError::LongDocument {
            path: path.to_path_buf(),
            place: DocumentPlace::File,
            found: bytes.len() as u64,
        }
        .into());
    }
    let text = String::from_utf8(bytes).map_err(|e| DataError::NotUtf8 {
        path: path.to_path_buf(),
        place: DocumentPlace::File,
        byte: e.utf8_error().valid_up_to(),
    })?;
    if let Some(byte) = text.find('\0') {
        let path = path.to_path_buf();
        return Err(DataError::HoldsNul { path, byte }.into());
    }
    Ok(text
        .strip_prefix('\u{feff}')
        .map(str::to_owned)
        .unwrap_or(text))
}

fn stream(path: &Path, packing: Packing) -> Result<Stream> {
    let source = Sequential {
        source: SourceFile::open(path)?,
        position: 0,
    };
    let length = source.source.len();
    let bounded = |unpacked| Bounded {
        unpacked,
        left: most_text(LARGEST, length),
        path: path.to_path_buf(),
        length,
    };
    let buffer = 1 << 18;
    Ok(match packing {
        Packing::Plain => Box::new(BufReader::with_capacity(buffer, source)),
        Packing::Gzip => {
            let packed = BufReader::with_capacity(buffer, source);
            let decoder: Box<dyn Read + Send> =
                Box::new(flate2::bufread::MultiGzDecoder::new(packed));
            Box::new(BufReader::with_capacity(buffer, bounded(decoder)))
        }
        Packing::Zstd => {
            let decoder = zstd::Decoder::new(source).map_err(|e| failed(path, e))?;
            Box::new(BufReader::with_capacity(buffer, bounded(Box::new(decoder))))
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

/// What a packed file unpacks to, which its length bounds.
struct Bounded {
    unpacked: Box<dyn Read + Send>,
    left: u64,
    path: PathBuf,
    length: u64,
}

impl Read for Bounded {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.unpacked.read(buf)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(Error::from(DataError::UnpacksTooFar {
                path: self.path.clone(),
                most: most_text(LARGEST, self.length),
                length: self.length,
            }))
        })?;
        Ok(count)
    }
}

/// The error of reading a packed or plain file: ours passed through, or what the unpacking found wrong.
fn failed(path: &Path, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => DataError::NotUnpacked {
            path: path.to_path_buf(),
            problem: error.to_string(),
        }
        .into(),
    }
}
