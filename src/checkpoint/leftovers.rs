//! Folders on their way out, and what a run that was killed meanwhile has left of them.
//!
//! For a moment, `.NAME.removed-…` is beside the output `NAME`: it is being removed. On file systems that cannot exchange two
//! folders, `.NAME.replaced` is there, too: the old output, before the new one has its place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::filesystem::folder_of;
use super::filesystem::{self, Lock};
use super::names::LOCK;
use super::owned::check_replaceable;
use crate::{Error, Result};

/// Extension, before random letters, of a folder that is being removed.
const DOOMED: &str = "removed-";

/// Removes a folder under another name, so that a run that starts meanwhile cannot make its files in it.
pub fn remove_at_once(folder: &Path) -> io::Result<()> {
    let prefix = doomed_prefix(folder);
    // Random letters: process ids are no names on a disk that several containers share.
    let moved = tempfile::Builder::new()
        .prefix(&prefix)
        .make_in(folder_of(folder), |doomed| fs::rename(folder, doomed))?;
    let doomed = moved.into_temp_path().keep().map_err(|e| e.error)?;
    match fs::remove_dir_all(doomed) {
        // The next run of this output has removed it already.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes what a run that was killed in [`remove_at_once`] has left of `folder`.
pub(super) fn remove_doomed(folder: &Path) {
    let prefix = doomed_prefix(folder);
    for entry in fs::read_dir(folder_of(folder))
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes())
        {
            // Best effort: it is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn doomed_prefix(folder: &Path) -> std::ffi::OsString {
    let doomed = folder.with_extension(DOOMED);
    doomed.file_name().unwrap_or_default().to_owned()
}

/// Where an old output waits that cannot be exchanged with its `partial` folder.
pub(super) fn replaced(partial: &Path) -> PathBuf {
    partial.with_extension("replaced")
}

/// Puts the old output back that a run has moved aside before it was killed; removes it where the new one has its place.
pub(super) fn settle_replaced(partial: &Path, target: &Path) -> Result<()> {
    let aside = replaced(partial);
    if fs::symlink_metadata(&aside).is_err() {
        return Ok(());
    }
    if fs::symlink_metadata(target).is_err() {
        return fs::rename(&aside, target).map_err(|e| Error::io("rename to", target, e));
    }
    // A run that has just ended may be about to remove it.
    let lock = fs::File::open(aside.join(LOCK));
    if lock.is_ok_and(|lock| filesystem::try_lock(&lock).is_ok_and(|lock| lock == Lock::Busy)) {
        return Ok(());
    }
    check_replaceable(&aside)?;
    remove_at_once(&aside).map_err(|e| Error::io("remove", &aside, e))
}

/// Removes the folders from `parent` up to `made`, as long as they are empty.
pub(super) fn remove_empty(made: &Path, parent: &Path) {
    for folder in parent
        .ancestors()
        .take_while(|ancestor| ancestor.starts_with(made))
    {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
}
