//! What a run may remove beside outputs of finished stages: nothing that another stage reads or made.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::graph::{Graph, whole};
use super::runner::Runner;
use super::select::Choice;
use super::stage::Stage;
use crate::checkpoint::filesystem;
use crate::{Error, Result};

/// A stage that is up to date, and whose command could resume from what it keeps beside its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedStage {
    /// Its name.
    pub stage: String,
    /// Its output, a whole path.
    pub output: PathBuf,
}

impl Runner<'_> {
    /// The stages that are up to date and need nothing to resume from any more.
    ///
    /// # Errors
    /// Where an input cannot be read.
    pub fn finished(&self, stages: &[Stage], graph: &Graph) -> Result<Vec<FinishedStage>> {
        let work = self.whole_work()?;
        let forecasts = self.forecast(stages, graph, &vec![Choice::Check; stages.len()])?;
        let up_to_date = stages
            .iter()
            .zip(forecasts)
            .filter(|(stage, forecast)| stage.resume.is_some() && forecast.runs_because.is_none());
        let finished = up_to_date.filter_map(|(stage, _)| {
            let output = stage.outputs.first()?;
            Some(FinishedStage {
                stage: stage.name.clone(),
                output: whole(&work, output),
            })
        });
        Ok(finished.collect())
    }

    /// The first stage that reads or makes something in `folder`, or a folder that holds it.
    ///
    /// # Errors
    /// Where the current folder cannot be found.
    pub fn user_of<'s>(&self, stages: &'s [Stage], folder: &Path) -> Result<Option<&'s str>> {
        let work = self.whole_work()?;
        // Links are followed: a stage may read the folder under another name.
        let found = |place: &Path| place.canonicalize().unwrap_or_else(|_| place.to_path_buf());
        let folder = found(folder);
        let touches = |place: &Path| {
            let place = found(&whole(&work, place));
            place.starts_with(&folder) || folder.starts_with(&place)
        };
        let uses = |stage: &&Stage| {
            let mut reads = stage.reads().map(Path::new);
            let mut makes = stage.outputs.iter().map(PathBuf::as_path);
            reads.any(touches) || makes.any(touches)
        };
        Ok(stages.iter().find(uses).map(|stage| stage.name.as_str()))
    }

    /// Keeps other runs out of the work folder, until dropped.
    ///
    /// # Errors
    /// Where another run works there.
    pub fn hold(&self) -> Result<File> {
        self.lock(&self.lock_of_all(), filesystem::try_lock)
    }

    fn whole_work(&self) -> Result<PathBuf> {
        std::path::absolute(self.work).map_err(|e| Error::io("find", self.work, e))
    }
}
