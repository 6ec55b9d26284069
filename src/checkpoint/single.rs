//! A single file that is either complete or absent.
//!
//! It grows beside its place as `.NAME.partial`, whose lock keeps two runs apart, and is renamed when it is whole. What a run
//! that was killed has left under that name the next one writes over. A folder that is missing is made, as for an output
//! folder: a command may have worked for hours before it writes.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use safetensors::Dtype;

use super::error::CheckpointError;
use super::filesystem::{self, Lock};
use super::filesystem::{folder_of, sync_name};
use super::output::{busy, partial_of};
use super::{SourceFile, header};
use crate::{Error, Result};

/// Partial files of this process, for [`remove_unfinished`].
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Writes `parts`, one after the other, to a sibling of `path` that then takes its place; the last of several writers
/// wins.
pub fn write(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let fault = |e| Error::io("write", path, e);
    write_with(path, |file| {
        parts
            .iter()
            .try_for_each(|part| file.write_all(part))
            .map_err(fault)
    })
}

/// As [`write()`], of what `fill` puts into the file.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut file = Partial::begin(path, filesystem::lock)?;
    fill(&mut file.file)?;
    file.finish(path)
}

/// As [`write_with()`], but another run that writes the file is an error. `check` says whether the place is still free, once
/// no other run can take it.
pub fn write_alone(
    path: &Path,
    check: impl FnOnce() -> Result<()>,
    fill: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    let mut file = Partial::begin(path, filesystem::try_lock)?;
    check()?;
    fill(&mut file.file)?;
    file.finish(path)
}

/// Removes what this process has begun to write, for a signal that ends it. Nothing can be finished afterwards.
pub fn remove_unfinished() {
    // Not waited for to the end: the thread that holds it may be the one that asks.
    let held = (0..100).find_map(|_| {
        let held = UNFINISHED.try_lock().ok();
        if held.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        held
    });
    let Some(unfinished) = held else {
        return;
    };
    for path in unfinished.iter() {
        // There is nobody left to tell.
        let _ = fs::remove_file(path);
    }
    // Held to the end of the process, so that no file gets its name now.
    std::mem::forget(unfinished);
}

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of a file says what it is.
const BEGINNING: u64 = 1 << 16;

/// The beginning of a regular file; nothing of one that cannot be read.
fn beginning(path: &Path) -> Vec<u8> {
    let mut found = Vec::new();
    // A pipe would keep whoever opens it waiting.
    if path.is_file()
        && let Ok(file) = File::open(path)
        && file.take(BEGINNING).read_to_end(&mut found).is_err()
    {
        found.clear();
    }
    found
}

/// Whether a file that can be read begins so.
pub fn starts_with(path: &Path, start: &[u8]) -> bool {
    beginning(path).starts_with(start)
}

/// Refuses to replace a file that is no SVG.
pub fn check_svg(path: &Path) -> Result<()> {
    check_kind(path, "SVG", &|beginning| beginning.starts_with(b"<svg"))
}

/// Refuses to replace a file whose beginning does not say that it is of this `kind`.
pub fn check_kind(path: &Path, kind: &str, is_one: &dyn Fn(&[u8]) -> bool) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() && !is_one(&beginning(path)) {
        return Err(CheckpointError::OtherKind {
            path: path.to_path_buf(),
            kind: kind.to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Writes one float32 tensor as a safetensors file.
///
/// An existing file is replaced only if it is one that this function wrote: it holds that one tensor, and nothing else.
pub fn write_tensor(path: &Path, name: &str, shape: &[u64], values: &[f32]) -> Result<()> {
    check_tensor_target(path, name)?;
    let header = header::write([(name, Dtype::F32, shape)]);
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    write(path, &[&header, &data])
}

/// Refuses a target that [`write_tensor`] would not replace.
pub fn check_tensor_target(path: &Path, name: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let same = SourceFile::open(path).and_then(|file| header::read(&file, 0));
    match same {
        Ok(header) if header.tensors.len() == 1 && header.tensors.contains_key(name) => Ok(()),
        _ => Err(CheckpointError::OtherKind {
            path: path.to_path_buf(),
            kind: format!("file of the one tensor `{name}`"),
        }
        .into()),
    }
}

/// A file on its way, removed unless it is finished.
struct Partial {
    path: PathBuf,
    /// Its lock ends with it.
    file: File,
    is_finished: bool,
}

impl Partial {
    /// Makes the file for `path`, and takes its lock with `take`.
    fn begin(path: &Path, take: fn(&File) -> io::Result<Lock>) -> Result<Self> {
        let partial = partial_of(path).ok_or_else(|| CheckpointError::NoFileName {
            path: path.to_path_buf(),
        })?;
        let folder = folder_of(path);
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let fault = |e| Error::io("write", path, e);
        loop {
            let found = fs::symlink_metadata(&partial);
            if found.is_ok_and(|found| !found.is_file()) {
                return Err(CheckpointError::FileInTheWay { path: partial }.into());
            }
            // What is there may be written by another run: it is cut once the lock is held.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&partial)
                .map_err(fault)?;
            match take(&file).map_err(|e| Error::io("lock", &partial, e))? {
                Lock::Busy => return Err(busy(path)),
                Lock::Unsupported => return Self::unlocked(path, &partial),
                Lock::Held => {}
            }
            // The file locked may be one that has its place, or was removed, since it was opened.
            let held = file.metadata().map_err(fault)?.ino();
            if fs::symlink_metadata(&partial).is_ok_and(|found| found.ino() == held) {
                let partial = Self::new(partial, file);
                partial.file.set_len(0).map_err(fault)?;
                return Ok(partial);
            }
        }
    }

    /// Where there are no locks, random letters keep two runs apart; what a kill leaves has to be removed by hand.
    fn unlocked(path: &Path, partial: &Path) -> Result<Self> {
        // Best effort: it was made for its lock.
        let _ = fs::remove_file(partial);
        let mut prefix = partial.file_name().unwrap_or_default().to_owned();
        prefix.push("-");
        let made = tempfile::Builder::new()
            .prefix(&prefix)
            .make_in(folder_of(path), |partial| File::create_new(partial));
        let (file, name) = made.map_err(|e| Error::io("write", path, e))?.into_parts();
        let name = name.keep().map_err(|e| Error::io("write", path, e.error))?;
        Ok(Self::new(name, file))
    }

    fn new(path: PathBuf, file: File) -> Self {
        unfinished().insert(path.clone());
        Self {
            path,
            file,
            is_finished: false,
        }
    }

    /// Makes the file durable and gives it its name.
    fn finish(mut self, path: &Path) -> Result<()> {
        let fault = |e| Error::io("write", path, e);
        filesystem::sync(&self.file).map_err(fault)?;
        let mut unfinished = unfinished();
        fs::rename(&self.path, path).map_err(fault)?;
        unfinished.remove(&self.path);
        drop(unfinished);
        self.is_finished = true;
        sync_name(path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_finished {
            // The user must see the error that brought us here, not an error of the cleaning.
            let _ = fs::remove_file(&self.path);
            unfinished().remove(&self.path);
        }
    }
}
