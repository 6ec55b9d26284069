//! Which stages of a recipe a run is about.

use glob::Pattern;

use super::error::PipelineError;
use super::stage::Stage;
use crate::Result;

/// Stages by name, or by pattern: `train-*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Leave the stages above the first of this name as they are.
    pub from: Option<String>,
    /// Leave all but these as they are; of none, run all.
    pub only: Vec<String>,
    /// Run these even where nothing changed.
    pub force: Vec<String>,
}

/// What a run does about a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Leaves it as it is.
    Leave,
    /// Runs it where something changed.
    Check,
    /// Runs it.
    Force,
}

impl Selection {
    /// What becomes of each stage.
    ///
    /// # Errors
    /// Where a name or pattern fits no stage.
    pub fn choices(&self, stages: &[Stage]) -> Result<Vec<Choice>> {
        let first = match &self.from {
            Some(name) => find(stages, name)?
                .iter()
                .position(|fits| *fits)
                .unwrap_or_default(),
            None => 0,
        };
        let any = |names: &[String]| -> Result<Vec<bool>> {
            let mut all = vec![false; stages.len()];
            for name in names {
                all.iter_mut()
                    .zip(find(stages, name)?)
                    .for_each(|(any, fits)| *any |= fits);
            }
            Ok(all)
        };
        let (only, force) = (any(&self.only)?, any(&self.force)?);
        let choice = |number: usize| match () {
            () if number < first || (!self.only.is_empty() && !only[number]) => Choice::Leave,
            () if force[number] => Choice::Force,
            () => Choice::Check,
        };
        Ok((0..stages.len()).map(choice).collect())
    }
}

/// Whether each stage has the name or fits the pattern; one at least does.
fn find(stages: &[Stage], name: &str) -> Result<Vec<bool>> {
    let pattern = Pattern::new(name).map_err(|e| PipelineError::Pattern {
        pattern: name.to_owned(),
        problem: e.to_string(),
    })?;
    let found: Vec<bool> = stages
        .iter()
        .map(|stage| pattern.matches(&stage.name))
        .collect();
    if found.contains(&true) {
        return Ok(found);
    }
    let error = PipelineError::NoStage {
        name: name.to_owned(),
        stages: stages.iter().map(|stage| stage.name.clone()).collect(),
    };
    Err(error.into())
}
