//! How well a model predicts text.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::corpus::Window;
use super::error::EvaluateError;
use super::logits::log_sum_exp;
use super::routing::Recorder;
use crate::memory::check_memory;
use crate::model::{CausalLm, Forward, Overrides};
use crate::{Error, Result};

/// Positions whose logits are in memory at once.
pub(super) const CHUNK: usize = 128;

/// Bytes of a token's activations in float32 that live together, by the hidden size.
const LIVE: u64 = 6 * 4;

/// The score of a domain's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The domain.
    pub domain: String,
    /// Exponential of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Negative log-likelihood in bits, by the bytes of text; comparable between tokenizers.
    pub bits_per_byte: f64,
    /// Sum of the negative log-likelihoods in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes of text that they stand for.
    pub bytes: usize,
    /// Windows read.
    pub windows: usize,
}

/// Scores all `windows`. `recorder`, if given, counts the decisions of routers. `progress` is called with numbers of
/// tokens.
pub fn score(
    model: &CausalLm,
    domain: &str,
    windows: &[Window],
    overrides: &Overrides,
    mut recorder: Option<&mut Recorder>,
    progress: &dyn Fn(u64),
) -> Result<Score> {
    let longest = windows.iter().map(|window| window.ids.len()).max();
    let hidden = model.architecture().hidden_size;
    // What goes into a layer, its norm, queries, keys, values and outputs: the least that a window takes.
    let needed = (LIVE * hidden).saturating_mul(longest.unwrap_or(0) as u64);
    check_memory("the longest window", needed, "pass a smaller --context")?;
    let (mut nll, mut tokens, mut bytes) = (0.0, 0, 0);
    for window in windows {
        let found =
            negative_log_likelihoods(model, &window.ids, overrides, recorder.as_deref_mut())?;
        let scored = found.iter().zip(&window.scored);
        let scored = scored.filter(|(_, scored)| **scored).map(|(nll, _)| nll);
        nll += scored.sum::<f64>();
        tokens += window.scored.iter().filter(|scored| **scored).count();
        bytes += window.bytes;
        progress(window.ids.len() as u64);
    }
    Ok(Score {
        domain: domain.to_owned(),
        perplexity: (nll / tokens as f64).exp(),
        bits_per_byte: nll / std::f64::consts::LN_2 / bytes as f64,
        nll,
        tokens,
        bytes,
        windows: windows.len(),
    })
}

/// The negative log-likelihood in nats of every token of `ids` but the first, given those before it.
pub fn negative_log_likelihoods(
    model: &CausalLm,
    ids: &[u32],
    overrides: &Overrides,
    mut recorder: Option<&mut Recorder>,
) -> Result<Vec<f64>> {
    let failed = |e| Error::compute("score a text", e);
    let tokens = Tensor::new(ids, &Device::Cpu)
        .and_then(|tokens| tokens.unsqueeze(0))
        .map_err(failed)?;
    let forward = Forward {
        overrides: overrides.clone(),
        ..Forward::default()
    };
    // Layer by layer, so that the logits of the whole window are never in memory at once.
    let (mut x, pass) = model.begin(&tokens, None, &forward)?;
    for layer in 0..model.layers() {
        let (next, routing) = model.layer(layer, &x, &pass)?;
        x = next;
        if let Some(recorder) = recorder.as_deref_mut() {
            recorder.add(layer, &routing)?;
        }
    }
    let x = model.final_norm(&x)?;
    let mut found = Vec::with_capacity(ids.len());
    for start in (0..ids.len() - 1).step_by(CHUNK) {
        let count = CHUNK.min(ids.len() - 1 - start);
        let chunk = x
            .narrow(1, start, count)
            .and_then(|chunk| chunk.contiguous())
            .map_err(failed)?;
        let logits = rows(&model.head(&chunk)?)?;
        let targets = &ids[start + 1..start + 1 + count];
        found.extend(token_scores(model, &logits, targets)?);
    }
    Ok(found)
}

/// Logits `[1, seq, vocab]` as rows in float32.
pub(super) fn rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let rows = logits
        .squeeze(0)
        .and_then(|logits| logits.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>());
    rows.map_err(|e| Error::compute("read the logits", e))
}

/// The negative log-likelihood of each target under its row of logits.
pub(super) fn token_scores(
    model: &CausalLm,
    logits: &[Vec<f32>],
    targets: &[u32],
) -> Result<Vec<f64>> {
    let scores = logits.par_iter().zip(targets).map(|(logits, target)| {
        let score = log_sum_exp(logits) - f64::from(logits[*target as usize]);
        if score.is_finite() {
            return Ok(score);
        }
        Err(EvaluateError::LogitsNotFinite {
            path: model.params().path().to_path_buf(),
        }
        .into())
    });
    scores.collect()
}
