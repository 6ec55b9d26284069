//! Random access to bytes, wherever they are.

use crate::Result;

/// Random access to bytes: a file now, a cache or a remote later.
pub trait ReadAt: Sync {
    /// Fills `buf` from `offset`; fewer bytes than asked for is an error that names the source.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
}
