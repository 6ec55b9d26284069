//! Where a run resumes: at its newest checkpoint that is whole.
//!
//! A checkpoint is whole where every file is what its manifest says, and where its position fits the run. A damaged one
//! costs the steps since the one before, and nothing else: the run takes them again with the same bytes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::engine::Counters;
use super::extend::with_plans;
use super::run_error::RunError;
use super::save::{Position, STATE};
use super::settings::{Settings, differences};
use super::state::{STATE_TENSORS, is_state_file};
use crate::checkpoint::hash::FileHash;
use crate::checkpoint::manifest::{FORMAT_VERSION, MANIFEST, Manifest};
use crate::checkpoint::{json, version};
use crate::{Error, Result};

/// The key of the version of a manifest and of a position.
const VERSION: &str = "format_version";

/// The run that would resume.
pub(super) struct SameRun<'a> {
    pub(super) settings: &'a Settings,
    /// The settings by flag.
    pub(super) json: &'a Map<String, Value>,
    /// The checkpoint that training began with, and its files.
    pub(super) checkpoint: &'a Path,
    pub(super) parent: &'a [FileHash],
}

/// A checkpoint to resume from.
pub(super) struct ResumePoint {
    pub(super) path: PathBuf,
    pub(super) position: Position,
}

/// The newest whole checkpoint, if there is a checkpoint, and those after it with what is wrong with each.
#[derive(Default)]
pub(super) struct Candidates {
    pub(super) newest: Option<ResumePoint>,
    pub(super) damaged: Vec<(PathBuf, Error)>,
}

impl Candidates {
    /// The step to resume after.
    pub(super) fn step(&self) -> Option<u64> {
        self.newest.as_ref().map(|newest| newest.position.step)
    }

    /// The progress there, or at the beginning without a checkpoint.
    pub(super) fn counters(&self) -> Counters {
        let newest = self.newest.as_ref();
        newest.map_or_else(Counters::default, |newest| newest.position.counters())
    }

    /// Looks through the `checkpoints` of the run in `folder`, newest first.
    ///
    /// # Errors
    /// A run with other settings or another parent, files that the machine cannot read, and a run whose checkpoints are all
    /// damaged.
    pub(super) fn of(
        folder: &Path,
        checkpoints: Vec<(u64, PathBuf)>,
        run: &SameRun,
    ) -> Result<Self> {
        let mut found = Self::default();
        for (step, path) in checkpoints.into_iter().rev() {
            check_versions(&path)?;
            let problem = match read(&path, step) {
                Ok(position) => {
                    run.check(&path, &position)?;
                    match check_range(&path, &position, run.settings) {
                        Ok(()) => {
                            found.newest = Some(ResumePoint { path, position });
                            return Ok(found);
                        }
                        Err(problem) => problem,
                    }
                }
                Err(problem) => problem,
            };
            // What the machine cannot read now may be whole all the same.
            if problem.exit_code() != 2 {
                return Err(problem);
            }
            found.damaged.push((path, problem));
        }
        if found.damaged.is_empty() {
            return Ok(found);
        }
        let damaged = found.damaged.into_iter().map(|(_, problem)| problem);
        Err(RunError::NoWholeCheckpoint {
            path: folder.to_path_buf(),
            damaged: damaged.collect(),
        }
        .into())
    }
}

impl SameRun<'_> {
    /// Refuses to resume a run that was begun otherwise.
    fn check(&self, path: &Path, position: &Position) -> Result<()> {
        let begun = with_plans(&position.settings, self.json);
        let differences = differences(&begun, self.json);
        if !differences.is_empty() {
            let path = path.to_path_buf();
            return Err(RunError::OtherSettings { path, differences }.into());
        }
        match different_file(&position.parent, self.parent) {
            Some(file) => {
                let path = self.checkpoint.join(&file.path);
                Err(RunError::OtherParent { path }.into())
            }
            None => Ok(()),
        }
    }
}

/// A file that only one of two lists holds.
pub(super) fn different_file<'a>(a: &'a [FileHash], b: &'a [FileHash]) -> Option<&'a FileHash> {
    let changed = b.iter().find(|file| !a.contains(file));
    changed.or_else(|| a.iter().find(|file| !b.contains(file)))
}

/// The position of the checkpoint of `step` in `folder`, once all its files have the hashes that its manifest lists.
fn read(folder: &Path, step: u64) -> Result<Position> {
    if !metadata(folder)?.is_some_and(|found| found.is_dir()) {
        let path = folder.to_path_buf();
        return Err(RunError::NotFolder { path }.into());
    }
    let missing = || RunError::NoManifest {
        path: folder.join(MANIFEST),
    };
    metadata(&folder.join(MANIFEST))?.ok_or_else(missing)?;
    let manifest = Manifest::read(folder)?.ok_or_else(missing)?;
    check_files(folder, &manifest)?;
    let is_listed = |is: fn(&str) -> bool| manifest.files.iter().any(|file| is(&file.path));
    for (name, is_there) in [
        (STATE, is_listed(|name| name == STATE)),
        (STATE_TENSORS, is_listed(is_state_file)),
    ] {
        if !is_there {
            let path = folder.join(name);
            return Err(RunError::NotListed { path }.into());
        }
    }
    let position = position(folder)?;
    let lineage = manifest.lineage.as_ref();
    let of_manifest = lineage.map(|lineage| (lineage.step, lineage.tokens));
    let fits = position.step == step
        && of_manifest == Some((position.step, position.tokens))
        && manifest.settings == position.settings;
    if fits {
        return Ok(position);
    }
    Err(RunError::OtherPosition {
        path: folder.join(STATE),
        step: position.step,
    }
    .into())
}

/// What is at a path, `None` for nothing: what the machine refuses to tell is no damage.
fn metadata(path: &Path) -> Result<Option<std::fs::Metadata>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Refuses a checkpoint with a file that is not what its manifest says.
pub(super) fn check_files(folder: &Path, manifest: &Manifest) -> Result<()> {
    let checked = manifest.files.par_iter().map(|file| file.check(folder));
    checked.find_first(Result::is_err).unwrap_or(Ok(()))
}

fn position(folder: &Path) -> Result<Position> {
    let path = folder.join(STATE);
    let object = json::read_object(&path)?;
    version::check(
        &path,
        VERSION,
        object.get(VERSION),
        u64::from(FORMAT_VERSION),
    )?;
    serde_json::from_value(Value::Object(object))
        .map_err(|source| RunError::NotState { path, source }.into())
}

/// Refuses a checkpoint of a version that is not known. It is no damage: going on from an older checkpoint would undo what
/// a later program has done.
fn check_versions(folder: &Path) -> Result<()> {
    for name in [STATE, MANIFEST] {
        let path = folder.join(name);
        // What cannot be read, or is no number, is damage, which reading tells.
        let object = json::read_object(&path).unwrap_or_default();
        if let Some(found) = object.get(VERSION).filter(|found| found.is_u64()) {
            version::check(&path, VERSION, Some(found), u64::from(FORMAT_VERSION))?;
        }
    }
    Ok(())
}

/// Refuses a position that a run with these settings cannot reach.
fn check_range(folder: &Path, position: &Position, settings: &Settings) -> Result<()> {
    let rows = settings.rows() as u64;
    let row = position.step.saturating_mul(rows);
    let tokens = row.saturating_mul(settings.seq as u64);
    let ranges = [
        ("step", position.step, 0, settings.steps),
        ("row", position.row, row, row),
        ("updates", position.updates, 0, position.step),
        ("norms", position.norms, position.updates, position.updates),
        ("tokens", position.tokens, 0, tokens),
    ];
    let path = folder.join(STATE);
    if let Some((key, found, least, most)) = ranges
        .into_iter()
        .find(|(_, found, least, most)| !(least..=most).contains(&found))
    {
        return Err(RunError::Position {
            path,
            key,
            least,
            most,
            found,
        }
        .into());
    }
    let mean = position.norm_mean;
    if mean.is_finite() && mean >= 0.0 {
        Ok(())
    } else {
        Err(RunError::NormMean { path, found: mean }.into())
    }
}
