//! The commands of Slurm: `sbatch`, `squeue`, `sacct`.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::{Error, Result};

/// The state of a job, in Slurm's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobState {
    /// Its number; of a task of an array, `JOB_TASK`.
    pub job: String,
    /// `PENDING`, `RUNNING`, `COMPLETED`, …
    pub state: String,
    /// Why it waits, for one that does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it has run, of one that accounting knows: `[DAYS-]HOURS:MINUTES:SECONDS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed: Option<String>,
}

impl JobState {
    /// Whether it waits, runs, or will do so again.
    pub fn is_alive(&self) -> bool {
        const ALIVE: [&str; 9] = [
            "PENDING",
            "CONFIGURING",
            "RUNNING",
            "SUSPENDED",
            "COMPLETING",
            "REQUEUED",
            "REQUEUE_HOLD",
            "STOPPED",
            "RESIZING",
        ];
        ALIVE.contains(&self.state.as_str())
    }

    /// In words.
    pub fn words(&self) -> String {
        let more: Vec<&str> = [&self.reason, &self.elapsed]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let more = if more.is_empty() {
            String::new()
        } else {
            format!(" ({})", more.join(", "))
        };
        format!("{} {}{more}", self.job, self.state.to_lowercase())
    }
}

/// Hands a script to `sbatch`, to run after other jobs. Returns the number of the job.
pub(super) fn submit(name: &str, script: &str, dependency: Option<&str>) -> Result<String> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable");
    if let Some(dependency) = dependency {
        // A job whose needs failed goes, instead of waiting for ever.
        command.args([
            &format!("--dependency={dependency}"),
            "--kill-on-invalid-dep=yes",
        ]);
    }
    let failed = |e| {
        Error::io("run", "sbatch", e)
            .with_hint("--executor slurm needs the commands of Slurm on this machine")
    };
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have refused its arguments, and says why; what it did not read is no other fault.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // `JOB` or `JOB;CLUSTER`.
    let job = words.split(';').next().unwrap_or_default();
    if !output.status.success() || job.is_empty() || !job.bytes().all(|byte| byte.is_ascii_digit())
    {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said
            .trim()
            .lines()
            .last()
            .unwrap_or("it gave no number of a job");
        return Err(Error::compute(
            format!("submit the job `{name}`"),
            said.trim_start_matches("sbatch: "),
        ));
    }
    Ok(job.to_owned())
}

/// Where these jobs stand, as far as the queue or accounting knows them.
pub(super) fn states(jobs: &[&str]) -> BTreeMap<String, JobState> {
    let mut states = BTreeMap::new();
    if jobs.is_empty() {
        return states;
    }
    let numbers: Vec<&str> = jobs
        .iter()
        .map(|job| job.split('_').next().unwrap_or(job))
        .collect();
    // The accounting, where there is one, knows the jobs that have ended.
    let mut accounting = Command::new("sacct");
    accounting.args([
        "--noheader",
        "--parsable2",
        "--allocations",
        "--format=JobID,State,Elapsed",
        "--jobs",
    ]);
    for [job, state, elapsed] in rows(accounting.arg(numbers.join(","))) {
        // `CANCELLED by 0`
        let state = state.split(' ').next().unwrap_or_default().to_owned();
        states.insert(
            job.clone(),
            JobState {
                job,
                state,
                reason: None,
                elapsed: Some(elapsed),
            },
        );
    }
    // The queue knows the jobs that wait or run. It refuses numbers that it has forgotten, so it is asked for all jobs.
    for [job, state, reason] in
        rows(Command::new("squeue").args(["--noheader", "--array", "--format=%i|%T|%r"]))
    {
        let elapsed = states
            .get(&job)
            .and_then(|known| known.elapsed.clone())
            .filter(|_| state != "PENDING");
        let reason = Some(reason).filter(|reason| reason != "None");
        states.insert(
            job.clone(),
            JobState {
                job,
                state,
                reason,
                elapsed,
            },
        );
    }
    states.retain(|job, _| jobs.contains(&job.as_str()));
    states
}

/// The rows of a command's table; none where it does not answer.
fn rows(command: &mut Command) -> Vec<[String; 3]> {
    let Ok(output) = command.stdin(Stdio::null()).stderr(Stdio::null()).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |line: &str| {
        <[String; 3]>::try_from(line.split('|').map(str::to_owned).collect::<Vec<_>>()).ok()
    };
    text.lines().filter_map(row).collect()
}
