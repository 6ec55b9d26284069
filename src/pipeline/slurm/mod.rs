//! Stages on the machines of a cluster: Slurm runs them, and nothing of ours schedules.
//!
//! A stage is a job that runs this program with `--only STAGE` on the shared file system, with the same
//! records, checks and verification as a run on one machine. What is up to date is not submitted, and what waits or runs is not
//! submitted again.

mod jobs;
mod queue;
pub(super) mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::graph::Graph;
use super::runner::Runner;
use super::select::Choice;
use super::stage::Stage;
use crate::checkpoint::single;
use crate::table::{self, Align};
use crate::{Error, Result};

pub use jobs::{Job, Site};
pub use queue::JobState;

/// A stage that was handed to Slurm, or was there already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Submitted {
    /// The stage.
    pub stage: String,
    /// Its job; of a task of an array, `JOB_TASK`.
    pub job: String,
    /// The jobs that it waits for.
    pub after: Vec<String>,
    /// Whether an earlier run submitted it.
    pub already: bool,
}

impl Runner<'_> {
    /// The jobs that a submission would make now, and the stages that wait or run already.
    ///
    /// # Errors
    /// Where an input cannot be read.
    pub fn jobs(
        &self,
        stages: &[Stage],
        graph: &Graph,
        choices: &[Choice],
        site: &Site,
    ) -> Result<(Vec<Job>, BTreeMap<usize, String>)> {
        let forecasts = self.forecast(stages, graph, choices)?;
        let alive: BTreeMap<String, JobState> = self
            .job_states()
            .into_iter()
            .filter(|(_, state)| state.is_alive())
            .collect();
        let waiting = stages.iter().enumerate();
        let waiting = waiting
            .filter_map(|(number, stage)| Some((number, alive.get(&stage.name)?.job.clone())));
        let waiting: BTreeMap<usize, String> = waiting.collect();
        let runs = forecasts.iter().enumerate();
        let runs = runs.map(|(number, forecast)| {
            forecast.runs_because.is_some() && !waiting.contains_key(&number)
        });
        Ok((
            jobs::jobs(stages, graph, choices, &runs.collect::<Vec<_>>(), site)?,
            waiting,
        ))
    }

    /// Submits what is chosen and not up to date, each job after the jobs that it needs.
    ///
    /// # Errors
    /// Where Slurm refuses a job; those submitted before stay.
    pub fn submit(
        &self,
        stages: &[Stage],
        graph: &Graph,
        choices: &[Choice],
        site: &Site,
    ) -> Result<Vec<Submitted>> {
        let (jobs, mut of_stage) = self.jobs(stages, graph, choices, site)?;
        let logs = self.logs();
        fs::create_dir_all(&logs).map_err(|e| Error::io("create", &logs, e))?;
        let _lock = self.lock_shared()?;
        self.write_graph(stages, graph)?;
        let mut submitted: Vec<Submitted> = of_stage
            .iter()
            .map(|(stage, job)| (stages[*stage].name.clone(), job.clone()))
            .map(|(stage, job)| Submitted {
                stage,
                job,
                after: Vec::new(),
                already: true,
            })
            .collect();
        let mut known = self.submitted();
        for job in jobs {
            let (after, dependency) = dependency(&job, &of_stage);
            let number = queue::submit(&job.name, &job.script, dependency.as_deref())?;
            for (task, stage) in job.stages.iter().enumerate() {
                let id = if job.stages.len() > 1 {
                    format!("{number}_{task}")
                } else {
                    number.clone()
                };
                of_stage.insert(*stage, id.clone());
                known.insert(stages[*stage].name.clone(), id.clone());
                let stage = stages[*stage].name.clone();
                submitted.push(Submitted {
                    stage,
                    job: id,
                    after: after.clone(),
                    already: false,
                });
            }
            // Maps with string keys always serialise.
            let text = serde_json::to_string_pretty(&known).unwrap_or_default();
            single::write(&self.jobs_file(), &[text.as_bytes(), b"\n"])?;
        }
        Ok(submitted)
    }

    /// Where the jobs of stages stand that were submitted from this work folder, by the names of the stages.
    pub(super) fn job_states(&self) -> BTreeMap<String, JobState> {
        let known = self.submitted();
        let states = queue::states(&known.values().map(String::as_str).collect::<Vec<_>>());
        known
            .into_iter()
            .filter_map(|(stage, job)| Some((stage, states.get(&job)?.clone())))
            .collect()
    }

    /// The last job of each stage. The file may have come with the folder: what is no number of a job is left out, for it
    /// would stand in scripts.
    fn submitted(&self) -> BTreeMap<String, String> {
        let mut known: BTreeMap<String, String> = fs::read(self.jobs_file())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        known.retain(|_, job| match job.split_once('_') {
            Some((job, task)) => is_number(job) && is_number(task),
            None => is_number(job),
        });
        known
    }

    fn jobs_file(&self) -> PathBuf {
        self.work.join(super::runner::FOLDER).join("jobs.json")
    }
}

/// The jobs that a job waits for, and the same as `sbatch` wants it; stages that no job runs are as they should be.
fn dependency(job: &Job, of_stage: &BTreeMap<usize, String>) -> (Vec<String>, Option<String>) {
    let (mut after, mut clauses) = (Vec::new(), Vec::new());
    for (kind, stages) in [("afterok", &job.needs), ("afterany", &job.waits)] {
        let jobs: BTreeSet<&String> = stages
            .iter()
            .filter_map(|stage| of_stage.get(stage))
            .collect();
        let jobs: Vec<String> = jobs.into_iter().cloned().collect();
        if !jobs.is_empty() {
            clauses.push(format!("{kind}:{}", jobs.join(":")));
            after.extend(jobs);
        }
    }
    (after, (!clauses.is_empty()).then(|| clauses.join(",")))
}

/// The jobs as commands for a shell, which would submit them.
pub fn submission_script(jobs: &[Job], waiting: &BTreeMap<usize, String>) -> String {
    let mut text = String::new();
    let mut of_stage = waiting.clone();
    for (number, job) in jobs.iter().enumerate() {
        let (_, dependency) = dependency(job, &of_stage);
        let after = dependency.map_or(String::new(), |clauses| {
            format!(" --dependency={clauses} --kill-on-invalid-dep=yes")
        });
        let variable = format!("job{}", number + 1);
        let end = end_of(&job.script);
        text.push_str(&format!(
            "{variable}=$(sbatch --parsable{after} <<'{end}'\n{}{end}\n)\n\n",
            job.script
        ));
        let is_array = job.stages.len() > 1;
        for (task, stage) in job.stages.iter().enumerate() {
            let id = if is_array {
                format!("${{{variable}}}_{task}")
            } else {
                format!("${{{variable}}}")
            };
            of_stage.insert(*stage, id);
        }
    }
    text
}

/// A word that is no line of the script, to end it: a value in quotes may hold any line.
fn end_of(script: &str) -> String {
    let mut end = "END".to_owned();
    while script.lines().any(|line| line == end) {
        end.push('_');
    }
    end
}

/// What was submitted, as a table.
pub fn submitted_table(submitted: &[Submitted]) -> String {
    let columns = ["stage", "job", "after", ""].map(|title| (title, Align::Left));
    let row = |stage: &Submitted| {
        let already = if stage.already {
            "waits or runs already"
        } else {
            "submitted"
        };
        vec![
            stage.stage.clone(),
            stage.job.clone(),
            stage.after.join(" "),
            already.to_owned(),
        ]
    };
    table::render(&columns, submitted.iter().map(row))
}
