//! What one step of a template may make, and the error where it would make more.

use minijinja::{Error, ErrorKind};

/// Largest width or precision: no template pads a text to more.
const WIDEST: usize = 10_000;
/// Bytes of the longest text.
pub(super) const LONGEST: usize = 16 << 20;

/// The error for a step that cannot be done.
pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// The width, unless it is one that only a hostile template asks for.
pub(super) fn width(width: usize) -> Result<usize, Error> {
    if width > WIDEST {
        return Err(invalid(format!(
            "expected a width of at most {WIDEST}, found {width}"
        )));
    }
    Ok(width)
}

/// Refuses a text of more bytes than a template may write.
pub(super) fn length(length: usize) -> Result<(), Error> {
    if length > LONGEST {
        return Err(invalid(format!(
            "a step makes more than {LONGEST} bytes of text"
        )));
    }
    Ok(())
}
