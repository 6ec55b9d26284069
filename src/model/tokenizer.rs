//! Text to token ids and back, by the `tokenizer.json` beside the weights.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokenizers::models::ModelWrapper;
use tokenizers::{Encoding, NormalizedString, Normalizer, Tokenizer as Inner};

use super::tokenizer_cuts::Cuts;
use super::tokenizer_error::TokenizerError;
use super::tokenizer_parts::{self, Parts};
use crate::caught::caught;
use crate::checkpoint::json;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";

/// Bytes of text that are tokenized at once where it can be cut: the library takes 70 to 200 times as much memory.
const PIECE: usize = 64 << 10;
/// Bytes of text that are tokenized at once where it cannot be cut.
const LONGEST_PIECE: usize = 4 << 20;
/// Growth of a text by the normalizer from which it is measured before the library takes it, and what it may be then.
const USUAL_GROWTH: u64 = 16;
/// Bytes of normalized text that measuring may make at once.
const MEASURED: u64 = 1 << 20;
/// Bytes of text that ids may be decoded to.
const MOST_DECODED: u64 = 256 << 20;

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    parts: Parts,
    cuts: Cuts,
    /// Held while a piece that could not be cut is tokenized, so that threads do not add up.
    long_piece: Mutex<()>,
}

/// Token ids of a text, and where in the text each ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token, the byte of the text after its last one; never decreasing.
    pub ends: Vec<usize>,
}

/// Token ids of a text, and where in the text each is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spanned {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token its bytes of the text, as the tokenizer says: tokens of one character share them.
    pub spans: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of the checkpoint in `folder`, whose model has `vocab_size` embeddings.
    ///
    /// A tokenizer with ids beyond the vocabulary is refused.
    ///
    /// ```
    /// use bam_convert::model::tokenizer::Tokenizer;
    ///
    /// let tokenizer = Tokenizer::load("fixtures/llama/seed".as_ref(), 384)?;
    /// let encoded = tokenizer.encode("the court", false)?;
    /// assert_eq!(encoded.ends.last(), Some(&"the court".len()));
    /// # Ok::<(), bam_convert::Error>(())
    /// ```
    pub fn load(folder: &Path, vocab_size: u64) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Err(TokenizerError::Missing { path }.into());
        }
        let tokenizer = Self::open(&path)?;
        tokenizer.check_ids(vocab_size)?;
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` from any path.
    ///
    /// Truncation and padding that the file may ask for are left out, as transformers leaves them out. So is dropout, which
    /// leaves merges out at random: the same text has the same tokens.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = json::read_bytes(path)?;
        let object = json::parse_object(path, &bytes)?;
        let parts = tokenizer_parts::check(path, &object)?;
        let cuts = Cuts::of(&object);
        // Values take many times the bytes of the file.
        drop(object);
        let refused = |problem: &dyn std::fmt::Display| TokenizerError::NotTokenizer {
            path: path.to_path_buf(),
            problem: problem.to_string(),
        };
        let mut inner = caught(|| Inner::from_bytes(bytes))
            .map_err(|panic| refused(&panic))?
            .map_err(|e| refused(&e))?;
        inner.with_padding(None);
        // Only truncation that is asked for can fail.
        inner.with_truncation(None).map_err(|e| refused(&e))?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        Ok(Self {
            path: path.to_path_buf(),
            inner,
            parts,
            cuts,
            long_piece: Mutex::new(()),
        })
    }

    /// What this tokenizer does otherwise than its file says, in words for whoever uses it.
    pub fn note(&self) -> Option<String> {
        let dropout = self.parts.dropout?;
        Some(format!(
            "{}: its dropout of {dropout} is switched off, so that a text has the same tokens each time",
            self.path.display()
        ))
    }

    /// Refuses ids beyond a model's `vocab_size` embeddings.
    pub fn check_ids(&self, vocab_size: u64) -> Result<()> {
        let Some((token, id)) = self.highest().filter(|(_, id)| *id >= vocab_size) else {
            return Ok(());
        };
        Err(TokenizerError::IdOutside {
            path: self.path.clone(),
            id,
            token,
            vocab_size,
        }
        .into())
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> u64 {
        self.highest().map_or(0, |(_, id)| id + 1)
    }

    /// The highest id that a text may have, with its token.
    fn highest(&self) -> Option<(String, u64)> {
        let vocabulary = self.inner.get_vocab(true).into_iter();
        vocabulary
            .map(|(token, id)| (token, u64::from(id)))
            .chain(self.parts.around.highest.clone())
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

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids of `text` with the tokens around it that the tokenizer asks for; faster than [`encode`](Self::encode).
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokens(text, true, Offsets::Left, PIECE)?.0.ids)
    }

    /// Token ids of a text that others will follow. They have the tokens that the tokenizer puts before a text, and none of
    /// the tokens that it puts after one, which would end the text.
    pub fn prompt_ids(&self, text: &str) -> Result<Vec<u32>> {
        let (mut encoded, behind) = self.tokens(text, true, Offsets::Left, PIECE)?;
        encoded.ids.truncate(encoded.ids.len() - behind);
        Ok(encoded.ids)
    }

    /// Token ids of `text`; with `special`, the tokens around a text that the tokenizer asks for are added.
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoded> {
        Ok(self.tokens(text, special, Offsets::Kept, PIECE)?.0)
    }

    /// Token ids of `text` alone with their places, without tokens around it.
    pub fn spans(&self, text: &str) -> Result<Spanned> {
        let mut found = Spanned::default();
        for piece in self.pieces(text, PIECE)? {
            let encoding = self.encoding(&text[piece.clone()], false, Offsets::Kept)?;
            found.ids.extend(encoding.get_ids());
            let spans = encoding.get_offsets().iter();
            let spans = spans.map(|(start, end)| piece.start + start..piece.start + end);
            found.spans.extend(spans);
        }
        Ok(found)
    }

    /// Tokens of a text, in pieces of about `piece` bytes, and how many of them the tokenizer added at the end.
    pub(super) fn tokens(
        &self,
        text: &str,
        special: bool,
        offsets: Offsets,
        piece: usize,
    ) -> Result<(Encoded, usize)> {
        let mut pieces = self.pieces(text, piece)?.into_iter();
        let first = pieces.next().unwrap_or(0..0);
        let encoding = self.encoding(&text[first.clone()], special, offsets)?;
        let ids = encoding.get_ids();
        let behind = if special { self.parts.around.behind } else { 0 };
        let around = ids.split_at(ids.len().saturating_sub(behind));
        let mut encoded = Encoded::default();
        let mut end = 0;
        let mut add = |encoding: &Encoding, start: usize, encoded: &mut Encoded| {
            if offsets == Offsets::Kept {
                encoded
                    .ends
                    .extend(encoding.get_offsets().iter().map(|(_, token)| {
                        end = end.max(start + token);
                        end
                    }));
            }
        };
        encoded.ids.extend(around.0);
        add(&encoding, first.start, &mut encoded);
        encoded.ends.truncate(encoded.ids.len());
        for piece in pieces {
            let encoding = self.encoding(&text[piece.clone()], false, offsets)?;
            encoded.ids.extend(encoding.get_ids());
            add(&encoding, piece.start, &mut encoded);
        }
        encoded.ids.extend(around.1);
        if offsets == Offsets::Kept {
            encoded.ends.resize(encoded.ids.len(), end);
        }
        Ok((encoded, behind))
    }

    /// The pieces that a text is tokenized in: one for a text of the usual length.
    pub(super) fn pieces(&self, text: &str, wanted: usize) -> Result<Vec<Range<usize>>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let (length, next) = self.cuts.first(&text[start..], wanted);
            if length > LONGEST_PIECE {
                return Err(TokenizerError::LongPiece {
                    path: self.path.clone(),
                    length,
                    most: LONGEST_PIECE,
                }
                .into());
            }
            pieces.push(start..start + length);
            start += next;
        }
        Ok(pieces)
    }

    fn encoding(&self, piece: &str, special: bool, offsets: Offsets) -> Result<Encoding> {
        let what = "encode a text";
        // A thread that panicked with the lock left nothing to repair.
        let alone = (piece.len() > 4 * PIECE).then(|| self.long_piece.lock());
        let encoding = caught(|| {
            self.check_growth(piece)?;
            match offsets {
                Offsets::Kept => self.inner.encode(piece, special),
                Offsets::Left => self.inner.encode_fast(piece, special),
            }
            .map_err(|e| self.failed(what, &e))
        });
        drop(alone);
        encoding.map_err(|panic| self.failed(what, &panic))?
    }

    /// Refuses a text of which the normalizer makes far more; where it may, bits of the text are measured first.
    fn check_growth(&self, piece: &str) -> Result<()> {
        let Some(normalizer) = self.inner.get_normalizer() else {
            return Ok(());
        };
        if self.parts.growth <= USUAL_GROWTH {
            return Ok(());
        }
        let step = (MEASURED / self.parts.growth) as usize;
        let most = PIECE as u64 + USUAL_GROWTH * piece.len() as u64;
        let (mut rest, mut made) = (piece, 0);
        while !rest.is_empty() {
            let end = (0..=step.min(rest.len()))
                .rev()
                .find(|at| rest.is_char_boundary(*at));
            let bit;
            (bit, rest) = rest.split_at(end.unwrap_or(0));
            let mut normalized = NormalizedString::from(bit);
            let done = normalizer.normalize(&mut normalized);
            done.map_err(|e| self.failed("normalize a text", &e))?;
            made += normalized.get().len() as u64;
            if made > most {
                return Err(TokenizerError::GrowingText {
                    path: self.path.clone(),
                    most,
                    length: piece.len(),
                }
                .into());
            }
        }
        Ok(())
    }

    /// The text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let what = "decode token ids";
        if ids.is_empty() {
            return Ok(String::new());
        }
        let tokens = ids.iter().filter_map(|id| self.inner.id_to_token(*id));
        let bytes: u64 = tokens.map(|token| 1 + token.len() as u64).sum();
        if bytes.saturating_mul(self.parts.decoded) > MOST_DECODED {
            return Err(TokenizerError::GrowingTokens {
                path: self.path.clone(),
                most: MOST_DECODED,
                tokens: ids.len(),
            }
            .into());
        }
        caught(|| self.inner.decode(ids, true))
            .map_err(|panic| self.failed(what, &panic))?
            .map_err(|e| self.failed(what, &e))
    }

    fn failed(&self, action: &'static str, problem: &dyn std::fmt::Display) -> Error {
        TokenizerError::Failed {
            path: self.path.clone(),
            action,
            problem: problem.to_string(),
        }
        .into()
    }
}

/// Whether tokens come with their places in the text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offsets {
    Kept,
    Left,
}
