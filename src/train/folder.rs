//! The folder of a run, `OUT.run`: its log, its settings, its checkpoints; held by one process at a time.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::TrainError;
use super::metrics::METRICS;
use super::run_error::RunError;
use crate::checkpoint::filesystem::sync_folder;
use crate::checkpoint::filesystem::{self, Lock};
use crate::checkpoint::leftovers::remove_at_once;
use crate::checkpoint::output::beside;
use crate::checkpoint::owned::{check_none, check_replaceable};
use crate::checkpoint::{Manifest, single};
use crate::{Error, Result};

const LOCK: &str = ".lock";
/// File name of the settings within a run's folder.
pub(super) const SETTINGS: &str = "settings.json";
const CHECKPOINTS: &str = "checkpoints";
/// The folder of what another engine needs and writes.
pub(super) const ENGINE: &str = "engine";
/// What the name of a checkpoint begins with.
const STEP: &str = "step-";
/// Extension of a checkpoint that was found damaged.
const DAMAGED: &str = "damaged";

/// The folder of a run, held.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
    /// Held, not read: the lock ends with the file.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder beside `out`, or takes the one of a run that was stopped where `resume` is set; `force` removes
    /// what an earlier run has left.
    pub(super) fn begin(out: &Path, resume: bool, force: bool) -> Result<Self> {
        let (path, begun) = begun_at(out, resume, force)?;
        let checkpoints = path.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(|e| Error::io("create", &checkpoints, e))?;
        let lock = path.join(LOCK);
        let file = OpenOptions::new().create(true).append(true).open(&lock);
        let file = file.map_err(|e| Error::io("create", &lock, e))?;
        if filesystem::try_lock(&file).map_err(|e| Error::io("lock", &lock, e))? == Lock::Busy {
            return Err(RunError::Busy { path }.into());
        }
        let folder = Self { path, _lock: file };
        if begun && !resume {
            let entries = list(&checkpoints)?;
            check_names(&checkpoints, &entries)?;
            entries
                .iter()
                .try_for_each(|entry| check_own(&entry.path()))?;
            entries.iter().try_for_each(|entry| remove(&entry.path()))?;
            for name in [SETTINGS, METRICS] {
                let path = folder.path.join(name);
                if path.exists() {
                    fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                }
            }
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the settings down.
    pub(super) fn write_settings(&self, settings: &Map<String, Value>) -> Result<()> {
        let path = self.path.join(SETTINGS);
        let mut text =
            serde_json::to_vec_pretty(settings).map_err(|source| TrainError::NotWritten {
                what: "the settings of the run",
                source,
            })?;
        text.push(b'\n');
        single::write(&path, &[&text])
    }

    /// Where the checkpoint of `step` is, or will be.
    pub(super) fn checkpoint(&self, step: u64) -> PathBuf {
        checkpoint_at(&self.path, step)
    }

    /// The complete checkpoints by step; removes what is left of others.
    pub(super) fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        for entry in list(&self.path.join(CHECKPOINTS))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(".removed-") || name.ends_with(".partial") {
                // A run was killed while it wrote or removed this one; its lock is ours.
                fs::remove_dir_all(entry.path())
                    .map_err(|e| Error::io("remove", entry.path(), e))?;
            }
        }
        checkpoints_in(&self.path)
    }

    /// Moves a damaged checkpoint out of the run's way, and returns where it is then.
    pub(super) fn set_aside(&self, checkpoint: &Path) -> Result<PathBuf> {
        // What an earlier resume has set aside stays.
        let mut aside = checkpoint.with_extension(DAMAGED);
        let mut number = 2;
        while aside.exists() {
            aside = checkpoint.with_extension(format!("{DAMAGED}-{number}"));
            number += 1;
        }
        fs::rename(checkpoint, &aside).map_err(|e| Error::io("rename", checkpoint, e))?;
        sync_folder(&self.path.join(CHECKPOINTS))?;
        Ok(aside)
    }

    /// Removes all checkpoints but the `keep` latest. Folders that hold more or less than a record of ours lists stay.
    pub(super) fn prune(&self, keep: usize) -> Result<()> {
        let all = self.checkpoints()?;
        let surplus = all.len().saturating_sub(keep.max(1));
        all[..surplus]
            .iter()
            .filter(|(_, path)| is_own(path))
            .try_for_each(|(_, path)| remove(path))?;
        sync_folder(&self.path.join(CHECKPOINTS))
    }
}

/// The folder of the run of `out`, and whether a run has begun there; changes nothing.
///
/// # Errors
/// A run that was begun, unless it is to `resume` or `force` may remove it; a folder of something else.
pub(super) fn begun_at(out: &Path, resume: bool, force: bool) -> Result<(PathBuf, bool)> {
    let path = beside(out)?;
    let begun = [SETTINGS, METRICS]
        .iter()
        .any(|name| path.join(name).exists())
        || holds_checkpoints(&path);
    if begun && !resume && !force {
        return Err(RunError::HoldsRun { path }.into());
    }
    if path.exists() && !begun && !is_abandoned(&path) {
        return Err(RunError::NotRunFolder { path }.into());
    }
    Ok((path, begun))
}

/// Refuses the run in `folder` while another process is at it; changes nothing.
pub(super) fn check_idle(folder: &Path) -> Result<()> {
    let lock = File::open(folder.join(LOCK));
    if lock.is_ok_and(|lock| filesystem::try_lock(&lock).is_ok_and(|lock| lock == Lock::Busy)) {
        let path = folder.to_path_buf();
        return Err(RunError::Busy { path }.into());
    }
    Ok(())
}

/// The complete checkpoints of the run in `folder` by step, ascending; none where it has no folder for them.
pub(super) fn checkpoints_in(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = folder.join(CHECKPOINTS);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in list(&folder)? {
        if let Some(step) = step_of(&entry.file_name().to_string_lossy()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The steps that the run of `out` would not take again, by its newest checkpoint. Nothing is read to check that one.
///
/// # Errors
/// A path without a name, and a folder that cannot be listed.
pub fn steps_taken(out: &Path) -> Result<u64> {
    let checkpoints = checkpoints_in(&beside(out)?)?;
    Ok(checkpoints.last().map_or(0, |(step, _)| *step))
}

/// Where the run in `folder` has the checkpoint of `step`.
pub(super) fn checkpoint_at(folder: &Path, step: u64) -> PathBuf {
    folder.join(CHECKPOINTS).join(name_of(step))
}

/// Where the run of `out` keeps its checkpoints.
///
/// # Errors
/// A path without a name.
pub fn checkpoints_of(out: &Path) -> Result<PathBuf> {
    Ok(beside(out)?.join(CHECKPOINTS))
}

/// Bytes of the checkpoints of the run of `out`; 0 where it has none.
///
/// # Errors
/// A folder that cannot be listed.
pub fn checkpoint_bytes(out: &Path) -> Result<u64> {
    let mut bytes = 0;
    if holds_checkpoints(&beside(out)?) {
        for entry in list(&checkpoints_of(out)?)? {
            let is_whole = step_of(&entry.file_name().to_string_lossy()).is_some();
            if is_whole && is_own(&entry.path()) {
                bytes += length(&entry.path())?;
            }
        }
    }
    Ok(bytes)
}

/// Removes the checkpoints of the run of `out`, but what has no record of its own and what holds other files; returns their
/// bytes.
///
/// # Errors
/// A run that another process continues, and files that cannot be removed.
pub fn remove_checkpoints(out: &Path) -> Result<u64> {
    if !holds_checkpoints(&beside(out)?) {
        return Ok(0);
    }
    let bytes = checkpoint_bytes(out)?;
    let folder = RunFolder::begin(out, true, false)?;
    for (_, path) in folder.checkpoints()? {
        if is_own(&path) {
            remove(&path)?;
        }
    }
    sync_folder(&checkpoints_of(out)?)?;
    Ok(bytes)
}

/// Bytes of a file, or of all files in a folder.
fn length(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path).map_err(|e| Error::io("read", path, e))?;
    if metadata.is_dir() {
        list(path)?.iter().map(|entry| length(&entry.path())).sum()
    } else {
        Ok(metadata.len())
    }
}

/// Refuses to empty a folder of checkpoints that holds anything else.
fn check_names(checkpoints: &Path, entries: &[fs::DirEntry]) -> Result<()> {
    let names = entries.iter().map(|entry| PathBuf::from(entry.file_name()));
    // Hidden ones are checkpoints that a killed run was about to write or remove.
    let is_ours = |name: &PathBuf| {
        let name = name.to_string_lossy();
        name.trim_start_matches('.').starts_with(STEP)
    };
    let mut others: Vec<PathBuf> = names.filter(|name| !is_ours(name)).collect();
    others.sort();
    check_none(checkpoints, &others)
}

/// Refuses to remove what has no record of ours, and a checkpoint in which somebody keeps files of their own. A record that
/// cannot be read is one of ours, which was damaged.
fn check_own(checkpoint: &Path) -> Result<()> {
    match Manifest::read(checkpoint) {
        Ok(_) => check_replaceable(checkpoint),
        Err(_) => Ok(()),
    }
}

/// Whether the record in a checkpoint lists all that it holds.
fn is_own(checkpoint: &Path) -> bool {
    matches!(Manifest::read(checkpoint), Ok(Some(_))) && check_replaceable(checkpoint).is_ok()
}

/// The step of a checkpoint by its name.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix(STEP)?.parse().ok()?;
    (name == name_of(step)).then_some(step)
}

fn name_of(step: u64) -> String {
    format!("{STEP}{step:08}")
}

/// Whether a run has saved in this folder: its other files can be lost.
pub(super) fn holds_checkpoints(folder: &Path) -> bool {
    let entries = fs::read_dir(folder.join(CHECKPOINTS));
    let mut names = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    names.any(|name| name.to_str().is_some_and(|name| step_of(name).is_some()))
}

/// Whether a folder holds nothing but what a run makes before it begins: hidden files, a folder for checkpoints, and the
/// folder of another engine.
fn is_abandoned(folder: &Path) -> bool {
    let is_empty =
        |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    let is_ours = |entry: fs::DirEntry| {
        let name = entry.file_name();
        name.as_encoded_bytes().starts_with(b".")
            || name == ENGINE
            || name == CHECKPOINTS && is_empty(&entry.path())
    };
    fs::read_dir(folder).is_ok_and(|entries| entries.flatten().all(is_ours))
}

fn list(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let failed = |e| Error::io("list", folder, e);
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| entry.map_err(failed)).collect()
}

/// Removes a folder, or a file in the place of one.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        remove_at_once(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(|e| Error::io("remove", path, e))
}
