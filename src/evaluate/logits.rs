//! Logits of a fixed sequence, dumped and compared: whether two checkpoints are the same function.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;

use super::error::EvaluateError;
use crate::checkpoint::{Checkpoint, json};
use crate::family::Architecture;
use crate::model;
use crate::table::{self, Align};
use crate::{Error, Result};

/// Name of the tensor of a dump.
pub const LOGITS: &str = "logits";

/// Tokens of the sequence to compare on, if none is given.
const FIXED: usize = 64;

/// Logits of one sequence in float32.
#[derive(Debug, Clone)]
pub struct Logits {
    /// Where they come from.
    pub path: PathBuf,
    /// Tokens of the sequence.
    pub positions: usize,
    /// Logits at each.
    pub vocab: usize,
    /// `[positions, vocab]`.
    pub values: Vec<f32>,
}

impl Logits {
    /// The logits of the model in `folder`, computed in float32 whatever the stored dtype.
    pub fn of(folder: &Path, tokens: &[u32], device: &Device) -> Result<Self> {
        let logits = model::logits(folder, tokens, device)?;
        let failed = |e| Error::compute("read the logits", e);
        let (positions, vocab) = logits.dims2().map_err(failed)?;
        let values = logits
            .flatten_all()
            .and_then(|logits| logits.to_vec1())
            .map_err(failed)?;
        Ok(Self {
            path: folder.to_path_buf(),
            positions,
            vocab,
            values,
        })
    }

    /// Those in a file with a tensor `logits` `[seq, vocab]` of any float dtype.
    pub fn read(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let entry = file.tensor(LOGITS)?;
        let [positions, vocab] = entry.shape[..] else {
            return Err(EvaluateError::LogitsShape {
                path: path.to_path_buf(),
                tensor: LOGITS,
                found: entry.shape.clone(),
            }
            .into());
        };
        if positions == 0 || vocab == 0 {
            return Err(EvaluateError::LogitsEmpty {
                path: path.to_path_buf(),
                tensor: LOGITS,
            }
            .into());
        }
        let mut values = vec![0.0; entry.elements() as usize];
        file.read_values(entry, 0, &mut values, &mut Vec::new())?;
        if let Some(element) = values.iter().position(|value| !value.is_finite()) {
            return Err(EvaluateError::LogitNotFinite {
                path: path.to_path_buf(),
                tensor: LOGITS,
                element,
                value: values[element],
            }
            .into());
        }
        let values = values.into_iter().map(|value| value as f32).collect();
        Ok(Self {
            path: path.to_path_buf(),
            positions: positions as usize,
            vocab: vocab as usize,
            values,
        })
    }
}

/// Reads a JSON array of token ids.
pub fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let bytes = json::read_bytes(path)?;
    let tokens: Vec<u32> =
        serde_json::from_slice(&bytes).map_err(|e| EvaluateError::NotTokens {
            path: path.to_path_buf(),
            problem: e.to_string(),
        })?;
    if tokens.is_empty() {
        let path = path.to_path_buf();
        return Err(EvaluateError::NoTokens { path }.into());
    }
    Ok(tokens)
}

/// A fixed sequence that every one of the models knows and has room for, drawn from all of their vocabulary.
pub fn default_tokens(models: &[Architecture]) -> Vec<u32> {
    let vocab = models
        .iter()
        .map(|model| model.vocab_size)
        .min()
        .unwrap_or(1)
        .clamp(1, u64::from(u32::MAX));
    let room = models
        .iter()
        .filter_map(|model| model.max_position_embeddings)
        .min()
        .unwrap_or(u64::MAX);
    let count = FIXED.min(room.max(1) as usize);
    // SplitMix64.
    let mut state = 0u64;
    let draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % vocab) as u32
    };
    std::iter::repeat_with(draw).take(count).collect()
}

/// How far the logits of two models are apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Tokens compared on.
    pub positions: usize,
    /// Logits at each.
    pub vocab: usize,
    /// Largest absolute difference of two logits.
    pub max: f64,
    /// Mean absolute difference.
    pub mean: f64,
    /// Kullback-Leibler divergence of the second's distribution from the first's, mean over positions, in nats.
    pub kl: f64,
    /// Share of positions at which both find the same token most probable.
    pub same_token: f64,
}

impl Comparison {
    /// Compares logits of the same shape.
    pub fn of(a: &Logits, b: &Logits) -> Result<Self> {
        if (a.positions, a.vocab) != (b.positions, b.vocab) {
            return Err(EvaluateError::LogitsDiffer {
                path: b.path.clone(),
                found: [b.positions, b.vocab],
                other: a.path.clone(),
                expected: [a.positions, a.vocab],
            }
            .into());
        }
        let (mut max, mut sum, mut kl, mut same) = (0f64, 0f64, 0f64, 0usize);
        for (a, b) in a
            .values
            .chunks_exact(a.vocab)
            .zip(b.values.chunks_exact(b.vocab))
        {
            let (norm_a, norm_b) = (log_sum_exp(a), log_sum_exp(b));
            let mut divergence = 0.0;
            for (a, b) in a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
                let difference = (a - b).abs();
                max = max.max(difference);
                sum += difference;
                divergence += (a - norm_a).exp() * ((a - norm_a) - (b - norm_b));
            }
            // Rounding can make the divergence of equal distributions negative.
            kl += divergence.max(0.0);
            same += usize::from(largest(a) == largest(b));
        }
        let positions = a.positions as f64;
        Ok(Self {
            positions: a.positions,
            vocab: a.vocab,
            max,
            mean: sum / (positions * a.vocab as f64),
            kl: kl / positions,
            same_token: same as f64 / positions,
        })
    }

    /// As a table.
    pub fn table(&self) -> String {
        let rows = [
            ("largest difference", table::number(self.max)),
            ("mean difference", table::number(self.mean)),
            ("KL divergence", format!("{} nats", table::number(self.kl))),
            (
                "same top token",
                format!("{:.1} %", 100.0 * self.same_token),
            ),
            (
                "compared",
                format!("{} positions x {} logits", self.positions, self.vocab),
            ),
        ];
        let rows = rows
            .into_iter()
            .map(|(name, value)| vec![name.to_owned(), value]);
        table::render(&[("", Align::Left), ("", Align::Left)], rows)
    }
}

/// The logarithm of the sum of the exponentials, without overflow.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - max).exp())
        .sum();
    max + sum.ln()
}

/// The position of the largest logit.
pub(super) fn largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}
