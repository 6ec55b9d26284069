//! Files open for reading, no more at a time than the process may have: a checkpoint can have more shards than that.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::process::{Resource, getrlimit};

/// Most files that are kept open, whatever the limit. With more files, opening one again costs little beside reading it.
const MOST: u64 = 1024;

static OPEN: Mutex<OpenFiles> = Mutex::new(OpenFiles {
    files: None,
    uses: 0,
});

#[derive(Default)]
struct OpenFiles {
    /// Each with the number of its last use.
    files: Option<HashMap<u64, (Arc<File>, u64)>>,
    uses: u64,
}

/// A file's key, by which it is found while it is open; dropped, it closes the file.
#[derive(Debug)]
pub(super) struct Key(u64);

impl Key {
    /// A key of its own.
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }

    /// The file, opened by `open` unless it is open still.
    pub(super) fn file(&self, open: impl FnOnce() -> io::Result<File>) -> io::Result<Arc<File>> {
        if let Some(file) = open_files().find(self.0) {
            return Ok(file);
        }
        let file = Arc::new(open()?);
        open_files().keep(self.0, &file);
        Ok(file)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        if let Some(files) = &mut open_files().files {
            files.remove(&self.0);
        }
    }
}

fn open_files() -> MutexGuard<'static, OpenFiles> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenFiles {
    fn find(&mut self, key: u64) -> Option<Arc<File>> {
        self.uses += 1;
        let (file, used) = self.files.as_mut()?.get_mut(&key)?;
        *used = self.uses;
        Some(Arc::clone(file))
    }

    fn keep(&mut self, key: u64, file: &Arc<File>) {
        let files = self.files.get_or_insert_default();
        if files.len() >= most() {
            let oldest = files.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                files.remove(&oldest);
            }
        }
        files.insert(key, (Arc::clone(file), self.uses));
    }
}

/// Files that may be kept open: a part of the limit, since outputs, libraries and threads open files too.
fn most() -> usize {
    static FOUND: OnceLock<usize> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        (limit / 4).clamp(1, MOST) as usize
    })
}
