//! PyTorch as an engine: processes that run `train_bam.py`, and what they report.
//!
//! The processes train; everything else stays here. They write no checkpoint, only the optimiser's state, of which the
//! session makes one. `docs/design/torch-engine.md` describes what passes between them and this program.

mod code;
mod engine_folder;
mod error;
mod events;
mod launch;
mod module;
mod plan;
mod process;
mod python;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::engine_folder::{OUTPUT, PLAN, SCRATCH, STOP, check_content, remove_file, remove_states};
use self::events::{Ready, StepEvent, TorchEvent};
use self::plan::{Plan, PlanFolders, absolute, trained_shapes};
use self::process::{Next, Process, Status};
use super::engine::{Counters, Engine, EngineFacts, Outcome, Report, Reports, Taken};
use super::folder::{ENGINE, checkpoint_at};
use super::measure::HeldBack;
use super::metrics::Validation;
use super::request::{Request, TorchDevice, TorchRequest};
use super::resume::ResumePoint;
use super::settings::{Operation, Settings};
use super::state::{State, StateFiles};
use crate::checkpoint::output::beside;
use crate::checkpoint::{Checkpoint, single};
use crate::family::Architecture;
use crate::printable::printable;
use crate::{Error, Result};

pub use error::TorchError;
pub use events::Probe;
pub use launch::Launch;
pub(super) use module::Module;
pub use python::{default_python, probe};

/// Time between two looks at whether the run is to stop.
const PAUSE: Duration = Duration::from_millis(100);
/// Time without an event after which the run says so.
const SILENCE: Duration = Duration::from_secs(600);
/// The kind of the failure of a rank that lost its connection to another.
const RANK_LOST: &str = "rank-lost";

/// Processes of PyTorch that have loaded the model.
pub(super) struct TorchEngine<'a> {
    process: Process,
    /// The folder of the run.
    run: PathBuf,
    held_back: &'a [HeldBack],
    settings: &'a Settings,
    operation: &'a Operation,
    /// The shapes of the parameters that train.
    shapes: BTreeMap<String, Vec<u64>>,
    counters: Counters,
    /// What a rank said that lost its connection to another.
    lost: Option<events::Failure>,
    /// The state after the last step of the run.
    last: Option<StateFiles>,
    pub(super) facts: EngineFacts,
    /// Floating-point operations per second of all devices together.
    pub(super) matmul_peak: f64,
    pub(super) notes: Vec<String>,
}

/// What the processes are to train.
pub(super) struct Work<'a, 'b> {
    pub(super) request: &'a Request,
    pub(super) torch: &'b TorchRequest,
    pub(super) architecture: &'b Architecture,
    /// The checkpoint that training begins with.
    pub(super) parent: &'b Checkpoint,
    /// The parameters that train.
    pub(super) trained: &'b BTreeSet<String>,
    pub(super) held_back: &'a [HeldBack],
    pub(super) resume: Option<&'b ResumePoint>,
    /// Whether held-back text was measured where the run resumes.
    pub(super) measured: bool,
    /// The folder of the run.
    pub(super) run: &'b Path,
}

impl<'a> TorchEngine<'a> {
    /// Starts the processes, and waits until they have loaded the model; `None` where `stop` became true before.
    pub(super) fn start(work: &Work<'a, '_>, stop: &AtomicBool) -> Result<Option<Self>> {
        let shapes = trained_shapes(work.architecture, work.trained)?;
        if let Some(point) = work.resume {
            let files = StateFiles::of(&point.path)?;
            files.check(
                shapes
                    .iter()
                    .map(|(name, shape)| (name.as_str(), &shape[..])),
            )?;
        }
        let folder = work.run.join(ENGINE);
        let (scratch, stop_file) = (folder.join(SCRATCH), folder.join(STOP));
        fs::create_dir_all(&scratch).map_err(|e| Error::io("create", &scratch, e))?;
        remove_states(&scratch)?;
        remove_file(&stop_file)?;
        check_content(&folder)?;
        code::write(&folder)?;
        let plan = Plan::of(
            work.request,
            work.torch,
            (work.architecture, work.parent),
            work.trained,
            (work.resume, work.measured),
            &PlanFolders {
                scratch: &scratch,
                stop: &stop_file,
            },
        )?;
        let path = absolute(&folder.join(PLAN))?;
        let text = serde_json::to_vec_pretty(&plan).map_err(|source| {
            let what = "the plan of the engine";
            super::error::TrainError::NotWritten { what, source }
        })?;
        single::write(&path, &[&text, b"\n"])?;
        let script = absolute(&folder.join(code::ENTRY))?;
        let process = Process::start(
            &work.torch.supervisor,
            &work.torch.launch.command(work.torch, &script, &path),
            &folder.join(OUTPUT),
            (work.torch.device == TorchDevice::Cpu).then_some(work.torch.processes),
        )?;
        let counters = work.resume.map(|point| point.position.counters());
        // A run that was killed before it wrote its output has no step left.
        let complete = work
            .resume
            .filter(|point| point.position.step == work.request.settings.steps);
        let last = complete
            .map(|point| StateFiles::of(&point.path))
            .transpose()?;
        let mut engine = Self {
            process,
            run: work.run.to_path_buf(),
            held_back: work.held_back,
            settings: &work.request.settings,
            operation: &work.request.operation,
            shapes,
            counters: counters.unwrap_or_default(),
            lost: None,
            last,
            facts: EngineFacts::Torch {
                torch: String::new(),
                ranks: work.torch.ranks(),
                device: work.torch.device.name().to_owned(),
                attention: String::new(),
                compiled: false,
                code: code::hashes(),
            },
            matmul_peak: 0.0,
            notes: Vec::new(),
        };
        let is_ready = engine.wait_until_ready(stop)?;
        Ok(is_ready.then_some(engine))
    }

    /// Waits until the processes have loaded the model; false where `stop` became true before.
    fn wait_until_ready(&mut self, stop: &AtomicBool) -> Result<bool> {
        loop {
            if stop.load(Ordering::SeqCst) {
                return Ok(false);
            }
            match self.process.next(PAUSE)? {
                Next::Nothing => {}
                Next::Closed => return Err(self.died()),
                Next::Event(event) => match *event {
                    TorchEvent::Ready(ready) => {
                        self.take(ready);
                        return Ok(true);
                    }
                    TorchEvent::Note { message } => self.notes.push(message),
                    TorchEvent::Failed(failure) => self.hear(failure)?,
                    other => return Err(self.out_of_order(&other)),
                },
            }
        }
    }

    fn take(&mut self, ready: Ready) {
        if let EngineFacts::Torch {
            torch,
            ranks,
            device,
            attention,
            compiled,
            ..
        } = &mut self.facts
        {
            *torch = ready.torch;
            *ranks = ready.ranks;
            if let Some(name) = ready.device_names.into_iter().next() {
                *device = name;
            }
            (*attention, *compiled) = (ready.attention, ready.compiled);
        }
        self.matmul_peak = ready.matmul_peak * ready.ranks as f64;
        self.notes.extend(ready.notes);
    }

    fn folder(&self) -> PathBuf {
        self.run.join(ENGINE)
    }

    /// Lets the processes of a complete run end, and removes what only they needed.
    pub(super) fn finish(self) -> Result<()> {
        let scratch = self.folder().join(SCRATCH);
        self.process.finish();
        remove_states(&scratch)
    }

    /// Moves on by one step.
    fn advance(&mut self, counters: Counters) -> Result<()> {
        if counters.step == self.counters.step + 1 && counters.updates <= counters.step {
            self.counters = counters;
            return Ok(());
        }
        Err(self.contradiction(format!("step {}", counters.step)))
    }

    /// Refuses an event about another step than the last one.
    fn expect_step(&self, step: u64, what: &str) -> Result<()> {
        if step == self.counters.step {
            return Ok(());
        }
        Err(self.contradiction(format!("{what} of step {step}")))
    }

    /// Hands on the state that the processes have written in files of these names, and makes room for the next.
    fn save(&mut self, names: &BTreeSet<String>, report: Reports) -> Result<()> {
        let scratch = self.folder().join(SCRATCH);
        let files = StateFiles::of(&scratch)?;
        if files.names() != *names {
            return Err(
                self.contradiction("a state with other files than those in its folder".to_owned())
            );
        }
        let shapes = self.shapes.iter();
        files.check(shapes.map(|(name, shape)| (name.as_str(), &shape[..])))?;
        let step = self.counters.step;
        let is_last = step == self.settings.steps;
        // Without checkpoints, the last state is for the output alone.
        if is_last && self.operation.save_every == 0 {
            self.last = Some(files);
            return Ok(());
        }
        // The processes may write the next state as soon as these files are gone.
        report(Report::State(State::Files(&files)))?;
        if is_last {
            self.last = Some(StateFiles::of(&checkpoint_at(&self.run, step))?);
        }
        Ok(())
    }

    fn validation(
        &self,
        found: BTreeMap<String, events::Likelihood>,
    ) -> BTreeMap<String, Validation> {
        let of = |domain: &HeldBack| {
            let likelihood = found.get(domain.name())?;
            let scores = domain.scores(likelihood.nll, likelihood.tokens);
            Some((domain.name().to_owned(), scores))
        };
        self.held_back.iter().filter_map(of).collect()
    }

    fn out_of_order(&self, event: &TorchEvent) -> Error {
        let text = format!("{event:?}");
        let name = text.split(['(', ' ']).next().unwrap_or_default();
        self.contradiction(format!("`{}`", name.to_lowercase()))
    }

    fn contradiction(&self, found: String) -> Error {
        TorchError::OutOfOrder {
            log: self.process.log().to_path_buf(),
            step: self.counters.step,
            found,
        }
        .into()
    }

    /// Ends the run because of a failure. A rank that lost another waits for the other's word, which says more.
    fn hear(&mut self, failure: events::Failure) -> Result<()> {
        if failure.kind == RANK_LOST {
            self.lost.get_or_insert(failure);
            return Ok(());
        }
        Err(self.failed(failure))
    }

    /// The processes have closed their output without an end.
    fn died(&mut self) -> Error {
        if let Some(failure) = self.lost.take() {
            return self.failed(failure);
        }
        let status = self.process.status().to_string();
        TorchError::Died {
            log: self.process.log().to_path_buf(),
            step: self.counters.step,
            status,
            said: self.process.last_lines(),
        }
        .into()
    }

    fn failed(&self, failure: events::Failure) -> Error {
        let (log, step) = (self.process.log().to_path_buf(), self.counters.step);
        let message = failure.message.lines().map(printable).collect();
        match failure.kind.as_str() {
            "memory" => TorchError::Memory { log, step, message },
            _ => TorchError::Failed { log, step, message },
        }
        .into()
    }
}

impl Engine for TorchEngine<'_> {
    fn run(&mut self, stop: &AtomicBool, report: Reports) -> Result<Outcome> {
        for note in std::mem::take(&mut self.notes) {
            report(Report::Note(note))?;
        }
        let (mut is_asked, mut heard) = (false, Instant::now());
        loop {
            if stop.load(Ordering::SeqCst) && !is_asked {
                is_asked = true;
                let path = self.folder().join(STOP);
                fs::write(&path, b"").map_err(|e| Error::io("write", &path, e))?;
            }
            let event = match self.process.next(PAUSE)? {
                Next::Event(event) => *event,
                Next::Closed => return Err(self.died()),
                Next::Nothing => {
                    if heard.elapsed() > SILENCE {
                        heard = Instant::now();
                        let (step, log) = (self.counters.step, self.process.log().display());
                        let minutes = SILENCE.as_secs() / 60;
                        report(Report::Note(format!(
                            "torch's processes have reported nothing for {minutes} minutes after step {step}; {log} has their output"
                        )))?;
                    }
                    continue;
                }
            };
            heard = Instant::now();
            match event {
                TorchEvent::Step(step) => {
                    let counters = step.position.counters();
                    self.advance(counters)?;
                    report(Report::Step(Box::new(taken(*step, counters))))?;
                }
                TorchEvent::Skip(skip) => {
                    let counters = skip.position.counters();
                    self.advance(counters)?;
                    let Some(reason) = skip.reason.skipped() else {
                        return Err(
                            self.contradiction("a skipped step without a reason".to_owned())
                        );
                    };
                    report(Report::Skip(counters, reason))?;
                }
                TorchEvent::Detail(detail) => {
                    self.expect_step(detail.step, "details")?;
                    report(Report::Detail(detail))?;
                }
                TorchEvent::Validation { step, domains } => {
                    self.expect_step(step, "a measurement")?;
                    report(Report::Validation(self.validation(domains)))?;
                }
                TorchEvent::State(state) => {
                    let counters = state.position.counters();
                    if counters != self.counters {
                        let step = counters.step;
                        return Err(self.contradiction(format!("a state of step {step}")));
                    }
                    self.save(&state.files, report)?;
                }
                TorchEvent::Note { message } => report(Report::Note(message))?,
                TorchEvent::Stopped { step } => {
                    self.expect_step(step, "the end")?;
                    return Ok(Outcome::Stopped);
                }
                TorchEvent::End { step } => {
                    self.expect_step(step, "the end")?;
                    return Ok(Outcome::Complete);
                }
                TorchEvent::Failed(failure) => {
                    if let Some(reason) = failure.bad_step() {
                        return Ok(Outcome::Trouble(reason));
                    }
                    self.hear(failure)?;
                }
                other @ (TorchEvent::Ready(_) | TorchEvent::Probe(_)) => {
                    return Err(self.out_of_order(&other));
                }
            }
        }
    }

    fn state(&self) -> Result<State<'_>> {
        match &self.last {
            Some(files) => Ok(State::Files(files)),
            None => Err(self.contradiction("the end without a state".to_owned())),
        }
    }
}

/// Runs this node's share of the processes of a run whose first node is another, which has the same file system.
///
/// When `stop` becomes true, the processes of all nodes save and end.
///
/// # Errors
/// Processes that fail.
pub fn follow(torch: &TorchRequest, out: &Path, stop: &AtomicBool) -> Result<()> {
    let folder = absolute(&beside(out)?.join(ENGINE))?;
    fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
    check_content(&folder)?;
    let Launch::Node { rank, .. } = torch.launch else {
        return Ok(());
    };
    // Both files are there when the processes of all nodes have met: the first node comes last with these.
    let (script, plan) = (folder.join(code::ENTRY), folder.join(PLAN));
    let mut process = Process::start(
        &torch.supervisor,
        &torch.launch.command(torch, &script, &plan),
        &folder.join(format!("output-{rank}.log")),
        (torch.device == TorchDevice::Cpu).then_some(torch.processes),
    )?;
    let stop_file = folder.join(STOP);
    loop {
        // The first node removes the file where it starts later.
        if stop.load(Ordering::SeqCst) && !stop_file.exists() {
            fs::write(&stop_file, b"").map_err(|e| Error::io("write", &stop_file, e))?;
        }
        if let Next::Closed = process.next(PAUSE)? {
            break;
        }
    }
    match process.status() {
        Status::Success => Ok(()),
        Status::Other(status) => Err(TorchError::Died {
            log: process.log().to_path_buf(),
            step: 0,
            status,
            said: process.last_lines(),
        }
        .into()),
    }
}

/// A step as the session logs it.
fn taken(step: StepEvent, counters: Counters) -> Taken {
    Taken {
        counters,
        loss: step.loss,
        nll: step.nll,
        load_balance: step.load_balance,
        z: step.z,
        gradient_norm: step.gradient_norm,
        learning_rate: step.learning_rate,
        router_learning_rate: step.router_learning_rate,
        seconds: step.seconds,
        domains: step.domains,
        memory: step.memory.into_iter().max().filter(|bytes| *bytes > 0),
    }
}
