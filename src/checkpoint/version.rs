//! Versions of formats: a reader refuses by name what it does not know.

use serde_json::Value;

use super::json;
use crate::error::Location;
use crate::{Error, Result};

/// Refuses a file whose version, `found` under `key`, is not the one that this program reads.
///
/// # Errors
/// Names file, key, and both versions, and says which program reads the file.
pub fn check(at: impl Into<Location>, key: &str, found: Option<&Value>, known: u64) -> Result<()> {
    let number = found.and_then(Value::as_u64);
    if number == Some(known) {
        return Ok(());
    }
    let shown = match (number, found) {
        (Some(number), _) => number.to_string(),
        (None, Some(other)) => json::kind(other),
        (None, None) => "nothing".to_owned(),
    };
    let error = Error::key(at, key, format!("expected {known}, found {shown}"));
    let this = env!("CARGO_PKG_VERSION");
    Err(if number.is_some_and(|number| number > known) {
        error.with_hint(format!(
            "a newer program wrote it: update bam-convert, which is version {this} here"
        ))
    } else {
        error.with_hint("make it again, or use the version of bam-convert that wrote it")
    })
}
