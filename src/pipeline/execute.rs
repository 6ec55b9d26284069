//! Runs the stages of a recipe, each as a child process, side by side where nothing makes them wait.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::child;
use super::error::PipelineError;
use super::graph::Graph;
use super::outcome::{Failure, Finished, Ran, Report};
use super::record::Records;
use super::runner::{FOLDER, Runner, Watch};
use super::schedule::Schedule;
use super::select::Choice;
use super::stage::Stage;
use super::times::Times;
use crate::checkpoint::filesystem::{self, Lock};
use crate::checkpoint::{json, single};
use crate::{Error, Result, threads};

/// Lines of a failed stage's log that are shown.
const TAIL: usize = 20;
/// Tries to take the lock: who asks for the status of a run holds it for a moment.
const LOCK_TRIES: usize = 5;

/// What a stage's thread sends.
enum News {
    Starts { stage: usize, reason: String },
    Ends { stage: usize, end: Result<End> },
}

/// How a stage ended.
struct End {
    ran: Ran,
    seconds: f64,
    failure: Option<Failure>,
}

impl End {
    /// The end of a stage that did not run.
    fn without_run(ran: Ran) -> Self {
        Self {
            ran,
            seconds: 0.0,
            failure: None,
        }
    }
}

/// A run as it proceeds.
struct Course<'a> {
    stages: &'a [Stage],
    watch: &'a dyn Watch,
    schedule: Schedule<'a>,
    times: Times,
    running: usize,
    finished: Vec<Option<Finished>>,
    failures: Vec<Failure>,
    /// What the machine refused first.
    fault: Option<Error>,
}

impl Course<'_> {
    /// The next stage to start.
    fn start(&mut self) -> Option<usize> {
        let stage = self.schedule.start()?;
        self.running += 1;
        Some(stage)
    }

    fn starts(&mut self, stage: usize, reason: &str, log: &Path) -> Result<()> {
        let stage = &self.stages[stage];
        self.times.start(&stage.name)?;
        self.watch.starts(stage, reason, log);
        Ok(())
    }

    /// A stage could not be run at all.
    fn breaks(&mut self, stage: usize, error: Error) {
        self.running -= 1;
        self.schedule.end(stage, false);
        self.fault.get_or_insert(error);
    }

    fn ends(&mut self, stage: usize, end: End) -> Result<()> {
        self.running -= 1;
        self.schedule.end(stage, end.failure.is_none());
        if end.ran == Ran::Done {
            self.times.end(&self.stages[stage].name, end.seconds)?;
        }
        self.failures.extend(end.failure);
        self.note(stage, end.ran, end.seconds, None);
        while let Some((stage, because)) = self.schedule.skip() {
            let because = Some(self.stages[because].name.clone());
            self.note(stage, Ran::Skipped, 0.0, because);
        }
        Ok(())
    }

    fn note(&mut self, number: usize, ran: Ran, seconds: f64, because: Option<String>) {
        let stage = &self.stages[number];
        let finished = Finished {
            stage: stage.name.clone(),
            command: stage.kind().to_owned(),
            ran,
            seconds,
            because,
        };
        self.watch.ends(&finished);
        self.finished[number] = Some(finished);
    }

    fn report(self, was_stopped: bool, begun: Instant) -> Result<Report> {
        if let Some(error) = self.fault {
            return Err(error);
        }
        let is_cut_short = self.finished.iter().any(Option::is_none) || !self.failures.is_empty();
        Ok(Report {
            stopped: was_stopped && is_cut_short,
            stages: self.finished.into_iter().flatten().collect(),
            failures: self.failures,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

impl Runner<'_> {
    /// Runs what is chosen and not up to date. Where a stage fails, the stages that need it are skipped; others continue.
    ///
    /// # Errors
    /// Where the machine refuses, another run works in the folder, or an output is in the way that no stage made.
    pub fn run(&self, stages: &[Stage], graph: &Graph, choices: &[Choice]) -> Result<Report> {
        let begun = Instant::now();
        let logs = self.logs();
        fs::create_dir_all(&logs).map_err(|e| Error::io("create", &logs, e))?;
        let _locks = self.locks(stages, choices)?;
        self.write_graph(stages, graph)?;

        let weight = |stage: &Stage| if stage.computes() { self.jobs } else { 1 };
        let mut course = Course {
            stages,
            watch: self.watch,
            schedule: Schedule::new(graph, stages.iter().map(weight).collect(), self.jobs),
            times: self.times(),
            running: 0,
            finished: vec![None; stages.len()],
            failures: Vec::new(),
            fault: None,
        };
        let (sender, news) = channel();
        std::thread::scope(|scope| -> Result<()> {
            loop {
                while !self.is_stopped() && course.fault.is_none() {
                    let Some(stage) = course.start() else { break };
                    let (sender, choice) = (sender.clone(), choices[stage]);
                    let settle = move || {
                        let end = self.settle(stages, graph, stage, choice, &sender);
                        // The receiver lives until the last stage has sent its end.
                        let _ = sender.send(News::Ends { stage, end });
                    };
                    if let Err(e) = std::thread::Builder::new().spawn_scoped(scope, settle) {
                        course.breaks(stage, threads::none(e));
                    }
                }
                if course.running == 0 {
                    return Ok(());
                }
                match news.recv_timeout(Duration::from_millis(200)) {
                    Ok(News::Starts { stage, reason }) => {
                        course.starts(stage, &reason, &self.log(&stages[stage]))?;
                    }
                    Ok(News::Ends { stage, end }) => match end {
                        Ok(end) => course.ends(stage, end)?,
                        Err(error) => course.breaks(stage, error),
                    },
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        })?;
        course.report(self.is_stopped(), begun)
    }

    /// Runs a stage if it must.
    fn settle(
        &self,
        stages: &[Stage],
        graph: &Graph,
        number: usize,
        choice: Choice,
        sender: &Sender<News>,
    ) -> Result<End> {
        let stage = &stages[number];
        let records = self.records();
        let before = records.read(stage)?;
        let reason = match choice {
            Choice::Leave => return Ok(End::without_run(Ran::Left)),
            Choice::Force => Some("it was asked for".to_owned()),
            Choice::Check => records.reason(stage, before.as_ref())?,
        };
        let Some(reason) = reason else {
            return Ok(End::without_run(Ran::UpToDate));
        };

        let start = Instant::now();
        let log = self.log(stage);
        let resume = choice != Choice::Force && records.can_resume(stage, before.as_ref())?;
        let line = self.line(stage, resume, before.is_some())?;
        // The receiver lives until the last stage has sent its end.
        let _ = sender.send(News::Starts {
            stage: number,
            reason,
        });
        let record = records.start(stage, before.as_ref())?;
        let (status, printed) = child::run(self, stage, &line, &log)?;

        let mut missing = None;
        if status.success() {
            self.keep_printed(stage, &printed)?;
            missing = self.missing_output(stage);
        }
        if !status.success() || missing.is_some() {
            // A stage that the runner ended did not fail, and may be resumed.
            let ran = if status.success() || !self.is_stopped() {
                records.fail(stage, record)?;
                Ran::Failed
            } else {
                Ran::Stopped
            };
            let failure = Failure {
                stage: stage.name.clone(),
                code: status.code(),
                missing,
                tail: tail(&log, &printed),
                log,
            };
            return Ok(End {
                ran,
                seconds: start.elapsed().as_secs_f64(),
                failure: Some(failure),
            });
        }

        // The result is in its place, so that a second copy would only take space.
        fs::remove_file(&printed).map_err(|e| Error::io("remove", &printed, e))?;
        if let Some(why) = self.record_recipe(stages, graph, number, &record)? {
            add_line(&log, &format!(" note: the manifest has no recipe: {why}"))?;
        }
        records.finish(stage, record)?;
        Ok(End {
            ran: Ran::Done,
            seconds: start.elapsed().as_secs_f64(),
            failure: None,
        })
    }

    /// Puts what a stage has printed into its place, if it is a result to keep.
    fn keep_printed(&self, stage: &Stage, printed: &Path) -> Result<()> {
        let Some(file) = &stage.stdout else {
            return Ok(());
        };
        let file = self.work.join(file);
        let folder = file.parent().unwrap_or(self.work);
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        single::write(&file, &[&json::read_bytes(printed)?])
    }

    /// An output that the stage should have made.
    fn missing_output(&self, stage: &Stage) -> Option<PathBuf> {
        let mut outputs = stage.outputs.iter();
        outputs
            .find(|output| !self.work.join(output).exists())
            .cloned()
    }

    /// The command line, which resumes a killed run, or replaces what this stage made before.
    fn line(&self, stage: &Stage, resume: bool, owned: bool) -> Result<Vec<String>> {
        let mut line = stage.command.clone();
        let exists = stage
            .outputs
            .iter()
            .find(|output| self.work.join(output).exists());
        match exists {
            Some(output) if !owned => {
                let (path, stage) = (self.work.join(output), stage.name.clone());
                return Err(PipelineError::NotMade { path, stage }.into());
            }
            _ if resume => line.extend(stage.resume.clone()),
            // A killed run may have left more than the output.
            _ if owned => line.extend(stage.force.clone()),
            _ => {}
        }
        Ok(line)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn records(&self) -> Records<'_> {
        Records::new(
            self.work,
            self.work.join(FOLDER).join("stages"),
            self.verify,
        )
    }

    pub(super) fn times(&self) -> Times {
        Times::read(&self.work.join(FOLDER).join("run.json"))
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.work.join(FOLDER).join("logs")
    }

    pub(super) fn log(&self, stage: &Stage) -> PathBuf {
        self.logs().join(format!("{}.log", stage.name))
    }

    /// Whether a stage that was started may still run: a run holds the folder, or the stage.
    pub(super) fn is_running(&self, stage: &Stage) -> bool {
        let is_held = |path: PathBuf| {
            File::open(path)
                .is_ok_and(|file| matches!(filesystem::try_lock_shared(&file), Ok(Lock::Busy)))
        };
        is_held(self.lock_of_all()) || is_held(self.lock_of(stage))
    }

    pub(super) fn lock_of_all(&self) -> PathBuf {
        self.work.join(FOLDER).join("lock")
    }

    fn lock_of(&self, stage: &Stage) -> PathBuf {
        self.logs().join(format!("{}.lock", stage.name))
    }

    /// Takes the lock of the work folder. Beside other processes it takes the locks of the stages that are to run instead.
    /// The locks are held until they are dropped.
    fn locks(&self, stages: &[Stage], choices: &[Choice]) -> Result<Vec<File>> {
        if !self.shares {
            return Ok(vec![self.lock(&self.lock_of_all(), filesystem::try_lock)?]);
        }
        let own = stages
            .iter()
            .zip(choices)
            .filter(|(_, choice)| **choice != Choice::Leave);
        let own = own.map(|(stage, _)| self.lock(&self.lock_of(stage), filesystem::try_lock));
        std::iter::once(self.lock_shared()).chain(own).collect()
    }

    /// Keeps runs of the whole folder out, until dropped.
    pub(super) fn lock_shared(&self) -> Result<File> {
        self.lock(&self.lock_of_all(), filesystem::try_lock_shared)
    }

    pub(super) fn lock(&self, path: &Path, take: fn(&File) -> io::Result<Lock>) -> Result<File> {
        let file = File::create(path).map_err(|e| Error::io("lock", path, e))?;
        for _ in 0..LOCK_TRIES {
            match take(&file).map_err(|e| Error::io("lock", path, e))? {
                Lock::Held | Lock::Unsupported => return Ok(file),
                Lock::Busy => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        let path = self.work.to_path_buf();
        Err(PipelineError::Busy { path }.into())
    }
}

fn add_line(log: &Path, line: &str) -> Result<()> {
    let file = File::options().append(true).open(log);
    file.and_then(|mut file| writeln!(file, "{line}"))
        .map_err(|e| Error::io("write", log, e))
}

/// The last lines of the log, or of the result where the log says nothing.
fn tail(log: &Path, printed: &Path) -> String {
    let read =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let text = read(log);
    let text = if text.lines().count() > 1 {
        text
    } else {
        text + &read(printed)
    };
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
