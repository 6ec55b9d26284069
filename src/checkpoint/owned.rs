//! Which files of a folder this program made, by the records that it leaves there.
//!
//! Only these are ever removed with the folder: whatever else somebody keeps in it is not ours to replace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::companions::{COMPANIONS, TEMPLATES};
use super::error::CheckpointError;
use super::json;
use super::manifest::{MANIFEST, Manifest, Origin};
use super::names::{CARD, LOCK, ORIGIN};
use crate::{Error, Result};

pub use super::names::TOKENS;

/// How many files of others an error names.
const NAMED: usize = 5;

/// Refuses to replace a folder without a record of ours, or with files that its records do not list. An empty folder has
/// nothing to lose.
pub fn check_replaceable(folder: &Path) -> Result<()> {
    let Some(ours) = listed(folder)? else {
        return if is_empty(folder) {
            Ok(())
        } else {
            Err(no_record(folder))
        };
    };
    check_none(folder, &foreign(folder, &ours)?)
}

/// Refuses to remove a folder that holds `others`, paths within it that no record of ours lists.
pub fn check_none(folder: &Path, others: &[PathBuf]) -> Result<()> {
    if others.is_empty() {
        return Ok(());
    }
    let more = if others.len() > NAMED {
        " and more"
    } else {
        ""
    };
    let named: Vec<String> = others
        .iter()
        .take(NAMED)
        .map(|path| path.display().to_string())
        .collect();
    Err(CheckpointError::OtherFiles {
        path: folder.to_path_buf(),
        others: named.join(", ") + more,
    }
    .into())
}

/// The refusal to replace what no record says is ours.
pub(super) fn no_record(target: &Path) -> Error {
    let path = target.to_path_buf();
    CheckpointError::NoRecord { path }.into()
}

/// The files that the records of a folder list, with the records themselves; `None` where there is no record.
fn listed(folder: &Path) -> Result<Option<BTreeSet<PathBuf>>> {
    let mut names = BTreeSet::new();
    if let Some(manifest) = Manifest::read(folder)? {
        names.insert(MANIFEST.to_owned());
        names.extend(manifest.files.into_iter().map(|file| file.path));
        names.extend(manifest.unhashed_files);
    }
    if let Some(origin) = Origin::read(folder) {
        names.insert(ORIGIN.to_owned());
        names.extend(origin.files.into_iter().map(|file| file.path));
    }
    if let Some(shards) = token_shards(folder) {
        names.insert(TOKENS.to_owned());
        names.extend(shards);
        names.extend(COMPANIONS.map(str::to_owned));
        names.insert(format!("{TEMPLATES}/tool_use.jinja"));
    }
    if names.is_empty() {
        return Ok(None);
    }
    // People edit the card; the lock is what a run that was killed while it replaced the folder has left.
    names.extend([CARD, LOCK].map(str::to_owned));
    Ok(Some(names.into_iter().map(PathBuf::from).collect()))
}

/// The shards of a token folder, by its header; `None` without a header.
fn token_shards(folder: &Path) -> Option<Vec<String>> {
    let header = json::read_object(&folder.join(TOKENS)).ok()?;
    header.get("tokenizer_sha256")?;
    let splits = header.get("splits")?.as_object()?;
    let shards = splits.values().filter_map(Value::as_array).flatten();
    let files = shards.filter_map(|shard| Some((shard.get("file")?.as_str()?, shard.get("mask"))));
    let all = files.flat_map(|(file, mask)| {
        let beside = |ending| Path::new(file).with_extension(ending);
        let beside = [Some(beside("ends")), mask.map(|_| beside("mask"))];
        let beside = beside.into_iter().flatten();
        std::iter::once(PathBuf::from(file)).chain(beside)
    });
    Some(
        all.map(|path| path.to_string_lossy().into_owned())
            .collect(),
    )
}

/// Files in a folder that are not among `ours`, as paths within it; at most one more than an error names.
fn foreign(folder: &Path, ours: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        let place = folder.join(&inside);
        let failed = |e| Error::io("list", &place, e);
        for entry in fs::read_dir(&place).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = inside.join(entry.file_name());
            // A link is removed as a link, wherever it leads.
            let is_folder = entry.file_type().map_err(failed)?.is_dir();
            match is_folder {
                true if ours
                    .iter()
                    .any(|file| *file != path && file.starts_with(&path)) =>
                {
                    open.push(path);
                }
                false if ours.contains(&path) || is_unfinished(&path, ours) => {}
                _ => found.push(path),
            }
        }
    }
    found.sort();
    found.truncate(NAMED + 1);
    Ok(found)
}

/// Whether a file is what a run that was killed has left of one of `ours` (see [`super::single`]).
fn is_unfinished(path: &Path, ours: &BTreeSet<PathBuf>) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.strip_prefix('.')?.rsplit_once(".partial"));
    stem.is_some_and(|(stem, _)| ours.contains(&path.with_file_name(stem)))
}

/// Whether a folder holds nothing, or nothing but the lock of a run that is about to replace it.
fn is_empty(folder: &Path) -> bool {
    let is_lock =
        |entry: std::io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() == LOCK);
    fs::read_dir(folder).is_ok_and(|mut entries| entries.all(is_lock))
}
