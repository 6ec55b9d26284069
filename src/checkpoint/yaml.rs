//! Small YAML files of ours, read into types; JSON is YAML too.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_saphyr::Location;

use crate::error::{nearest, one_of};
use crate::{Error, Result};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// `FILE:LINE:COLUMN`, which editors open.
pub(crate) fn place(path: &Path, location: Location) -> PathBuf {
    PathBuf::from(format!("{}:{}:{}", path.display(), location.line(), location.column()))
}

/// Reads the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let size = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    if size > LARGEST {
        return Err(Error::file(path, format!("expected at most {LARGEST} bytes of YAML, found {size}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    parse(path, &text)
}

/// Parses the text; `path` only names the place in errors. Unknown keys are refused with the nearest known one.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_saphyr::from_str(text).map_err(|error| {
        let error = match error {
            serde_saphyr::Error::WithSnippet { error, .. } => *error,
            other => other,
        };
        match &error {
            serde_saphyr::Error::SerdeUnknownField { field, expected, location } => {
                let problem = format!("expected {}", one_of(expected.iter().copied()));
                let error = Error::key(place(path, *location), field, problem);
                match nearest(field, expected.iter().copied()) {
                    Some(name) => error.with_hint(format!("the nearest known key is `{name}`")),
                    None => error,
                }
            }
            other => Error::file(path, other.to_string()),
        }
    })
}
