//! Shared experts that are there for their format alone.
//!
//! Some formats have no mixture without a shared expert. One whose down projections are zero adds nothing.

use crate::Result;
use crate::family::{Architecture, Role};

/// Whether there are down projections of shared experts, and `is_zero` holds for the names of all of them.
///
/// # Errors
/// An architecture whose tensors cannot be listed.
pub fn has_neutral_shared_expert(
    architecture: &Architecture,
    is_zero: impl Fn(&str) -> bool,
) -> Result<bool> {
    let specs = architecture.tensors()?;
    let down = specs.iter().filter(|spec| spec.role == Role::SharedDown);
    let mut down = down.peekable();
    Ok(down.peek().is_some() && down.all(|spec| is_zero(&spec.name)))
}
