//! Requests to the Hub that make no sense, and folders that must not be pushed: one variant per broken rule.
//!
//! `place` is a repository with its revision.

use std::borrow::Cow;
use std::path::PathBuf;

/// A rule that a request, the environment or a folder breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubRequestError {
    /// There is no token, and nobody may push without.
    #[error("{place}: expected a token to push with, found none")]
    NoToken {
        /// Repository and revision.
        place: String,
    },
    /// A variable of the environment has a value that makes no sense.
    #[error("{variable}: expected {expected}, found `{found}`")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// The values that it may have.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// The endpoint holds a password or a query, which may be secret.
    #[error("HF_ENDPOINT: expected an address without a password or a query")]
    SecretInEndpoint,
    /// The token holds characters that no header can hold.
    #[error("the Hub's token: expected visible ASCII characters without spaces")]
    InvalidToken,
    /// No variable of the environment says where the cache is.
    #[error("no place for the Hub's cache: set HF_HOME")]
    NoCache,
    /// No variable of the environment says where headers can be kept.
    #[error("no place for headers: set XDG_CACHE_HOME")]
    NoHeaderCache,
    /// A library cannot prepare connections.
    #[error("cannot prepare connections to {to}: {problem}")]
    Client {
        /// `the Hub` or `Xet`.
        to: &'static str,
        /// What the library says.
        problem: String,
    },
    /// A pattern of paths cannot be read.
    #[error("expected a pattern of paths, found `{pattern}`: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The patterns choose no file.
    #[error("{place}: no file matches what is included and not excluded")]
    NothingSelected {
        /// Repository and commit.
        place: String,
        /// The path that is nearest to the first pattern.
        nearest: Option<String>,
    },
    /// The front matter of a dataset's page cannot be read.
    #[error("{place}: README.md: {problem}")]
    FrontMatter {
        /// Repository and commit.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A dataset without the configuration, or with several where none was named.
    #[error(
        "{place}: {}",
        wanted.as_ref().map_or_else(
            || "expected the name of a configuration".to_owned(),
            |wanted| format!("has no configuration `{wanted}`")
        )
    )]
    NoConfig {
        /// Repository and commit.
        place: String,
        /// The configuration, where one was named.
        wanted: Option<String>,
        /// The configurations that it lists.
        configs: Vec<String>,
    },
    /// A dataset without the split.
    #[error("{place}: has no split `{wanted}` of parquet or JSON lines")]
    NoSplit {
        /// Repository and commit.
        place: String,
        /// The split.
        wanted: String,
        /// The splits that it has.
        splits: Vec<String>,
    },
    /// A file of a dataset's split that is neither parquet nor JSON lines.
    #[error("{place}: expected parquet or JSON lines, found `{path}`")]
    NotRows {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
    },
    /// A pattern of files in the front matter of a dataset's page.
    #[error("{place}: README.md: cannot use the data files `{pattern}`: {problem}")]
    DataPattern {
        /// Repository and commit.
        place: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The repository holds no weights that bam-convert pulls.
    #[error(
        "{place}: expected weights as safetensors or GGUF, found {}",
        pickle.as_ref().map_or_else(|| "none".to_owned(), |path| format!("{path}, a pickle"))
    )]
    NoWeights {
        /// Repository and commit.
        place: String,
        /// A pickle that it holds.
        pickle: Option<String>,
    },
    /// The repository holds several GGUF files.
    #[error("{place}: expected one GGUF file, found {}", paths.join(", "))]
    SeveralGguf {
        /// Repository and commit.
        place: String,
        /// The files.
        paths: Vec<String>,
    },
    /// A file would take the place of one of bam-convert's own in a folder.
    #[error(
        "{place}: `{path}` cannot be in a folder: bam-convert keeps a file `{own}` of its own there"
    )]
    ReservedName {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
        /// The file of bam-convert.
        own: String,
    },
    /// A file has the name under which another one grows.
    #[error(
        "{place}: `{path}` cannot be in a folder: bam-convert writes another file under this name first"
    )]
    PartialName {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
    },
    /// A weight file does not begin as its format does.
    #[error("{}: expected a safetensors file, found {size} bytes", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// A commit was given where a branch is needed.
    #[error("{place}: expected a branch to push to, found a commit")]
    CommitAsBranch {
        /// Repository and commit.
        place: String,
    },
    /// The repository is public, and a private one was asked for.
    #[error("{place}: expected a private repository, found one that all may see")]
    PublicRepository {
        /// Repository and revision.
        place: String,
    },
    /// The `.gitignore` of the repository leaves out every file.
    #[error("{place}: the repository's .gitignore leaves out every file, so nothing is pushed")]
    AllIgnored {
        /// Repository and revision.
        place: String,
    },
    /// The `.gitignore` of the repository leaves out a file of the model.
    #[error("{place}: the repository's .gitignore leaves out {path}, so nothing is pushed")]
    ModelIgnored {
        /// Repository and revision.
        place: String,
        /// The file.
        path: String,
    },
    /// A dry run was to be carried out.
    #[error("a look at what would be pushed cannot be carried out")]
    OnlyPreview,
    /// A file that would be pushed holds the token.
    #[error("{path}: holds the Hub's token, which would be public")]
    HoldsToken {
        /// Path in the repository.
        path: String,
    },
    /// The name of a file is not UTF-8.
    #[error("{}: expected a name in UTF-8", path.display())]
    NameNotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// No repository can have a file of this name.
    #[error("{}: expected a name that a repository can have", path.display())]
    InvalidName {
        /// The file.
        path: PathBuf,
    },
    /// A link to a folder.
    #[error("{}: a link to a folder, which is not pushed", path.display())]
    LinkToFolder {
        /// The link.
        path: PathBuf,
    },
    /// A link to a file outside of the folder.
    #[error("{}: a link to a file outside of the folder", path.display())]
    LinkOutside {
        /// The link.
        path: PathBuf,
    },
    /// Bytes beyond the end of a file were asked for.
    #[error("a piece is beyond the end of its file")]
    BeyondEnd,
    /// A file could not be read while it was sent.
    #[error("{problem}")]
    Unreadable {
        /// The error of the file.
        problem: String,
        /// Its hint.
        hint: Option<String>,
    },
    /// The thread that hashes a download panicked.
    #[error("{}: the thread that hashes it has died", path.display())]
    HashThread {
        /// The file that grows.
        path: PathBuf,
    },
}

impl HubRequestError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        const LIST: &str = "name files with --include; --include '*' --dry-run lists them all";
        const ROWS: &str = "name another split, or the Hub's tables of it: \
                            hf://datasets/ORG/NAME@refs/convert/parquet:CONFIG/SPLIT; \
                            or download its files, and tokenize them from a folder";
        const RENAME: &str = "rename the file";
        Some(Cow::Borrowed(match self {
            Self::NoToken { .. } => "set HF_TOKEN to a token with write access",
            Self::SecretInEndpoint => "give the token in HF_TOKEN",
            Self::Client { .. } => {
                "install the system's certificates (Debian: ca-certificates), or let SSL_CERT_FILE name a file of them"
            }
            Self::InvalidToken => "check HF_TOKEN, or the token file",
            Self::NothingSelected {
                nearest: Some(path),
                ..
            } => {
                return Some(format!("the nearest path there is `{path}`").into());
            }
            Self::NothingSelected { nearest: None, .. } => {
                "--dry-run without patterns lists what would be pulled"
            }
            Self::NoConfig { configs, .. } if configs.is_empty() => {
                "its README.md lists no configurations; leave the name out"
            }
            Self::NoConfig { configs, .. } => {
                let configs: Vec<&str> = configs.iter().take(20).map(String::as_str).collect();
                let hint = format!(
                    "name one as hf://datasets/ORG/NAME:CONFIG: {}",
                    configs.join(", ")
                );
                return Some(hint.into());
            }
            Self::FrontMatter { .. } | Self::DataPattern { .. } | Self::NotRows { .. } => ROWS,
            Self::NoSplit { splits, .. } if splits.is_empty() => ROWS,
            Self::NoSplit { splits, .. } => {
                let splits: Vec<&str> = splits.iter().take(20).map(String::as_str).collect();
                let splits = splits.join(", ");
                let hint = format!("name one as hf://datasets/ORG/NAME:CONFIG/SPLIT: {splits}");
                return Some(hint.into());
            }
            Self::NoWeights { .. } | Self::SeveralGguf { .. } => LIST,
            Self::ReservedName { path, .. } | Self::PartialName { path, .. } => {
                return Some(
                    format!(
                        "leave it out with --exclude '{path}', or pull into the cache, without DIR"
                    )
                    .into(),
                );
            }
            Self::CommitAsBranch { .. } => "name a branch with --revision",
            Self::PublicRepository { .. } => {
                "make it private in its settings, or push without --private"
            }
            Self::AllIgnored { .. } | Self::ModelIgnored { .. } => {
                "correct .gitignore on the repository's page, then push again"
            }
            Self::HoldsToken { .. } => {
                "remove the token from the file, and revoke it if the file was ever shared"
            }
            Self::NameNotUtf8 { .. } | Self::InvalidName { .. } => RENAME,
            Self::LinkToFolder { .. } => "move the folder here, or remove the link",
            Self::LinkOutside { .. } => "copy the file here, or remove the link",
            Self::Unreadable { hint, .. } => {
                return Some(hint.as_deref().unwrap_or("run the command again").into());
            }
            _ => return None,
        }))
    }
}
