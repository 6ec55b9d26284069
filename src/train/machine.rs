//! What the machine can do, and how much memory a run takes.

use std::collections::BTreeSet;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::settings::Settings;
use crate::family::{Architecture, AttentionKv, Role};
use crate::memory::check_memory;
use crate::model::optimiser_bytes;
use crate::{Error, Result, threads};

/// Bytes of a token that waits for its batch: its id, and the number of its document.
const TOKEN: u64 = 8;

/// The rate of a large matmul of `dtype` on `device`, in floating-point operations per second.
///
/// # Errors
/// Where the device refuses.
pub fn matmul_peak(device: &Device, dtype: DType) -> Result<f64> {
    threads::start_shared(0)?;
    measure_peak(device, dtype).map_err(|e| Error::compute("measure the machine", e))
}

fn measure_peak(device: &Device, dtype: DType) -> candle_core::Result<f64> {
    // Smaller in a debug build, where only the dependencies are optimised.
    let size = if cfg!(debug_assertions) { 256 } else { 1024 };
    let values: Vec<f32> = (0..size * size).map(|i| (i % 7) as f32 - 3.0).collect();
    let matrix = Tensor::from_vec(values, (size, size), device)?.to_dtype(dtype)?;
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

/// The largest memory that the process has had, in bytes; 0 where the operating system does not tell.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

/// What a run takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub weights: u64,
    /// Moments, and master weights beside weights in half precision.
    pub optimiser: u64,
    /// Gradients of the trainable parameters.
    pub gradients: u64,
    /// What a batch keeps for the backward pass, and what its layers and losses take while they run.
    pub activations: u64,
    /// Gradients of the embedding while they are added up, at the end of the backward pass.
    embedding: u64,
    /// Tokens of a step, all batches together.
    rows: u64,
}

impl Memory {
    /// An estimate for training the tensors named `trained` of a model of the architecture.
    ///
    /// `keeps_scores` says whether attention keeps its scores for the backward pass. Sums saturate: settings that ask for more than there is are refused by [`Memory::check`].
    pub(super) fn predict(
        a: &Architecture,
        trained: &BTreeSet<String>,
        settings: &Settings,
        keeps_scores: bool,
        checkpointing: bool,
    ) -> Result<Self> {
        let dtype = settings.dtype.stored();
        let size = dtype.size_in_bytes() as u64;
        let (mut all, mut of_trained, mut trains_embedding) = (0, 0, false);
        for spec in a.tensors()? {
            let elements = spec.shape.iter().product::<u64>();
            all += elements;
            if trained.contains(&spec.name) {
                of_trained += elements;
                trains_embedding |= spec.role == Role::Embedding;
            }
        }
        let (rows, seq, layers) = (settings.batch as u64, settings.seq as u64, a.num_layers);
        let tokens = rows.saturating_mul(seq);
        let mut values = layer_values(a, tokens);
        if keeps_scores {
            let experts = a
                .mixture
                .as_ref()
                .map_or(1, |mixture| mixture.num_attention_experts);
            let scores = (4 * experts * a.num_heads).saturating_mul(tokens);
            values = values.saturating_add(scores.saturating_mul(seq));
        }
        let layer = size.saturating_mul(values);
        let input = (size * a.hidden_size).saturating_mul(tokens);
        let kept = if checkpointing {
            layers.saturating_mul(input).saturating_add(layer)
        } else {
            layers.saturating_mul(layer.saturating_add(input))
        };
        // In the backward pass of a layer, gradients of all values; and logits with their gradients.
        let logits = (160 << 20).min((20 * a.vocab_size).saturating_mul(tokens));
        let passing = layer.saturating_add(logits);
        Ok(Self {
            weights: size * all,
            optimiser: optimiser_bytes(dtype, of_trained),
            gradients: 4 * of_trained,
            activations: kept.saturating_add(passing),
            embedding: if trains_embedding {
                12 * a.vocab_size * a.hidden_size
            } else {
                0
            },
            rows: tokens
                .saturating_mul(settings.accumulate as u64)
                .saturating_mul(TOKEN),
        })
    }

    /// The peak, with the program itself: activations shrink in the backward pass while gradients grow.
    pub fn total(&self) -> u64 {
        let passing = self.activations.max(self.gradients + self.embedding);
        (self.weights + self.optimiser + (24 << 20))
            .saturating_add(passing)
            .saturating_add(self.rows)
    }

    /// Refuses a run that cannot fit.
    pub(super) fn check(&self) -> Result<()> {
        check_memory(
            "the run",
            self.total(),
            "pass --gradient-checkpointing or a smaller --batch, --accumulate or --seq, or train less of the model with --train",
        )
    }
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
