//! The one error of the library: what was wrong, where (file, tensor or key), and what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, named by the place where a user would look for it.
///
/// Every variant but [`Error::Io`] and [`Error::Compute`] means the request or the input was bad (exit code 2);
/// these two mean that the machine refused (exit code 3).
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
        Self::Io { action, path, source, hint: None }
    }

    /// A file or folder that breaks a rule.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), problem: problem.into(), hint: None }
    }

    /// A tensor that breaks a rule.
    pub fn tensor(path: impl AsRef<Path>, tensor: &str, problem: impl Into<String>) -> Self {
        let (path, tensor) = (path.as_ref().to_path_buf(), tensor.to_owned());
        Self::Tensor { path, tensor, problem: problem.into(), hint: None }
    }

    /// A key of a configuration file that breaks a rule.
    pub fn key(path: impl AsRef<Path>, key: &str, problem: impl Into<String>) -> Self {
        let (path, key) = (path.as_ref().to_path_buf(), key.to_owned());
        Self::Key { path, key, problem: problem.into(), hint: None }
    }

    /// A computation that failed; `action` completes “cannot …”.
    pub fn compute(action: impl Into<String>, problem: impl ToString) -> Self {
        Self::Compute { action: action.into(), problem: problem.to_string(), hint: None }
    }

    /// A request that makes no sense.
    pub fn usage(problem: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: None }
    }

    /// The same error with advice on what to do next.
    #[must_use]
    pub fn with_hint(mut self, advice: impl Into<String>) -> Self {
        let (Self::Io { hint, .. }
        | Self::File { hint, .. }
        | Self::Tensor { hint, .. }
        | Self::Key { hint, .. }
        | Self::Compute { hint, .. }
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
        | Self::Usage { hint, .. }) = self;
        hint.as_deref()
    }

    /// Exit code of the binary: 3 where the machine refused, 2 where the request or input was bad.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::Compute { .. } => 3,
            _ => 2,
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
