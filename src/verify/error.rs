//! Why a check cannot run, or what it finds in the words of an error: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::error::ErrorPlace;

/// A rule that a request to verify, a checkpoint or the sources of a manifest break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// More or fewer specialists than can be compared with their seed.
    #[error("expected 1 to {most} specialists to compare with their seed, found {found}")]
    Specialists {
        /// The most specialists.
        most: usize,
        /// The specialists.
        found: usize,
    },
    /// A mixture where a dense model is needed.
    #[error("{}: is a mixture, expected a dense model", path.display())]
    NotDense {
        /// The model.
        path: PathBuf,
    },
    /// A tensor with NaN or infinities where numbers are computed.
    #[error("{}: tensor `{tensor}`: holds NaN or infinities; expected finite numbers", path.display())]
    NotFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A stored head that is not the embedding it is tied to.
    #[error(
        "{}: tensor `{tensor}`: differs from {embedding}, but config.json says tie_word_embeddings: true",
        path.display()
    )]
    UntiedHead {
        /// The file that holds the head.
        path: PathBuf,
        /// The head.
        tensor: String,
        /// The input embedding.
        embedding: String,
    },
    /// More folders than the manifest has sources.
    #[error("--against has {found} folders, but the manifest has {} sources: {}", names.len(), names.join(", "))]
    ManyFolders {
        /// Folders that were given.
        found: usize,
        /// Sources of the manifest.
        names: Vec<String>,
    },
    /// A source that the manifest records outside of the folders beside its own.
    #[error(
        "{}: source `{name}` is recorded at \"{recorded}\", which is not beside the manifest's folder; it is not opened",
        path.display()
    )]
    SourceElsewhere {
        /// The manifest.
        path: PathBuf,
        /// The source.
        name: String,
        /// Its path in the manifest.
        recorded: String,
        /// A command that names every source.
        command: String,
    },
    /// A source that is not where the manifest says.
    #[error(
        "{}: source {name} is not here: expected it at {recorded}, relative to the current folder or to the folder of the manifest",
        path.display()
    )]
    NoSource {
        /// Where it was looked for.
        path: PathBuf,
        /// The source in quotes, with its repository and commit where they are known.
        name: String,
        /// Its path in the manifest.
        recorded: String,
        /// A command that names every source.
        command: String,
    },
}

impl VerifyError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Specialists { .. } => return None,
            Self::NotDense { .. } => {
                "`bam-convert diff SEED MIXTURE` compares a mixture with its seed, expert by expert"
            }
            Self::NotFinite { .. } => {
                "`bam-convert validate` lists every tensor with NaN or infinities"
            }
            Self::UntiedHead { .. } => {
                "set tie_word_embeddings to false if the stored head is the right one, or remove the tensor"
            }
            Self::ManyFolders { .. } => {
                "give a folder for each source of the manifest, and no others"
            }
            Self::SourceElsewhere { command, .. } => {
                return Some(
                    format!(
                        "name the sources yourself, in any order, in a recipe as a list under `against`: {command}"
                    )
                    .into(),
                );
            }
            Self::NoSource { command, .. } => {
                return Some(format!("name the sources, in any order: {command}").into());
            }
        }))
    }

    /// The file or folder, and the tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Specialists { .. } | Self::ManyFolders { .. } => ErrorPlace::default(),
            Self::NotDense { path }
            | Self::SourceElsewhere { path, .. }
            | Self::NoSource { path, .. } => ErrorPlace::of(path),
            Self::NotFinite { path, tensor } | Self::UntiedHead { path, tensor, .. } => {
                ErrorPlace::of(path).with_tensor(tensor)
            }
        }
    }
}
