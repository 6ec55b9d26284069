//! Softmax attention in candle's operations.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

use crate::model::modules::Attention;
use crate::model::params::Mode;
use crate::model::pass::Pass;

/// Queries that inference handles together. This bounds the memory for scores, and skips most future positions.
const CHUNK: usize = 128;

/// Attention as matmuls, which candle can differentiate. Queries of all heads that see the same keys are rows of one matrix.
pub(super) fn attend_in_groups(
    attention: &Attention,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    pass: &Pass,
    mode: Mode,
) -> Result<Tensor> {
    let (batch, seq, experts, heads, head_dim) = queries.dims5()?;
    let (sets, kv_heads) = (attention.key_values.len(), attention.kv_heads);
    let (in_set, group) = (experts / sets, heads / kv_heads);
    let grouped = queries
        .reshape(vec![batch, seq, sets, in_set, kv_heads, group, head_dim])?
        .permute(vec![0, 2, 4, 3, 5, 1, 6])?
        .reshape((batch * sets * kv_heads, in_set * group, seq, head_dim))?;
    attend(attention, &grouped, keys, values, pass, mode)?
        .reshape(vec![batch, sets, kv_heads, in_set, group, seq, head_dim])?
        .permute(vec![0, 5, 1, 3, 2, 4, 6])?
        .reshape((batch, seq, experts, heads, head_dim))
}

/// Softmax attention of queries `[rows, group, seq, head_dim]` over `[rows, positions, head_dim]`.
fn attend(
    attention: &Attention,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    pass: &Pass,
    mode: Mode,
) -> Result<Tensor> {
    let (seq, total) = (queries.dim(2)?, keys.dim(1)?);
    let window = attention.window;
    let chunk = match mode {
        Mode::Infer => CHUNK,
        Mode::Train => seq,
    };
    if seq <= chunk {
        let mask = pass.mask(window, 0, seq, total)?;
        return attend_all(attention, queries, keys, values, mask.as_ref(), mode);
    }
    let mut parts = Vec::with_capacity(seq.div_ceil(chunk));
    for first in (0..seq).step_by(chunk) {
        let rows = chunk.min(seq - first);
        let visible = total - seq + first + rows;
        let (keys, values) = (keys.narrow(1, 0, visible)?, values.narrow(1, 0, visible)?);
        let mask = pass.mask(window, first, rows, visible)?;
        let queries = queries.narrow(2, first, rows)?.contiguous()?;
        let mask = mask.as_ref();
        parts.push(attend_all(attention, &queries, &keys, &values, mask, mode)?);
    }
    Tensor::cat(&parts, 2)
}

fn attend_all(
    attention: &Attention,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
    mode: Mode,
) -> Result<Tensor> {
    let (rows, group, seq, head_dim) = queries.dims4()?;
    let total = keys.dim(1)?;
    let scale = attention.scale.unwrap_or((head_dim as f64).powf(-0.5));
    let queries = (queries.reshape((rows, group * seq, head_dim))? * scale)?;
    let mut scores = queries.matmul(&keys.transpose(1, 2)?)?;
    scores = soft_capped(scores, attention.soft_cap)?;
    if let Some(mask) = mask {
        let batch = mask.dim(0)?;
        let by_row = scores.reshape((batch, rows / batch * group, seq, total))?;
        scores = by_row
            .broadcast_add(mask)?
            .reshape((rows, group * seq, total))?;
    }
    let weights = match mode {
        Mode::Train => softmax(&scores, D::Minus1)?,
        // candle's fused softmax has no gradient.
        Mode::Infer => softmax_last_dim(&scores)?,
    };
    weights
        .matmul(values)?
        .reshape((rows, group, seq, head_dim))
}

/// Values between `-cap` and `cap`, where there is a cap.
pub(super) fn soft_capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}
