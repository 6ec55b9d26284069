//! Inputs that are not there before a run, and that no stage of it makes.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use super::forecast::Forecast;
use super::graph::{Makers, whole};
use super::runner::Runner;
use super::stage::Stage;
use crate::Result;
use crate::checkpoint::output::BESIDE;

/// An input that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingInput {
    /// The first stage that reads it.
    pub stage: String,
    /// The place.
    pub path: PathBuf,
    /// The variable of the recipe whose value it is.
    pub variable: Option<String>,
}

impl fmt::Display for MissingInput {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (stage, path) = (&self.stage, self.path.display());
        write!(
            f,
            "a run would be refused now: stage `{stage}` reads {path}, which does not exist and which no stage makes"
        )?;
        match &self.variable {
            Some(variable) => write!(f, "; --set {variable}=PATH names another place"),
            None => Ok(()),
        }
    }
}

impl Runner<'_> {
    /// The inputs of stages that would run that are not there, and that no stage makes.
    ///
    /// # Errors
    /// Where the current folder cannot be found.
    pub fn missing_inputs(
        &self,
        stages: &[Stage],
        forecasts: &[Forecast],
    ) -> Result<Vec<MissingInput>> {
        let makers = Makers::of_stages(stages, self.work)?;
        let work = makers.work();
        // A command of the shell may make more than it declares.
        let has_shell = stages.iter().any(|stage| !stage.is_own);
        let is_given = |place: &String| {
            let path = whole(work, Path::new(place));
            path.exists() || is_made(&makers, &path) || (has_shell && path.starts_with(work))
        };
        let stages = stages.iter().zip(forecasts);
        let run = stages.filter(|(_, forecast)| forecast.runs_because.is_some());
        let mut missing: Vec<MissingInput> = Vec::new();
        for (stage, _) in run {
            // The last place of a text is the one that has no name and no weight.
            let absent = stage.inputs().filter(|places| !places.iter().any(is_given));
            for path in absent.filter_map(|places| places.last()) {
                let path = whole(work, Path::new(path));
                if missing.iter().any(|known| known.path == path) {
                    continue;
                }
                let mut variables = self.variables.iter();
                let variable = variables.find(|(_, value)| whole(work, Path::new(value)) == path);
                missing.push(MissingInput {
                    stage: stage.name.clone(),
                    variable: variable.map(|(name, _)| name.clone()),
                    path,
                });
            }
        }
        Ok(missing)
    }
}

/// Whether a stage makes a path, or `train` makes it beside the output of a stage.
fn is_made(makers: &Makers, path: &Path) -> bool {
    let is_beside = |folder: &Path| {
        let name = folder.file_name().and_then(OsStr::to_str);
        let output = name.and_then(|name| name.strip_suffix(BESIDE));
        output.is_some_and(|output| !makers.of(&folder.with_file_name(output)).is_empty())
    };
    !makers.of(path).is_empty() || path.ancestors().any(is_beside)
}
