//! A run from its first step, or from where it was stopped, to its output.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

use super::error::TrainError;
use super::event::{Event, Watcher};
use super::folder::{RunFolder, begun_at, check_idle, checkpoints_in};
use super::machine::{Memory, matmul_peak, peak_memory};
use super::measure::HeldBack;
use super::metrics::{self, Log, METRICS, Record};
use super::outlook::{Outlook, flops_per_token};
use super::output_state::OutputState;
use super::parameters::Parameters;
use super::parent::parent_files;
use super::resume::{Candidates, ResumePoint, SameRun, restore};
use super::save::{Saver, stored_values};
use super::select::trained_names;
use super::session::{EndLosses, Losses, Progress, ROWS, Session};
use super::settings::{Operation, Settings};
use super::trainer::{Counters, Trainer};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hash::sha256_file;
use crate::checkpoint::manifest::DataRecord;
use crate::checkpoint::output::check_target;
use crate::checkpoint::single::check_kind;
use crate::data::{Mixture, Split, TokenFolder};
use crate::family::cost::Report;
use crate::family::{Architecture, Config};
use crate::memory::warning;
use crate::model::{BackendChoice, CausalLm, LoadOptions, OptimiserState, Trainable, has_kernels};
use crate::{Error, Result, threads};

/// A run that is asked for.
pub struct Request {
    /// Folder of the checkpoint that training begins with.
    pub checkpoint: PathBuf,
    /// The weight file that the folder was converted from for this run, which the output then names as its source.
    pub origin: Option<PathBuf>,
    /// Name, token folder and weight of each domain.
    pub data: Vec<(String, PathBuf, f64)>,
    /// Folder to make.
    pub out: PathBuf,
    /// What the weights follow from; [`Settings::data`] is filled in here.
    pub settings: Settings,
    /// How the run goes about it.
    pub operation: Operation,
    /// Where it computes.
    pub device: Device,
}

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
    /// The backend that computed; absent where the run was complete before it began.
    pub backend: Option<BackendChoice>,
    /// Duration of this part, in seconds.
    pub seconds: f64,
    /// Largest memory of the process, in bytes.
    pub peak_memory: u64,
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
    if let Some(text) = warning("the run", memory.total()).filter(|_| request.device.is_cpu()) {
        watch(&Event::Note(text));
    }
    let (mixture, held_back) = open_data(&mut request, &architecture, watch)?;
    let settings = request.settings.clone();
    let operation = &request.operation;
    let json = settings.to_json();
    let saver = Saver::open(
        (&request.checkpoint, request.origin.as_deref()),
        &architecture,
        settings.data.clone(),
        json.clone(),
    )?;
    if let Some(note) = saver.note() {
        watch(&Event::Note(note.to_owned()));
    }
    let same_run = SameRun {
        settings: &settings,
        json: &json,
        checkpoint: &request.checkpoint,
        parent: saver.parent_files(),
    };
    let found = if operation.resume {
        OutputState::of(&request.out, &same_run)?
    } else {
        OutputState::Other
    };
    if found == OutputState::Complete {
        watch(&Event::Note(format!(
            "{} is complete already",
            request.out.display()
        )));
        return Ok(End::of_complete_run(settings.steps));
    }
    let replaces = operation.force || found == OutputState::Shorter;
    check_target(&request.out, replaces, &[&request.checkpoint])?;
    let folder = RunFolder::begin(&request.out, operation.resume, operation.force)?;
    let candidates = if operation.resume {
        Candidates::of(folder.path(), folder.checkpoints()?, &same_run)?
    } else {
        Candidates::default()
    };
    let resumed = candidates.newest.as_ref();
    let resumed = resumed.map(|newest| newest.position.step);
    let outlook = Outlook::of(
        &request.checkpoint,
        &request.data,
        &settings,
        operation,
        request.device.is_cuda(),
        resumed.unwrap_or(0),
    )?;
    if let Some(text) = outlook.disk_warning(&request.out)? {
        watch(&Event::Note(text));
    }

    let dtype = settings.dtype.stored();
    let trainable = Trainable::Only(names);
    let options = LoadOptions {
        dtype,
        trainable,
        ..LoadOptions::train(request.device.clone())
    };
    let model = CausalLm::load(&request.checkpoint, &options)?;
    let parameters = Parameters::of(&model);
    let states = states(&request.checkpoint, &model, &parameters, dtype)?;
    let counters = Counters::default();
    let checkpointing = operation.gradient_checkpointing;
    let mut trainer = Trainer {
        model: &model,
        parameters,
        states,
        settings: &settings,
        checkpointing,
        counters,
    };
    if operation.resume {
        resume(&candidates, &folder, &mut trainer, watch)?;
    }
    let begun = trainer.counters;

    let matmul_peak = matmul_peak(model.device(), dtype)?;
    let cost = Report::new(&architecture, settings.seq as u64 / 2)?;
    let trained: u64 = trainer
        .parameters
        .all
        .iter()
        .map(|parameter| parameter.var.elem_count() as u64)
        .sum();
    watch(&Event::Begins {
        trained,
        parameters: cost.total_parameters,
        memory,
        matmul_peak,
        backend: model.backend(),
    });

    folder.write_settings(&json)?;
    let log = begin_log(&folder, resumed, watch, || {
        start(&architecture, &cost, &json)
    })?;
    let progress = match resumed {
        Some(_) => Progress::of(&metrics::read(&folder.path().join(METRICS))?),
        None => Progress::default(),
    };
    let mut session = Session {
        flops_per_token: flops_per_token(&cost, trained),
        matmul_peak,
        trainer,
        saver,
        folder,
        log,
        mixture,
        held_back,
        settings: &settings,
        operation,
        replaces,
        saved: resumed,
        losses: Losses::default(),
        progress,
    };
    session.steps(stop, watch)?;
    session.finish(&request.out, began, watch)?;
    let ended = session.trainer.counters;
    Ok(End {
        step: ended.step,
        tokens: ended.tokens,
        new_steps: ended.step - begun.step,
        new_tokens: ended.tokens - begun.tokens,
        losses: session.losses.end(),
        backend: Some(model.backend().clone()),
        seconds: began.elapsed().as_secs_f64(),
        peak_memory: peak_memory(),
        predicted_memory: memory.total(),
    })
}

impl End {
    /// The end of a run that was complete before it began.
    fn of_complete_run(step: u64) -> Self {
        Self {
            step,
            tokens: 0,
            new_steps: 0,
            new_tokens: 0,
            losses: None,
            backend: None,
            seconds: 0.0,
            peak_memory: peak_memory(),
            predicted_memory: 0,
        }
    }
}

/// Restores the newest checkpoint, if there is one, and sets damaged ones aside.
fn resume(
    candidates: &Candidates,
    folder: &RunFolder,
    trainer: &mut Trainer,
    watch: Watcher,
) -> Result<()> {
    let Some(ResumePoint { path, position }) = &candidates.newest else {
        watch(&Event::Note(
            "there is no checkpoint to resume from: the run begins at its first step".to_owned(),
        ));
        return Ok(());
    };
    restore(path, &trainer.parameters, &mut trainer.states)?;
    for (path, problem) in &candidates.damaged {
        let aside = folder.set_aside(path)?;
        let (damaged, aside) = (path.display(), aside.display());
        watch(&Event::Note(format!(
            "{damaged} is damaged and is now {aside}: {problem}"
        )));
    }
    trainer.counters = Counters {
        step: position.step,
        updates: position.updates,
        tokens: position.tokens,
        norm_mean: position.norm_mean,
        norms: position.norms,
    };
    watch(&Event::Resumes(position.step));
    Ok(())
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

/// Refuses what a run would refuse before its first step, and touches nothing; returns the steps that it would not take
/// again. Reads weights only where a run would resume, for their hashes.
pub fn check(request: &mut Request) -> Result<u64> {
    let architecture = Architecture::of(&Config::read(&request.checkpoint)?)?;
    architecture.match_checkpoint(&request.checkpoint)?;
    check_settings(request, &architecture)?;
    open_data(request, &architecture, &mut |_: &Event| {})?;
    let (out, operation) = (&request.out, &request.operation);
    let sources = [request.checkpoint.as_path()];
    if !operation.resume {
        check_target(out, operation.force, &sources)?;
        let (folder, _) = begun_at(out, false, operation.force)?;
        return check_idle(&folder).map(|()| 0);
    }
    let same_run = SameRun {
        settings: &request.settings,
        json: &request.settings.to_json(),
        checkpoint: &request.checkpoint,
        parent: &parent_files(
            &request.checkpoint,
            request.origin.as_deref(),
            &architecture,
        )?,
    };
    let found = OutputState::of(out, &same_run)?;
    if found == OutputState::Complete {
        return Ok(request.settings.steps);
    }
    check_target(out, found == OutputState::Shorter, &sources)?;
    let (folder, _) = begun_at(out, true, false)?;
    check_idle(&folder)?;
    let candidates = Candidates::of(&folder, checkpoints_in(&folder)?, &same_run)?;
    Ok(candidates.newest.map_or(0, |newest| newest.position.step))
}

/// Refuses settings out of their ranges, and a run that cannot fit into memory; returns what trains and what the run takes.
fn check_settings(
    request: &Request,
    architecture: &Architecture,
) -> Result<(BTreeSet<String>, Memory)> {
    let settings = &request.settings;
    settings.check()?;
    if let Some(path) = &request.operation.dump_rows {
        // Rows are added to what an earlier run has left.
        check_kind(path, "file of rows", &|beginning: &[u8]| {
            beginning.is_empty() || beginning.starts_with(ROWS)
        })?;
    }
    if let Some(longest) = architecture
        .max_position_embeddings
        .filter(|longest| settings.seq as u64 > *longest)
    {
        let seq = settings.seq;
        return Err(TrainError::LongRows { seq, longest }.into());
    }
    let names = trained_names(&request.checkpoint, architecture, settings)?;
    let is_cpu = request.device.is_cpu();
    let checkpointing = request.operation.gradient_checkpointing;
    let keeps_scores = !has_kernels(&request.device, settings.dtype.stored());
    let memory = Memory::predict(architecture, &names, settings, keeps_scores, checkpointing)?;
    // What a GPU has left only its driver knows.
    if is_cpu {
        memory.check()?;
    }
    Ok((names, memory))
}

/// Opens the token folders, and checks that they are for this model.
fn open_data(
    request: &mut Request,
    architecture: &Architecture,
    watch: Watcher,
) -> Result<(Mixture, Vec<HeldBack>)> {
    let settings = &mut request.settings;
    let tokenizer = request.checkpoint.join("tokenizer.json");
    let tokenizer = tokenizer
        .exists()
        .then(|| sha256_file(&tokenizer))
        .transpose()?;
    let (mut domains, mut held_back) = (Vec::new(), Vec::new());
    settings.data.clear();
    for (name, path, weight) in &request.data {
        let folder = TokenFolder::open(path)?;
        if let Some((sha256, _)) = &tokenizer {
            folder.check_tokenizer(sha256, &request.checkpoint)?;
        }
        if folder.vocab_size() > architecture.vocab_size {
            return Err(TrainError::LargeVocabulary {
                path: path.clone(),
                expected: architecture.vocab_size,
                found: folder.vocab_size(),
            }
            .into());
        }
        Split::ALL
            .iter()
            .try_for_each(|split| folder.check_content(*split))?;
        settings.data.push(DataRecord {
            name: name.clone(),
            weight: *weight,
            sha256: folder.hash().to_owned(),
        });
        domains.push((name.clone(), folder, *weight));
    }
    let mixture = Mixture::new(domains, settings.rng_seed, settings.seq, Split::Train)?;
    if request.operation.validate_every > 0 {
        for (name, path, _) in &request.data {
            let most = request.operation.validate_rows;
            match HeldBack::of(name, TokenFolder::open(path)?, settings, most)? {
                Some(domain) => held_back.push(domain),
                None => watch(&Event::Note(format!(
                    "{}: no row of {} tokens is held back, so `{name}` is not validated",
                    path.display(),
                    settings.seq
                ))),
            }
        }
    }
    Ok((mixture, held_back))
}

/// The optimiser's state before the first step.
fn states(
    folder: &Path,
    model: &CausalLm,
    parameters: &Parameters,
    dtype: DType,
) -> Result<Vec<Box<dyn OptimiserState>>> {
    let checkpoint = (dtype != DType::F32)
        .then(|| model.architecture().as_read(Checkpoint::open(folder)?))
        .transpose()?;
    let state = |parameter: &super::parameters::Trained| {
        let name = &parameter.spec.name;
        let master = checkpoint
            .as_ref()
            .map(|checkpoint| stored_values(checkpoint, name))
            .transpose()?;
        model.optimiser_state(&parameter.var, master)
    };
    parameters.all.iter().map(state).collect()
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
