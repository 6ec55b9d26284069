//! What can be wrong with the folder of a run and its checkpoints: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::checkpoint::manifest::MANIFEST;
use crate::error::ErrorPlace;

/// A rule that the folder of a run, or a checkpoint in it, breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    // ---- the folder
    /// A run was begun here.
    #[error("{}: holds a run already", path.display())]
    HoldsRun {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that no run has made.
    #[error("{}: exists and is no folder of a run", path.display())]
    NotRunFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Another process trains here.
    #[error("{}: another process is at this run", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The output of a complete run is damaged.
    #[error("{source}")]
    DamagedOutput {
        /// The output.
        out: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A line of the log that is no record.
    #[error("{}: line {line}: expected a record: {source}", path.display())]
    NotRecord {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },

    // ---- resuming
    /// A run whose checkpoints are all damaged.
    #[error("{}: no checkpoint of the run is whole: {}", path.display(), joined(damaged))]
    NoWholeCheckpoint {
        /// The folder of the run.
        path: PathBuf,
        /// What is wrong with each checkpoint, newest first.
        damaged: Vec<Error>,
    },
    /// A run that was begun with other settings.
    #[error("{}: the run cannot resume with other settings: {}", path.display(), differences.join("; "))]
    OtherSettings {
        /// The checkpoint.
        path: PathBuf,
        /// Each setting that differs, with both values.
        differences: Vec<String>,
    },
    /// A run that was begun with another model.
    #[error("{}: is not the file that the run was begun with", path.display())]
    OtherParent {
        /// The file of the model.
        path: PathBuf,
    },
    /// A complete run that would be extended, but whose checkpoints are gone.
    #[error("{}: the run has no checkpoint to extend it from", path.display())]
    NothingToExtend {
        /// The folder of the run.
        path: PathBuf,
        /// The output of the run.
        out: PathBuf,
    },

    /// A signal stopped the run, which is no fault.
    #[error("stopped by a signal {}", stopped_at(*step, path))]
    Stopped {
        /// The last step that was taken; 0 before the first.
        step: u64,
        /// The checkpoint of this step, or the folder of the run before the first.
        path: PathBuf,
    },

    // ---- damaged checkpoints
    /// A checkpoint that is no folder.
    #[error("{}: expected a folder", path.display())]
    NotFolder {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A checkpoint without manifest.
    #[error("{}: is missing", path.display())]
    NoManifest {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file of the state that the manifest does not list.
    #[error("{}: is not listed in {MANIFEST}", path.display())]
    NotListed {
        /// The file.
        path: PathBuf,
    },
    /// A state that contradicts the manifest or the name of its folder.
    #[error(
        "{}: step, tokens or settings differ from {MANIFEST} or from the folder's name: found step {step}",
        path.display()
    )]
    OtherPosition {
        /// The state.
        path: PathBuf,
        /// Its step.
        step: u64,
    },
    /// A file that is no state of a run.
    #[error("{}: expected the state of a run: {source}", path.display())]
    NotState {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A count that a run with these settings cannot reach.
    #[error("{}: key `{key}`: expected {least} to {most}, found {found}", path.display())]
    Position {
        /// The state.
        path: PathBuf,
        /// The count.
        key: &'static str,
        /// The least that it can be.
        least: u64,
        /// The most that it can be.
        most: u64,
        /// Its value.
        found: u64,
    },
    /// A mean of norms that no norms have.
    #[error("{}: key `norm_mean`: expected a number of 0 or more, found {found}", path.display())]
    NormMean {
        /// The state.
        path: PathBuf,
        /// Its value.
        found: f64,
    },
    /// A checkpoint without a tensor of the optimiser.
    #[error("{}: tensor `{tensor}`: is missing from the optimiser's state", path.display())]
    NoStateTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of the optimiser that does not fit its parameter.
    #[error("{}: tensor `{tensor}`: expected F32 {expected:?}, found {found}", path.display())]
    StateTensor {
        /// The file of the optimiser's state.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape of the parameter.
        expected: Vec<u64>,
        /// Its encoding and shape.
        found: String,
    },
}

/// Where a run was when a signal stopped it.
fn stopped_at(step: u64, path: &Path) -> String {
    let path = path.display();
    if step > 0 {
        format!("after step {step}, saved in {path}")
    } else {
        format!("before the first step of {path}")
    }
}

/// All problems in one line.
fn joined(problems: &[Error]) -> String {
    let problems: Vec<String> = problems.iter().map(Error::to_string).collect();
    problems.join("; ")
}

impl RunError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::HoldsRun { .. } => "pass --resume to continue it, or --force to begin anew",
            Self::NotRunFolder { .. } => "choose another --out",
            Self::Busy { .. } => "wait for it to end",
            Self::Stopped { .. } => "run the same command with --resume to continue",
            Self::DamagedOutput { out, .. } => {
                let out = out.display();
                let hint = format!("{out} is damaged: remove it, and run the same command again");
                return Some(hint.into());
            }
            Self::NothingToExtend { out, .. } => {
                let out = out.display();
                let hint = format!(
                    "train {out} in a new run instead, with another --out: its moments start anew"
                );
                return Some(hint.into());
            }
            Self::NoWholeCheckpoint { .. } => {
                "restore a checkpoint from a copy, or begin anew with --force"
            }
            Self::OtherSettings { .. } | Self::OtherParent { .. } => {
                "resume with the settings that the run was begun with, choose another --out, or begin anew with --force"
            }
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::DamagedOutput { source, .. } => source.place(),
            Self::Stopped { .. } => ErrorPlace::default(),
            Self::Position { path, key, .. } => ErrorPlace::of(path).with_key(key),
            Self::NormMean { path, .. } => ErrorPlace::of(path).with_key("norm_mean"),
            Self::NoStateTensor { path, tensor } | Self::StateTensor { path, tensor, .. } => {
                ErrorPlace::of(path).with_tensor(tensor)
            }
            Self::HoldsRun { path }
            | Self::NotRunFolder { path }
            | Self::Busy { path }
            | Self::NotRecord { path, .. }
            | Self::NoWholeCheckpoint { path, .. }
            | Self::NothingToExtend { path, .. }
            | Self::OtherSettings { path, .. }
            | Self::OtherParent { path }
            | Self::NotFolder { path }
            | Self::NoManifest { path }
            | Self::NotListed { path }
            | Self::OtherPosition { path, .. }
            | Self::NotState { path, .. } => ErrorPlace::of(path),
        }
    }
}
