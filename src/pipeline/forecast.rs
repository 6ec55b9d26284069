//! What a run would do: which stages, why, and what they took the last time, or would take.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde::Serialize;
use serde_json::Value;

use super::error::PipelineError;
use super::graph::Graph;
use super::runner::Runner;
use super::select::Choice;
use super::shadow::Shadow;
use super::stage::Stage;
use crate::checkpoint::output::beside;
use crate::estimate::Estimate;
use crate::{Error, Result};

/// What a run would do about a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// The stages that it needs.
    pub needs: Vec<String>,
    /// Why it would run; none where it would not.
    pub runs_because: Option<String>,
    /// Whether it would continue a run that was cut short.
    pub resumes: bool,
    /// Wall time of its last run that ended well.
    pub last_seconds: Option<f64>,
    /// Bytes of what its last run wrote, also beside its output.
    pub last_bytes: Option<u64>,
    /// Whether that run ended well and was one of this very command.
    pub is_measured: bool,
    /// What it would make and take, as far as its command can tell before it runs; asked for by [`Runner::estimate`].
    pub estimate: Option<Estimate>,
    /// Why the command cannot tell.
    pub unknown_because: Option<String>,
}

/// The message of a line that is an error, in words or as JSON.
fn problem_in(line: &str) -> Option<String> {
    if let Some(problem) = line.strip_prefix("error: ") {
        return Some(problem.to_owned());
    }
    let object: Value = serde_json::from_str(line).ok()?;
    Some(object.get("error")?.get("message")?.as_str()?.to_owned())
}

impl Runner<'_> {
    /// What a run would do, stage by stage.
    ///
    /// # Errors
    /// Where an input cannot be read.
    pub fn forecast(
        &self,
        stages: &[Stage],
        graph: &Graph,
        choices: &[Choice],
    ) -> Result<Vec<Forecast>> {
        let (records, times) = (self.records(), self.times());
        let mut forecasts: Vec<Forecast> = Vec::with_capacity(stages.len());
        for (number, stage) in stages.iter().enumerate() {
            let record = records.read(stage)?;
            let first = graph
                .needs(number)
                .iter()
                .find(|needed| forecasts[**needed].runs_because.is_some());
            let needed =
                first.map(|needed| format!("stage {} runs before it", stages[*needed].name));
            let runs_because = match choices[number] {
                Choice::Leave => None,
                Choice::Force => Some("it was asked for".to_owned()),
                Choice::Check => records.reason(stage, record.as_ref())?.or(needed),
            };
            let resumes = runs_because.is_some()
                && choices[number] != Choice::Force
                && records.can_resume(stage, record.as_ref())?;
            let last_bytes = record
                .as_ref()
                .map(|record| record.output_bytes())
                .filter(|bytes| *bytes > 0);
            forecasts.push(Forecast {
                needs: graph
                    .needs(number)
                    .iter()
                    .map(|needed| stages[*needed].name.clone())
                    .collect(),
                runs_because,
                resumes,
                last_seconds: times.of(&stage.name).and_then(|time| time.seconds),
                last_bytes: last_bytes
                    .map(|bytes| Ok::<_, Error>(bytes + self.kept_beside(stage)?))
                    .transpose()?,
                is_measured: record.is_some_and(|record| record.is_done(stage)),
                estimate: None,
                unknown_because: None,
            });
        }
        Ok(forecasts)
    }

    /// Asks each stage that would run, and has not run as it is now, what it would make and take. Its own command makes the
    /// outline of its output in a shadow of the work folder, where later stages find it. `environment` has variables for
    /// these commands.
    ///
    /// # Errors
    /// Where the folder for temporary files cannot be written, or a signal came.
    pub fn estimate(
        &self,
        stages: &[Stage],
        forecasts: &mut [Forecast],
        environment: &[(&str, &str)],
    ) -> Result<()> {
        let exists = |stage: &Stage| {
            stage
                .outputs
                .iter()
                .all(|output| self.work.join(output).exists())
        };
        let asked: Vec<bool> = stages
            .iter()
            .zip(&*forecasts)
            .map(|(stage, forecast)| {
                forecast.runs_because.is_some() && !(forecast.is_measured && exists(stage))
            })
            .collect();
        if !asked.contains(&true) {
            return Ok(());
        }
        let outlined = stages
            .iter()
            .zip(&asked)
            .filter(|(stage, asked)| **asked && stage.outline.is_some());
        let shadow = Shadow::new(self.work, outlined.flat_map(|(stage, _)| &stage.outputs))?;
        let mut unknown: BTreeSet<&str> = BTreeSet::new();
        for ((stage, forecast), _) in stages
            .iter()
            .zip(forecasts)
            .zip(&asked)
            .filter(|(_, asked)| **asked)
        {
            // A stage that has run before needs no estimate, but later stages still need its outline.
            match self.ask(stage, forecast.resumes, &shadow, environment)? {
                Ok(estimate) => forecast.estimate = Some(estimate),
                Err(problem) => {
                    let mut needs = forecast.needs.iter();
                    let first = needs.find(|needed| unknown.contains(needed.as_str()));
                    // It lacks the outline of that stage, which is no fault of its own.
                    let problem = first.map_or(problem, |needed| format!("it needs {needed}"));
                    forecast.unknown_because = Some(problem);
                    unknown.insert(&stage.name);
                }
            }
        }
        Ok(())
    }

    /// What the command says, or why it cannot.
    fn ask(
        &self,
        stage: &Stage,
        resumes: bool,
        shadow: &Shadow,
        environment: &[(&str, &str)],
    ) -> Result<Result<Estimate, String>> {
        let Some(outline) = &stage.outline else {
            return Ok(Err(format!(
                "`{}` cannot tell before it runs",
                stage.kind()
            )));
        };
        for place in stage.reads() {
            shadow.show(place)?;
        }
        let mut command = Command::new(self.program);
        command.envs(environment.iter().copied());
        command.args(shadow.words(stage));
        command.args(stage.resume.iter().filter(|_| resumes));
        command.arg(outline);
        command.current_dir(shadow.work()).stdin(Stdio::null());
        let output = command
            .output()
            .map_err(|e| Error::io("run", self.program, e))?;
        if self.is_stopped() {
            return Err(PipelineError::Stopped.into());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Ok(serde_json::from_slice(&output.stdout).map_err(|_| {
            let problem = said.lines().find_map(problem_in);
            problem.unwrap_or_else(|| "its command printed no estimate".to_owned())
        }))
    }

    /// Bytes of what a command that can be resumed keeps beside its output.
    fn kept_beside(&self, stage: &Stage) -> Result<u64> {
        let Some(output) = stage.outputs.first().filter(|_| stage.resume.is_some()) else {
            return Ok(0);
        };
        let files = self.records().files(&beside(output)?)?;
        let length = |path: &std::path::PathBuf| {
            std::fs::metadata(self.work.join(path)).map_or(0, |file| file.len())
        };
        Ok(files.iter().map(length).sum())
    }
}
