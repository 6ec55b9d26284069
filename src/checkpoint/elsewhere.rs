//! Weight files of which only the header is on this machine: their other bytes come from elsewhere, as they are asked for.
//!
//! Whoever made the file with the header says where its bytes are, with [`bring`]. Readers then need not know:
//! [`SourceFile`](super::SourceFile) is the one place where bytes of weights are read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::read_at::ReadAt;
use crate::{Error, Result};

static FILES: Mutex<BTreeMap<PathBuf, Elsewhere>> = Mutex::new(BTreeMap::new());

/// The bytes of a file that is not on this machine.
#[derive(Clone)]
pub(super) struct Elsewhere(Arc<dyn ReadAt + Send>);

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Elsewhere")
    }
}

impl ReadAt for Elsewhere {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// Makes this process read the bytes of the file at `path` from `bytes`.
///
/// # Errors
/// Where there is no file.
pub fn bring(path: &Path, bytes: Arc<dyn ReadAt + Send>) -> Result<()> {
    let place = std::fs::canonicalize(path).map_err(|e| Error::io("find", path, e))?;
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    files.insert(place, Elsewhere(bytes));
    Ok(())
}

/// Whether the bytes of the file at `path` are not on this machine.
pub fn holds(path: &Path) -> bool {
    of(path).is_some()
}

/// Where the bytes of the file at `path` are, if they are not on this machine.
pub(super) fn of(path: &Path) -> Option<Elsewhere> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    if files.is_empty() {
        return None;
    }
    files.get(&std::fs::canonicalize(path).ok()?).cloned()
}
