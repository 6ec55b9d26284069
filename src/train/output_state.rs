//! What the folder to make holds before a run: nothing of it, its output, or its output before it was extended.

use std::path::Path;

use super::extend::{has_checkpoint, is_shorter, with_plans};
use super::resume::{SameRun, check_files, different_file};
use super::run_error::RunError;
use super::settings::differences;
use crate::checkpoint::hash::FileHash;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::output::beside;
use crate::{Error, Result};

/// What the folder to make holds before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputState {
    /// The output of this run.
    Complete,
    /// The output of this run before it was extended.
    Shorter,
    /// Nothing, or something else.
    Other,
}

impl OutputState {
    /// What `out` holds.
    ///
    /// # Errors
    /// An output of this run that is damaged, one of other settings, and one whose checkpoints are gone, so that it cannot
    /// be extended.
    pub(super) fn of(out: &Path, run: &SameRun) -> Result<Self> {
        let manifest = if out.is_dir() {
            Manifest::read(out)?
        } else {
            None
        };
        let Some(manifest) = manifest else {
            return Ok(Self::Other);
        };
        let parent = manifest.sources.iter().flat_map(|source| &source.files);
        let parent: Vec<FileHash> = parent.cloned().collect();
        let is_ours = different_file(&parent, run.parent).is_none();
        if manifest.lineage.is_none() || !is_ours {
            return Ok(Self::Other);
        }
        let step = manifest.lineage.as_ref().map(|lineage| lineage.step);
        if manifest.settings == *run.json && step == Some(run.settings.steps) {
            check_files(out, &manifest).map_err(|error| damaged_output(out, error))?;
            return Ok(Self::Complete);
        }
        if is_shorter(&manifest.settings, run.json) && !has_checkpoint(out)? {
            return Err(RunError::NothingToExtend {
                path: beside(out)?,
                out: out.to_path_buf(),
            }
            .into());
        }
        let differences = differences(&with_plans(&manifest.settings, run.json), run.json);
        if differences.is_empty() {
            return Ok(Self::Shorter);
        }
        Err(RunError::OtherSettings {
            path: out.to_path_buf(),
            differences,
        }
        .into())
    }
}

/// The error of a damaged output; an output that the machine cannot read may be whole all the same.
fn damaged_output(out: &Path, error: Error) -> Error {
    if error.exit_code() != 2 {
        return error;
    }
    RunError::DamagedOutput {
        out: out.to_path_buf(),
        source: Box::new(error),
    }
    .into()
}
