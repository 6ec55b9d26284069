//! Why models cannot be put together: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::Dtype;
use crate::error::ErrorPlace;
use crate::printable::{excerpt, excerpts};

/// A rule about models that are put together, which one of them breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// A mixture in the place of an expert.
    #[error("{}: is a mixture, expected a dense model", path.display())]
    MixtureAsExpert {
        /// Its configuration.
        path: PathBuf,
    },
    /// A mixture in the place of the seed.
    #[error("{}: is a mixture already, expected a dense seed", path.display())]
    MixtureAsSeed {
        /// Its configuration.
        path: PathBuf,
    },
    /// A dense model in the place of a mixture.
    #[error("{}: is a dense model, expected a mixture", path.display())]
    DenseAsMixture {
        /// Its configuration.
        path: PathBuf,
    },
    /// Models that compute different functions.
    #[error(
        "{}: key `{}`: {}", path.display(), difference.key, difference.against(reference)
    )]
    Key {
        /// The configuration.
        path: PathBuf,
        /// The configuration that it is compared with.
        reference: PathBuf,
        /// The key, and both values.
        difference: Box<KeyDifference>,
    },
    /// Mixtures of different kinds.
    #[error(
        "{}: key `{}`: {}", path.display(), difference.key, difference.against(reference)
    )]
    MixtureKey {
        /// The configuration.
        path: PathBuf,
        /// The configuration that it is compared with.
        reference: PathBuf,
        /// The key, and both values.
        difference: Box<KeyDifference>,
    },
    /// Tensors of different shapes.
    #[error(
        "{}: tensor `{tensor}`: has shape {found:?}, but {} has {expected:?}",
        path.display(), reference.display()
    )]
    Shape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Box<[u64]>,
        /// The model that it is compared with.
        reference: PathBuf,
        /// The shape there.
        expected: Box<[u64]>,
    },
    /// Files of tokenizers that differ.
    #[error("{}: {}", path.display(), difference.against(reference))]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// The file that it is compared with.
        reference: PathBuf,
        /// Where they differ.
        difference: Box<TokenizerDifference>,
    },
    /// A part of a tokenizer that differs.
    #[error("{}: key `{key}`: {}", path.display(), difference.against(reference))]
    TokenizerKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The file that it is compared with.
        reference: PathBuf,
        /// Where they differ.
        difference: Box<TokenizerDifference>,
    },
    /// A tensor that mixtures share, with other bytes.
    #[error(
        "{}: tensor `{tensor}`: {}differs from {}, but it should have been frozen",
        path.display(), if *first_row { "its first row " } else { "" }, reference.display()
    )]
    NotFrozen {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Whether only its first row is shared.
        first_row: bool,
        /// The mixture that it is compared with.
        reference: PathBuf,
    },
    /// A mixture that does not consist of a public expert and its own.
    #[error(
        "{}: has {experts} feed-forward and {attention_experts} attention experts; expected two: the public one and its own",
        path.display()
    )]
    NotTwoExperts {
        /// Its configuration.
        path: PathBuf,
        /// Feed-forward experts.
        experts: u64,
        /// Attention experts.
        attention_experts: u64,
    },
    /// A tensor that one of the models does not have.
    #[error("{}: tensor `{tensor}`: has no counterpart in this model", path.display())]
    NoCounterpart {
        /// The model.
        path: PathBuf,
        /// The tensor of the output.
        tensor: String,
    },
    /// Integers in an average.
    #[error("{}: tensor `{tensor}`: cannot be averaged: it is stored as {stored}", path.display())]
    NotAveraged {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype, in one of the models.
        stored: Dtype,
    },
    /// A tensor that is stored in another way than is needed.
    #[error("{}: tensor `{tensor}`: is {found}, expected {expected}", path.display())]
    WrongEncoding {
        /// The file or folder that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The way it is stored.
        found: String,
        /// The ways that would do.
        expected: &'static str,
    },
}

/// A key with different values in two configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDifference {
    /// The key.
    pub key: String,
    /// The value in the reference.
    pub expected: Value,
    /// The value in the other.
    pub found: Value,
}

impl KeyDifference {
    /// Both values as a message shows them, the reference's first.
    pub(super) fn values(&self) -> [String; 2] {
        excerpts(&self.expected.to_string(), &self.found.to_string())
    }

    /// The difference in words, where `reference` is the other file.
    fn against(&self, reference: &Path) -> String {
        let [expected, found] = self.values();
        format!("is {found}, but {} has {expected}", reference.display())
    }
}

/// A token and its id, as a tokenizer file has them.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEntry {
    /// The token.
    pub token: Value,
    /// The id.
    pub id: Value,
}

/// The first difference of two tokenizers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TokenizerDifference {
    /// They differ somewhere.
    Anywhere,
    /// A token has another id.
    Id {
        /// The token.
        token: String,
        /// The id in the reference.
        expected: Value,
        /// The id in the other.
        found: Value,
    },
    /// A token is missing.
    Missing {
        /// The token.
        token: String,
        /// The id in the reference.
        expected: Value,
    },
    /// More tokens, or fewer.
    Count {
        /// Tokens of the reference.
        expected: usize,
        /// Tokens of the other.
        found: usize,
    },
    /// An added token is another one, or has another id.
    Added {
        /// The entry in the reference.
        expected: TokenEntry,
        /// The entry in the other.
        found: TokenEntry,
    },
}

impl TokenizerDifference {
    /// The difference in words, where `reference` is the other file.
    fn against(&self, reference: &Path) -> String {
        let reference = reference.display();
        match self {
            Self::Anywhere => format!("differs from {reference}"),
            Self::Id {
                token,
                expected,
                found,
            } => format!(
                "maps {:?} to {found}, but {reference} maps it to {expected}",
                excerpt(token)
            ),
            Self::Missing { token, expected } => format!(
                "lacks the token {:?}, which {reference} maps to {expected}",
                excerpt(token)
            ),
            Self::Count { expected, found } => {
                format!("has {found} tokens, but {reference} has {expected}")
            }
            Self::Added { expected, found } => {
                let tokens = [expected, found].map(|entry| entry.token.to_string());
                let [wanted, token] = excerpts(&tokens[0], &tokens[1]);
                format!(
                    "has {token} as {}, but {reference} has {wanted} as {}",
                    found.id, expected.id
                )
            }
        }
    }
}

impl FitError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::DenseAsMixture { .. } => "`bam-convert upcycle` makes a mixture of dense models",
            Self::Key { .. } => "experts must come from one seed: same shape, positions and norms",
            Self::TokenizerFile { .. } | Self::TokenizerKey { .. } => {
                "experts must share the seed's tokenizer: embeddings are averaged by token id"
            }
            Self::NotFrozen { .. } => "--average-shared averages what differs",
            Self::NotAveraged { .. } => "average models with floating-point weights",
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::MixtureAsExpert { path }
            | Self::MixtureAsSeed { path }
            | Self::DenseAsMixture { path }
            | Self::NotTwoExperts { path, .. }
            | Self::TokenizerFile { path, .. } => ErrorPlace::of(path),
            Self::Key {
                path, difference, ..
            }
            | Self::MixtureKey {
                path, difference, ..
            } => ErrorPlace::of(path).with_key(&difference.key),
            Self::TokenizerKey { path, key, .. } => ErrorPlace::of(path).with_key(key),
            Self::Shape { path, tensor, .. }
            | Self::NotFrozen { path, tensor, .. }
            | Self::NoCounterpart { path, tensor }
            | Self::NotAveraged { path, tensor, .. }
            | Self::WrongEncoding { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
        }
    }
}
