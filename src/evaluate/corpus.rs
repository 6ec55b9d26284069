//! Texts to evaluate on, cut into windows of tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::EvaluateError;
use crate::Result;
use crate::checkpoint::hash::sha256_file;
use crate::data::documents::{Document, Documents, TEXT_KEY};
use crate::data::{Split, TokenFolder, input, layout};
use crate::model::tokenizer::Tokenizer;

/// Bytes of text that are tokenised for each token wanted; no real text has so long tokens.
const BYTES_PER_TOKEN: usize = 64;

/// A named set of texts.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its name in tables.
    pub name: String,
    /// Where it was read.
    pub path: PathBuf,
    content: Content,
}

/// Texts, or the validation split of a token folder; windows never span two documents.
#[derive(Debug, Clone)]
enum Content {
    Texts(Vec<String>),
    Tokens(Arc<TokenFolder>),
}

/// Tokens that a model reads at once; the first is never scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token after the first whether it is scored. Of conversations, answers alone are.
    pub scored: Vec<bool>,
    /// Bytes of text of the scored tokens.
    pub bytes: usize,
}

impl Domain {
    /// Reads a text file, JSON lines or a parquet table with a `text` field. Of a folder, it reads all these files in
    /// the order of their names. Or opens a token folder.
    pub fn read(name: &str, path: &Path) -> Result<Self> {
        let content = if path.join(layout::FILE).exists() {
            tokens(path)?
        } else {
            texts(path)?
        };
        Ok(Self {
            name: name.to_owned(),
            path: path.to_path_buf(),
            content,
        })
    }

    /// Cuts each document into windows of `context` tokens, the last one shorter; at most `max_tokens` in all.
    ///
    /// Texts are tokenised as transformers tokenises them, with the special tokens that the tokenizer adds. The ends of
    /// text of a token folder are left out, so that the windows are the same as of its texts. The folder must be of the
    /// same tokenizer. Its windows have their share of the split's bytes by their tokens. Of conversations, answers alone
    /// are scored. Windows with nothing to score are left out.
    pub fn windows(
        &self,
        tokenizer: &Tokenizer,
        context: usize,
        max_tokens: Option<usize>,
    ) -> Result<Vec<Window>> {
        if context < 2 {
            return Err(EvaluateError::Context { found: context }.into());
        }
        let left = max_tokens.unwrap_or(usize::MAX);
        let windows = match &self.content {
            Content::Texts(texts) => text_windows(texts, tokenizer, context, left)?,
            Content::Tokens(folder) => {
                let (sha256, _) = sha256_file(tokenizer.path())?;
                folder.check_tokenizer(&sha256, tokenizer.path())?;
                token_windows(folder, context, left)?
            }
        };
        if windows.is_empty() {
            let path = self.path.clone();
            return Err(EvaluateError::NoWindow { path }.into());
        }
        Ok(windows)
    }
}

fn texts(path: &Path) -> Result<Content> {
    let mut texts = Vec::new();
    for file in input::files(path)? {
        for document in Documents::open(&file, TEXT_KEY)? {
            match document? {
                Document::Text(text) => texts.push(text),
                Document::Empty => {}
                // A score says nothing about texts that were left out of it.
                Document::Unreadable(error) => return Err(error),
            }
        }
    }
    if texts.is_empty() {
        let path = path.to_path_buf();
        return Err(EvaluateError::NoText { path }.into());
    }
    Ok(Content::Texts(texts))
}

fn tokens(path: &Path) -> Result<Content> {
    let folder = TokenFolder::open(path)?;
    if folder.tokens(Split::Validation) == 0 {
        let path = path.to_path_buf();
        return Err(EvaluateError::NoValidation { path }.into());
    }
    folder.check_content(Split::Validation)?;
    Ok(Content::Tokens(Arc::new(folder)))
}

fn text_windows(
    texts: &[String],
    tokenizer: &Tokenizer,
    context: usize,
    mut left: usize,
) -> Result<Vec<Window>> {
    let mut windows = Vec::new();
    for text in texts {
        if left == 0 {
            break;
        }
        let encoded = tokenizer.encode(head(text, left.saturating_mul(BYTES_PER_TOKEN)), true)?;
        let count = encoded.ids.len().min(left);
        left -= count;
        for start in (0..count).step_by(context) {
            let end = count.min(start + context);
            if end - start > 1 {
                let bytes = encoded.ends[end - 1] - encoded.ends[start];
                windows.push(Window {
                    ids: encoded.ids[start..end].to_vec(),
                    scored: vec![true; end - start - 1],
                    bytes,
                });
            }
        }
    }
    Ok(windows)
}

fn token_windows(folder: &TokenFolder, context: usize, mut left: usize) -> Result<Vec<Window>> {
    let split = Split::Validation;
    let (end_of_text, has_masks) = (folder.header().end_of_text, folder.header().has_masks());
    let bytes_per_token = folder.bytes_per_scored_token(split, false);
    let (mut windows, mut count) = (Vec::new(), 0);
    // The running sum is rounded, so that the bytes of all windows add up.
    let bytes = |tokens: usize| libm::round(tokens as f64 * bytes_per_token) as usize;
    for number in 0..folder.documents(split) {
        if left == 0 {
            break;
        }
        let mut document = folder.document(split, number)?;
        document.end = document
            .end
            .min(document.start.saturating_add(left as u64).saturating_add(1));
        let mut ids = folder.ids(split, document.clone())?;
        let scored = folder.scored(split, document)?;
        // Of a conversation, it is the last token of the template.
        ids.pop_if(|last| *last == end_of_text && !has_masks);
        ids.truncate(left);
        left -= ids.len();
        for (ids, scored) in ids.chunks(context).zip(scored.chunks(context)) {
            let scored = scored[1..ids.len()].to_vec();
            let found = scored.iter().filter(|scored| **scored).count();
            if found == 0 {
                continue;
            }
            let before = bytes(count);
            count += found;
            windows.push(Window {
                ids: ids.to_vec(),
                scored,
                bytes: bytes(count) - before,
            });
        }
    }
    Ok(windows)
}

/// The longest beginning of whole characters within `most` bytes.
fn head(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Error;
    use crate::data::DataError;

    #[test]
    fn a_folder_is_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(
            folder.path().join("b/c.jsonl"),
            "{\"text\": \"two\"}\n\n{\"text\": \"three\"}\n",
        )
        .unwrap();
        fs::write(folder.path().join("a.txt"), "one").unwrap();
        fs::write(folder.path().join(".hidden"), "no").unwrap();
        let domain = Domain::read("d", folder.path()).unwrap();
        assert!(
            matches!(domain.content, Content::Texts(texts) if texts == ["one", "two", "three"])
        );
    }

    #[test]
    fn bad_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "{\"text\": \"two\"}\n{\"tekst\": 1}\n").unwrap();
        let error = Domain::read("d", &path).unwrap_err();
        assert_eq!(error.place().path, Some(path.as_path()));
        assert!(
            matches!(error, Error::Data(DataError::NoTextInLine { line: 2, .. })),
            "{error}"
        );
    }
}
