//! `run.json`: when stages ran, and for how long. Only status and estimates read it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{filesystem, single};
use crate::{Error, Result};

/// The times of a work folder's stages.
pub(super) struct Times {
    path: PathBuf,
    stages: BTreeMap<String, Time>,
}

/// The times of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// When its last run began, in UTC as RFC 3339 writes it.
    pub started: String,
    /// Wall time of the last run that ended well.
    pub seconds: Option<f64>,
}

impl Time {
    /// Seconds since the last run began.
    pub(super) fn elapsed(&self) -> Option<f64> {
        let started = DateTime::parse_from_rfc3339(&self.started).ok()?;
        Some((Utc::now() - started.with_timezone(&Utc)).num_milliseconds() as f64 / 1e3)
    }
}

impl Times {
    /// Reads the file; one that is absent or broken has no times.
    pub(super) fn read(path: &Path) -> Self {
        let stages = std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            path: path.to_path_buf(),
            stages: stages.unwrap_or_default(),
        }
    }

    /// The times of a stage that has run.
    pub(super) fn of(&self, stage: &str) -> Option<&Time> {
        self.stages.get(stage)
    }

    /// A stage begins now.
    pub(super) fn start(&mut self, stage: &str) -> Result<()> {
        let started = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        self.change(stage, |time| time.started = started)
    }

    /// A stage ended well.
    pub(super) fn end(&mut self, stage: &str, seconds: f64) -> Result<()> {
        self.change(stage, |time| time.seconds = Some(seconds))
    }

    /// Writes a change down, with those that runs of other stages have made meanwhile.
    fn change(&mut self, stage: &str, change: impl FnOnce(&mut Time)) -> Result<()> {
        let lock = self.path.with_extension("lock");
        let held = File::create(&lock).and_then(|file| filesystem::lock(&file).map(|_| file));
        let _held = held.map_err(|e| Error::io("lock", &lock, e))?;
        self.stages = Self::read(&self.path).stages;
        change(self.stages.entry(stage.to_owned()).or_default());
        // Maps with string keys and finite numbers always serialise.
        let text = serde_json::to_string_pretty(&self.stages).unwrap_or_default();
        single::write(&self.path, &[text.as_bytes(), b"\n"])
    }
}
