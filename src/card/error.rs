//! What is wrong with a model card.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::error::ErrorPlace;

/// A rule about model cards that a file breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// A model card whose front matter does not end.
    #[error(
        "{}: expected the front matter to end in a line `---`, found no end",
        path.display()
    )]
    FrontMatter {
        /// The model card.
        path: PathBuf,
    },
    /// A front matter that cannot be written as YAML.
    #[error("cannot write the front matter of a model card as YAML")]
    NotWritten {
        /// Why.
        source: serde_saphyr::ser::Error,
    },
}

impl CardError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::FrontMatter { .. } => Some(Cow::Borrowed(
                "add a line `---` after the keys, or remove the first line",
            )),
            Self::NotWritten { .. } => None,
        }
    }

    /// The card.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::FrontMatter { path } => ErrorPlace::of(path),
            Self::NotWritten { .. } => ErrorPlace::default(),
        }
    }
}
