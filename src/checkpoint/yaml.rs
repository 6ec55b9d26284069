//! Small YAML files of ours, read into types; JSON is YAML too.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::CheckpointError;
use super::json;
use crate::Result;
use crate::error::{InputError, Location};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// Most values that aliases may stand for.
const MOST_ALIASED: usize = 10_000;

/// A place in a file that the parser has seen.
pub(crate) fn place(path: &Path, location: serde_saphyr::Location) -> Location {
    Location {
        path: path.to_path_buf(),
        position: Some(location.into()),
    }
}

/// Reads the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &read_text(path)?)
}

/// The text of a YAML file; more than 1 MiB is refused, and what is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = json::read_bytes_up_to(path, LARGEST)?;
    let text = String::from_utf8(bytes).map_err(|e| CheckpointError::NotUtf8 {
        path: path.to_path_buf(),
        problem: e.to_string(),
    })?;
    Ok(text)
}

/// Parses the text, with the library's own error.
pub(crate) fn from_text<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    // Aliases of aliases unfold: a few hundred bytes would be a million values.
    let options = serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_ALIASED },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// Parses the text; `path` only names the place in errors. Unknown keys are refused with the nearest known one.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    from_text(text).map_err(|error| {
        let error = match error {
            serde_saphyr::Error::WithSnippet { error, .. } => *error,
            other => other,
        };
        match error {
            serde_saphyr::Error::SerdeUnknownField {
                field,
                expected,
                location,
            } => InputError::UnknownKey {
                at: place(path, location),
                key: field,
                known: expected,
            }
            .into(),
            other => CheckpointError::Yaml {
                path: path.to_path_buf(),
                problem: other.to_string(),
            }
            .into(),
        }
    })
}
