//! What can be wrong with texts and tokenizers: one variant per broken rule, and what to do next.
//!
//! Errors of token folders and mixtures are in `token_error.rs`.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use super::conversation;
use super::limits::LARGEST;
use crate::error::{ErrorPlace, nearest};

/// A rule that texts or a tokenizer break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    // ---- files of texts
    /// The name of a file says that it holds no text.
    #[error("{}: cannot take text from `.{ending}` files", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Its ending.
        ending: String,
    },
    /// A pattern of file names cannot be read.
    #[error("{}: expected a pattern of file names: {problem}", path.display())]
    Pattern {
        /// The pattern.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A pattern matches no file.
    #[error("{}: no file matches this pattern", path.display())]
    NoMatch {
        /// The pattern.
        path: PathBuf,
    },
    /// A parquet table that is compressed as a whole.
    #[error("{}: is parquet packed once more: its pages cannot be reached", path.display())]
    PackedParquet {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be unpacked.
    #[error("{}: cannot be unpacked: {problem}", path.display())]
    NotUnpacked {
        /// The file.
        path: PathBuf,
        /// What the unpacking found.
        problem: String,
    },
    /// A file that unpacks to more text than its length justifies.
    #[error("{}: expected at most {most} bytes of text packed in {length}, found more", path.display())]
    UnpacksTooFar {
        /// The file.
        path: PathBuf,
        /// The most bytes of text.
        most: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// A document that is too long.
    #[error(
        "{}: {place}expected a document of at most {LARGEST} bytes, found {found} or more", path.display()
    )]
    LongDocument {
        /// The file.
        path: PathBuf,
        /// The document.
        place: DocumentPlace,
        /// Bytes that were read of it.
        found: u64,
    },
    /// A document that is not UTF-8.
    #[error("{}: {place}expected text in UTF-8: byte {byte} is none", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The document.
        place: DocumentPlace,
        /// The first byte that is wrong, from 0.
        byte: usize,
    },
    /// A text file with a NUL: it is binary.
    #[error("{}: expected text, found a NUL at byte {byte}", path.display())]
    HoldsNul {
        /// The file.
        path: PathBuf,
        /// Where the NUL is, from 0.
        byte: usize,
    },
    /// A line that is not a JSON object.
    #[error("{}: line {line}: expected a JSON object: {problem}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// A line whose text Python's `json` module writes and JSON forbids.
    #[error(
        "{}: line {line}: expected JSON, found NaN, Infinity or half of a character (a lone surrogate) near column {column}",
        path.display()
    )]
    PythonJson {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A line whose key does not hold a text.
    #[error("{}: key `{key}`: line {line}: expected a string, found {found}", path.display())]
    NoTextInLine {
        /// The file.
        path: PathBuf,
        /// The key that should hold the text.
        key: String,
        /// The line, from 1.
        line: usize,
        /// What the key holds, in words.
        found: String,
        /// The other keys of the object.
        keys: Vec<String>,
    },
    /// A file that cannot hold conversations.
    #[error("{}: expected JSON lines or parquet, which hold conversations", path.display())]
    NotConversations {
        /// The file.
        path: PathBuf,
    },
    /// A line without a conversation, or a table without a column of them.
    #[error("{}: {place}expected `messages`, `conversations`, or `prompt` and `completion`", path.display())]
    NoConversation {
        /// The file.
        path: PathBuf,
        /// The line.
        place: DocumentPlace,
        /// The keys of the object, or the columns.
        keys: Vec<String>,
    },
    /// A part of a conversation that means something else, or nothing.
    #[error("{}: key `{key}`: {place}expected {expected}, found {found}", path.display())]
    WrongTurn {
        /// The file.
        path: PathBuf,
        /// The line or row.
        place: DocumentPlace,
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A column of conversations with other values than strings.
    #[error("{}: key `{key}`: expected strings, or a list of structures of strings", path.display())]
    NotTurns {
        /// The file.
        path: PathBuf,
        /// The column.
        key: String,
    },
    /// A conversation that cannot be laid out or tokenized.
    #[error("{}: {place}{problem}", path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// The conversation.
        place: DocumentPlace,
        /// The error of the template or the tokenizer.
        problem: String,
        /// The advice of that error.
        hint: Option<String>,
    },
    /// A tokenizer that is made of conversations.
    #[error("cannot make a tokenizer of conversations: it would have no chat template")]
    NoTemplateYet,
    /// A file that is no parquet table, or a damaged one.
    #[error("{}: expected a parquet table: {problem}", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        problem: String,
    },
    /// A table with more rows than its length justifies.
    #[error(
        "{}: expected at most {most} rows in a table of {length} bytes, found {}",
        path.display(),
        found.map_or_else(|| "more".to_owned(), |rows| rows.to_string())
    )]
    ManyRows {
        /// The file.
        path: PathBuf,
        /// The most rows.
        most: u64,
        /// Bytes of the file.
        length: u64,
        /// Its rows, where their number fits into 64 bits.
        found: Option<u64>,
    },
    /// A table without the column of the text.
    #[error("{}: key `{key}`: the table does not have this column", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column that should hold the text.
        key: String,
        /// The columns of the table.
        columns: Vec<String>,
    },
    /// A column of anything but strings.
    #[error("{}: key `{key}`: expected a column of strings", path.display())]
    NotStrings {
        /// The file.
        path: PathBuf,
        /// The column.
        key: String,
    },

    // ---- making a token folder
    /// The share to hold back is none.
    #[error("expected a share of 0 to below 1 to hold back, found {found}")]
    ValidationShare {
        /// The share.
        found: f64,
    },
    /// No document has text.
    #[error(
        "{}: expected text, found none: {empty} documents are empty, and {unreadable} cannot be read",
        path.display()
    )]
    NoText {
        /// The first of the paths.
        path: PathBuf,
        /// Documents without text.
        empty: u64,
        /// Documents that cannot be read.
        unreadable: u64,
    },
    /// More documents than one token folder can have.
    #[error("{}: expected at most {} documents", path.display(), u32::MAX)]
    ManyDocuments {
        /// The first of the paths.
        path: PathBuf,
    },
    /// No document can be held back, because all are alike.
    #[error(
        "{}: is one document, or one cluster of near-duplicates: none can be held back", path.display()
    )]
    OneCluster {
        /// The first of the paths.
        path: PathBuf,
    },
    /// A document that the tokenizer cannot tokenize.
    #[error("{}: the document that begins {begins:?}: {problem}", path.display())]
    Untokenizable {
        /// The file.
        path: PathBuf,
        /// Its first characters.
        begins: String,
        /// The tokenizer's error.
        problem: String,
        /// The advice of that error.
        hint: Option<String>,
    },
    /// There is no tokenizer.
    #[error("{}: is missing: expected a tokenizer", path.display())]
    NoTokenizer {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A tokenizer with more ids than 32 bits hold.
    #[error("{}: has ids up to {vocab_size}, more than 32 bits hold", path.display())]
    LargeVocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// Its highest id plus one.
        vocab_size: u64,
    },
    /// The id that ends a text is not in the vocabulary.
    #[error("{}: the id that ends a text, {id}, is none of its {vocab_size}", path.display())]
    EndOfTextId {
        /// The tokenizer.
        path: PathBuf,
        /// The id.
        id: u32,
        /// The tokenizer's highest id plus one.
        vocab_size: u64,
    },
    /// The token that should end a text is not in the vocabulary.
    #[error("{}: has no token `{token}` to end a text with", path.display())]
    NoEndToken {
        /// The tokenizer.
        path: PathBuf,
        /// The token.
        token: String,
        /// The special tokens of the tokenizer.
        special: Vec<String>,
    },
    /// No file says which token ends a text.
    #[error("{}: nothing beside it says which token ends a text", path.display())]
    NoEndOfText {
        /// The tokenizer.
        path: PathBuf,
        /// The special tokens of the tokenizer.
        special: Vec<String>,
    },
}

/// Which document of a file an error is about; written with a colon after it, and not at all for a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentPlace {
    /// The file is the document.
    File,
    /// A line of JSON lines, from 1.
    Line(usize),
    /// A row of a table, from 1.
    Row(u64),
}

impl fmt::Display for DocumentPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, "line {line}: "),
            Self::Row(row) => write!(f, "row {row}: "),
        }
    }
}

impl DataError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NotText { .. } => {
                "expected text, JSON lines (.jsonl) or parquet, each plain or with .gz or .zst; name the files to read \
                 with a pattern such as 'texts/**/*.md'"
            }
            Self::PackedParquet { .. } => "unpack it; parquet is compressed within",
            Self::NotUnpacked { .. } => {
                "is it cut or damaged? its ending (.gz, .zst) says how it is packed"
            }
            Self::UnpacksTooFar { .. } => "is it a real text? unpack it yourself if it is",
            Self::LongDocument { .. } => {
                "split it into documents: one a file, or one a line of JSON lines"
            }
            Self::NotJson { .. } => {
                "each line must hold one whole object; leave other JSON out by a pattern such as 'texts/**/*.md'"
            }
            Self::PythonJson { .. } => {
                "remove the line, or tokenize the texts first: `tokenize` leaves these lines out and counts them"
            }
            Self::NoTextInLine { key, keys, .. }
            | Self::NoColumn {
                key, columns: keys, ..
            } => return text_key_hint(key, keys),
            Self::NotConversations { .. } | Self::NotTurns { .. } => {
                "write its conversations as JSON lines (.jsonl)"
            }
            Self::NoConversation { keys, .. } => {
                let keys: Vec<&str> = keys.iter().take(20).map(String::as_str).collect();
                return Some(format!("its keys are: {}", keys.join(", ")).into());
            }
            Self::Conversation { hint, .. } => return hint.as_deref().map(Cow::Borrowed),
            Self::NoTemplateYet => "pass --tokenizer DIR with a tokenizer and a chat template",
            Self::ManyRows { .. } => "is it a real table? write its texts as JSON lines if it is",
            Self::ManyDocuments { .. } => "make several token folders",
            Self::OneCluster { .. } => "give it more documents, or pass --validation 0",
            Self::Untokenizable { hint, .. } => return hint.as_deref().map(Cow::Borrowed),
            Self::NoTokenizer { .. } => {
                "--tokenizer takes a tokenizer.json, a folder with one, or train:N to make one of N tokens"
            }
            Self::EndOfTextId { .. } => "name the token with --end-of-text",
            Self::NoEndToken { token, special, .. } => {
                let near = nearest(token, special.iter().map(String::as_str));
                return match near {
                    Some(near) => Some(format!("did you mean `{near}`?").into()),
                    None if special.is_empty() => None,
                    None => Some(format!("its special tokens are {}", special.join(", ")).into()),
                };
            }
            Self::NoEndOfText { special, .. } if special.is_empty() => "name it with --end-of-text",
            Self::NoEndOfText { special, .. } => {
                let special = special.join(", ");
                let hint = format!("name it with --end-of-text; its special tokens are {special}");
                return Some(hint.into());
            }
            _ => return None,
        }))
    }

    /// The file or folder, and the key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NoTextInLine { path, key, .. }
            | Self::NoColumn { path, key, .. }
            | Self::WrongTurn { path, key, .. }
            | Self::NotTurns { path, key }
            | Self::NotStrings { path, key } => ErrorPlace::of(path).with_key(key),
            Self::NotText { path, .. }
            | Self::Pattern { path, .. }
            | Self::NoMatch { path }
            | Self::PackedParquet { path }
            | Self::NotUnpacked { path, .. }
            | Self::UnpacksTooFar { path, .. }
            | Self::LongDocument { path, .. }
            | Self::NotUtf8 { path, .. }
            | Self::HoldsNul { path, .. }
            | Self::NotJson { path, .. }
            | Self::PythonJson { path, .. }
            | Self::NotConversations { path }
            | Self::NoConversation { path, .. }
            | Self::Conversation { path, .. }
            | Self::NotParquet { path, .. }
            | Self::ManyRows { path, .. }
            | Self::NoText { path, .. }
            | Self::ManyDocuments { path }
            | Self::OneCluster { path }
            | Self::Untokenizable { path, .. }
            | Self::NoTokenizer { path }
            | Self::LargeVocabulary { path, .. }
            | Self::EndOfTextId { path, .. }
            | Self::NoEndToken { path, .. }
            | Self::NoEndOfText { path, .. } => ErrorPlace::of(path),
            Self::ValidationShare { .. } | Self::NoTemplateYet => ErrorPlace::default(),
        }
    }
}

/// Advice where no text is found under `key`, by the keys that there are.
fn text_key_hint(key: &str, keys: &[String]) -> Option<Cow<'static, str>> {
    if conversation::has_key(|key| keys.iter().any(|found| found == key)) {
        let hint = "conversations: `bam-convert tokenize --chat` makes a token folder of them";
        return Some(hint.into());
    }
    // A line can have any number of keys.
    let keys: Vec<&str> = keys.iter().take(20).map(String::as_str).collect();
    match nearest(key, keys.iter().copied()) {
        Some(near) => Some(format!("did you mean --text-key {near}?").into()),
        None if keys.is_empty() => None,
        None => {
            let keys = keys.join(", ");
            Some(format!("--text-key names the text; there are: {keys}").into())
        }
    }
}
