//! Runs the stages of a recipe, each as a child process of this program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use serde::Serialize;

use super::record::Records;
use super::stage::Stage;
use crate::checkpoint::json;
use crate::checkpoint::single;
use crate::table::{self, Align};
use crate::{Error, Result};

/// The runner's own folder within the work folder.
const FOLDER: &str = ".bam-run";
/// Lines of a failed stage's log that are shown.
const TAIL: usize = 20;

/// Runs stages in a work folder.
pub struct Runner<'a> {
    /// This program.
    pub program: &'a Path,
    /// The folder that relative paths are seen from, made where absent.
    pub work: &'a Path,
    /// Told what happens.
    pub watch: &'a dyn Watch,
}

/// Who is told of stages that start and end.
pub trait Watch {
    /// A stage starts, for a reason; its log grows in `log`.
    fn starts(&self, stage: &Stage, reason: &str, log: &Path);
    /// A stage ended well, or was skipped.
    fn ends(&self, finished: &Finished);
}

/// What became of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// It ran and ended well.
    Done,
    /// Nothing had changed since its last run.
    UpToDate,
}

/// A stage that needs no more work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finished {
    /// Its name.
    pub stage: String,
    /// Its command.
    pub command: String,
    /// What became of it.
    pub ran: Ran,
    /// Wall time.
    pub seconds: f64,
}

/// A stage that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its name.
    pub stage: String,
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// The last lines it printed.
    pub tail: String,
    /// All that it printed.
    pub log: PathBuf,
}

/// What a run of a recipe did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The stages that are done, in order.
    pub stages: Vec<Finished>,
    /// The stage that stopped the run.
    pub failure: Option<Failure>,
}

impl Report {
    /// The stages with their times.
    pub fn table(&self) -> String {
        let columns = [("stage", Align::Left), ("command", Align::Left), ("", Align::Left), ("seconds", Align::Right)];
        let mut rows: Vec<Vec<String>> = self.stages.iter().map(Finished::row).collect();
        let total: f64 = self.stages.iter().map(|stage| stage.seconds).sum();
        if let Some(failure) = &self.failure {
            rows.push(vec![failure.stage.clone(), String::new(), "failed".to_owned(), String::new()]);
        }
        rows.push(vec!["all".to_owned(), String::new(), String::new(), format!("{total:.1}")]);
        table::render(&columns, rows)
    }
}

impl Finished {
    fn row(&self) -> Vec<String> {
        let ran = match self.ran {
            Ran::Done => "done",
            Ran::UpToDate => "up to date",
        };
        vec![self.stage.clone(), self.command.clone(), ran.to_owned(), format!("{:.1}", self.seconds)]
    }
}

impl Runner<'_> {
    /// Runs what is not up to date, in order; stops at the first stage that fails.
    ///
    /// # Errors
    /// Where the machine refuses, another run works in the folder, or an output is in the way that no stage made.
    pub fn run(&self, stages: &[Stage]) -> Result<Report> {
        let folder = self.work.join(FOLDER);
        let logs = folder.join("logs");
        fs::create_dir_all(&logs).map_err(|e| Error::io("create", &logs, e))?;
        let _lock = lock(&folder.join("lock"), self.work)?;
        let records = self.records();
        let mut report = Report { stages: Vec::new(), failure: None };
        for stage in stages {
            let start = Instant::now();
            let before = records.read(stage);
            let reason = records.reason(stage, before.as_ref())?;
            let command = stage.command.first().cloned().unwrap_or_default();
            let mut finished = Finished { stage: stage.name.clone(), command, ran: Ran::UpToDate, seconds: 0.0 };
            if let Some(reason) = reason {
                let log = logs.join(format!("{}.log", stage.name));
                let resume = records.can_resume(stage, before.as_ref())?;
                let owned = before.is_some();
                let line = self.line(stage, resume, owned)?;
                self.watch.starts(stage, &reason, &log);
                let record = records.start(stage, before.as_ref())?;
                let (status, printed) = self.execute(stage, &line, &log)?;
                if !status.success() {
                    let tail = tail(&log, &printed);
                    report.failure = Some(Failure { stage: stage.name.clone(), code: status.code(), tail, log });
                    return Ok(report);
                }
                if let Some(file) = &stage.stdout {
                    let file = self.work.join(file);
                    let folder = file.parent().unwrap_or(self.work);
                    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
                    single::write(&file, &[&json::read_bytes(&printed)?])?;
                }
                // The result is in its place, so that a second copy would only take space.
                fs::remove_file(&printed).map_err(|e| Error::io("remove", &printed, e))?;
                finished.ran = Ran::Done;
                finished.seconds = start.elapsed().as_secs_f64();
                records.finish(stage, record, finished.seconds)?;
            }
            self.watch.ends(&finished);
            report.stages.push(finished);
        }
        Ok(report)
    }

    /// Why each stage would run; none where it would not.
    pub fn reasons(&self, stages: &[Stage]) -> Result<Vec<Option<String>>> {
        let records = self.records();
        let mut reasons: Vec<Option<String>> = Vec::with_capacity(stages.len());
        for stage in stages {
            let own = records.reason(stage, records.read(stage).as_ref())?;
            let running = stages.iter().zip(&reasons).filter(|(_, reason)| reason.is_some());
            let needed = running.map(|(other, _)| other).find(|other| stage.reads_what_makes(other));
            reasons.push(own.or_else(|| needed.map(|other| format!("stage {} runs before it", other.name))));
        }
        Ok(reasons)
    }

    fn records(&self) -> Records<'_> {
        Records::new(self.work, self.work.join(FOLDER).join("stages"))
    }

    /// The command line: going on with what a killed run left, or replacing what this stage made before.
    fn line(&self, stage: &Stage, resume: bool, owned: bool) -> Result<Vec<String>> {
        let mut line = stage.command.clone();
        let exists = stage.outputs.iter().find(|output| self.work.join(output).exists());
        match exists {
            Some(output) if !owned => {
                let path = self.work.join(output);
                return Err(Error::file(path, format!("exists already, and stage `{}` did not make it", stage.name))
                    .with_hint("remove it, or choose another --work"));
            }
            _ if resume => line.push("--resume".to_owned()),
            // A killed run may have left more than the output.
            _ if owned && stage.replaces => line.push("--force".to_owned()),
            _ => {}
        }
        Ok(line)
    }

    /// Runs the child; its status, and the file that holds its standard output.
    fn execute(&self, stage: &Stage, line: &[String], log: &Path) -> Result<(ExitStatus, PathBuf)> {
        let printed = log.with_extension("out");
        let out = File::create(&printed).map_err(|e| Error::io("create", &printed, e))?;
        let failed = |e| Error::io("write", log, e);
        fs::write(log, format!("$ bam-convert {}\n", line.join(" "))).map_err(failed)?;
        // Both streams append, so that neither writes over the other.
        let append = || File::options().append(true).open(log).map_err(failed);
        let program = std::path::absolute(self.program).map_err(|e| Error::io("find", self.program, e))?;
        let mut command = Command::new(&program);
        command.args(line).current_dir(self.work).stdin(Stdio::null()).stderr(append()?);
        command.stdout(if stage.stdout.is_some() { out } else { append()? });
        let status = command.status().map_err(|e| Error::io("run", &program, e))?;
        Ok((status, printed))
    }
}

/// Takes the lock of a work folder, held until dropped.
fn lock(path: &Path, work: &Path) -> Result<File> {
    let file = File::create(path).map_err(|e| Error::io("lock", path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::file(work, "another run works in this folder")
                .with_hint("wait for it, or choose another --work"))
        }
        Err(fs::TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
    }
}

/// The last lines of the log, or of the result where the log says nothing.
fn tail(log: &Path, printed: &Path) -> String {
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let text = read(log);
    let text = if text.lines().count() > 1 { text } else { text + &read(printed) };
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
