//! A run from its first step, or from where it was stopped, to its output.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

use super::adamw::State;
use super::folder::RunFolder;
use super::machine::{Memory, matmul_peak, peak_memory};
use super::measure::{HeldBack, measure};
use super::metrics::{self, Log, Record, Validation};
use super::parameters::{Parameters, balances};
use super::save::{Position, Saver, position, restore, stored_values};
use super::select::select;
use super::settings::{Compute, Operation, Settings, Trouble, differences};
use super::trainer::{Counters, Done, Trainer};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hash::sha256_file;
use crate::checkpoint::manifest::{DataRecord, FORMAT_VERSION, Manifest};
use crate::checkpoint::output::check_target;
use crate::data::{Mixture, Row, Split, TokenFolder};
use crate::family::cost::Report;
use crate::family::{Architecture, Config, TensorSpec, expert_names};
use crate::model::{CausalLm, LoadOptions, Trainable};
use crate::{Error, Result};

/// A run that is asked for.
pub struct Request {
    /// Folder of the checkpoint that training begins with.
    pub checkpoint: PathBuf,
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

/// What a run tells while it goes on.
pub enum Event<'a> {
    /// What it will take.
    Begins {
        /// Parameters that train.
        trained: u64,
        /// All parameters.
        parameters: u64,
        /// Predicted peak.
        memory: Memory,
        /// The machine's rate in a large product, in floating-point operations a second.
        matmul_peak: f64,
    },
    /// It goes on behind this step.
    Resumes(u64),
    /// A step is done.
    Step(&'a metrics::Step),
    /// Held-back text was measured.
    Validation(u64, &'a std::collections::BTreeMap<String, Validation>),
    /// A checkpoint was written.
    Saved(&'a Path),
    /// Something that a user should know.
    Note(String),
}

/// Told of each event.
pub type Watcher<'a> = &'a mut dyn FnMut(&Event);

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Steps taken, earlier parts of a resumed run counted.
    pub step: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Mean negative log-likelihood of the last step; absent where the run was complete before it began.
    pub nll: Option<f64>,
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
/// Refused are, by name: data of another tokenizer or vocabulary, empty, short or cut data, rows beyond the model's
/// context, weights of 0, nothing to train, and going on with other settings than the run was begun with.
pub fn run(mut request: Request, stop: &AtomicBool, watch: Watcher) -> Result<End> {
    let began = Instant::now();
    let architecture = Architecture::of(&Config::read(&request.checkpoint)?)?;
    architecture.refuse_fused(&Checkpoint::open(&request.checkpoint)?)?;
    let (mixture, held_back) = open_data(&mut request, &architecture, watch)?;
    let settings = request.settings.clone();
    settings.check()?;
    let names = trained_names(&request.checkpoint, &architecture, &settings)?;
    let operation = &request.operation;
    let json = settings.to_json();
    let saver = Saver::open(&request.checkpoint, settings.data.clone(), json.clone())?;
    if operation.resume && is_finished(&request.out, &settings, &json)? {
        watch(&Event::Note(format!("{} is complete already", request.out.display())));
        let (step, tokens) = (settings.steps, 0);
        return Ok(End { step, tokens, nll: None, seconds: 0.0, peak_memory: peak_memory(), predicted_memory: 0 });
    }
    check_target(&request.out, operation.force, &[&request.checkpoint])?;
    let folder = RunFolder::begin(&request.out, operation.resume, operation.force)?;
    let latest = match operation.resume {
        true => folder.checkpoints()?.pop(),
        false => None,
    };
    let resumed = latest.as_ref().map(|(_, path)| Ok((path, position(path)?))).transpose()?;
    if let Some((path, position)) = &resumed {
        check_same_run(&request.checkpoint, path, position, &json, saver.parent_files())?;
    }

    let dtype = match settings.dtype {
        Compute::F32 => DType::F32,
        Compute::Bf16 => DType::BF16,
    };
    let trainable = Trainable::Only(names);
    let options = LoadOptions { dtype, trainable, ..LoadOptions::train(request.device.clone()) };
    let model = CausalLm::load(&request.checkpoint, &options)?;
    let parameters = Parameters::of(&model);
    let states = states(&request.checkpoint, &parameters, dtype)?;
    let counters = Counters::default();
    let checkpointing = operation.gradient_checkpointing;
    let mut trainer = Trainer { model: &model, parameters, states, settings: &settings, checkpointing, counters };
    if let Some((path, position)) = &resumed {
        restore(path, &trainer.parameters, &mut trainer.states)?;
        trainer.counters = Counters {
            step: position.step,
            updates: position.updates,
            tokens: position.tokens,
            norm_mean: position.norm_mean,
            norms: position.norms,
        };
        watch(&Event::Resumes(position.step));
    } else if operation.resume {
        watch(&Event::Note("there is no checkpoint to resume from: the run begins at its first step".to_owned()));
    }

    let sizes = (settings.batch, settings.seq);
    let memory = Memory::predict(&model, &trainer.parameters, dtype, sizes, checkpointing);
    let matmul_peak = matmul_peak(&model, dtype).map_err(|e| Error::compute("measure the machine", e))?;
    let cost = Report::new(&architecture, settings.seq as u64 / 2)?;
    let trained: u64 = trainer.parameters.all.iter().map(|parameter| parameter.var.elem_count() as u64).sum();
    watch(&Event::Begins { trained, parameters: cost.total_parameters, memory, matmul_peak });

    folder.write_settings(&json)?;
    let mut log = Log::begin(folder.path(), resumed.as_ref().map(|(_, position)| position.step))?;
    match &resumed {
        Some((_, position)) => log.add(&Record::Resume { step: position.step })?,
        None => log.add(&start(&architecture, &cost, &json))?,
    }
    let mut session = Session {
        // The way forward, the way back through activations, and gradients of what trains.
        flops_per_token: cost.flops_per_token as f64 * (2.0 + trained as f64 / cost.total_parameters as f64),
        matmul_peak,
        trainer,
        saver,
        folder,
        log,
        mixture,
        held_back,
        settings: &settings,
        operation,
        saved: resumed.map(|(_, position)| position.step),
        nll: None,
    };
    session.steps(stop, watch)?;
    session.finish(&request.out, began, watch)?;
    Ok(End {
        step: session.trainer.counters.step,
        tokens: session.trainer.counters.tokens,
        nll: session.nll,
        seconds: began.elapsed().as_secs_f64(),
        peak_memory: peak_memory(),
        predicted_memory: memory.total(),
    })
}

/// Opens the token folders, and checks that they are for this model.
fn open_data(request: &mut Request, architecture: &Architecture, watch: Watcher) -> Result<(Mixture, Vec<HeldBack>)> {
    let settings = &mut request.settings;
    if let Some(longest) = architecture.max_position_embeddings.filter(|longest| settings.seq as u64 > *longest) {
        let problem = format!("--seq: {} tokens are more than the model's context of {longest}", settings.seq);
        return Err(Error::usage(problem));
    }
    let tokenizer = request.checkpoint.join("tokenizer.json");
    let tokenizer = tokenizer.exists().then(|| sha256_file(&tokenizer)).transpose()?;
    let (mut domains, mut held_back) = (Vec::new(), Vec::new());
    settings.data.clear();
    for (name, path, weight) in &request.data {
        let folder = TokenFolder::open(path)?;
        if let Some((sha256, _)) = &tokenizer {
            folder.check_tokenizer(sha256, &request.checkpoint)?;
        }
        if folder.vocab_size() > architecture.vocab_size {
            let (found, expected) = (folder.vocab_size(), architecture.vocab_size);
            let problem = format!("its tokens have a vocabulary of {found}, more than the model's {expected}");
            return Err(Error::file(path, problem).with_hint("tokenize the texts with this model's tokenizer"));
        }
        settings.data.push(DataRecord { name: name.clone(), weight: *weight, sha256: folder.hash().to_owned() });
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

fn trained_names(
    checkpoint: &Path,
    architecture: &Architecture,
    settings: &Settings,
) -> Result<std::collections::BTreeSet<String>> {
    let experts = expert_names(checkpoint, architecture)?;
    let (balancing, specs): (Vec<TensorSpec>, Vec<TensorSpec>) =
        architecture.tensors()?.into_iter().partition(|spec| balances(spec, architecture));
    let mut names = select(&specs, &experts, &settings.train, &settings.freeze)?;
    if settings.bias_balancing > 0.0 {
        if balancing.is_empty() {
            return Err(Error::file(
                checkpoint,
                "--bias-balancing: its routers have no bias that takes part in the choice",
            )
            .with_hint("make the mixture with `bam-convert upcycle --router-bias choice`"));
        }
        names.extend(balancing.into_iter().map(|spec| spec.name));
    }
    Ok(names)
}

/// Whether `out` is what the run would make.
fn is_finished(out: &Path, settings: &Settings, json: &Map<String, Value>) -> Result<bool> {
    let manifest = if out.is_dir() { Manifest::read(out)? } else { None };
    Ok(manifest.is_some_and(|manifest| {
        manifest.settings == *json && manifest.lineage.is_some_and(|lineage| lineage.step == settings.steps)
    }))
}

/// Refuses to go on with a run that was begun otherwise.
fn check_same_run(
    checkpoint: &Path,
    path: &Path,
    position: &Position,
    settings: &Map<String, Value>,
    parent: &[crate::checkpoint::hash::FileHash],
) -> Result<()> {
    let hint = "go on with the settings that the run was begun with, choose another --out, or begin anew with --force";
    let differences = differences(&position.settings, settings);
    if !differences.is_empty() {
        let problem = format!("the run cannot go on with other settings: {}", differences.join("; "));
        return Err(Error::file(path, problem).with_hint(hint));
    }
    let changed = parent.iter().find(|file| !position.parent.contains(file));
    match changed.or_else(|| position.parent.iter().find(|file| !parent.contains(file))) {
        Some(file) => {
            Err(Error::file(checkpoint.join(&file.path), "is not the file that the run was begun with").with_hint(hint))
        }
        None => Ok(()),
    }
}

/// The optimiser's state before the first step.
fn states(folder: &Path, parameters: &Parameters, dtype: DType) -> Result<Vec<State>> {
    let checkpoint = (dtype != DType::F32).then(|| Checkpoint::open(folder)).transpose()?;
    let state = |parameter: &super::parameters::Trained| {
        let name = &parameter.spec.name;
        let master = checkpoint.as_ref().map(|checkpoint| stored_values(checkpoint, name)).transpose()?;
        State::new(&parameter.var, master).map_err(|e| Error::compute(format!("hold the state of `{name}`"), e))
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
    let architecture = facts.into_iter().map(|(name, fact)| (name.to_owned(), fact)).collect();
    Record::Start { tool_version: env!("CARGO_PKG_VERSION").to_owned(), architecture, settings: settings.clone() }
}

/// A run that is going on.
struct Session<'a> {
    trainer: Trainer<'a>,
    saver: Saver,
    folder: RunFolder,
    log: Log,
    mixture: Mixture,
    held_back: Vec<HeldBack>,
    settings: &'a Settings,
    operation: &'a Operation,
    flops_per_token: f64,
    matmul_peak: f64,
    /// The step of the latest checkpoint.
    saved: Option<u64>,
    nll: Option<f64>,
}

impl Session<'_> {
    fn steps(&mut self, stop: &AtomicBool, watch: Watcher) -> Result<()> {
        while self.trainer.counters.step < self.settings.steps {
            self.step(watch)?;
            let step = self.trainer.counters.step;
            let due = |every: u64| every > 0 && (step.is_multiple_of(every) || step == self.settings.steps);
            if due(self.operation.validate_every) && !self.held_back.is_empty() {
                let domains = measure(self.trainer.model, &self.held_back, self.settings)?;
                watch(&Event::Validation(step, &domains));
                self.log.add(&Record::Validation { step, domains })?;
            }
            let stopped = stop.load(Ordering::SeqCst);
            if due(self.operation.save_every) || stopped {
                self.save(watch)?;
            }
            if stopped && step < self.settings.steps {
                let source = std::io::Error::from(std::io::ErrorKind::Interrupted);
                return Err(Error::io(
                    "finish the run: stopped by a signal, saved in",
                    self.folder.checkpoint(step),
                    source,
                )
                .with_hint("run the same command with --resume to go on"));
            }
        }
        Ok(())
    }

    fn step(&mut self, watch: Watcher) -> Result<()> {
        let start = Instant::now();
        let counters = self.trainer.counters;
        let (first, count) = (counters.step * self.settings.rows() as u64, self.settings.rows());
        let rows = self.mixture.rows(first, count)?;
        let step = counters.step + 1;
        if let Some(path) = &self.operation.dump_rows {
            dump(path, step, &self.mixture, &rows)?;
        }
        let every = self.operation.detail_every;
        let detailed = every > 0 && (step.is_multiple_of(every) || step == 1 || step == self.settings.steps);
        let mut done = self.trainer.step(&self.mixture, &rows, detailed)?;
        if let Some((action, reason)) = done.trouble.take() {
            let named = name_rows(&self.mixture, first, &rows);
            if action == Trouble::Stop {
                self.save(watch)?;
                return Err(Error::usage(format!("step {step}: {reason}; its batch is {named}"))
                    .with_hint("pass --on-nan skip or --on-spike FACTOR:skip to go on without such steps, or a smaller --learning-rate"));
            }
            watch(&Event::Note(format!("step {step} skipped: {reason}; its batch is {named}")));
            self.trainer.skip(&done);
            return self.log.add(&Record::Skip { step, reason, rows: named });
        }
        let record = self.record(step, &mut done, start);
        self.nll = Some(record.nll);
        watch(&Event::Step(&record));
        self.log.add(&Record::Step(Box::new(record)))?;
        match done.detail {
            Some(detail) => self.log.add(&Record::Detail(Box::new(detail))),
            None => Ok(()),
        }
    }

    fn record(&self, step: u64, done: &mut Done, start: Instant) -> metrics::Step {
        let seconds = start.elapsed().as_secs_f64();
        let tokens_per_second = done.tokens as f64 / seconds;
        let flops_per_second = self.flops_per_token * tokens_per_second;
        metrics::Step {
            step,
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
            tokens: self.trainer.counters.tokens,
            loss: done.loss,
            nll: done.nll,
            load_balance: done.load_balance,
            z: done.z,
            learning_rate: done.rates.0,
            router_learning_rate: done.rates.1,
            gradient_norm: done.gradient_norm,
            seconds,
            tokens_per_second,
            flops_per_second,
            peak_share: flops_per_second / self.matmul_peak,
            domains: std::mem::take(&mut done.domains),
        }
    }

    /// Saves a checkpoint, unless this step has one, and removes old ones.
    fn save(&mut self, watch: Watcher) -> Result<()> {
        let step = self.trainer.counters.step;
        if self.saved == Some(step) {
            return Ok(());
        }
        // Every line up to this step must outlive whatever comes.
        self.log.sync()?;
        let target = self.folder.checkpoint(step);
        let trainer = &self.trainer;
        self.saver.save(&target, &trainer.parameters, &trainer.states, &self.position(), (true, false))?;
        self.saved = Some(step);
        self.folder.prune(self.operation.keep)?;
        watch(&Event::Saved(&target));
        Ok(())
    }

    fn position(&self) -> Position {
        let counters = self.trainer.counters;
        Position {
            format_version: FORMAT_VERSION,
            step: counters.step,
            row: counters.step * self.settings.rows() as u64,
            updates: counters.updates,
            tokens: counters.tokens,
            norm_mean: counters.norm_mean,
            norms: counters.norms,
            settings: self.settings.to_json(),
            parent: self.saver.parent_files().to_vec(),
        }
    }

    fn finish(&mut self, out: &Path, began: Instant, watch: Watcher) -> Result<()> {
        let (step, seconds) = (self.trainer.counters.step, began.elapsed().as_secs_f64());
        self.log.add(&Record::End { step, seconds, peak_memory_bytes: peak_memory() })?;
        self.log.sync()?;
        let trainer = &self.trainer;
        let how = (false, self.operation.force);
        self.saver.save(out, &trainer.parameters, &trainer.states, &self.position(), how)?;
        watch(&Event::Saved(out));
        Ok(())
    }
}

/// Appends rows to a file of JSON lines.
fn dump(path: &Path, step: u64, mixture: &Mixture, rows: &[Row]) -> Result<()> {
    let names: Vec<&str> = mixture.names().collect();
    let line = |row: &Row| format!("{}\n", json!({ "step": step, "domain": names[row.domain], "ids": row.ids }));
    let lines: String = rows.iter().map(line).collect();
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(lines.as_bytes())).map_err(|e| Error::io("write", path, e))
}

/// Rows by number, with the domains that they are from.
fn name_rows(mixture: &Mixture, first: u64, rows: &[Row]) -> String {
    let names: Vec<&str> = mixture.names().collect();
    let mut counts = vec![0; names.len()];
    rows.iter().for_each(|row| counts[row.domain] += 1);
    let counted = names.iter().zip(counts).filter(|(_, count)| *count > 0);
    let domains: Vec<String> = counted.map(|(name, count)| format!("{count} of {name}")).collect();
    format!("rows {first} to {} ({})", first + rows.len() as u64 - 1, domains.join(", "))
}
