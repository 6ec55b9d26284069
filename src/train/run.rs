//! A run from its first step, or from where it was stopped, to its output.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use candle_core::Device;
use serde_json::{Map, Value, json};

use super::check::{check_settings, open_data};
use super::engine::{Engine, EngineFacts};
use super::event::{Event, Watcher};
use super::folder::RunFolder;
use super::machine::{Memory, matmul_peak, peak_memory};
use super::measure::HeldBack;
use super::metrics::{self, Log, METRICS, Record};
use super::native::{NativeEngine, states};
use super::outlook::{Outlook, flops_per_token};
use super::output_state::OutputState;
use super::parameters::Parameters;
use super::request::{EngineRequest, Request, TorchDevice, TorchRequest};
use super::resume::{Candidates, ResumePoint, SameRun};
use super::save::Saver;
use super::session::{EndLosses, Losses, Progress, Session, stopped};
use super::state::StateFiles;
use super::torch::{TorchEngine, Work};
use super::trainer::Trainer;
use crate::checkpoint::output::check_target;
use crate::data::Mixture;
use crate::family::cost::Report;
use crate::family::{Architecture, Config};
use crate::gpu::{self, GpuMemory};
use crate::memory::warning;
use crate::model::{CausalLm, LoadOptions, Trainable};
use crate::{Error, Result, table, threads};

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Steps taken, earlier parts of a resumed run counted.
    pub step: u64,
    /// Tokens predicted, earlier parts counted.
    pub tokens: u64,
    /// Steps of this part.
    pub new_steps: u64,
    /// Tokens of this part.
    pub new_tokens: u64,
    /// Losses of this part; absent where it had no step with an update.
    pub losses: Option<EndLosses>,
    /// What computed; absent where the run was complete before it began.
    pub engine: Option<EngineFacts>,
    /// Duration of this part, in seconds.
    pub seconds: f64,
    /// Largest memory of the process, or of the GPU where one computes, in bytes; `None` where its driver does not tell.
    pub peak_memory: Option<u64>,
    /// What was predicted.
    pub predicted_memory: u64,
}

/// Trains, and writes the output.
///
/// When `stop` becomes true the run saves a checkpoint after the step that it is in, and ends with an error that says so.
///
/// # Errors
/// Each of these is refused by name:
///
/// - data of another tokenizer or vocabulary, and empty, short or cut data;
/// - rows beyond the model's context, and weights of 0;
/// - nothing to train;
/// - resuming with other settings than the run was begun with.
pub fn run(mut request: Request, stop: &AtomicBool, watch: Watcher) -> Result<End> {
    let began = Instant::now();
    threads::start_shared(0)?;
    let architecture = Architecture::of(&Config::read(&request.checkpoint)?)?;
    architecture.match_checkpoint(&request.checkpoint)?;
    let (names, memory) = check_settings(&request, &architecture)?;
    if let Some(text) = memory_warning(&request.engine, &memory) {
        watch(&Event::Note(text));
    }
    let (mixture, held_back) = open_data(&mut request, &architecture, watch)?;

    let saver = open_saver(&request, &architecture, watch)?;
    let (settings, operation) = (&request.settings, &request.operation);
    let same_run = SameRun {
        settings,
        json: &settings.to_json(),
        checkpoint: &request.checkpoint,
        parent: saver.parent_files(),
    };
    let found = if operation.resume {
        OutputState::of(&request.out, &same_run)?
    } else {
        OutputState::Other
    };
    if found == OutputState::Complete {
        let out = request.out.display();
        watch(&Event::Note(format!("{out} is complete already")));
        let on_gpu = request.engine.placement().gpu.is_some();
        return Ok(End::of_complete_run(settings.steps, on_gpu));
    }
    let replaces = operation.force || found == OutputState::Shorter;
    check_target(&request.out, replaces, &[&request.checkpoint])?;
    let folder = RunFolder::begin(&request.out, operation.resume, operation.force)?;
    let candidates = if operation.resume {
        Candidates::of(folder.path(), folder.checkpoints()?, &same_run)?
    } else {
        Candidates::default()
    };

    let course = Course {
        trained: count_trained(&request, &candidates, watch)?,
        measured: measured_before(&folder, &candidates)?,
        request: &request,
        architecture: &architecture,
        names: &names,
        memory,
        saver,
        folder,
        candidates,
        mixture: &mixture,
        held_back: &held_back,
        replaces,
        began,
    };
    match &request.engine {
        EngineRequest::Native(device) => {
            let checkpointing = request.operation.gradient_checkpointing;
            course
                .native(device, stop, watch)
                .map_err(|error| memory.advised(error, device, &request.settings, checkpointing))
        }
        EngineRequest::Torch(torch) => course.torch(torch, stop, watch),
    }
}

/// What writes the checkpoints of the run, once it has said what it makes of the model.
fn open_saver(request: &Request, architecture: &Architecture, watch: Watcher) -> Result<Saver> {
    let settings = &request.settings;
    let saver = Saver::open(
        (&request.checkpoint, request.origin.as_deref()),
        architecture,
        settings.data.clone(),
        settings.to_json(),
    )?;
    if let Some(note) = saver.note() {
        watch(&Event::Note(note.to_owned()));
    }
    Ok(saver)
}

/// How many parameters train; warns where the disk has too little space for what is left of the run.
fn count_trained(request: &Request, candidates: &Candidates, watch: Watcher) -> Result<u64> {
    let outlook = Outlook::of(
        &request.checkpoint,
        &request.data,
        &request.settings,
        &request.operation,
        request.engine.placement(),
        candidates.step().unwrap_or(0),
    )?;
    if let Some(text) = outlook.disk_warning(&request.out)? {
        watch(&Event::Note(text));
    }
    Ok(outlook.trained)
}

/// A warning where the run needs more memory than this machine or its GPUs have.
fn memory_warning(engine: &EngineRequest, memory: &Memory) -> Option<String> {
    let needed = memory.total();
    match engine {
        EngineRequest::Native(device) if device.is_cpu() => warning("the run", needed),
        EngineRequest::Native(device) => {
            let gpu = GpuMemory::of(device).filter(|gpu| needed > gpu.free)?;
            let (needed, held) = (table::bytes(needed), gpu.text());
            Some(format!(
                "the run needs about {needed} of GPU memory, with {held}: it may run out of it"
            ))
        }
        EngineRequest::Torch(torch) if torch.device == TorchDevice::Cpu => {
            warning("the run", needed.saturating_mul(torch.processes))
        }
        EngineRequest::Torch(torch) => {
            let held = torch.gpu_memory.filter(|held| needed > *held)?;
            let (needed, held) = (table::bytes(needed), table::bytes(held));
            Some(format!(
                "each process needs about {needed} of GPU memory, with {held} on the smallest GPU: torch may run out of it"
            ))
        }
    }
}

/// A run whose inputs and folder are ready.
struct Course<'a> {
    request: &'a Request,
    architecture: &'a Architecture,
    /// Names of the parameters that train.
    names: &'a BTreeSet<String>,
    /// How many numbers they hold.
    trained: u64,
    memory: Memory,
    saver: Saver,
    folder: RunFolder,
    candidates: Candidates,
    mixture: &'a Mixture,
    held_back: &'a [HeldBack],
    /// The last step at which held-back text was measured.
    measured: Option<u64>,
    /// Whether the output replaces an earlier one.
    replaces: bool,
    began: Instant,
}

impl Course<'_> {
    /// Trains with this program's trainer.
    fn native(self, device: &Device, stop: &AtomicBool, watch: Watcher) -> Result<End> {
        let Request {
            settings,
            operation,
            checkpoint,
            ..
        } = self.request;
        let dtype = settings.dtype.stored();
        // The matrices go before the model comes, and are no part of the run's memory.
        let peak = matmul_peak(device, dtype)?;
        gpu::forget_peak(device);
        let options = LoadOptions {
            dtype,
            trainable: Trainable::Only(self.names.clone()),
            ..LoadOptions::train(device.clone())
        };
        let model = CausalLm::load(checkpoint, &options)?;
        let parameters = Parameters::of(&model);
        let mut states = states(checkpoint, &model, &parameters, dtype)?;
        if let Some(newest) = &self.candidates.newest {
            StateFiles::of(&newest.path)?.restore(&parameters, &mut states)?;
        }
        let mut engine = NativeEngine {
            trainer: Trainer {
                model: &model,
                parameters,
                states,
                settings,
                checkpointing: operation.gradient_checkpointing,
                counters: self.candidates.counters(),
            },
            mixture: self.mixture,
            held_back: self.held_back,
            settings,
            operation,
            measured: self.measured,
        };
        let facts = EngineFacts::Native {
            backend: model.backend().clone(),
        };
        self.go(&mut engine, facts, peak, stop, watch)
    }

    /// Trains with processes of PyTorch.
    fn torch(self, torch: &TorchRequest, stop: &AtomicBool, watch: Watcher) -> Result<End> {
        let work = Work {
            request: self.request,
            torch,
            architecture: self.architecture,
            parent: self.saver.parent(),
            trained: self.names,
            held_back: self.held_back,
            resume: self.candidates.newest.as_ref(),
            measured: self.measured.is_some(),
            run: self.folder.path(),
        };
        let Some(mut engine) = TorchEngine::start(&work, stop)? else {
            let step = self.candidates.step().unwrap_or(0);
            return Err(stopped(&self.folder, step));
        };
        let (facts, peak) = (engine.facts.clone(), engine.matmul_peak);
        let end = self.go(&mut engine, facts, peak, stop, watch)?;
        engine.finish()?;
        Ok(end)
    }

    /// Takes the steps that are left, and writes the output.
    fn go(
        self,
        engine: &mut dyn Engine,
        facts: EngineFacts,
        matmul_peak: f64,
        stop: &AtomicBool,
        watch: Watcher,
    ) -> Result<End> {
        let Request {
            settings,
            operation,
            out,
            ..
        } = self.request;
        let begun = self.candidates.counters();
        let resumed = self.candidates.step();
        if operation.resume {
            self.set_aside_damaged(watch)?;
        }
        let cost = Report::new(self.architecture, settings.seq as u64 / 2)?;
        watch(&Event::Begins {
            trained: self.trained,
            parameters: cost.total_parameters,
            memory: self.memory,
            matmul_peak,
            engine: &facts,
        });
        let json = settings.to_json();
        self.folder.write_settings(&json)?;
        let log = begin_log(&self.folder, resumed, watch, || {
            start(self.architecture, &cost, &json)
        })?;
        let progress = match resumed {
            Some(_) => Progress::of(&metrics::read(&self.folder.path().join(METRICS))?),
            None => Progress::default(),
        };
        let engines = self.candidates.newest.map(|newest| newest.position.engines);
        let mut session = Session {
            flops_per_token: flops_per_token(&cost, self.trained),
            matmul_peak,
            saver: self.saver,
            folder: self.folder,
            log,
            mixture: self.mixture,
            settings,
            operation,
            facts,
            replaces: self.replaces,
            counters: begun,
            saved: resumed,
            engines: engines.unwrap_or_default(),
            losses: Losses::default(),
            progress,
            on_gpu: self.request.engine.placement().gpu.is_some(),
            memory: None,
        };
        session.steps(engine, stop, watch)?;
        session.finish(engine, out, self.began, watch)?;
        let ended = session.counters;
        Ok(End {
            step: ended.step,
            tokens: ended.tokens,
            new_steps: ended.step - begun.step,
            new_tokens: ended.tokens - begun.tokens,
            losses: session.losses.end(),
            seconds: self.began.elapsed().as_secs_f64(),
            peak_memory: session.peak_memory(),
            predicted_memory: self.memory.total(),
            engine: Some(session.facts),
        })
    }

    /// Says where the run resumes, and moves damaged checkpoints out of its way.
    fn set_aside_damaged(&self, watch: Watcher) -> Result<()> {
        let Some(ResumePoint { position, .. }) = &self.candidates.newest else {
            watch(&Event::Note(
                "there is no checkpoint to resume from: the run begins at its first step"
                    .to_owned(),
            ));
            return Ok(());
        };
        for (path, problem) in &self.candidates.damaged {
            let aside = self.folder.set_aside(path)?;
            let (damaged, aside) = (path.display(), aside.display());
            watch(&Event::Note(format!(
                "{damaged} is damaged and is now {aside}: {problem}"
            )));
        }
        watch(&Event::Resumes(position.step));
        Ok(())
    }
}

/// The step that the run resumes after, if its log has held-back text measured there.
fn measured_before(folder: &RunFolder, candidates: &Candidates) -> Result<Option<u64>> {
    match candidates.step() {
        Some(step) => metrics::measured(folder.path(), step),
        None => Ok(None),
    }
}

impl End {
    /// The end of a run that was complete before it began. It has used no memory of a GPU.
    fn of_complete_run(step: u64, on_gpu: bool) -> Self {
        Self {
            step,
            tokens: 0,
            new_steps: 0,
            new_tokens: 0,
            losses: None,
            engine: None,
            seconds: 0.0,
            peak_memory: (!on_gpu).then(peak_memory),
            predicted_memory: 0,
        }
    }
}

/// Begins the log of a run, or continues it after the step `resumed`.
fn begin_log(
    folder: &RunFolder,
    resumed: Option<u64>,
    watch: Watcher,
    start: impl FnOnce() -> Record,
) -> Result<Log> {
    let (mut log, problems) = Log::begin(folder.path(), resumed)?;
    for problem in problems {
        let problem = Error::from(problem).problem();
        watch(&Event::Note(format!(
            "{METRICS}: {problem}; the log continues without this line"
        )));
    }
    if log.is_empty() {
        log.add(&start())?;
    }
    if let Some(step) = resumed {
        log.add(&Record::Resume { step })?;
    }
    Ok(log)
}

fn start(architecture: &Architecture, cost: &Report, settings: &Map<String, Value>) -> Record {
    let facts = [
        ("model_type", json!(architecture.family)),
        ("parameters", json!(cost.total_parameters)),
        ("active_parameters", json!(cost.active_parameters)),
        ("hidden_size", json!(architecture.hidden_size)),
        ("layers", json!(architecture.num_layers)),
        ("mixture", json!(architecture.mixture)),
    ];
    let architecture = facts
        .into_iter()
        .map(|(name, fact)| (name.to_owned(), fact))
        .collect();
    Record::Start {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture,
        settings: settings.clone(),
    }
}
