//! Shared experts that are there for their format alone.
//!
//! Some formats have no mixture without a shared expert. One whose down projections are zero adds nothing.

use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::family::{Architecture, Role};

/// Bytes that are looked at in one go.
const PIECE: u64 = 1 << 20;

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

/// Whether every byte of a tensor is zero. It is read up to the first byte that is not.
///
/// False for a tensor that cannot be read; whoever needs its values says why.
pub fn holds_zeros(checkpoint: &Checkpoint, name: &str) -> bool {
    let Some(entry) = checkpoint.tensors.get(name) else {
        return false;
    };
    let mut piece = vec![0; entry.length.min(PIECE) as usize];
    let mut at = 0;
    while at < entry.length {
        let length = (entry.length - at).min(PIECE) as usize;
        let is_read = checkpoint.read_bytes(entry, at, &mut piece[..length]);
        if is_read.is_err() || piece[..length].iter().any(|byte| *byte != 0) {
            return false;
        }
        at += length as u64;
    }
    true
}
