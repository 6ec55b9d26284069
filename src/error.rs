//! The one error of the library: what was wrong, where (file, tensor or key), and what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, named by the place where a user would look for it.
///
/// Every variant but [`Error::Io`], [`Error::Compute`] and some kinds of [`Error::Hub`] means the request or the input was
/// bad (exit code 2); these mean that the machine or the network refused (exit code 3).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on `path`.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: `read`, `write`, `rename`, …
        action: &'static str,
        /// The file or folder acted on.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
        /// What to do next.
        hint: Option<String>,
    },
    /// A file or folder breaks a rule as a whole.
    #[error("{}: {problem}", path.display())]
    File {
        /// The offending file or folder.
        path: PathBuf,
        /// The rule that was broken: what was expected and what was found.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// One tensor breaks a rule.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// File or folder that holds the tensor.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// One key of a JSON or YAML file breaks a rule.
    #[error("{}: key `{key}`: {problem}", path.display())]
    Key {
        /// The file that holds the key.
        path: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// A computation with tensors failed: out of memory, or a device that does not work.
    #[error("cannot {action}: {problem}")]
    Compute {
        /// What was to be computed, and of which model.
        action: String,
        /// What the tensor library said.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The Hub refused, could not be reached, or answered what cannot be right.
    #[error("{place}: {problem}")]
    Hub {
        /// Repository and revision, with the file where it is about one.
        place: String,
        /// Which kind of failure it is.
        fault: HubFault,
        /// What was expected and what was found.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The request itself makes no sense.
    #[error("{problem}")]
    Usage {
        /// What is wrong with the request.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
}

impl Error {
    /// An operating-system error on `path` while doing `action` (a verb: `read`, `create`, …).
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        Self::Io {
            action,
            path,
            source,
            hint: None,
        }
    }

    /// A file or folder that breaks a rule.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.as_ref().to_path_buf(),
            problem: problem.into(),
            hint: None,
        }
    }

    /// A tensor that breaks a rule.
    pub fn tensor(path: impl AsRef<Path>, tensor: &str, problem: impl Into<String>) -> Self {
        let (path, tensor) = (path.as_ref().to_path_buf(), tensor.to_owned());
        Self::Tensor {
            path,
            tensor,
            problem: problem.into(),
            hint: None,
        }
    }

    /// A key of a configuration file that breaks a rule.
    pub fn key(path: impl AsRef<Path>, key: &str, problem: impl Into<String>) -> Self {
        let (path, key) = (path.as_ref().to_path_buf(), key.to_owned());
        Self::Key {
            path,
            key,
            problem: problem.into(),
            hint: None,
        }
    }

    /// A computation that failed; `action` completes “cannot …”.
    pub fn compute(action: impl Into<String>, problem: impl ToString) -> Self {
        Self::Compute {
            action: action.into(),
            problem: problem.to_string(),
            hint: None,
        }
    }

    /// What the Hub refused or answered wrongly; the advice is that for this kind of failure.
    pub fn hub(place: impl ToString, fault: HubFault, problem: impl Into<String>) -> Self {
        let hint = fault.advice().map(str::to_owned);
        Self::Hub {
            place: place.to_string(),
            fault,
            problem: problem.into(),
            hint,
        }
    }

    /// A request that makes no sense.
    pub fn usage(problem: impl Into<String>) -> Self {
        Self::Usage {
            problem: problem.into(),
            hint: None,
        }
    }

    /// The same error with advice on what to do next.
    #[must_use]
    pub fn with_hint(mut self, advice: impl Into<String>) -> Self {
        let (Self::Io { hint, .. }
        | Self::File { hint, .. }
        | Self::Tensor { hint, .. }
        | Self::Key { hint, .. }
        | Self::Compute { hint, .. }
        | Self::Hub { hint, .. }
        | Self::Usage { hint, .. }) = &mut self;
        *hint = Some(advice.into());
        self
    }

    /// What to do next, where the error knows.
    pub fn hint(&self) -> Option<&str> {
        let (Self::Io { hint, .. }
        | Self::File { hint, .. }
        | Self::Tensor { hint, .. }
        | Self::Key { hint, .. }
        | Self::Compute { hint, .. }
        | Self::Hub { hint, .. }
        | Self::Usage { hint, .. }) = self;
        hint.as_deref()
    }

    /// Exit code of the binary: 3 where the machine refused, 2 where the request or input was bad.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::Compute { .. } => 3,
            Self::Hub { fault, .. } if fault.is_outside() => 3,
            _ => 2,
        }
    }
}

/// Kinds of failure of the Hub, told apart because each asks for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubFault {
    /// There is no such repository, or it is private and the token may not see it.
    NoRepository,
    /// The repository is there, but its owner must grant access first.
    Gated,
    /// The repository has no such branch, tag or commit.
    NoRevision,
    /// The revision has no such file.
    NoFile,
    /// The token is not accepted.
    BadToken,
    /// The token is accepted, but may not do this.
    Forbidden,
    /// Something else was committed meanwhile, or the name is taken.
    Conflict,
    /// The server is no such Hub that offers this.
    NotOffered,
    /// The account has no room left.
    Quota,
    /// Too many requests.
    RateLimited,
    /// `HF_HUB_OFFLINE` forbids the network, and the cache does not hold what was asked for.
    Offline,
    /// The other side could not be reached, was silent or broke off.
    Network,
    /// The other side answered what cannot be right: other bytes than promised, or no sense.
    Answer,
}

impl HubFault {
    /// Whether the request may be right all the same.
    fn is_outside(self) -> bool {
        matches!(
            self,
            Self::Quota | Self::RateLimited | Self::Network | Self::Answer
        )
    }

    fn advice(self) -> Option<&'static str> {
        match self {
            Self::NoRepository => Some(
                "check the spelling; for a private repository set HF_TOKEN to a token that may read it",
            ),
            Self::Gated => Some(
                "ask for access on the repository's page, then set HF_TOKEN to a token of that account",
            ),
            Self::NoRevision => Some(
                "name a branch, a tag or a commit that the repository has, as in org/name@main",
            ),
            Self::BadToken => {
                Some("set HF_TOKEN to a valid token, or unset it where none is needed")
            }
            Self::Forbidden => Some("use a token with write access to this repository"),
            Self::Quota => Some("free some space of the account, or push elsewhere"),
            Self::RateLimited => {
                Some("wait, then run the command again: what has been transferred is kept")
            }
            Self::Offline => Some("unset HF_HUB_OFFLINE, or pull it while the network is there"),
            Self::Network => Some("run the command again: what has been transferred is kept"),
            Self::NotOffered => Some(
                "HF_ENDPOINT names a Hub that does not offer this, as a mirror that can only be pulled from",
            ),
            Self::NoFile | Self::Conflict | Self::Answer => None,
        }
    }
}

/// The candidate nearest to `found` in spelling, if one is near enough to suggest.
pub fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(found, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// ``one of `a`, `b`, `c` `` for error messages.
pub(crate) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    format!("one of {}", names.join(", "))
}
