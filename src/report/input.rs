//! What a report is about: training runs, checkpoints, evaluations.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::found::{Found, output_of};
use crate::checkpoint::json;
use crate::error::InputError;
use crate::evaluate::report::EvaluationReport;
use crate::pipeline::work_folder;
use crate::train::beside;
use crate::train::metrics::{self, METRICS, Record, Step};
use crate::{Error, Result};

/// Where a run keeps its checkpoints.
const CHECKPOINTS: &str = "checkpoints";

/// Everything a page shows.
#[derive(Debug, Default)]
pub struct Input {
    /// Runs and checkpoints, in order.
    pub(super) subjects: Vec<Subject>,
    /// Work folders of recipes that made them, or that were named themselves.
    pub(super) works: Vec<PathBuf>,
    /// Results of `eval --json`, with the names of their files.
    pub(super) evaluations: Vec<(String, EvaluationReport)>,
}

/// A checkpoint, a training run, or both.
#[derive(Debug)]
pub(super) struct Subject {
    /// Its name on the page.
    pub(super) name: String,
    /// The checkpoint: the output, or the latest one of a run that has none yet.
    pub(super) checkpoint: Option<PathBuf>,
    /// The run's log; none of a checkpoint that no run made.
    pub(super) log: Option<Vec<Record>>,
    /// Names of the experts, where it is a mixture.
    pub(super) experts: Vec<String>,
}

impl Subject {
    /// The steps of its log.
    pub(super) fn steps(&self) -> impl Iterator<Item = &Step> {
        self.log.iter().flatten().filter_map(|record| match record {
            Record::Step(step) => Some(step.as_ref()),
            _ => None,
        })
    }
}

/// Reads training outputs (`OUT` or `OUT.run`), checkpoint folders, results of `eval --json`, work folders of recipes, and
/// other folders that hold several of these.
///
/// # Errors
/// Where one of them is none of these, or cannot be read.
pub fn read(paths: &[PathBuf]) -> Result<Input> {
    let mut input = Input::default();
    let mut found = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        let work = work_folder(path);
        let is_work = work.is_some() && work == std::path::absolute(path).ok() && metadata.is_dir();
        input
            .works
            .extend(work.filter(|work| !input.works.contains(work)));
        if metadata.is_file() {
            let report = EvaluationReport::read(path)?;
            input.add_evaluation(path, report);
        } else if path.join("config.json").exists() || has_log(path) {
            found.push((output_of(path), subject(path)?));
        } else {
            let inside = Found::in_folder(path)?;
            if inside.is_empty() && !is_work {
                return Err(nothing_in(path));
            }
            for path in inside.subjects {
                found.push((output_of(&path), subject(&path)?));
            }
            for (path, report) in inside.evaluations {
                input.add_evaluation(&path, report);
            }
        }
    }

    let mut seen = BTreeSet::new();
    found.retain(|(path, _)| seen.insert(path.clone()));
    let paths: Vec<PathBuf> = found.iter().map(|(path, _)| path.clone()).collect();
    for (name, (_, subject)) in names(&paths).into_iter().zip(found) {
        input.subjects.push(Subject { name, ..subject });
    }
    Ok(input)
}

impl Input {
    /// Adds an evaluation under the name of its file, once.
    fn add_evaluation(&mut self, path: &Path, report: EvaluationReport) {
        let name = path.display().to_string();
        if !self.evaluations.iter().any(|(known, _)| *known == name) {
            self.evaluations.push((name, report));
        }
    }
}

/// Whether a folder is a run, or the output of one, with a log.
fn has_log(path: &Path) -> bool {
    // A path without a name, such as `.`, has no run beside it.
    let beside = beside(&output_of(path));
    path.join(METRICS).exists() || beside.is_ok_and(|run| run.join(METRICS).exists())
}

fn nothing_in(path: &Path) -> Error {
    let expected = format!(
        "a training run ({METRICS}), a checkpoint (config.json) or a folder that holds some of these"
    );
    InputError::WrongFile {
        path: path.to_path_buf(),
        expected: expected.into(),
        found: "none".to_owned(),
    }
    .into()
}

fn subject(path: &Path) -> Result<Subject> {
    let output = output_of(path);
    let run = if path.join(METRICS).exists() {
        path.to_path_buf()
    } else {
        beside(&output)?
    };
    let log = run.join(METRICS);
    let log = if log.exists() {
        Some(metrics::read(&log)?)
    } else {
        None
    };
    let checkpoint = if output.join("config.json").exists() {
        Some(output)
    } else {
        latest(&run)
    };
    let experts = match &checkpoint {
        Some(folder) => experts(&json::read_object(&folder.join("config.json"))?),
        None => Vec::new(),
    };
    Ok(Subject {
        name: String::new(),
        checkpoint,
        log,
        experts,
    })
}

/// The checkpoint of the last step that a run saved.
fn latest(run: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(run.join(CHECKPOINTS)).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    // Their names have leading zeros.
    paths.filter(|path| path.join("config.json").exists()).max()
}

fn experts(config: &Map<String, Value>) -> Vec<String> {
    let names = config.get("expert_names").and_then(Value::as_array);
    names
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

/// The shortest ends of the paths that tell them apart, a part longer for all until they do.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let end = |path: &PathBuf, parts: usize| {
        let all: Vec<_> = path.components().collect();
        let end: PathBuf = all[all.len().saturating_sub(parts)..].iter().collect();
        end.display().to_string()
    };
    let longest = paths
        .iter()
        .map(|path| path.components().count())
        .max()
        .unwrap_or(1);
    let tried = (1..=longest).map(|parts| {
        paths
            .iter()
            .map(|path| end(path, parts))
            .collect::<Vec<_>>()
    });
    let told = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    tried.into_iter().find(told).unwrap_or_else(|| {
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_long_as_they_must_be() {
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(names(&paths(&["a/code", "b/law"])), ["code", "law"]);
        assert_eq!(names(&paths(&["a/code", "b/code"])), ["a/code", "b/code"]);
        assert_eq!(names(&paths(&["code", "code"])), ["code", "code"]);
    }
}
