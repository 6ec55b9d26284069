//! What a run will make and take, from headers alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folder::checkpoint_bytes;
use super::machine::Memory;
use super::parent::copied;
use super::request::Placement;
use super::select::trained_names;
use super::settings::{Compute, Operation, Settings};
use super::state::STATE_BYTES;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::folder::{CARD, existing};
use crate::checkpoint::output::free_space;
use crate::checkpoint::source_file::stamp_of;
use crate::data::{Split, TokenHeader};
use crate::estimate::{Estimate, Products, READ, START, WRITTEN, Work};
use crate::family::cost::Report;
use crate::family::{Architecture, Config};
use crate::model::WorkLimits;
use crate::{Result, table};

/// The share of the peak that training reaches, with the optimiser. On two idle cores the quickstart's models reach 0.36
/// where matmuls are fast, and 0.42 to 0.64 where they are slow (docs/design/log.md).
const SHARE: f64 = 0.45;
/// Bytes of both logs for a step.
const LOG: u64 = 1200;

/// What a run will make and take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outlook {
    /// Parameters of the model.
    pub parameters: u64,
    /// Those that train.
    pub trained: u64,
    /// Steps that it takes: those that are left of a run that resumes.
    pub steps: u64,
    /// Tokens that it reads, without measurements on held-back text.
    pub tokens: u64,
    /// Bytes of the output.
    pub output_bytes: u64,
    /// Bytes of the folder beside it at the end: the logs, and the checkpoints that are kept with the optimiser's state.
    pub run_bytes: u64,
    /// The most bytes of both on the way: a checkpoint is written before an old one goes.
    pub disk_bytes: u64,
    /// Matmuls, with recomputed layers and measurements.
    pub products: Products,
    /// Seconds of reading and writing.
    pub other_seconds: f64,
    /// Peak of the memory of the process, or of each process of PyTorch; the driver of a GPU has more.
    pub memory_bytes: u64,
    /// Its parts.
    pub memory: Memory,
    /// Number of processes of PyTorch; `None` for this program's trainer.
    pub ranks: Option<u64>,
}

impl Outlook {
    /// Of a run on the model in `checkpoint` that has taken `taken` steps. Rows of token folders that are not there yet are
    /// taken to be as many as asked for.
    ///
    /// # Errors
    /// A checkpoint whose configuration or headers cannot be read, settings out of their ranges, nothing to train.
    pub fn of(
        checkpoint: &Path,
        data: &[(String, PathBuf, f64)],
        settings: &Settings,
        operation: &Operation,
        placement: Placement,
        taken: u64,
    ) -> Result<Self> {
        settings.check()?;
        let architecture = Architecture::of(&Config::read(checkpoint)?)?;
        let cost = Report::new(&architecture, settings.seq as u64 / 2)?;
        let names = trained_names(checkpoint, &architecture, settings)?;
        let specs = architecture
            .tensors()?
            .into_iter()
            .filter(|spec| names.contains(&spec.name));
        let trained = specs.map(|spec| spec.shape.iter().product::<u64>()).sum();
        let memory = memory(&architecture, &names, settings, operation, placement)?;
        let output_bytes = length(checkpoint)?;
        let disk = Disk::of(output_bytes, trained, settings, operation, taken);

        let steps = settings.steps.saturating_sub(taken);
        let (rows, seq) = (settings.rows() as u64, settings.seq as u64);
        let tokens = steps.saturating_mul(rows).saturating_mul(seq);
        let held_back: u64 = data
            .iter()
            .map(|(_, folder, _)| held_back(folder, seq, operation.validate_rows as u64))
            .sum();
        // Held-back text is measured before the first step, too.
        let before = u64::from(operation.validate_every > 0 && taken == 0);
        let measurements = times(operation.validate_every, taken, settings.steps) + before;
        let forward = cost.flops_per_token as f64;
        let again = if operation.gradient_checkpointing {
            forward
        } else {
            0.0
        };
        let flops = tokens as f64 * (flops_per_token(&cost, trained) + again)
            + measurements as f64 * held_back as f64 * seq as f64 * forward;

        let Placement { gpu, ranks } = placement;
        Ok(Self {
            parameters: cost.total_parameters,
            trained,
            steps,
            tokens,
            output_bytes,
            run_bytes: disk.run,
            disk_bytes: disk.most,
            products: Products {
                flops,
                share: SHARE * ranks.unwrap_or(1) as f64,
                gpu,
                half: settings.dtype == Compute::Bf16,
            },
            other_seconds: output_bytes as f64 / READ
                + (disk.saved + output_bytes as f64) / WRITTEN,
            memory_bytes: memory.total(),
            memory,
            ranks,
        })
    }

    /// A warning where the disk of the output is too full for it and for the checkpoints on the way.
    ///
    /// # Errors
    /// A disk that does not tell what is free.
    pub fn disk_warning(&self, out: &Path) -> Result<Option<String>> {
        // An earlier part of the run, or a run that it replaces, has written some of it.
        let free = free_space(out)?.saturating_add(checkpoint_bytes(out)?);
        Ok((self.disk_bytes > free).then(|| {
            let (needed, free) = (table::bytes(self.disk_bytes), table::bytes(free));
            format!("the run needs about {needed} of disk for its output and checkpoints, with {free} free: it may stop at a save")
        }))
    }

    /// The same, as of any command.
    pub fn estimate(&self) -> Estimate {
        let work = Work {
            seconds: START + self.other_seconds,
            products: Some(self.products),
        };
        Estimate {
            bytes: self.output_bytes.saturating_add(self.run_bytes),
            work: Some(work),
            memory: Some(self.memory_bytes),
            ranks: self.ranks,
        }
    }
}

/// What a run writes, in bytes.
struct Disk {
    /// All checkpoints together.
    saved: f64,
    /// What stays beside the output.
    run: u64,
    /// The most at one time, with the output.
    most: u64,
}

impl Disk {
    fn of(
        output: u64,
        trained: u64,
        settings: &Settings,
        operation: &Operation,
        taken: u64,
    ) -> Self {
        let checkpoint = output + STATE_BYTES * trained;
        let log = LOG.saturating_mul(settings.steps);
        let folder = |kept: u64| kept.saturating_mul(checkpoint).saturating_add(log);
        let made = times(operation.save_every, 0, settings.steps);
        let keep = operation.keep.max(1) as u64;
        let run = folder(made.min(keep));
        Self {
            saved: times(operation.save_every, taken, settings.steps) as f64 * checkpoint as f64,
            run,
            // A checkpoint is written before an old one goes, and the output beside those that stay.
            most: folder(made.min(keep.saturating_add(1))).max(run.saturating_add(output)),
        }
    }
}

/// How often something happens that happens every `every` steps, after step `from`. The last step counts, whether it is a
/// multiple or not.
fn times(every: u64, from: u64, steps: u64) -> u64 {
    if every == 0 || from >= steps {
        0
    } else {
        steps.div_ceil(every) - from / every
    }
}

/// The memory of the process, or of each process of PyTorch.
fn memory(
    architecture: &Architecture,
    names: &BTreeSet<String>,
    settings: &Settings,
    operation: &Operation,
    placement: Placement,
) -> Result<Memory> {
    let checkpointing = operation.gradient_checkpointing;
    if let Some(ranks) = placement.ranks {
        return Memory::per_rank(architecture, names, settings, ranks, checkpointing);
    }
    let on_gpu = placement.gpu.is_some();
    let computes_generally = on_gpu || settings.dtype != Compute::F32;
    let limits = computes_generally.then(|| WorkLimits::of(on_gpu));
    Memory::predict(architecture, names, settings, limits, checkpointing)
}

/// Floating-point operations of a token: the forward pass, the backward pass through activations, and the weight gradients
/// of trainable tensors.
pub(super) fn flops_per_token(cost: &Report, trained: u64) -> f64 {
    cost.flops_per_token as f64 * (2.0 + trained as f64 / cost.total_parameters as f64)
}

/// Bytes of a checkpoint like the one in `folder`.
fn length(folder: &Path) -> Result<u64> {
    let checkpoint = Checkpoint::open(folder)?;
    let weights: u64 = checkpoint.files.iter().map(|file| file.len()).sum();
    let beside = copied(folder)?.into_iter().chain(existing(folder, &[CARD]));
    beside
        .map(|path| Ok(stamp_of(&path)?.length))
        .sum::<Result<u64>>()
        .map(|beside| weights + beside)
}

/// Rows of a token folder to measure on, `most` at most.
fn held_back(folder: &Path, seq: u64, most: u64) -> u64 {
    match TokenHeader::read(folder) {
        Ok((header, _)) => most.min(header.tokens(Split::Validation) / (seq + 1)),
        Err(_) => most,
    }
}
