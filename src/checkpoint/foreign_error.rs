//! What people hand over in place of a checkpoint, as errors that say what it is.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::names::{INDEX, SINGLE};
use crate::error::ErrorPlace;

/// An input that is no checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// A file where the folder of a checkpoint is expected.
    #[error("{}: expected a checkpoint folder with config.json, found a file", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The folder that holds it, if that is a checkpoint.
        folder: Option<PathBuf>,
    },
    /// A weight file in another format than the folder of a checkpoint.
    #[error("{}: is {kind}, expected {expected}", path.display())]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// The format with its article.
        kind: String,
        /// What is expected here.
        expected: &'static str,
    },
    /// A folder whose weights are in a format that describes its models itself.
    #[error("{}: holds {kind}, expected safetensors", path.display())]
    HoldsWeightFile {
        /// The folder or file.
        path: PathBuf,
        /// The format with its article.
        kind: String,
    },
    /// A folder of another program.
    #[error("{}: holds {kind} (`{name}`), expected {LAYOUT}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// The file that gives it away.
        name: String,
        /// What to do next.
        advice: &'static str,
    },
    /// A folder with a tokenizer and no model.
    #[error("{}: holds a tokenizer alone (`{name}`), expected {LAYOUT}", path.display())]
    TokenizerAlone {
        /// The folder.
        path: PathBuf,
        /// A file of the tokenizer.
        name: &'static str,
    },
    /// An empty folder.
    #[error("{}: is empty; expected config.json with {SINGLE}, {INDEX} with its shards, or one .gguf file", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A folder in which no file says what it is.
    #[error(
        "{}: has no weights: expected config.json with {SINGLE}, {INDEX} with its shards, or one .gguf file; found {listed}",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// Some of its files.
        listed: String,
        /// A checkpoint in it.
        inner: Option<PathBuf>,
        /// Whether it has a configuration.
        has_config: bool,
    },
    /// A GGUF file in parts.
    #[error("{}: holds a GGUF file in {count} parts, expected a whole one", path.display())]
    GgufParts {
        /// The folder.
        path: PathBuf,
        /// The number of parts.
        count: String,
        /// The first part.
        first: String,
    },
    /// Several GGUF files.
    #[error("{}: holds {} GGUF files: {}", path.display(), names.len(), names.join(", "))]
    SeveralGguf {
        /// The folder.
        path: PathBuf,
        /// The files.
        names: Vec<String>,
    },
    /// A folder with one GGUF file.
    #[error("{}: holds a GGUF file (`{name}`), expected config.json with safetensors", path.display())]
    OneGguf {
        /// The folder.
        path: PathBuf,
        /// The file.
        name: String,
    },
    /// The folder of a repository in a cache of the Hub.
    #[error(
        "{}: is the folder of a repository in a Hub cache, expected the folder of one commit, below `snapshots`", path.display()
    )]
    CachedRepository {
        /// The folder.
        path: PathBuf,
        /// The folder of a commit.
        commit: Option<PathBuf>,
        /// The repository.
        repository: Option<String>,
    },
    /// A cache of the Hub.
    #[error("{}: is a cache of Hub repositories, expected one model", path.display())]
    Cache {
        /// The folder.
        path: PathBuf,
        /// A repository in it.
        repository: String,
    },
    /// A file of another kind, by its first bytes.
    #[error("{}: is {kind}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it is, and what was expected.
        kind: &'static str,
        /// What to do next.
        advice: &'static str,
    },
    /// A safetensors file where JSON is expected.
    #[error("{}: is a safetensors file, expected JSON", path.display())]
    SafetensorsAsJson {
        /// The file.
        path: PathBuf,
    },
    /// A text where weights are expected.
    #[error("{}: is a text that begins with {begin:?}, expected safetensors or GGUF", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Its first line.
        begin: String,
    },
    /// Weights without a configuration.
    #[error("{}: is missing, though the folder holds weights", path.display())]
    NoConfig {
        /// Where the configuration should be.
        path: PathBuf,
    },
}

/// What a folder should hold.
const LAYOUT: &str = "config.json with safetensors weights";

impl ForeignError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let advice = match self {
            Self::File {
                folder: Some(folder),
                ..
            } => format!("name its folder: {}", typed(folder)),
            Self::File { folder: None, .. } => {
                return Some(
                    "put the file into a folder, beside the config.json and the tokenizer of its model"
                        .into(),
                );
            }
            Self::WeightFile { kind, .. } | Self::HoldsWeightFile { kind, .. } => {
                format!("`bam-convert convert FILE DIR` makes a folder of {kind}")
            }
            Self::Folder { advice, .. } | Self::Content { advice, .. } => {
                return Some((*advice).into());
            }
            Self::TokenizerAlone { .. } => {
                return Some(
                    "name the folder that holds the weights too, or pull the repository again without --include"
                        .into(),
                );
            }
            Self::Empty { .. } => {
                return Some("check the path; a pull that was interrupted can be run again".into());
            }
            Self::NoWeights {
                inner: Some(inner), ..
            } => {
                format!("name the folder in it: {}", inner.display())
            }
            Self::NoWeights {
                has_config: true, ..
            } => {
                return Some("copy or download the weights beside config.json".into());
            }
            Self::NoWeights { .. } => return None,
            Self::GgufParts { first, .. } => {
                format!("join the parts first: llama-gguf-split --merge {first} WHOLE.gguf")
            }
            Self::SeveralGguf { path, names } => {
                let first = names.first()?;
                format!("name one of them: {}", path.join(first).display())
            }
            Self::OneGguf { path, name } => format!(
                "`bam-convert convert {} DIR` makes a checkpoint folder of it",
                path.join(name).display()
            ),
            Self::CachedRepository {
                commit: Some(commit),
                ..
            } => {
                format!("name the commit's folder: {}", commit.display())
            }
            Self::CachedRepository {
                repository: Some(repository),
                ..
            } => {
                format!("no commit has been pulled: name hf://{repository}")
            }
            Self::CachedRepository { .. } => {
                return Some("no commit has been pulled: pull the repository again".into());
            }
            Self::Cache { repository, .. } => format!("name a repository, as in hf://{repository}"),
            Self::SafetensorsAsJson { .. } => {
                return Some("name the folder that holds config.json and the weights".into());
            }
            Self::Text { .. } => {
                return Some(
                    "name the folder or the weight file; a download that failed saves the server's answer in place of the file"
                        .into(),
                );
            }
            Self::NoConfig { .. } => {
                return Some(
                    "copy the config.json of the model beside its weights; the Hugging Face layout has one"
                        .into(),
                );
            }
        };
        Some(advice.into())
    }

    /// The file or folder.
    pub fn place(&self) -> ErrorPlace<'_> {
        let (Self::File { path, .. }
        | Self::WeightFile { path, .. }
        | Self::HoldsWeightFile { path, .. }
        | Self::Folder { path, .. }
        | Self::TokenizerAlone { path, .. }
        | Self::Empty { path }
        | Self::NoWeights { path, .. }
        | Self::GgufParts { path, .. }
        | Self::SeveralGguf { path, .. }
        | Self::OneGguf { path, .. }
        | Self::CachedRepository { path, .. }
        | Self::Cache { path, .. }
        | Self::Content { path, .. }
        | Self::SafetensorsAsJson { path }
        | Self::Text { path, .. }
        | Self::NoConfig { path }) = self;
        ErrorPlace::of(path)
    }
}

/// A path as one would type it.
fn typed(folder: &Path) -> std::path::Display<'_> {
    if folder.as_os_str().is_empty() {
        Path::new(".").display()
    } else {
        folder.display()
    }
}
