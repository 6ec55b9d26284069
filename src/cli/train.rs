//! `train`: a checkpoint and token folders to a trained checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bam_convert::arguments::{
    CheckpointPath, DryRun, Force, InputPath, Named, Outline, OutputPath, Resume, Weighted,
};
use bam_convert::checkpoint::outline;
use bam_convert::data::TokenHeader;
use bam_convert::family::{Architecture, Config};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::table::{self, counted};
use bam_convert::train::settings::{Compute, Documents, Preset, Spike, Trouble};
use bam_convert::train::{
    Decay, End, EndLosses, EngineFacts, EngineRequest, Event, LoadBalance, Operation, Outlook,
    Placement, Request, Settings, begun, beside, check, earlier_plans, follow, run, steps_taken,
};
use clap::{ArgAction, Args};
use serde_json::json;

use super::device::DeviceName;
use super::engine::{EngineFlags, Purpose};
use super::error::Result;
use super::estimate::{print, show_training};
use super::names::at_least_one;
use super::opened::{Opened, outline_at};
use super::printer::Printer;
use super::signals::{SecondSignal, command_line, stop_at_signals};
use super::training_progress::TrainingProgress;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Train a checkpoint, dense or a mixture, on token folders.
///
/// Makes DIR, a checkpoint like any other, when the last step is done. Beside it, DIR.run holds the log (metrics.jsonl, and
/// the same for TensorBoard), the settings, and checkpoints to resume from. Ctrl-C and SIGTERM save a checkpoint first.
/// --resume continues from the latest checkpoint, with the same losses and the same bytes as an uninterrupted run.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert train seed --data code=tokens/code --steps 1000 --out code\n  \
                        bam-convert train bam --data code=tokens/code --data law=tokens/law:2 --steps 500 --preset mixture --out mixed\n  \
                        bam-convert train bam --data code=tokens/code --steps 100 --train routers --out routed"
)]
pub struct Arguments {
    /// Folder of the checkpoint to begin with, or a GGUF file.
    #[arg(value_name = "CKPT")]
    checkpoint: CheckpointPath,
    /// A domain: its name, its token folder, and its weight in the mixture [default weight: 1].
    #[arg(long, value_name = "NAME=DIR[:WEIGHT]", required = true)]
    data: Vec<Named<Weighted<InputPath>>>,
    /// Number of updates of the weights.
    #[arg(long, value_name = "N")]
    steps: u64,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Resume the run in DIR.run; with more --steps than before, extend it.
    #[arg(long, conflicts_with = "force", action = ArgAction::SetTrue)]
    resume: Resume,
    /// Replace an earlier run and its output.
    #[arg(long, action = ArgAction::SetTrue)]
    force: Force,
    /// Check what is asked for, and show the disk, compute and time that the run would take; train nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: DryRun,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Make the outline of the output, and say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
    #[command(flatten)]
    batches: Batches,
    #[command(flatten)]
    optimiser: Optimiser,
    #[command(flatten)]
    losses: Losses,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    keeping: Keeping,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Batches")]
struct Batches {
    /// Rows that go through the model together.
    #[arg(long, value_name = "ROWS", default_value_t = 8)]
    batch: usize,
    /// Batches whose gradients are added up for one step.
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Tokens of a row [default: 256, or the model's context where it is shorter].
    #[arg(long, value_name = "TOKENS")]
    seq: Option<usize>,
    /// Seed of the order of rows.
    #[arg(long, visible_alias = "seed", value_name = "N", default_value_t = 0)]
    rng_seed: u64,
    /// Documents that share a row: one text, or each read and predicted on its own [default: joined, and separate where data
    /// are conversations].
    #[arg(long, value_enum)]
    documents: Option<Documents>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Optimiser (AdamW)")]
struct Optimiser {
    /// Learning rate, warm-up and floor of one of the paper's phases; other flags override them.
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Peak of the learning rate [default: 3e-4].
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Peak of the learning rate for routers [default: --learning-rate].
    #[arg(long, value_name = "RATE")]
    router_learning_rate: Option<f64>,
    /// Steps of the warm-up, in which the learning rate rises to its peak [default: a tenth of the run, 100 or the preset's at most].
    #[arg(long, value_name = "STEPS")]
    warmup: Option<u64>,
    /// How the learning rate falls after the warm-up.
    #[arg(long, value_enum, default_value_t = Decay::Cosine)]
    schedule: Decay,
    /// Steps of the decay of `wsd` [default: a fifth of the run].
    #[arg(long, value_name = "STEPS")]
    decay_steps: Option<u64>,
    /// Last learning rate, as a share of the peak [default: 0.1].
    #[arg(long, value_name = "SHARE")]
    floor: Option<f64>,
    /// Decay of matrices; norms and biases have none.
    #[arg(long, value_name = "RATE", default_value_t = 0.1)]
    weight_decay: f64,
    /// Decay of the first moment.
    #[arg(long, value_name = "B", default_value_t = 0.9)]
    beta1: f64,
    /// Decay of the second moment.
    #[arg(long, value_name = "B", default_value_t = 0.95)]
    beta2: f64,
    /// Added to the root of the second moment.
    #[arg(long, value_name = "E", default_value_t = 1e-8)]
    epsilon: f64,
    /// Largest norm of all gradients together; 0 clips nothing.
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    clip: f64,
    /// What to train: all, routers, experts, attention-experts, ffn-experts, adapters, norms, embeddings, expert:NAME, a
    /// role such as q or down, or a pattern of tensor names; several are combined.
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "all",
        value_delimiter = ','
    )]
    train: Vec<String>,
    /// What not to train, in the same words as --train.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    freeze: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Losses of mixtures")]
struct Losses {
    /// Load balance by the tokens that chose an expert (BAM, Switch) or by its mean gate (BTX).
    #[arg(long, value_enum, default_value_t = LoadBalance::Hard)]
    load_balance: LoadBalance,
    /// Weight of the load-balancing loss [default: the checkpoint's router_aux_loss_coef].
    #[arg(long, value_name = "WEIGHT")]
    aux_loss_coef: Option<f64>,
    /// Weight of the router z-loss [default: the checkpoint's router_z_loss_coef].
    #[arg(long, value_name = "WEIGHT")]
    z_loss_coef: Option<f64>,
    /// Balance without a loss: after each step, the bias of an expert with too few or too many tokens moves by so much.
    #[arg(long, value_name = "STEP", default_value_t = 0.0)]
    bias_balancing: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
struct Machine {
    /// Where to compute [default: cpu; with --engine auto, a GPU that torch finds].
    #[arg(long)]
    device: Option<DeviceName>,
    /// Dtype of the weights that the model computes with; master weights and moments are always float32.
    #[arg(long, value_enum, default_value_t = Compute::F32)]
    dtype: Compute,
    /// Keep only the inputs of layers, and run each layer twice: less memory, the same numbers.
    #[arg(long)]
    gradient_checkpointing: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Checkpoints, measurements, trouble")]
struct Keeping {
    /// Steps between checkpoints; 0 saves only at a signal.
    #[arg(long, value_name = "STEPS", default_value_t = 100)]
    save_every: u64,
    /// Number of checkpoints to keep; the oldest go.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one())]
    keep: usize,
    /// Steps between measurements on held-back text, the first before step 1; 0 measures nothing [default: a tenth of the
    /// run].
    #[arg(long, value_name = "STEPS")]
    validate_every: Option<u64>,
    /// Rows of each domain to measure on, at most.
    #[arg(long, value_name = "ROWS", default_value_t = 32, value_parser = at_least_one())]
    validate_rows: usize,
    /// Steps between records of updates by role, and of routers; 0 records none.
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    detail_every: u64,
    /// Write the rows of each step to FILE as JSON lines (step, domain, ids), to follow the run elsewhere.
    #[arg(long, value_name = "FILE")]
    dump_rows: Option<OutputPath>,
    /// At a loss or gradient that is no number: stop, or skip the step.
    #[arg(long, value_enum, default_value_t = Trouble::Stop)]
    on_nan: Trouble,
    /// At a gradient of FACTOR times the running mean: stop, or skip the step.
    #[arg(long, value_name = "FACTOR[:stop|:skip]")]
    on_spike: Option<Spike>,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("train", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        if *self.outline {
            if !outline_at(&self.checkpoint, &self.out)? {
                outline::copy(&self.checkpoint, &self.out)?;
            }
            let settings = self.settings(&self.out, printer)?;
            let taken = if *self.resume {
                steps_taken(&self.out)?
            } else {
                0
            };
            let placement = self.engine.placement(self.machine.device);
            let outlook = self.outlook(&self.out, &settings, placement, taken)?;
            return print(printer, &outlook.estimate());
        }
        if *self.dry_run {
            let opened = Opened::stored_outline(&self.checkpoint, printer)?;
            let engine = self.choose_engine(Purpose::DryRun, printer)?;
            let mut request = self.request(&opened, engine, printer)?;
            let taken = check(&mut request)?;
            let placement = request.engine.placement();
            return show_training(
                &self.outlook(opened.folder(), &request.settings, placement, taken)?,
                &self.out,
                self.json,
                printer,
            );
        }
        let opened = Opened::stored(&self.checkpoint, printer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut progress = TrainingProgress::new(printer, self.steps);
        let (printer_of_signals, bar) = (*printer, progress.bar().clone());
        stop_at_signals(&stop, SecondSignal::Ends, move || {
            let answer = "saving after this step; press Ctrl-C again to stop now";
            bar.suspend(|| printer_of_signals.note(answer));
        })?;
        let engine = self.choose_engine(Purpose::Run, printer)?;
        if let EngineRequest::Torch(torch) = &engine
            && self.engine.is_follower()
        {
            follow(torch, &self.out, &stop)?;
            return Ok(Verdict::Yes);
        }
        let request = self.request(&opened, engine, printer)?;
        let end = run(request, &stop, &mut |event: &Event| progress.show(event));
        progress.end();
        let end = end.map_err(|error| {
            if error.leaves_run() {
                let command = command_line("--resume");
                error.with_hint(format!("continue with: {command}"))
            } else {
                error
            }
        });
        self.say(&end?, printer)
    }

    fn computes(&self) -> bool {
        true
    }

    fn handles_signals(&self) -> bool {
        true
    }
}

impl Arguments {
    fn request(
        &self,
        opened: &Opened,
        engine: EngineRequest,
        printer: &Printer,
    ) -> bam_convert::Result<Request> {
        Ok(Request {
            checkpoint: opened.folder().to_path_buf(),
            origin: opened.origin().map(Into::into),
            data: self.domains(),
            out: self.out.to_path_buf(),
            settings: self.settings(opened.folder(), printer)?,
            operation: self.operation(),
            engine,
        })
    }

    fn choose_engine(&self, purpose: Purpose, printer: &Printer) -> Result<EngineRequest> {
        self.engine.choose(self.machine.device, purpose, printer)
    }

    /// Each domain with its token folder and its weight.
    fn domains(&self) -> Vec<(String, PathBuf, f64)> {
        let domains = self.data.iter();
        domains
            .map(|Named { name, value }| (name.clone(), value.value.to_path_buf(), value.weight))
            .collect()
    }

    /// What the run would take after so many steps.
    fn outlook(
        &self,
        folder: &Path,
        settings: &Settings,
        placement: Placement,
        taken: u64,
    ) -> bam_convert::Result<Outlook> {
        let (domains, operation) = (self.domains(), self.operation());
        Outlook::of(folder, &domains, settings, &operation, placement, taken)
    }

    fn say(&self, end: &End, printer: &Printer) -> Outcome {
        let losses = end.losses.as_ref();
        if self.json {
            printer.json(&json!({
                "output": &*self.out,
                "run": beside(&self.out)?,
                "step": end.step,
                "tokens": end.tokens,
                "new_steps": end.new_steps,
                "new_tokens": end.new_tokens,
                "loss": losses.map(|losses| losses.loss),
                "nll": losses.map(|losses| losses.nll),
                "mean_loss": losses.map(|losses| losses.mean),
                "mean_loss_steps": losses.map(|losses| losses.mean_of),
                "engine": end.engine.as_ref().map(EngineFacts::name),
                "backend": end.engine.as_ref().and_then(EngineFacts::backend),
                "seconds": end.seconds,
                "peak_memory_bytes": end.peak_memory,
                "predicted_memory_bytes": end.predicted_memory,
            }))?;
        } else if let Some(losses) = losses {
            printer.note(&summary(end, losses));
        }
        Ok(Verdict::Yes)
    }

    fn settings(&self, folder: &Path, printer: &Printer) -> bam_convert::Result<Settings> {
        let architecture = Architecture::of(&Config::read(folder)?)?;
        let mixture = architecture.mixture.as_ref();
        let context = architecture
            .max_position_embeddings
            .map_or(256, |longest| longest.min(256) as usize);
        let optimiser = &self.optimiser;
        let preset = optimiser.preset.map(Preset::values);
        let learning_rate = optimiser
            .learning_rate
            .or(preset.map(|(rate, ..)| rate))
            .unwrap_or(3e-4);
        let most = preset.map_or(100, |(_, warmup, _)| warmup);
        // A run that resumes keeps what followed from its first number of steps.
        let begun = if *self.resume { begun(&self.out) } else { None };
        let of_run = begun.as_ref();
        let default_warmup = of_run.map_or(most.min(self.steps / 10), |run| run.warmup);
        let warmup = optimiser.warmup.unwrap_or(default_warmup);
        if optimiser.warmup.is_none() && begun.is_none() && preset.is_some() && warmup < most {
            printer.note(&format!(
                " note: a warm-up of {warmup} steps, a tenth of the run; the preset's {most} are for longer ones"
            ));
        }
        let mut data = self.data.iter();
        // What is wrong with the data is said where they are opened.
        let has_conversations = data.any(|data| {
            TokenHeader::read(&data.value.value).is_ok_and(|(header, _)| header.has_masks())
        });
        let default_documents = if has_conversations {
            Documents::Separate
        } else {
            Documents::Joined
        };
        Ok(Settings {
            data: Vec::new(),
            steps: self.steps,
            extended: of_run.map_or(Vec::new(), |run| earlier_plans(run, self.steps)),
            batch: self.batches.batch,
            accumulate: self.batches.accumulate,
            seq: self.batches.seq.unwrap_or(context),
            rng_seed: self.batches.rng_seed,
            documents: self.batches.documents.unwrap_or(default_documents),
            learning_rate,
            router_learning_rate: optimiser.router_learning_rate.unwrap_or(learning_rate),
            warmup,
            schedule: optimiser.schedule,
            decay_steps: optimiser
                .decay_steps
                .or(of_run.map(|run| run.decay_steps))
                .unwrap_or(self.steps / 5),
            floor: optimiser
                .floor
                .or(preset.map(|(_, _, floor)| floor))
                .unwrap_or(0.1),
            weight_decay: optimiser.weight_decay,
            beta1: optimiser.beta1,
            beta2: optimiser.beta2,
            epsilon: optimiser.epsilon,
            clip: optimiser.clip,
            load_balance: self.losses.load_balance,
            aux_loss_coef: self
                .losses
                .aux_loss_coef
                .or(mixture.map(|m| m.router_aux_loss_coef))
                .unwrap_or(0.0),
            z_loss_coef: self
                .losses
                .z_loss_coef
                .or(mixture.map(|m| m.router_z_loss_coef))
                .unwrap_or(0.0),
            bias_balancing: self.losses.bias_balancing,
            train: optimiser.train.clone(),
            freeze: optimiser.freeze.clone(),
            dtype: self.machine.dtype,
            on_nan: self.keeping.on_nan,
            on_spike: self.keeping.on_spike,
        })
    }

    fn operation(&self) -> Operation {
        Operation {
            gradient_checkpointing: self.machine.gradient_checkpointing,
            save_every: self.keeping.save_every,
            keep: self.keeping.keep,
            validate_every: self
                .keeping
                .validate_every
                .unwrap_or((self.steps / 10).max(1)),
            validate_rows: self.keeping.validate_rows,
            detail_every: self.keeping.detail_every,
            dump_rows: self.keeping.dump_rows.as_deref().map(Into::into),
            resume: *self.resume,
            force: *self.force,
        }
    }
}

/// What a run says at its end.
fn summary(end: &End, losses: &EndLosses) -> String {
    let (steps, tokens) = (counted(end.step, "step"), table::grouped(end.tokens));
    let (new, seconds) = (table::grouped(end.new_tokens), end.seconds);
    let done = if end.new_steps == end.step {
        format!("{steps}, {tokens} tokens in {seconds:.1} s")
    } else {
        let first = end.step - end.new_steps + 1;
        let last = end.step;
        format!(
            "steps {first} to {last}, {new} tokens in {seconds:.1} s; {steps}, {tokens} tokens in all"
        )
    };
    let EndLosses {
        loss,
        nll,
        mean,
        mean_of,
    } = losses;
    let routers = if loss == nll {
        String::new()
    } else {
        format!(" ({nll:.4} without the losses of routers)")
    };
    let memory = end.peak_memory.map(table::bytes);
    let memory = memory.map_or("of the GPU unknown".to_owned(), |peak| {
        format!("at most {peak}")
    });
    format!(
        "{done}; last step: loss {loss:.4}{routers}; mean loss of the last {}: {mean:.4}; memory {memory} (predicted {})",
        counted(*mean_of as u64, "step"),
        table::bytes(end.predicted_memory)
    )
}
