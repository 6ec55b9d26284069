//! Text to token ids and back, by the `tokenizer.json` beside the weights.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer as Inner;

use crate::checkpoint::json;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
}

/// Token ids of a text, and where in the text each ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token, the byte of the text behind its last one; never decreasing.
    pub ends: Vec<usize>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of the checkpoint in `folder`, whose model has `vocab_size` embeddings.
    ///
    /// A tokenizer with ids beyond the vocabulary is refused.
    pub fn load(folder: &Path, vocab_size: u64) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Err(Error::file(
                &path,
                "is missing: the checkpoint cannot turn text into tokens",
            )
            .with_hint("copy the tokenizer.json of the model that it was made from"));
        }
        let tokenizer = Self::open(&path)?;
        if let Some((token, id)) = tokenizer.highest()
            && u64::from(id) >= vocab_size
        {
            let problem = format!(
                "has the token id {id} (`{token}`), but the model's vocabulary has {vocab_size} (vocab_size)"
            );
            return Err(
                Error::file(&path, problem).with_hint("is the tokenizer the one of this model?")
            );
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json`, wherever it lies.
    ///
    /// Truncation and padding that the file may ask for are left out, as transformers leaves them out.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = json::read_bytes(path)?;
        let refused = |problem: &dyn std::fmt::Display| {
            Error::file(
                path,
                format!("expected a tokenizer of the `tokenizers` library: {problem}"),
            )
        };
        let mut inner = quietly(|| Inner::from_bytes(bytes))
            .map_err(|panic| refused(&panic))?
            .map_err(|e| refused(&e))?;
        inner.with_padding(None);
        // Only truncation that is asked for can fail.
        inner
            .with_truncation(None)
            .map_err(|e| Error::file(path, e.to_string()))?;
        Ok(Self {
            path: path.to_path_buf(),
            inner,
        })
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> u64 {
        self.highest().map_or(0, |(_, id)| u64::from(id) + 1)
    }

    fn highest(&self) -> Option<(String, u32)> {
        self.inner
            .get_vocab(true)
            .into_iter()
            .max_by_key(|(_, id)| *id)
    }

    /// The id of a token.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The tokens that stand for no text of their own, such as the end of a text, in order of their ids.
    pub fn special_tokens(&self) -> Vec<String> {
        let mut found: Vec<(u32, String)> = self
            .inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        found.sort();
        found.into_iter().map(|(_, token)| token).collect()
    }

    /// Token ids of `text` with the tokens around it that the tokenizer asks for; faster than [`encode`](Self::encode).
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| self.failed("encode a text", &*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids of `text`; with `special`, the tokens around a text that the tokenizer asks for are added.
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoded> {
        let encoding = self
            .inner
            .encode(text, special)
            .map_err(|e| self.failed("encode a text", &*e))?;
        let mut end = 0;
        let ends = encoding.get_offsets().iter().map(|(_, token)| {
            end = end.max(*token);
            end
        });
        let ends = ends.collect();
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            ends,
        })
    }

    /// The text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|e| self.failed("decode token ids", &*e))
    }

    fn failed(&self, what: &str, problem: &(dyn std::error::Error + Send + Sync)) -> Error {
        Error::file(&self.path, format!("cannot {what}: {problem}"))
    }
}

/// Does what the library may panic in, as it does on merges whose result is no token; the error is what it said.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    // What the work had in hands is dropped.
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    done.map_err(|panic| match panic.downcast::<String>() {
        Ok(said) => *said,
        Err(panic) => panic
            .downcast_ref::<&str>()
            .map_or("it panicked".to_owned(), |said| (*said).to_owned()),
    })
}

/// Text as it comes, token by token: whole characters only, up to the first stop string.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    ids: Vec<u32>,
    /// Tokens from here on are decoded again, because what a token says depends on those before it.
    context: usize,
    /// Tokens up to here are in `text`.
    read: usize,
    text: String,
    shown: usize,
    stopped: bool,
}

/// Tokens of the prompt that the first new one is decoded behind.
const CONTEXT: usize = 8;

impl<'a> TextStream<'a> {
    /// The text behind `prompt`, which ends where one of `stops` begins.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let read = ids.len();
        Self {
            tokenizer,
            stops,
            ids,
            context: 0,
            read,
            text: String::new(),
            shown: 0,
            stopped: false,
        }
    }

    /// Takes a token; returns what can be shown now.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.advance(false)
    }

    /// What was held back: characters that never became whole, and beginnings of stop strings.
    pub fn finish(&mut self) -> Result<String> {
        self.advance(true)
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// All text that could be shown so far.
    pub fn text(&self) -> &str {
        &self.text[..self.shown]
    }

    fn advance(&mut self, end: bool) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let before = self.tokenizer.decode(&self.ids[self.context..self.read])?;
        let after = self.tokenizer.decode(&self.ids[self.context..])?;
        // A character that is not whole yet decodes as U+FFFD.
        if end || !after.ends_with('\u{fffd}') {
            let common = before
                .bytes()
                .zip(after.bytes())
                .take_while(|(a, b)| a == b)
                .count();
            let common = (0..=common)
                .rev()
                .find(|at| after.is_char_boundary(*at))
                .unwrap_or(0);
            self.text.push_str(&after[common..]);
            (self.context, self.read) = (self.read, self.ids.len());
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (0..=self.shown.saturating_sub(longest))
            .rev()
            .find(|at| self.text.is_char_boundary(*at))
            .unwrap_or(0);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        let mut until = self.text.len();
        if let Some(at) = stops
            .clone()
            .filter_map(|stop| self.text[from..].find(stop.as_str()))
            .min()
        {
            until = from + at;
            self.stopped = true;
        } else if !end {
            let held = |stop: &String| {
                (1..stop.len())
                    .rev()
                    .filter(|at| stop.is_char_boundary(*at))
                    .find(|at| self.text.ends_with(&stop[..*at]))
            };
            until -= stops.filter_map(held).max().unwrap_or(0);
        }
        let until = until.max(self.shown);
        let piece = self.text[self.shown..until].to_owned();
        self.shown = until;
        Ok(piece)
    }
}
