//! An output folder that is either complete or absent.
//!
//! Work goes to a sibling folder `.NAME.partial`, held by a lock so that two runs into one target
//! cannot mix, and is fsynced and renamed last. A run that fails removes its partial folder.
//! A run that is killed leaves it, and the next run with the same plan resumes from the shards that
//! are whole (see [`super::writer`]).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::card_text::keep_edited;
use super::error::CheckpointError;
use super::filesystem::{self, Lock, resolved, sync_folder, sync_name};
use super::hash::{FileHash, sha256, sha256_source};
use super::leftovers::{remove_at_once, remove_doomed, remove_empty, replaced, settle_replaced};
use super::names::{CARD, LOCK, ORIGIN, PROGRESS};
use super::owned::{check_replaceable, no_record};
use super::source_file::SourceFile;
use crate::{Error, Result, notice, table};

/// A folder being written; dropped without [`commit`](Self::commit) it leaves nothing.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    partial: PathBuf,
    replace: bool,
    /// Held, not read: the lock ends with the file.
    _lock: File,
    /// The topmost folder that had to be made to hold the target.
    made: Option<PathBuf>,
    committed: bool,
}

/// The part of a path in an output folder that is this program's own name there, where no other file can be.
pub fn reserved(path: &str) -> Option<&str> {
    let first = path.split('/').next()?;
    [LOCK, PROGRESS, ORIGIN].contains(&first).then_some(first)
}

/// Refuses an output that could not be written, without touching anything.
///
/// That is a target that is, holds or is inside a source. An existing target is refused, too, unless `force` may replace it
/// and [`check_replaceable`] allows it.
pub fn check_target(target: &Path, force: bool, sources: &[&Path]) -> Result<()> {
    if partial_of(target).is_none() {
        return Err(no_name(target));
    }
    let absolute = resolved(target)?;
    for source in sources {
        let source_path = resolved(source)?;
        if absolute.starts_with(&source_path) || source_path.starts_with(&absolute) {
            return Err(CheckpointError::Overlap {
                path: target.to_path_buf(),
                source_path: source.to_path_buf(),
            }
            .into());
        }
    }
    let Ok(metadata) = fs::symlink_metadata(target) else {
        return Ok(());
    };
    if !force {
        let path = target.to_path_buf();
        return Err(CheckpointError::Exists { path }.into());
    }
    if metadata.is_dir() {
        check_replaceable(target)
    } else {
        Err(no_record(target))
    }
}

fn no_name(target: &Path) -> Error {
    let path = target.to_path_buf();
    CheckpointError::NoFolderName { path }.into()
}

/// What the folder of a training run has after the name of its output.
pub const BESIDE: &str = ".run";

/// The folder that a training run keeps beside its output `out`.
pub fn beside(out: &Path) -> Result<PathBuf> {
    match out.file_name() {
        Some(name) => Ok(out.with_file_name(format!("{}{BESIDE}", name.to_string_lossy()))),
        None => Err(no_name(out)),
    }
}

/// Refuses to start where the file system holds less than `needed` free bytes.
pub fn check_free_space(target: &Path, needed: u64) -> Result<()> {
    // What a killed run has left is either kept or removed before anything is written.
    let free = free_space(target)? + left_behind(target);
    if free >= needed {
        return Ok(());
    }
    let source = io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "the output needs up to {}, but the file system has {} free",
            table::bytes(needed),
            table::bytes(free)
        ),
    );
    Err(Error::io("write", target, source).with_hint("free some space or choose another --out"))
}

/// Bytes on disk of the partial folder or file that a killed run has left for `target`.
fn left_behind(target: &Path) -> u64 {
    let Some(partial) = partial_of(target) else {
        return 0;
    };
    let inside = fs::read_dir(&partial).into_iter().flatten().flatten();
    let files = inside.filter_map(|entry| entry.metadata().ok());
    let all = files.chain(fs::symlink_metadata(&partial));
    all.map(|metadata| metadata.blocks() * 512).sum()
}

/// The sibling folder or file in which `target` is written.
pub(super) fn partial_of(target: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(target.file_name()?);
    name.push(".partial");
    Some(target.with_file_name(name))
}

/// Free bytes for an unprivileged user on the file system that would hold `target`.
pub fn free_space(target: &Path) -> Result<u64> {
    let absolute = std::path::absolute(target).map_err(|e| Error::io("resolve", target, e))?;
    let existing = absolute
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(|e| Error::io("measure the free space of", existing, e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

impl OutputFolder {
    /// Checks the target, makes the partial folder and locks it.
    pub fn begin(target: &Path, force: bool, sources: &[&Path]) -> Result<Self> {
        check_target(target, force, sources)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let made = parent
            .ancestors()
            .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
            .last();
        let made = made.map(Path::to_path_buf);
        let undo = |error| {
            if let Some(made) = &made {
                remove_empty(made, &parent);
            }
            error
        };
        if made.is_some() {
            fs::create_dir_all(&parent).map_err(|e| undo(Error::io("create", &parent, e)))?;
        }
        let partial = partial_of(target).ok_or_else(|| no_name(target))?;
        let lock = lock(&partial, target).map_err(undo)?;
        let folder = Self {
            target: target.to_path_buf(),
            partial,
            replace: force,
            _lock: lock,
            made,
            committed: false,
        };
        settle_replaced(&folder.partial, target)?;
        // Another run may have finished this output between the check and the lock.
        check_target(target, force, sources)?;
        remove_doomed(&folder.partial);
        Ok(folder)
    }

    /// The folder to write to until the commit.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Where the folder will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Removes what a killed run has left.
    pub fn clear(&self) -> Result<()> {
        self.clear_but(&|_| false)
    }

    /// Removes what a killed run has left, but for files that `keep` accepts by their path in the folder.
    pub fn clear_but(&self, keep: &dyn Fn(&str) -> bool) -> Result<()> {
        self.clear_inside(&self.partial, keep).map(drop)
    }

    /// Clears a folder inside, or the whole; whether it is empty now.
    fn clear_inside(&self, folder: &Path, keep: &dyn Fn(&str) -> bool) -> Result<bool> {
        let mut is_empty = true;
        let failed = |e| Error::io("list", folder, e);
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let inside = path.strip_prefix(&self.partial).unwrap_or(&path);
            let removed = if entry.file_type().map_err(failed)?.is_dir() {
                if self.clear_inside(&path, keep)? {
                    fs::remove_dir(&path)
                } else {
                    is_empty = false;
                    continue;
                }
            } else if inside == Path::new(LOCK) || inside.to_str().is_some_and(keep) {
                is_empty = false;
                continue;
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(is_empty)
    }

    /// Leaves what there is for the next run into this target, as a kill would.
    pub fn keep(mut self) {
        self.committed = true;
    }

    /// Writes a file durably.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<FileHash> {
        let path = self.place(name)?;
        let fault = |e| Error::io("write", &path, e);
        let mut file = create_anew(&path).map_err(fault)?;
        file.write_all(bytes)
            .and_then(|()| filesystem::sync(&file))
            .map_err(fault)?;
        Ok(FileHash {
            path: name.to_owned(),
            size: bytes.len() as u64,
            sha256: sha256(bytes),
        })
    }

    /// The place of a file before the output is complete; its folder is there afterwards.
    fn place(&self, name: &str) -> Result<PathBuf> {
        let path = self.partial.join(name);
        if let Some(folder) = path.parent().filter(|folder| **folder != *self.partial) {
            fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, e))?;
        }
        Ok(path)
    }

    /// Copies a file byte for byte, durably, or makes another name for it where `link` is set.
    pub fn copy(&self, from: &Path, name: &str, link: bool) -> Result<FileHash> {
        let path = self.place(name)?;
        let source = SourceFile::open(from)?;
        if link {
            let real = from
                .canonicalize()
                .map_err(|e| Error::io("resolve", from, e))?;
            remove_existing(&path)
                .and_then(|()| fs::hard_link(real, &path))
                .map_err(|e| {
                    Error::io("hard-link", &path, e).with_hint(
                        "links need one file system for both, and one that has them: leave out --link",
                    )
                })?;
        } else {
            // Not `fs::copy`, which would give the copy the source's permissions: Hub caches are read-only, and
            // Python's safetensors writes files that only their owner can read.
            let mut original = File::open(from).map_err(|e| Error::io("read", from, e))?;
            let fault = |e| Error::io("write", &path, e);
            let mut copy = create_anew(&path).map_err(fault)?;
            copy_all(&mut original, &mut copy)
                .and_then(|()| filesystem::sync(&copy))
                .map_err(fault)?;
        }
        let sha256 = sha256_source(&source)?;
        source.check_unchanged()?;
        Ok(FileHash {
            path: name.to_owned(),
            size: source.len(),
            sha256,
        })
    }

    /// Moves a file of the same file system into the folder, durably.
    pub fn take(&self, from: &Path, name: &str) -> Result<FileHash> {
        let path = self.place(name)?;
        remove_existing(&path)
            .and_then(|()| fs::rename(from, &path))
            .map_err(|e| Error::io("rename to", &path, e))?;
        let file = File::open(&path).map_err(|e| Error::io("read", &path, e))?;
        filesystem::sync(&file).map_err(|e| Error::io("write", &path, e))?;
        let source = SourceFile::open(&path)?;
        Ok(FileHash {
            path: name.to_owned(),
            size: source.len(),
            sha256: sha256_source(&source)?,
        })
    }

    /// Moves the finished folder to its place in one step.
    ///
    /// The lock moves along and goes last: without it, a run that starts now would take the partial folder for
    /// what a killed run has left, and clean it.
    pub fn commit(mut self) -> Result<()> {
        let fault = |e: Errno| Error::io("rename to", &self.target, e.into());
        sync_folder(&self.partial)?;
        let mut replaced = None;
        if self.replace && self.target.exists() {
            if let Some(copy) = keep_edited(&self.target)? {
                let (card, copy) = (self.target.join(CARD), copy.display().to_string());
                notice::once(format!(
                    "{} was edited: the edited card is now {copy}",
                    card.display()
                ));
            }
            // The old folder takes the partial one's place for a moment, and must not look abandoned there either.
            let inside = self.target.join(LOCK);
            let exchanged =
                try_lock(&inside, &self.target).and_then(|held| Ok((self.exchange()?, held)));
            replaced = Some(exchanged.inspect_err(|error| {
                // Best effort: the old folder stays, and a lock of ours is no part of it.
                if matches!(error, Error::Io { .. }) {
                    let _ = fs::remove_file(&inside);
                }
            })?);
        } else {
            match rustix::fs::renameat_with(
                CWD,
                &self.partial,
                CWD,
                &self.target,
                RenameFlags::NOREPLACE,
            ) {
                // Not every file system knows the flag.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    rustix::fs::rename(&self.partial, &self.target).map_err(fault)?;
                }
                other => other.map_err(fault)?,
            }
        }
        self.committed = true;
        let lock = self.target.join(LOCK);
        fs::remove_file(&lock).map_err(|e| Error::io("remove", lock, e))?;
        let synced = sync_name(&self.target);
        if let Some((old, _held)) = replaced {
            // Until the exchange is durable, the old folder is the only one that surely is.
            synced.map_err(|error| {
                let (new, old) = (self.target.display(), old.display());
                error.with_hint(format!(
                    "{new} is whole; what it replaces is kept in {old} until the next run"
                ))
            })?;
            return self.discard(&old);
        }
        synced
    }

    /// Removes the old folder, unless somebody has put files into it while this run worked.
    fn discard(&self, old: &Path) -> Result<()> {
        if check_replaceable(old).is_ok() {
            return remove_at_once(old)
                .map_err(|e| Error::io("remove the replaced folder", old, e));
        }
        let kept = replaced(&self.partial);
        if old != kept {
            fs::rename(old, &kept).map_err(|e| Error::io("rename to", &kept, e))?;
        }
        check_replaceable(&kept).map_err(|error| {
            error.with_hint(format!(
                "{} is whole; the folder that it replaces is kept for these files: move them, then remove it",
                self.target.display()
            ))
        })
    }

    /// Puts the finished folder in the place of the old one, and says where that is now.
    fn exchange(&self) -> Result<PathBuf> {
        let fault = |e: Errno| Error::io("rename to", &self.target, e.into());
        if rustix::fs::renameat_with(CWD, &self.partial, CWD, &self.target, RenameFlags::EXCHANGE)
            .is_ok()
        {
            return Ok(self.partial.clone());
        }
        // Not every file system can exchange: move the old folder aside first.
        let aside = replaced(&self.partial);
        rustix::fs::rename(&self.target, &aside).map_err(fault)?;
        rustix::fs::rename(&self.partial, &self.target).map_err(|e| {
            // Best effort to put the old folder back; the error below names what failed.
            let _ = rustix::fs::rename(&aside, &self.target);
            fault(e)
        })?;
        Ok(aside)
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if !self.committed {
            // The user must see the error that brought us here, not an error of the cleaning.
            let _ = remove_at_once(&self.partial);
            if let (Some(made), Some(parent)) = (&self.made, self.target.parent()) {
                remove_empty(made, parent);
            }
        }
    }
}

/// Copies what is left of one file to another; a copy that a signal interrupts continues.
fn copy_all(from: &mut File, to: &mut File) -> io::Result<()> {
    loop {
        match io::copy(from, to) {
            // What was copied before has moved both files on.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Makes a new file. One of this name is removed, not cut: it may be another name of a source (`--link`).
fn create_anew(path: &Path) -> io::Result<File> {
    remove_existing(path)?;
    File::create_new(path)
}

fn remove_existing(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes the partial folder and takes its lock; another run that holds it is an error.
fn lock(partial: &Path, target: &Path) -> Result<File> {
    loop {
        let made = fs::create_dir(partial);
        let made_here = made.is_ok();
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", partial, e));
            }
            Err(_) if fs::symlink_metadata(partial).is_ok_and(|found| !found.is_dir()) => {
                let path = partial.to_path_buf();
                return Err(CheckpointError::RunInTheWay { path }.into());
            }
            _ => {}
        }
        let path = partial.join(LOCK);
        let file = match try_lock(&path, target) {
            // The other run has just renamed or removed the folder.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(error @ Error::Io { .. }) if made_here => {
                // Best effort: this error is what the user must see.
                let _ = fs::remove_file(&path);
                let _ = fs::remove_dir(partial);
                return Err(error);
            }
            other => other?,
        };
        // The file locked may no longer be the one in the folder.
        let held = file.metadata().map_err(|e| Error::io("lock", &path, e))?;
        if fs::metadata(&path).is_ok_and(|found| found.ino() == held.ino()) {
            return Ok(file);
        }
    }
}

/// Makes a lock file and takes its lock, for the output `target`.
fn try_lock(path: &Path, target: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| Error::io("create", path, e))?;
    match filesystem::try_lock(&file).map_err(|e| Error::io("lock", path, e))? {
        Lock::Busy => Err(busy(target)),
        Lock::Held | Lock::Unsupported => Ok(file),
    }
}

/// The refusal to write what another run writes.
pub(super) fn busy(target: &Path) -> Error {
    let path = target.to_path_buf();
    CheckpointError::Busy { path }.into()
}
