//! How far a work folder is.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use super::graph::Graph;
use super::record::State;
use super::runner::Runner;
use super::select::Choice;
use super::slurm::JobState;
use super::stage::Stage;
use crate::Result;
use crate::table::{self, Align};

/// Bytes at the end of a log that hold its last few lines.
const END: u64 = 4096;

/// The state of a stage in a work folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// Its last run ended well, and nothing changed since.
    Done,
    /// Its last run ended well, and something changed since.
    Stale,
    /// It runs.
    Running,
    /// Its last run failed.
    Failed,
    /// Its last run was cut short.
    Stopped,
    /// Slurm has it, and it waits.
    Queued,
    /// It never ran.
    New,
}

/// A stage of a work folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub stage: String,
    /// Its command.
    pub command: String,
    /// Its state.
    pub state: StageState,
    /// Why it would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_because: Option<String>,
    /// When its last run began.
    pub started: Option<String>,
    /// Wall time of its last run that ended well; of one that runs, so far.
    pub seconds: Option<f64>,
    /// Its job, of a stage that Slurm was given and knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobState>,
    /// The last line of its log.
    pub last_line: Option<String>,
}

impl Runner<'_> {
    /// The state of each stage.
    ///
    /// # Errors
    /// Where an input cannot be read.
    pub fn status(&self, stages: &[Stage], graph: &Graph) -> Result<Vec<StageStatus>> {
        let forecasts = self.forecast(stages, graph, &vec![Choice::Check; stages.len()])?;
        let (records, times, mut jobs) = (self.records(), self.times(), self.job_states());
        let mut status = Vec::with_capacity(stages.len());
        for (stage, forecast) in stages.iter().zip(forecasts) {
            let job = jobs.remove(&stage.name);
            let job_is = |states: &[&str]| {
                job.as_ref()
                    .is_some_and(|job| states.contains(&job.state.as_str()))
            };
            let state = match (
                records.read(stage)?.map(|record| record.state),
                &forecast.runs_because,
            ) {
                (_, Some(_)) if job_is(&["PENDING", "CONFIGURING", "REQUEUED"]) => {
                    StageState::Queued
                }
                (None, _) => StageState::New,
                (Some(State::Started), _) if self.is_running(stage) || job_is(&["RUNNING"]) => {
                    StageState::Running
                }
                (Some(State::Started), _) => StageState::Stopped,
                (Some(State::Failed), _) => StageState::Failed,
                (Some(State::Done), None) => StageState::Done,
                (Some(State::Done), Some(_)) => StageState::Stale,
            };
            let time = times.of(&stage.name);
            let seconds = match state {
                StageState::Running => time.and_then(super::times::Time::elapsed),
                _ => forecast.last_seconds,
            };
            status.push(StageStatus {
                stage: stage.name.clone(),
                command: stage.kind().to_owned(),
                state,
                runs_because: forecast
                    .runs_because
                    .filter(|_| state != StageState::Running),
                started: time.map(|time| time.started.clone()),
                seconds,
                job,
                last_line: last_line(&self.log(stage)),
            });
        }
        Ok(status)
    }
}

/// The stages as a table.
pub fn status_table(stages: &[StageStatus]) -> String {
    let has_jobs = stages.iter().any(|stage| stage.job.is_some());
    let mut columns = vec!["stage", "command", "state", "seconds", "began (UTC)"];
    columns.extend(has_jobs.then_some("job"));
    columns.push("last line");
    let columns: Vec<_> = columns
        .into_iter()
        .map(|title| {
            (
                title,
                if title == "seconds" {
                    Align::Right
                } else {
                    Align::Left
                },
            )
        })
        .collect();
    let row = |stage: &StageStatus| {
        let state = match stage.state {
            StageState::Done => "done".to_owned(),
            StageState::Stale => format!(
                "stale: {}",
                stage.runs_because.as_deref().unwrap_or_default()
            ),
            StageState::Running => "running".to_owned(),
            StageState::Failed => "failed".to_owned(),
            StageState::Stopped => "stopped".to_owned(),
            StageState::Queued => "queued".to_owned(),
            StageState::New => "never ran".to_owned(),
        };
        let seconds = stage.seconds.map(|seconds| format!("{seconds:.1}"));
        let began = stage
            .started
            .as_deref()
            .map(|began| began.get(..19).unwrap_or(began).replace('T', " "));
        let line = stage
            .last_line
            .as_deref()
            .map(|line| line.chars().take(60).collect());
        let job = has_jobs.then(|| stage.job.as_ref().map(JobState::words));
        let texts = [Some(seconds), Some(began), job, Some(line)]
            .into_iter()
            .flatten()
            .map(Option::unwrap_or_default);
        [stage.stage.clone(), stage.command.clone(), state]
            .into_iter()
            .chain(texts)
            .collect()
    };
    table::render(&columns, stages.iter().map(row))
}

/// The last line of a log that may still grow, before any advice; none where there is no log.
pub fn last_line(log: &Path) -> Option<String> {
    let is_advice = |line: &String| line.trim_start().starts_with("hint: ");
    let lines = last_lines(log);
    // Advice after an error does not say what is wrong.
    let said = lines.iter().rfind(|line| !is_advice(line));
    said.or(lines.last()).cloned()
}

/// The last few lines of a log that may still grow.
pub fn last_lines(log: &Path) -> Vec<String> {
    let mut end = Vec::new();
    // A log that cannot be read has no lines to show.
    let _ = read_end(log, &mut end);
    let text = String::from_utf8_lossy(&end);
    text.lines().map(str::to_owned).collect()
}

fn read_end(log: &Path, end: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
    file.take(END).read_to_end(end)
}
