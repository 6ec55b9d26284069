//! What can be wrong with a tokenizer, or a text for it: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::error::ErrorPlace;

/// A rule that a `tokenizer.json`, or a text that it tokenizes, breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A checkpoint without tokenizer.
    #[error("{}: is missing: the checkpoint cannot turn text into tokens", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file that the library cannot read.
    #[error("{}: expected a tokenizer of the `tokenizers` library: {problem}", path.display())]
    NotTokenizer {
        /// The file.
        path: PathBuf,
        /// What the library says.
        problem: String,
    },
    /// A part of the file that no published tokenizer needs, and that could exhaust the memory.
    #[error("{}: key `{key}`: {rule}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// The part.
        key: Cow<'static, str>,
        /// What is wrong with it.
        rule: TokenizerPartRule,
    },
    /// A token without embedding.
    #[error(
        "{}: has the token id {id} (`{token}`), but the model's vocabulary has {vocab_size} (vocab_size)",
        path.display()
    )]
    IdOutside {
        /// The tokenizer.
        path: PathBuf,
        /// Its highest id.
        id: u64,
        /// The token of that id.
        token: String,
        /// The model's embeddings.
        vocab_size: u64,
    },
    /// A text that is too long to tokenize in one piece, and has no place for a cut.
    #[error(
        "{}: cannot tokenize {length} bytes of text in one piece, at most {most}, and finds no place to cut them at",
        path.display()
    )]
    LongPiece {
        /// The tokenizer.
        path: PathBuf,
        /// Bytes of the piece.
        length: usize,
        /// The most bytes of a piece.
        most: usize,
    },
    /// A normalizer that makes far more of a text than its length justifies.
    #[error(
        "{}: key `normalizer`: its normalizer makes more than {most} bytes of a text of {length}",
        path.display()
    )]
    GrowingText {
        /// The tokenizer.
        path: PathBuf,
        /// The most bytes that it may make.
        most: u64,
        /// Bytes of the text.
        length: usize,
    },
    /// A decoder that may make far more of tokens than their length justifies.
    #[error("{}: key `decoder`: its decoder may make more than {most} bytes of {tokens} tokens", path.display())]
    GrowingTokens {
        /// The tokenizer.
        path: PathBuf,
        /// The most bytes that it may make.
        most: u64,
        /// The tokens.
        tokens: usize,
    },
    /// The library failed.
    #[error("{}: cannot {action}: {problem}", path.display())]
    Failed {
        /// The tokenizer.
        path: PathBuf,
        /// What it was to do.
        action: &'static str,
        /// What the library says.
        problem: String,
    },
}

/// A rule that a part of a `tokenizer.json` breaks.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerPartRule {
    // ---- steps
    /// A step that is no object.
    #[error("expected an object with a `type`")]
    NoObject,
    /// A step without type.
    #[error("expected a `type` in each step, found none")]
    NoType,
    /// A step of a type that the library does not read.
    #[error("`{found}` is no type of a step; did you mean `{nearest}`?")]
    UnknownType {
        /// The type.
        found: String,
        /// The nearest type that the library reads.
        nearest: &'static str,
    },
    /// A key that makes the library take a step for one of another type.
    #[error("`{found}` is no key of a step of the type `{kind}`")]
    OtherKey {
        /// The key.
        found: String,
        /// The type of the step.
        kind: String,
    },
    /// Too many steps.
    #[error("has more than {most} steps")]
    ManySteps {
        /// The most steps.
        most: usize,
    },
    /// Steps that together make too much of a byte.
    #[error("its steps may make {found} bytes of one, expected at most {most}")]
    Growth {
        /// The bytes that they may make.
        found: u64,
        /// The most bytes.
        most: u64,
    },
    /// A step without the pattern that it needs.
    #[error("expected a `pattern` of a String or a Regex")]
    NoPattern,
    /// A pattern that every place of a text matches.
    #[error("has an empty pattern, which is found everywhere")]
    EmptyPattern,
    /// A long regular expression.
    #[error("has a regular expression of {found} bytes, expected at most {most}")]
    LongPattern {
        /// Its bytes.
        found: usize,
        /// The most bytes.
        most: usize,
    },
    /// Pieces of length 0.
    #[error("cuts texts into pieces of no length")]
    EmptyPieces,
    /// A table of SentencePiece that is no base64.
    #[error("expected a precompiled_charsmap in base64: {0}")]
    NotBase64(base64::DecodeError),
    /// A table of SentencePiece that is cut.
    #[error(
        "its precompiled_charsmap of {length} bytes does not hold the table that it begins with"
    )]
    CutCharsmap {
        /// Bytes of the table and of its texts.
        length: usize,
    },

    // ---- templates
    /// A template without the list for one text.
    #[error("expected a template with a list `single`")]
    NoSingle,
    /// A piece of a template of an unknown kind.
    #[error("has a piece in `single` that is neither the text nor a special token")]
    UnknownPiece,
    /// Many tokens around each text.
    #[error("puts more than {most} tokens around a text")]
    ManyAround {
        /// The most tokens.
        most: usize,
    },
    /// A template that drops or repeats the text.
    #[error("has the text {found} times in `single`, expected it once")]
    TextTimes {
        /// How often it has the text.
        found: usize,
    },
    /// A special token with more ids than tokens, or fewer.
    #[error("special token `{name}` has {ids} ids and {tokens} tokens, expected as many")]
    IdsOfSpecial {
        /// The special token.
        name: String,
        /// Its ids.
        ids: usize,
        /// Its tokens.
        tokens: usize,
    },
    /// A special token without ids.
    #[error("special token `{name}` has no ids")]
    NoIdsOfSpecial {
        /// The special token.
        name: String,
    },

    // ---- vocabularies
    /// A long prefix or suffix.
    #[error("has {found} bytes, expected at most {most}")]
    LongAffix {
        /// Its bytes.
        found: usize,
        /// The most bytes.
        most: usize,
    },
    /// Words whose search takes too long.
    #[error("is {found}, expected at most {most}")]
    LongWord {
        /// Characters of a word.
        found: u64,
        /// The most characters.
        most: u64,
    },
    /// A long token of a unigram model.
    #[error("has a token of {found} bytes, expected at most {most}")]
    LongToken {
        /// Its bytes.
        found: usize,
        /// The most bytes.
        most: usize,
    },
    /// A merge whose second part lacks the prefix that the library cuts off.
    #[error("merges {found:?}, which does not begin with continuing_subword_prefix {prefix:?}")]
    MergeWithoutPrefix {
        /// The second part.
        found: String,
        /// The prefix.
        prefix: String,
    },
    /// Added tokens of which the normalizer makes too much.
    #[error("has {bytes} bytes of tokens, of each of which the normalizer may make {growth}")]
    ManyAdded {
        /// Bytes of the added tokens.
        bytes: u64,
        /// Bytes that the normalizer may make of one.
        growth: u64,
    },
}

impl TokenizerError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Missing { .. } => "copy the tokenizer.json of the model that it was made from",
            Self::Part { .. } => {
                "no published tokenizer needs this: take the tokenizer.json from the model's own repository"
            }
            Self::IdOutside { .. } => "is the tokenizer the one of this model?",
            Self::LongPiece { .. } => "split it into documents, or leave it out",
            Self::NotTokenizer { .. }
            | Self::GrowingText { .. }
            | Self::GrowingTokens { .. }
            | Self::Failed { .. } => return None,
        }))
    }

    /// The file, and the part.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Part { path, key, .. } => ErrorPlace::of(path).with_key(key),
            Self::GrowingText { path, .. } => ErrorPlace::of(path).with_key("normalizer"),
            Self::GrowingTokens { path, .. } => ErrorPlace::of(path).with_key("decoder"),
            Self::Missing { path }
            | Self::NotTokenizer { path, .. }
            | Self::IdOutside { path, .. }
            | Self::LongPiece { path, .. }
            | Self::Failed { path, .. } => ErrorPlace::of(path),
        }
    }
}
