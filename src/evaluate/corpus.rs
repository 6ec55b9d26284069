//! Texts to evaluate on, cut into windows of tokens.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::json;
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Bytes of text that are tokenised for each token wanted; no real text has so long tokens.
const BYTES_PER_TOKEN: usize = 64;

/// A named set of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its name in tables.
    pub name: String,
    /// Where it was read.
    pub path: PathBuf,
    /// Its texts; windows never span two of them.
    pub documents: Vec<String>,
}

/// Tokens that a model reads at once; all but the first are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Bytes of text behind the first token: what the scored tokens say.
    pub bytes: usize,
}

impl Domain {
    /// Reads a text file, JSON lines (`.jsonl`) with a `text` field, or all such files of a folder, in order of their names.
    pub fn read(name: &str, path: &Path) -> Result<Self> {
        let mut documents = Vec::new();
        for file in files(path)? {
            read_file(&file, &mut documents)?;
        }
        documents.retain(|document| !document.is_empty());
        if documents.is_empty() {
            return Err(Error::file(path, "expected text, found none"));
        }
        Ok(Self { name: name.to_owned(), path: path.to_path_buf(), documents })
    }

    /// Cuts each document into windows of `context` tokens, the last one shorter; at most `max_tokens` in all.
    ///
    /// Documents are tokenised as transformers tokenises them, with the special tokens that the tokenizer adds. Windows
    /// with one token have nothing to score and are left out.
    pub fn windows(&self, tokenizer: &Tokenizer, context: usize, max_tokens: Option<usize>) -> Result<Vec<Window>> {
        if context < 2 {
            return Err(Error::usage(format!("expected a context of 2 tokens or more, found {context}")));
        }
        let mut left = max_tokens.unwrap_or(usize::MAX);
        let mut windows = Vec::new();
        for document in &self.documents {
            if left == 0 {
                break;
            }
            let document = head(document, left.saturating_mul(BYTES_PER_TOKEN));
            let encoded = tokenizer.encode(document, true)?;
            let count = encoded.ids.len().min(left);
            left -= count;
            for start in (0..count).step_by(context) {
                let end = count.min(start + context);
                if end - start > 1 {
                    let bytes = encoded.ends[end - 1] - encoded.ends[start];
                    windows.push(Window { ids: encoded.ids[start..end].to_vec(), bytes });
                }
            }
        }
        if windows.is_empty() {
            return Err(Error::file(&self.path, "expected texts of at least two tokens, found none"));
        }
        Ok(windows)
    }
}

/// The longest beginning of whole characters within `most` bytes.
fn head(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(folder) = open.pop() {
        let failed = |e| Error::io("list", &folder, e);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match entry.file_type().map_err(failed)? {
                kind if kind.is_dir() => open.push(entry.path()),
                // A link to a folder could lead back here.
                kind if kind.is_symlink() && entry.path().is_dir() => {}
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read_file(path: &Path, documents: &mut Vec<String>) -> Result<()> {
    let text = String::from_utf8(json::read_bytes(path)?).map_err(|e| {
        Error::file(path, format!("expected text in UTF-8: byte {} is none", e.utf8_error().valid_up_to()))
    })?;
    if !is_json_lines(path) {
        documents.push(text);
        return Ok(());
    }
    for (line, object) in json_lines(path, &text)? {
        match object.get("text").and_then(serde_json::Value::as_str) {
            Some(text) => documents.push(text.to_owned()),
            None => return Err(Error::key(path, "text", format!("line {line}: expected a string"))),
        }
    }
    Ok(())
}

fn is_json_lines(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson")
}

/// The objects of a file of JSON lines with their line numbers; empty lines are skipped.
pub(super) fn json_lines(path: &Path, text: &str) -> Result<Vec<(usize, serde_json::Map<String, serde_json::Value>)>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let object = |(number, line): (usize, &str)| {
        let number = number + 1;
        serde_json::from_str(line)
            .map(|object| (number, object))
            .map_err(|e| Error::file(path, format!("line {number}: expected a JSON object: {e}")))
    };
    lines.map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b/c.jsonl"), "{\"text\": \"two\"}\n\n{\"text\": \"three\"}\n").unwrap();
        fs::write(folder.path().join("a.txt"), "one").unwrap();
        fs::write(folder.path().join(".hidden"), "no").unwrap();
        assert_eq!(Domain::read("d", folder.path()).unwrap().documents, ["one", "two", "three"]);
    }

    #[test]
    fn bad_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "{\"text\": \"two\"}\n{\"tekst\": 1}\n").unwrap();
        let error = Domain::read("d", &path).unwrap_err().to_string();
        assert!(error.contains("a.jsonl") && error.contains("line 2"), "{error}");
    }
}
