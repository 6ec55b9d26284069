//! What can be wrong with a chat template: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use super::{FILE, TOKENIZER_CONFIG};
use crate::error::ErrorPlace;

/// A rule that the chat template of a checkpoint breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A checkpoint without chat template.
    #[error("{}: has no chat template: neither {FILE} nor chat_template in {TOKENIZER_CONFIG}", path.display())]
    NoTemplate {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A template that is not UTF-8.
    #[error("{}: expected text in UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// Several templates, of which none is the usual one.
    #[error("{}: key `chat_template`: expected a template with the name `default`, found none", path.display())]
    NoDefault {
        /// The file.
        path: PathBuf,
    },
    /// A template that is longer than any published one.
    #[error("{}: expected a chat template of at most {most} bytes, found {length}", path.display())]
    LongTemplate {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        most: u64,
        /// Bytes of the template.
        length: usize,
    },
    /// A template that changes the text before an answer, or the answer itself, with what follows.
    #[error("{}: cannot find the answer in message {message}: its text changes with what follows", path.display())]
    NoPrefix {
        /// The file.
        path: PathBuf,
        /// The message, from 1.
        message: usize,
    },
    /// A template whose marks of answers hold no text.
    #[error("{}: marks {found} texts by {{% generation %}}, but {expected} messages are answers", path.display())]
    NoMark {
        /// The file.
        path: PathBuf,
        /// Answers with text.
        expected: usize,
        /// Marks with text.
        found: usize,
    },
    /// A conversation that the template cannot render.
    #[error("{}: the chat template cannot be rendered: {problem}", path.display())]
    Render {
        /// The file.
        path: PathBuf,
        /// What the template or its engine says.
        problem: String,
    },
}

impl ChatError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NoTemplate { .. } => Some(Cow::Borrowed(
                "a model that was not trained on conversations has none: leave out --chat, and pass --prompt",
            )),
            Self::NoPrefix { .. } => Some(Cow::Borrowed(
                "pass --chat-template FILE with {% generation %} and {% endgeneration %} around the answers, or give each \
                 conversation one answer, at its end",
            )),
            Self::NoMark { .. } => Some(Cow::Borrowed(
                "pass --chat-template FILE with the marks outside macros and `set` blocks",
            )),
            _ => None,
        }
    }

    /// The file or folder, and the key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NoDefault { path } => ErrorPlace::of(path).with_key("chat_template"),
            Self::NoTemplate { path }
            | Self::NotUtf8 { path }
            | Self::NoPrefix { path, .. }
            | Self::NoMark { path, .. }
            | Self::LongTemplate { path, .. }
            | Self::Render { path, .. } => ErrorPlace::of(path),
        }
    }
}
