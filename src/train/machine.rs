//! What the machine can do, and how much memory a run takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use super::settings::{Compute, Settings};
use crate::family::{Architecture, AttentionKv, Role};
use crate::gpu::GpuMemory;
use crate::memory::check_memory;
use crate::model::{WorkLimits, optimiser_bytes};
use crate::{Error, Result, table, threads};

/// Bytes of a token that waits for its batch: its id, and the number of its document.
const TOKEN: u64 = 8;
/// Bytes of a logit with its gradients.
const LOGIT: u64 = 20;
/// Tensors of the size of a block's scores that exist at once in its backward pass.
const SCORE_TENSORS: u64 = 8;
/// Bytes of this program.
const PROGRAM: u64 = 24 << 20;
/// Bytes of a process of PyTorch with a tiny model, as measured on the CPU with torch 2.15 (docs/design/log.md).
const TORCH: u64 = 750 << 20;

/// The rate of a large matmul of `dtype` on `device`, in floating-point operations per second.
///
/// # Errors
/// Where the device refuses.
pub fn matmul_peak(device: &Device, dtype: DType) -> Result<f64> {
    threads::start_shared(0)?;
    measure_peak(device, dtype).map_err(|e| Error::compute("measure the machine", e))
}

fn measure_peak(device: &Device, dtype: DType) -> candle_core::Result<f64> {
    let size = peak_size(device.is_cpu());
    // Small numbers of all kinds: a processor takes less power, and is faster, where most bits are zero.
    let values: Vec<f32> = (0..size).map(|i| (i % 7) as f32 - 3.0).collect();
    let values = Tensor::from_vec(values, size, device)?;
    let matrix = values
        .reshape((size, 1))?
        .broadcast_add(&values.reshape((1, size))?)?
        .to_dtype(dtype)?;
    let mut best = f64::INFINITY;
    // The first one wakes the threads.
    for _ in 0..4 {
        let start = Instant::now();
        matrix.matmul(&matrix)?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (size as f64).powi(3) / best)
}

/// Rows and columns of the matrices that are multiplied.
fn peak_size(on_cpu: bool) -> usize {
    if !on_cpu {
        // Fills a GPU for about a millisecond.
        8192
    } else if cfg!(debug_assertions) {
        // Only the dependencies are optimised in a debug build.
        256
    } else {
        1024
    }
}

/// The largest memory that the process has had, in bytes; 0 where the operating system does not tell.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

/// What a run takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights.
    pub weights: u64,
    /// Moments, and master weights beside weights in half precision.
    pub optimiser: u64,
    /// Gradients of the trainable parameters.
    pub gradients: u64,
    /// What a batch keeps for the backward pass, and what its layers and losses take while they run.
    pub activations: u64,
    /// All of it at the peak.
    peak: u64,
}

impl Memory {
    /// An estimate for training the tensors named `trained` of a model of the architecture.
    ///
    /// `limits` is how much the reference computes at once; `None` where kernels compute. Sums saturate: settings that ask for
    /// more than there is are refused by [`Memory::check`].
    pub(super) fn predict(
        a: &Architecture,
        trained: &BTreeSet<String>,
        settings: &Settings,
        limits: Option<WorkLimits>,
        checkpointing: bool,
    ) -> Result<Self> {
        let dtype = settings.dtype.stored();
        let size = dtype.size_in_bytes() as u64;
        let counts = Counts::of(a, trained)?;
        let batch = settings.batch as u64;
        let activations = activations(a, settings, batch, limits, checkpointing);
        let embedding = if counts.trains_embedding {
            12 * a.vocab_size * a.hidden_size
        } else {
            0
        };
        let (weights, gradients) = (size * counts.all, 4 * counts.trained);
        let optimiser = optimiser_bytes(dtype, counts.trained);
        // Activations shrink in the backward pass while gradients grow.
        let passing = activations.max(gradients + embedding);
        Ok(Self {
            weights,
            optimiser,
            gradients,
            activations,
            peak: (weights + optimiser + PROGRAM)
                .saturating_add(passing)
                .saturating_add(waiting(settings, batch)),
        })
    }

    /// An estimate for one of `ranks` processes of PyTorch, which share out master weights, gradients and moments.
    ///
    /// A process gathers the weights of the block that it computes with, and of the next block; the embedding and the head
    /// stay gathered. Gradients are shared out by block; the embedding and the head are one block. Saving a state gathers
    /// one parameter at a time, which is less.
    pub(super) fn per_rank(
        a: &Architecture,
        trained: &BTreeSet<String>,
        settings: &Settings,
        ranks: u64,
        checkpointing: bool,
    ) -> Result<Self> {
        let size = settings.dtype.stored().size_in_bytes() as u64;
        let counts = Counts::of(a, trained)?;
        let share = |values: u64| values.div_ceil(ranks);
        let gathered = if ranks > 1 {
            2 * counts.largest_layer + counts.outside
        } else {
            0
        };
        let weights = 4 * share(counts.all) + size * gathered;
        let gradients = 4 * share(counts.trained) + 4 * counts.largest_layer.max(counts.outside);
        let optimiser = 8 * share(counts.trained);
        let rows = (settings.batch as u64).div_ceil(ranks);
        // Attention keeps no scores, and torch's own buffers for a layer are about as large as one layer.
        let activations = activations(a, settings, rows, None, checkpointing);
        Ok(Self {
            weights,
            optimiser,
            gradients,
            activations,
            peak: (weights + optimiser + gradients + TORCH)
                .saturating_add(activations)
                .saturating_add(waiting(settings, rows)),
        })
    }

    /// The peak, with the program itself.
    pub fn total(&self) -> u64 {
        self.peak
    }

    /// An error with advice, if a GPU has run out of memory in a run: what needs how much, and which flags lower it.
    pub(super) fn advised(
        &self,
        error: Error,
        gpu: &Device,
        settings: &Settings,
        checkpointing: bool,
    ) -> Error {
        if !matches!(error, Error::GpuMemory { .. }) {
            return error;
        }
        let of_gpu = GpuMemory::of(gpu).map_or(String::new(), |gpu| {
            format!(", and the GPU has {} in all", table::bytes(gpu.total))
        });
        let mut flags = Vec::new();
        if settings.batch.is_multiple_of(2) {
            let (batch, accumulate) = (settings.batch / 2, 2 * settings.accumulate);
            flags.push(format!("--batch {batch} --accumulate {accumulate}"));
        } else if settings.batch > 1 {
            flags.push("a smaller --batch".to_owned());
        }
        if !checkpointing {
            flags.push("--gradient-checkpointing".to_owned());
        }
        if settings.dtype == Compute::F32 {
            flags.push("--dtype bf16".to_owned());
        }
        flags.push("a smaller --seq".to_owned());
        error.with_hint(format!(
            "pass {}, or train less of the model with --train; the run needs about {}{of_gpu}: {}",
            flags.join(", "),
            table::bytes(self.total()),
            self.parts(),
        ))
    }

    /// What takes how much, as a text.
    pub fn parts(&self) -> String {
        let parts = [
            ("weights", self.weights),
            ("optimiser", self.optimiser),
            ("gradients", self.gradients),
            ("activations", self.activations),
        ];
        let parts = parts.map(|(name, bytes)| format!("{name} {}", table::bytes(bytes)));
        parts.join(", ")
    }

    /// Refuses a run that cannot fit, of so many processes on this machine.
    pub(super) fn check(&self, processes: u64) -> Result<()> {
        check_memory(
            "the run",
            self.total().saturating_mul(processes),
            "pass --gradient-checkpointing or a smaller --batch, --accumulate or --seq, or train less of the model with --train",
        )
    }
}

/// Numbers of values of a model.
struct Counts {
    all: u64,
    trained: u64,
    trains_embedding: bool,
    /// Values of the layer that has most.
    largest_layer: u64,
    /// Values outside the layers.
    outside: u64,
}

impl Counts {
    fn of(a: &Architecture, trained: &BTreeSet<String>) -> Result<Self> {
        let mut counts = Self {
            all: 0,
            trained: 0,
            trains_embedding: false,
            largest_layer: 0,
            outside: 0,
        };
        let mut layers: BTreeMap<u64, u64> = BTreeMap::new();
        for spec in a.tensors()? {
            let elements = spec.shape.iter().product::<u64>();
            counts.all += elements;
            match spec.layer {
                Some(layer) => *layers.entry(layer).or_default() += elements,
                None => counts.outside += elements,
            }
            if trained.contains(&spec.name) {
                counts.trained += elements;
                counts.trains_embedding |= spec.role == Role::Embedding;
            }
        }
        counts.largest_layer = layers.into_values().max().unwrap_or(0);
        Ok(counts)
    }
}

/// Bytes that a batch of so many rows keeps for the backward pass, and that its layers and losses take while they run.
fn activations(
    a: &Architecture,
    settings: &Settings,
    rows: u64,
    limits: Option<WorkLimits>,
    checkpointing: bool,
) -> u64 {
    let size = settings.dtype.stored().size_in_bytes() as u64;
    let (seq, layers) = (settings.seq as u64, a.num_layers);
    let tokens = rows.saturating_mul(seq);
    let layer = size.saturating_mul(layer_values(a, tokens));
    let input = (size * a.hidden_size).saturating_mul(tokens);
    let kept = if checkpointing {
        layers.saturating_mul(input).saturating_add(layer)
    } else {
        layers.saturating_mul(layer.saturating_add(input))
    };
    // In the backward pass of a layer, gradients of all values; and logits with their gradients.
    let bytes_of_logits =
        LOGIT.saturating_mul(limits.map_or(1 << 23, |limits| limits.logits) as u64);
    let logits = bytes_of_logits.min((LOGIT * a.vocab_size).saturating_mul(tokens));
    let scores = limits.map_or(0, |limits| scores(a, rows, seq, limits));
    let passing = layer.saturating_add(logits.max(size.saturating_mul(scores)));
    kept.saturating_add(passing)
}

/// Scores of a block of queries, with all tensors of their size in the forward and the backward pass.
fn scores(a: &Architecture, rows: u64, seq: u64, limits: WorkLimits) -> u64 {
    let experts = a.mixture.as_ref();
    let experts = experts.map_or(1, |mixture| mixture.num_attention_experts);
    let of_query = (experts * a.num_heads).saturating_mul(rows.saturating_mul(seq));
    let queries = limits.queries(usize::try_from(of_query).unwrap_or(usize::MAX));
    let queries = (queries as u64).min(seq);
    SCORE_TENSORS.saturating_mul(of_query.saturating_mul(queries))
}

/// Bytes of the tokens of a step that wait for their batch.
fn waiting(settings: &Settings, rows: u64) -> u64 {
    rows.saturating_mul(settings.seq as u64)
        .saturating_mul(settings.accumulate as u64)
        .saturating_mul(TOKEN)
}

/// Values that one layer keeps for its backward pass, as measured.
///
/// They are of norms and residuals, of queries, keys and values with their outputs, and of the feed-forward network.
fn layer_values(a: &Architecture, tokens: u64) -> u64 {
    let mixture = a.mixture.as_ref();
    let experts = mixture.map_or(1, |mixture| mixture.num_attention_experts);
    let shared = mixture.is_some_and(|mixture| mixture.attention_kv != AttentionKv::Expert);
    let queries = experts * a.num_heads * a.head_dim;
    let keys = if shared { 1 } else { experts } * a.num_kv_heads * a.head_dim;
    let inner = mixture.map_or(a.intermediate_size, |mixture| {
        mixture.num_experts_per_tok * mixture.moe_intermediate_size
    });
    tokens.saturating_mul(10 * a.hidden_size + 5 * queries + 5 * keys + 4 * inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::family::Config;

    #[test]
    fn a_run_without_memory_says_what_needs_how_much() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama/seed");
        let architecture = Architecture::of(&Config::read(&folder).unwrap()).unwrap();
        let settings = Settings {
            batch: 8,
            ..Settings::for_tests()
        };
        let names = BTreeSet::new();
        let memory = Memory::predict(&architecture, &names, &settings, None, false).unwrap();
        let problem = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let advised = |problem, checkpointing| {
            let error = Error::compute("take the gradients", problem);
            let error = memory.advised(error, &Device::Cpu, &settings, checkpointing);
            error.hint().map(|hint| hint.into_owned())
        };
        let hint = advised(problem, false).unwrap();
        for part in [
            "pass --batch 4 --accumulate 4, --gradient-checkpointing, --dtype bf16, a smaller --seq",
            "the run needs about ",
            ": weights ",
            ", activations ",
        ] {
            assert!(hint.contains(part), "{hint}");
        }
        assert!(!advised(problem, true).unwrap().contains("--gradient"));
        assert_eq!(advised("shape mismatch", false), None);
    }
}
