//! What can be wrong with token folders and mixtures of them: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use super::layout::{FILE, Split};
use crate::error::ErrorPlace;

/// A rule that a token folder or a mixture breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// A folder without a header.
    #[error("{}: expected a token folder: it has no {FILE}", path.display())]
    NotTokenFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A header that does not follow the format.
    #[error("{}: expected the header of a token folder: {problem}", path.display())]
    NotHeader {
        /// The header.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// A token folder without tokens.
    #[error("{}: expected tokens, found none", path.display())]
    NoTokens {
        /// The folder.
        path: PathBuf,
    },
    /// Tokens of another tokenizer than the model's.
    #[error(
        "{}: another tokenizer made its tokens (SHA-256 {}…) than {} has ({}…)",
        path.display(), short(found), owner.display(), short(expected)
    )]
    OtherTokenizer {
        /// The token folder.
        path: PathBuf,
        /// SHA-256 of the tokenizer that made the tokens.
        found: String,
        /// The model or tokenizer that the tokens are for.
        owner: PathBuf,
        /// SHA-256 of its tokenizer.
        expected: String,
    },
    /// A file whose content is not the one that the header lists.
    #[error("{}: expected SHA-256 {expected} (as {FILE} says), found {found}", path.display())]
    WrongHash {
        /// The file of ids or of ends.
        path: PathBuf,
        /// The hash in the header.
        expected: String,
        /// The hash of the file.
        found: String,
    },
    /// A file whose length is not the one that the header says.
    #[error(
        "{}: expected {count} items of {width} bytes (as {FILE} says), found {found} bytes", path.display()
    )]
    WrongLength {
        /// The file of ids or of ends.
        path: PathBuf,
        /// Items that the header says.
        count: u64,
        /// Bytes of an item.
        width: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A token id that the vocabulary does not have.
    #[error("{}: holds the token id {id}, but the vocabulary has {vocab_size}", path.display())]
    LargeId {
        /// The file of ids.
        path: PathBuf,
        /// The id.
        id: u32,
        /// The tokenizer's highest id plus one.
        vocab_size: u64,
    },
    /// A position after the last token.
    #[error("{}: has {tokens} {split} tokens, but the one at {position} was asked for", path.display())]
    NoSuchToken {
        /// The token folder.
        path: PathBuf,
        /// The split.
        split: Split,
        /// Its tokens.
        tokens: u64,
        /// The position.
        position: u64,
    },
    /// A number after the last document.
    #[error("{}: has {documents} {split} documents, but number {number} was asked for", path.display())]
    NoSuchDocument {
        /// The token folder.
        path: PathBuf,
        /// The split.
        split: Split,
        /// Its documents.
        documents: u64,
        /// The number.
        number: u64,
    },
    /// A document that ends before it begins.
    #[error("{}: document {document} does not end after its beginning", path.display())]
    WrongEnd {
        /// The file of ends.
        path: PathBuf,
        /// Number of the document within the shard.
        document: u64,
    },
    /// A shard whose last document does not end with the shard.
    #[error("{}: its last document ends at {end}, but the shard has {tokens} tokens", path.display())]
    WrongLastEnd {
        /// The file of ends.
        path: PathBuf,
        /// Where the last document ends.
        end: u64,
        /// Tokens of the shard.
        tokens: u64,
    },
    /// Conversations without an answer in a split.
    #[error("{}: no token of its {split} split carries loss", path.display())]
    NoAnswers {
        /// The token folder.
        path: PathBuf,
        /// The split.
        split: Split,
    },
    /// A byte of a mask that is neither 0 nor 1.
    #[error("{}: byte {position}: expected 0 or 1, found {found}", path.display())]
    WrongMask {
        /// The mask's file.
        path: PathBuf,
        /// The byte, from 0.
        position: u64,
        /// Its value.
        found: u8,
    },

    /// A mixture of nothing.
    #[error("expected one domain or more to mix, found none")]
    NoDomain,
    /// Rows without a token.
    #[error("expected rows of one token or more, found a sequence length of 0")]
    NoSequence,
    /// Two domains of one name.
    #[error("the domain `{name}` is given twice; expected one weight for each")]
    RepeatedDomain {
        /// The name.
        name: String,
    },
    /// A weight that is no positive number.
    #[error("the weight of domain `{name}` is {weight}; expected a number above 0")]
    Weight {
        /// The domain.
        name: String,
        /// Its weight.
        weight: f64,
    },
    /// A weight that is too small a part of the whole.
    #[error("the least weight is {share:.1e} of the whole; expected 1/{most} or more")]
    SmallWeight {
        /// Its part of the whole.
        share: f64,
        /// The most times that the whole may be larger.
        most: u64,
    },
    /// Domains of different tokenizers.
    #[error(
        "{}: another tokenizer made its tokens (`{name}`) than made {} (`{first_name}`)",
        path.display(), first.display()
    )]
    MixedTokenizers {
        /// A token folder.
        path: PathBuf,
        /// Its domain.
        name: String,
        /// The token folder of the first domain.
        first: PathBuf,
        /// The first domain.
        first_name: String,
    },
    /// A split that is too short for a row.
    #[error(
        "{}: its {split} split (`{name}`) has {tokens} tokens, too few for one row of {} ({seq} and the one after)",
        path.display(), seq + 1
    )]
    ShortSplit {
        /// The token folder.
        path: PathBuf,
        /// Its domain.
        name: String,
        /// The split.
        split: Split,
        /// Its tokens.
        tokens: u64,
        /// Predicted tokens of a row.
        seq: u64,
    },
}

impl TokenError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        const DAMAGED: &str = "is it damaged? tokenize the texts again";
        Some(Cow::Borrowed(match self {
            Self::NotTokenFolder { .. } => "`bam-convert tokenize` makes one of texts",
            Self::OtherTokenizer { .. } => {
                "tokenize the texts again with --tokenizer and the folder of the model"
            }
            Self::WrongHash { .. } => {
                "its content has changed: copy the token folder again, or tokenize the texts again"
            }
            Self::WrongLength { .. } => {
                "is the shard cut? copy the token folder again, or tokenize the texts again"
            }
            Self::LargeId { .. }
            | Self::WrongEnd { .. }
            | Self::WrongLastEnd { .. }
            | Self::WrongMask { .. } => DAMAGED,
            Self::Weight { .. } => "leave out a domain that is not wanted",
            Self::MixedTokenizers { .. } => {
                "tokenize all domains with one and the same --tokenizer"
            }
            Self::ShortSplit { split, .. } => match split {
                Split::Train => "give it more text, or train on shorter rows",
                Split::Validation => {
                    "tokenize with a larger --validation, or measure on shorter rows"
                }
            },
            _ => return None,
        }))
    }

    /// The file or folder.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NotTokenFolder { path }
            | Self::NotHeader { path, .. }
            | Self::NoTokens { path }
            | Self::OtherTokenizer { path, .. }
            | Self::WrongHash { path, .. }
            | Self::WrongLength { path, .. }
            | Self::LargeId { path, .. }
            | Self::NoSuchToken { path, .. }
            | Self::NoSuchDocument { path, .. }
            | Self::WrongEnd { path, .. }
            | Self::WrongLastEnd { path, .. }
            | Self::WrongMask { path, .. }
            | Self::NoAnswers { path, .. }
            | Self::MixedTokenizers { path, .. }
            | Self::ShortSplit { path, .. } => ErrorPlace::of(path),
            Self::NoDomain
            | Self::NoSequence
            | Self::RepeatedDomain { .. }
            | Self::Weight { .. }
            | Self::SmallWeight { .. } => ErrorPlace::default(),
        }
    }
}

/// The beginning of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
