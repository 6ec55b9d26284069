//! Runs, checkpoints and evaluations in a folder that holds several of them, such as the work folder of a recipe.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::manifest::MANIFEST;
use crate::evaluate::report::EvaluationReport;
use crate::train::beside;
use crate::train::metrics::METRICS;
use crate::{Error, Result};

/// Suffix of the folder that a training run keeps beside its output.
const RUN: &str = ".run";
/// Levels of folders that are looked through.
const DEPTH: usize = 4;
/// Bytes of a file that may be the result of an evaluation, at most.
const LARGEST: u64 = 64 << 20;

/// What a folder holds, in the order of names.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Outputs of training, runs without an output, and checkpoints with a manifest.
    pub(super) subjects: Vec<PathBuf>,
    /// Results of `eval --json`.
    pub(super) evaluations: Vec<(PathBuf, EvaluationReport)>,
}

impl Found {
    /// Looks through a folder and those in it, but not into checkpoints and runs.
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        found.add(folder, DEPTH)?;
        Ok(found)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subjects.is_empty() && self.evaluations.is_empty()
    }

    fn add(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let failed = |e| Error::io("list", folder, e);
        let mut entries = BTreeSet::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            entries.insert(entry.map_err(failed)?.path());
        }
        for path in &entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            if path.is_file() {
                self.add_file(path);
            } else if path.join("config.json").is_file() {
                // A model without a record is where something began, and part of its lineage.
                if path.join(MANIFEST).is_file() || beside(path)?.join(METRICS).is_file() {
                    self.subjects.push(path.clone());
                }
            } else if path.join(METRICS).is_file() {
                // The output of a run that is done is listed itself.
                let output = output_of(path);
                if !output.join("config.json").is_file() {
                    self.subjects.push(path.clone());
                }
            } else if path.is_dir() && !path.is_symlink() && depth > 1 {
                self.add(path, depth - 1)?;
            }
        }
        Ok(())
    }

    /// Adds the result of an evaluation; any other file is none of the report's business.
    fn add_file(&mut self, path: &Path) {
        let is_json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= LARGEST);
        if is_json
            && is_small
            && let Ok(report) = EvaluationReport::read(path)
        {
            self.evaluations.push((path.to_path_buf(), report));
        }
    }
}

/// The output that belongs to a folder: the folder itself, or the output beside a run's folder.
pub(super) fn output_of(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match name.strip_suffix(RUN) {
        Some(stem) if !stem.is_empty() => path.with_file_name(stem),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_belongs_to_its_output() {
        assert_eq!(output_of(Path::new("x/out.run")), Path::new("x/out"));
        assert_eq!(output_of(Path::new("x/.run")), Path::new("x/.run"));
    }
}
