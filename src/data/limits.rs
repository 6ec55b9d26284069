//! What a file of texts may hold, by its length, and the errors of those that hold more.

use std::path::Path;

use crate::Error;
use crate::error::nearest;

/// Largest document in bytes of text.
pub(super) const LARGEST: u64 = 64 << 20;

/// Bytes of text that a table may hold whatever its length.
pub(super) const TABLE: u64 = 16 << 20;

/// Bytes of text by the bytes of a packed file or a table beyond that: texts of people pack to a tenth or a hundredth.
const UNPACKED: u64 = 1000;

/// Bytes of text that a packed file of `length` bytes may hold, and `free` more.
pub(super) fn most_text(free: u64, length: u64) -> u64 {
    free.saturating_add(UNPACKED.saturating_mul(length))
}

pub(super) fn unpacks_too_far(path: &Path, most: u64, length: u64) -> Error {
    let problem = format!("expected at most {most} bytes of text packed in {length}, found more");
    Error::file(path, problem).with_hint("is it a real text? unpack it yourself if it is")
}

pub(super) fn too_long(path: &Path, place: &str, found: u64) -> Error {
    let problem =
        format!("{place}: expected a document of at most {LARGEST} bytes, found {found} or more");
    Error::file(path, problem)
        .with_hint("split it into documents: one a file, or one a line of JSON lines")
}

/// `error` about a missing key or column, with the keys that there are.
pub(super) fn key_hint<'a>(
    error: Error,
    wanted: &str,
    keys: impl Iterator<Item = &'a str>,
) -> Error {
    let keys: Vec<&str> = keys.take(20).collect();
    match (nearest(wanted, keys.iter().copied()), keys.is_empty()) {
        (Some(near), _) => error.with_hint(format!("did you mean --text-key {near}?")),
        (None, false) => error.with_hint(format!(
            "--text-key names the text; there are: {}",
            keys.join(", ")
        )),
        (None, true) => error,
    }
}
