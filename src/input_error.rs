//! Rules about files and their keys that several rooms check, and how their messages name keys.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::error_place::{ErrorPlace, Location};
use crate::table;

/// Rules about files and their keys that several rooms check.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// A file or folder of another kind.
    #[error("{}: expected {expected}, found {found}", path.display())]
    WrongFile {
        /// The file or folder.
        path: PathBuf,
        /// The kinds that it may be.
        expected: Cow<'static, str>,
        /// What it is.
        found: String,
    },
    /// Work that cannot fit into memory.
    #[error(
        "{what} takes about {} of memory, but {} are available", table::bytes(*needed), table::bytes(*available)
    )]
    Memory {
        /// The work, as in “the run”.
        what: String,
        /// An estimate in bytes.
        needed: u64,
        /// Bytes that a process can still get.
        available: u64,
        /// What to do next.
        hint: String,
    },
    /// A key that the format does not have.
    #[error("{at}: key `{key}`: expected {}", one_of(known.iter().copied()))]
    UnknownKey {
        /// The file, and where in it.
        at: Location,
        /// The key that was found.
        key: String,
        /// All keys that the format has here.
        known: Vec<&'static str>,
    },
    /// A key that must be there is not.
    #[error("{at}: key `{key}`: is missing, expected {expected}")]
    MissingKey {
        /// The file, and where in it.
        at: Location,
        /// The key.
        key: Cow<'static, str>,
        /// The values that it may have.
        expected: Cow<'static, str>,
    },
    /// A key has a value of another type, or outside of its range.
    #[error("{at}: key `{key}`: expected {expected}, found {found}")]
    WrongValue {
        /// The file, and where in it.
        at: Location,
        /// The key.
        key: Cow<'static, str>,
        /// The values that it may have.
        expected: Cow<'static, str>,
        /// Its value, in words.
        found: String,
    },
}

impl InputError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::UnknownKey { key, known, .. } => nearest(key, known.iter().copied())
                .map(|near| format!("the nearest known key is `{near}`").into()),
            Self::Memory { hint, .. } => Some(hint.as_str().into()),
            Self::WrongFile { .. } | Self::MissingKey { .. } | Self::WrongValue { .. } => None,
        }
    }

    /// The file and the key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::WrongFile { path, .. } => ErrorPlace::of(path),
            Self::Memory { .. } => ErrorPlace::default(),
            Self::UnknownKey { at, key, .. } => ErrorPlace::of(at).with_key(key),
            Self::MissingKey { at, key, .. } => ErrorPlace::of(at).with_key(key),
            Self::WrongValue { at, key, .. } => ErrorPlace::of(at).with_key(key),
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
