//! Versions of formats: a reader refuses by name what it does not know.

use serde_json::Value;

use super::error::CheckpointError;
use super::json;
use crate::Result;
use crate::error::Location;

/// Refuses a file whose version, `found` under `key`, is not the one that this program reads.
///
/// # Errors
/// Names file, key, and both versions, and says which program reads the file.
pub fn check(
    at: impl Into<Location>,
    key: &'static str,
    found: Option<&Value>,
    known: u64,
) -> Result<()> {
    let number = found.and_then(Value::as_u64);
    if number == Some(known) {
        return Ok(());
    }
    let shown = match (number, found) {
        (Some(number), _) => number.to_string(),
        (None, Some(other)) => json::kind(other),
        (None, None) => "nothing".to_owned(),
    };
    Err(CheckpointError::Version {
        at: at.into(),
        key,
        expected: known,
        found: shown,
        is_newer: number.is_some_and(|number| number > known),
    }
    .into())
}
