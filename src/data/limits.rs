//! How much text a file may hold, by its length.

/// Largest document in bytes of text.
pub(super) const LARGEST: u64 = 64 << 20;

/// Bytes of text that a table may hold whatever its length.
pub(super) const TABLE: u64 = 16 << 20;

/// Bytes of text for each further byte of a packed file or a table. Human text packs to a tenth or a hundredth.
const UNPACKED: u64 = 1000;

/// Bytes of text that a packed file of `length` bytes may hold, and `free` more.
pub(super) fn most_text(free: u64, length: u64) -> u64 {
    free.saturating_add(UNPACKED.saturating_mul(length))
}
