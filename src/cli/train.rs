//! `train`: a checkpoint and token folders to a trained checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bam_convert::arguments::{
    CheckpointPath, DryRun, Force, InputPath, Named, Outline, OutputPath, Resume, Weighted,
};
use bam_convert::checkpoint::outline;
use bam_convert::family::{Architecture, Config};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::table;
use bam_convert::train::settings::{Compute, Documents, Preset, Spike, Trouble};
use bam_convert::train::{
    Decay, End, Event, LoadBalance, Operation, Outlook, Request, Settings, beside, check, run,
};
use candle_core::Device;
use clap::{ArgAction, Args};
use serde_json::json;

use super::device::DeviceName;
use super::estimate::{print, show_training};
use super::names::at_least_one;
use super::opened::{Opened, outline_at};
use super::printer::Printer;
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
    /// Resume the run in DIR.run.
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
    /// Documents that share a row: one text, or each read and predicted on its own.
    #[arg(long, value_enum, default_value_t = Documents::Joined)]
    documents: Documents,
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
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
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
    /// Steps between measurements on held-back text; 0 measures nothing [default: a tenth of the run].
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
            return print(printer, &self.outlook(&self.out, &settings)?.estimate());
        }
        if *self.dry_run {
            let opened = Opened::outline(&self.checkpoint, printer)?;
            let mut request = self.request(&opened, Device::Cpu, printer)?;
            check(&mut request)?;
            return show_training(
                &self.outlook(opened.folder(), &request.settings)?,
                &self.out,
                self.json,
                printer,
            );
        }
        let opened = Opened::whole(&self.checkpoint, printer)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second signal does not wait for the step to end.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let request = self.request(&opened, self.machine.device.open()?, printer)?;
        let bar = printer.steps_bar(self.steps);
        let mut watch = |event: &Event| {
            match event {
            Event::Step(step) => {
                bar.set_position(step.step);
                bar.set_message(format!(
                    "loss {:.4}  rate {:.2e}  {:.0} tokens/s  {}  {:.0} % of peak",
                    step.loss,
                    step.learning_rate,
                    step.tokens_per_second,
                    table::rate(step.flops_per_second),
                    100.0 * step.peak_share
                ));
            }
            Event::Begins { trained, parameters, memory, matmul_peak, backend } => bar.suspend(|| {
                printer.note(&format!(
                    "training {} of {} parameters; memory about {} (weights {}, optimiser {}, gradients {}, activations {}); \
                     products at {}",
                    table::grouped(*trained),
                    table::grouped(*parameters),
                    table::bytes(memory.total()),
                    table::bytes(memory.weights),
                    table::bytes(memory.optimiser),
                    table::bytes(memory.gradients),
                    table::bytes(memory.activations),
                    table::rate(*matmul_peak)
                ));
                printer.note(&format!("backend: {backend}"));
            }),
            Event::Validation(step, domains) => bar.suspend(|| {
                let each = domains.iter().map(|(name, numbers)| format!("{name} {:.3}", numbers.perplexity));
                printer.note(&format!("step {step}: perplexity {}", each.collect::<Vec<_>>().join(", ")));
            }),
            Event::Resumes(step) => bar.suspend(|| printer.note(&format!("resumed after step {step}"))),
            Event::Saved(path) => bar.suspend(|| printer.note(&format!("saved {}", path.display()))),
            Event::Note(text) => bar.suspend(|| printer.note(&format!(" note: {text}"))),
        }
        };
        let end = run(request, &stop, &mut watch);
        bar.finish_and_clear();
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
        device: Device,
        printer: &Printer,
    ) -> bam_convert::Result<Request> {
        Ok(Request {
            checkpoint: opened.folder().to_path_buf(),
            origin: opened.origin().map(Into::into),
            data: self.domains(),
            out: self.out.to_path_buf(),
            settings: self.settings(opened.folder(), printer)?,
            operation: self.operation(),
            device,
        })
    }

    /// Each domain with its token folder and its weight.
    fn domains(&self) -> Vec<(String, PathBuf, f64)> {
        let domains = self.data.iter();
        domains
            .map(|Named { name, value }| (name.clone(), value.value.to_path_buf(), value.weight))
            .collect()
    }

    fn outlook(&self, folder: &Path, settings: &Settings) -> bam_convert::Result<Outlook> {
        let gpu = self.machine.device == DeviceName::Cuda;
        Outlook::of(folder, &self.domains(), settings, &self.operation(), gpu)
    }

    fn say(&self, end: &End, printer: &Printer) -> Outcome {
        if self.json {
            printer.json(&json!({
                "output": &*self.out,
                "run": beside(&self.out)?,
                "step": end.step,
                "tokens": end.tokens,
                "nll": end.nll,
                "backend": end.backend,
                "seconds": end.seconds,
                "peak_memory_bytes": end.peak_memory,
                "predicted_memory_bytes": end.predicted_memory,
            }))?;
        } else if let Some(nll) = end.nll {
            printer.note(&format!(
                "{} steps, {} tokens in {:.1} s; last loss {nll:.4}; memory at most {} (predicted {})",
                end.step,
                table::grouped(end.tokens),
                end.seconds,
                table::bytes(end.peak_memory),
                table::bytes(end.predicted_memory)
            ));
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
        let warmup = optimiser.warmup.unwrap_or(most.min(self.steps / 10));
        if optimiser.warmup.is_none() && preset.is_some() && warmup < most {
            printer.note(&format!(
                " note: a warm-up of {warmup} steps, a tenth of the run; the preset's {most} are for longer ones"
            ));
        }
        Ok(Settings {
            data: Vec::new(),
            steps: self.steps,
            batch: self.batches.batch,
            accumulate: self.batches.accumulate,
            seq: self.batches.seq.unwrap_or(context),
            rng_seed: self.batches.rng_seed,
            documents: self.batches.documents,
            learning_rate,
            router_learning_rate: optimiser.router_learning_rate.unwrap_or(learning_rate),
            warmup,
            schedule: optimiser.schedule,
            decay_steps: optimiser.decay_steps.unwrap_or(self.steps / 5),
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
