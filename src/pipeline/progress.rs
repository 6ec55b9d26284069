//! The stages of a work folder as its last run left them, for those who look on: no recipe is needed, and no input is read.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::graph::Graph;
use super::record::{self, State};
use super::runner::{FOLDER, Runner};
use super::stage::Stage;
use super::times::Times;
use crate::Result;
use crate::checkpoint::single;

/// The file in the runner's folder.
const GRAPH: &str = "graph.json";

/// A stage of the graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stage: String,
    command: String,
    needs: Vec<usize>,
}

/// A stage and how far it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Its name.
    pub stage: String,
    /// Its command.
    pub command: String,
    /// The stages that it needs, by their places in the list.
    pub needs: Vec<usize>,
    /// What its record says: `None` where it never ran, `Some(None)` where it was started and has not ended, else whether it
    /// ended well.
    pub ended: Option<Option<bool>>,
    /// Wall time of its last run that ended well.
    pub seconds: Option<f64>,
}

impl Runner<'_> {
    /// Writes down what stages there are.
    pub(super) fn write_graph(&self, stages: &[Stage], graph: &Graph) -> Result<()> {
        let entry = |(number, stage): (usize, &Stage)| {
            let (name, command) = (stage.name.clone(), stage.kind().to_owned());
            Entry {
                stage: name,
                command,
                needs: graph.needs(number).iter().copied().collect(),
            }
        };
        let entries: Vec<Entry> = stages.iter().enumerate().map(entry).collect();
        // Text and numbers always serialise.
        let text = serde_json::to_string_pretty(&entries).unwrap_or_default();
        single::write(
            &self.work.join(FOLDER).join(GRAPH),
            &[text.as_bytes(), b"\n"],
        )
    }
}

/// The work folder of the run that made `path`: the folder itself, or the nearest above it.
pub fn work_folder(path: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(path).ok()?;
    whole
        .ancestors()
        .find(|folder| folder.join(FOLDER).join(GRAPH).exists())
        .map(Path::to_path_buf)
}

/// The stages of a work folder in the order of the recipe; none where no run has worked there.
///
/// # Errors
/// Where another version of this program has left the record of a stage.
pub fn progress(work: &Path) -> Result<Vec<Progress>> {
    let folder = work.join(FOLDER);
    let entries = fs::read(folder.join(GRAPH))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    let entries: Vec<Entry> = entries.unwrap_or_default();
    let times = Times::read(&folder.join("run.json"));
    let mut stages = Vec::with_capacity(entries.len());
    for (number, entry) in entries.into_iter().enumerate() {
        let ended = record::state(&folder.join("stages"), &entry.stage)?.map(|state| match state {
            State::Started => None,
            State::Done => Some(true),
            State::Failed => Some(false),
        });
        // What comes later in the list is none that it needs.
        let needs = entry
            .needs
            .into_iter()
            .filter(|needed| *needed < number)
            .collect();
        let seconds = times.of(&entry.stage).and_then(|time| time.seconds);
        stages.push(Progress {
            stage: entry.stage,
            command: entry.command,
            needs,
            ended,
            seconds,
        });
    }
    Ok(stages)
}
