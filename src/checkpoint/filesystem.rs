//! What not every file system offers: locks, and syncing of folders.
//!
//! Network and FUSE file systems lack one or the other. A command does its work all the same, and says once what it could
//! not make sure of.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use tempfile::TempDir;

use crate::error::TEMPORARY_FOLDER;
use crate::{Error, Result, notice};

const NO_LOCKS: &str =
    "this file system has no locks: do not write the same output with two commands at a time";
const NO_SYNC: &str = "this file system cannot sync: the output may be lost if the machine stops within the next minute";

/// What became of a lock that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It is held until the file is closed.
    Held,
    /// Another process holds it.
    Busy,
    /// The file system has no locks.
    Unsupported,
}

/// Asks for a file's lock, and does not wait.
pub fn try_lock(file: &File) -> io::Result<Lock> {
    asked(file.try_lock())
}

/// Asks for a file's lock beside others that share it, and does not wait.
pub fn try_lock_shared(file: &File) -> io::Result<Lock> {
    asked(file.try_lock_shared())
}

/// Waits for a file's lock.
pub fn lock(file: &File) -> io::Result<Lock> {
    asked(file.lock().map_err(TryLockError::Error))
}

fn asked(outcome: std::result::Result<(), TryLockError>) -> io::Result<Lock> {
    match outcome {
        Ok(()) => Ok(Lock::Held),
        Err(TryLockError::WouldBlock) => Ok(Lock::Busy),
        // NFS without lockd; Lustre and FUSE without `flock`.
        Err(TryLockError::Error(e)) if lacks(&e, &[Errno::NOLCK]) => {
            notice::once(NO_LOCKS);
            Ok(Lock::Unsupported)
        }
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Makes a file, or the names in a folder, durable as far as the file system can.
pub fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        // Linux answers this where a file system cannot sync folders.
        Err(e) if lacks(&e, &[Errno::INVAL]) => {
            notice::once(NO_SYNC);
            Ok(())
        }
        other => other,
    }
}

/// Makes `link` lead to `target`, which may be relative to its folder. On a file system without symbolic links it becomes
/// another name of `target`, or a copy.
pub fn link_or_copy(target: &Path, link: &Path) -> io::Result<()> {
    match symlink(target, link) {
        Err(e) if has_no_links(&e) => {
            let whole = folder_of(link).join(target);
            fs::hard_link(&whole, link).or_else(|_| {
                let copied = File::open(&whole).and_then(|mut from| {
                    let mut to = File::create_new(link)?;
                    io::copy(&mut from, &mut to)?;
                    sync(&to)
                });
                copied.inspect_err(|_| {
                    // The error of the copy counts, not an error of the cleaning.
                    let _ = fs::remove_file(link);
                })
            })
        }
        other => other,
    }
}

/// Whether making a symbolic link failed because the file system has none.
pub fn has_no_links(error: &io::Error) -> bool {
    // FAT answers with EPERM.
    lacks(error, &[Errno::PERM])
}

/// A folder for temporary files, which goes when this does.
pub fn temporary_folder(prefix: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .map_err(|e| {
            let folder = std::env::temp_dir();
            Error::io(TEMPORARY_FOLDER, folder, e)
                .with_hint("set TMPDIR to a folder that you can write to")
        })
}

/// Whether an error says that the file system does not offer this: by one of `errors`, or by one that always says so.
fn lacks(error: &io::Error, errors: &[Errno]) -> bool {
    let found = Errno::from_io_error(error);
    found.is_some_and(|found| {
        errors.contains(&found) || [Errno::NOSYS, Errno::OPNOTSUPP].contains(&found)
    })
}

/// The absolute path with links followed as far as it exists, the rest appended.
pub fn resolved(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))?;
    let existing = absolute
        .ancestors()
        .find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match existing {
        Some((ancestor, real)) => Ok(absolute
            .strip_prefix(ancestor)
            .map_or(real.clone(), |rest| real.join(rest))),
        None => Ok(absolute),
    }
}

/// The folder that a path names something in: the current one for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    sync_open(folder).map_err(|e| Error::io("sync", folder, e))
}

/// Makes the name of a file or folder durable in the folder that holds it.
pub(super) fn sync_name(path: &Path) -> Result<()> {
    sync_open(folder_of(path)).map_err(|e| Error::io("sync the folder of", path, e))
}

fn sync_open(folder: &Path) -> io::Result<()> {
    sync(&File::open(folder)?)
}
