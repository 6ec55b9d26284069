//! Documents as token ids, and which of their tokens carry loss.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use super::conversation;
use super::error::{DataError, DocumentPlace};
use super::vocabulary::Ready;
use crate::Result;
use crate::model::chat::{ChatTemplate, RenderChat, answered};

/// A document as a token folder holds it.
#[derive(Debug, Default)]
pub(super) struct EncodedDocument {
    pub ids: Vec<u32>,
    /// Bytes of text that the ids stand for.
    pub bytes_of_text: u64,
    /// Of a conversation, the tokens of answers.
    pub mask: Option<DocumentMask>,
}

/// The tokens of a document that carry loss.
#[derive(Debug)]
pub(super) struct DocumentMask {
    /// For each token whether it carries loss.
    pub scored: Vec<bool>,
    /// Bytes of text of those that do.
    pub bytes_of_text: u64,
}

/// Makes ids of texts, or of conversations.
pub(super) enum Encoder<'a> {
    /// A text with an end of text.
    Texts(&'a Ready),
    /// A conversation as JSON, laid out by its template.
    Conversations(ChatEncoder<'a>),
}

/// Makes ids of conversations.
pub(super) struct ChatEncoder<'a> {
    ready: &'a Ready,
    template: &'a ChatTemplate,
    special: Vec<String>,
    render: &'a RenderChat<'a>,
}

impl<'a> Encoder<'a> {
    /// An encoder with a tokenizer, of conversations if that has a template.
    pub fn new(ready: &'a Ready, render: &'a RenderChat<'a>) -> Self {
        let Some(template) = &ready.template else {
            return Self::Texts(ready);
        };
        Self::Conversations(ChatEncoder {
            ready,
            template,
            special: ready.tokenizer.special_tokens(),
            render,
        })
    }

    /// The document of this text, which the file `path` holds at `place`.
    pub fn encode(&self, path: &Path, place: DocumentPlace, text: &str) -> Result<EncodedDocument> {
        match self {
            Self::Texts(ready) => text_document(ready, path, text),
            Self::Conversations(encoder) => encoder.encode(text).map_err(|error| {
                DataError::Conversation {
                    path: path.to_path_buf(),
                    place,
                    problem: error.to_string(),
                    hint: error.hint().map(Cow::into_owned),
                }
                .into()
            }),
        }
    }
}

impl ChatEncoder<'_> {
    fn encode(&self, text: &str) -> Result<EncodedDocument> {
        let conversation = conversation::read(text)?;
        let rendered = answered(self.template, &conversation, &self.special, self.render)?;
        let encoded = self.ready.tokenizer.spans(&rendered.text)?;
        let bytes = rendered.answers.iter().map(|answer| answer.len() as u64);
        Ok(EncodedDocument {
            bytes_of_text: rendered.text.len() as u64,
            mask: Some(DocumentMask {
                scored: scored(&encoded.spans, &rendered.answers),
                bytes_of_text: bytes.sum(),
            }),
            ids: encoded.ids,
        })
    }
}

/// The tokens of a text, with an end of text.
fn text_document(ready: &Ready, path: &Path, text: &str) -> Result<EncodedDocument> {
    let mut ids = ready
        .tokenizer
        .ids(text)
        .map_err(|error| DataError::Untokenizable {
            path: path.to_path_buf(),
            begins: text.chars().take(40).collect(),
            problem: error.to_string(),
            hint: error.hint().map(Cow::into_owned),
        })?;
    // Some tokenizers put it there themselves.
    if ids.last() != Some(&ready.end_of_text) {
        ids.push(ready.end_of_text);
    }
    Ok(EncodedDocument {
        ids,
        bytes_of_text: text.len() as u64,
        mask: None,
    })
}

/// The tokens that overlap an answer, as `return_assistant_tokens_mask` of transformers finds them.
fn scored(tokens: &[Range<usize>], answers: &[Range<usize>]) -> Vec<bool> {
    let mut answers = answers.iter().peekable();
    let overlaps = |token: &Range<usize>| {
        while answers
            .next_if(|answer| token.start >= answer.end)
            .is_some()
        {}
        answers
            .peek()
            .is_some_and(|answer| token.end > answer.start)
    };
    tokens.iter().map(overlaps).collect()
}
