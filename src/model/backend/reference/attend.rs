//! Softmax attention in candle's operations.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

use super::attend_blocks::attend_in_blocks;
use super::norm::at_least_f32;
use crate::model::backend::host::Residence;
use crate::model::modules::Attention;
use crate::model::params::Mode;
use crate::model::pass::Pass;

/// Queries that inference handles together. This bounds the memory for scores, and skips most future positions.
const CHUNK: usize = 128;

/// How attention treats the scores of its queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model::backend) enum Scores {
    /// Chunks of queries, without a backward pass.
    Forgotten,
    /// All at once, kept for the backward pass.
    Kept,
    /// Blocks of queries, computed again in the backward pass.
    Recomputed(Residence),
}

/// What attention does to scores.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScoreRules {
    pub(super) scale: f64,
    pub(super) soft_cap: Option<f64>,
    pub(super) window: Option<usize>,
}

/// Attention as matmuls, which candle can differentiate. Queries of all heads that see the same keys are rows of one matrix.
pub(in crate::model::backend) fn attend_in_groups(
    attention: &Attention,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    pass: &Pass,
    scores: Scores,
) -> Result<Tensor> {
    let (batch, seq, experts, heads, head_dim) = queries.dims5()?;
    let (sets, kv_heads) = (attention.key_values.len(), attention.kv_heads);
    let (in_set, group) = (experts / sets, heads / kv_heads);
    let grouped = queries
        .reshape(vec![batch, seq, sets, in_set, kv_heads, group, head_dim])?
        .permute(vec![0, 2, 4, 3, 5, 1, 6])?
        .reshape((batch * sets * kv_heads, in_set * group, seq, head_dim))?;
    let rules = ScoreRules {
        scale: attention.scale.unwrap_or((head_dim as f64).powf(-0.5)),
        soft_cap: attention.soft_cap,
        window: attention.window,
    };
    let inputs = [&grouped, keys, values];
    let attended = match scores {
        Scores::Forgotten => attend_in_chunks(rules, inputs, pass)?,
        Scores::Kept => {
            let total = keys.dim(1)?;
            let mask = pass.mask_maker()?.mask(rules.window, 0, seq, 0..total)?;
            attend_all(rules, inputs, mask.as_ref(), Mode::Train)?
        }
        Scores::Recomputed(residence) => {
            let of_query = grouped.dim(0)? * grouped.dim(1)? * keys.dim(1)?;
            let block = residence.limits().queries(of_query);
            attend_in_blocks(rules, inputs, pass.mask_maker()?, block)?
        }
    };
    attended
        .reshape(vec![batch, sets, kv_heads, in_set, group, seq, head_dim])?
        .permute(vec![0, 5, 1, 3, 2, 4, 6])?
        .reshape((batch, seq, experts, heads, head_dim))
}

/// Softmax attention of queries `[rows, group, seq, head_dim]` over keys and values `[rows, positions, head_dim]`, for
/// inference.
fn attend_in_chunks(rules: ScoreRules, inputs: [&Tensor; 3], pass: &Pass) -> Result<Tensor> {
    let [queries, keys, values] = inputs;
    let (seq, total) = (queries.dim(2)?, keys.dim(1)?);
    let masks = pass.mask_maker()?;
    if seq <= CHUNK {
        let mask = masks.mask(rules.window, 0, seq, 0..total)?;
        return attend_all(rules, inputs, mask.as_ref(), Mode::Infer);
    }
    let mut parts = Vec::with_capacity(seq.div_ceil(CHUNK));
    for first in (0..seq).step_by(CHUNK) {
        let rows = CHUNK.min(seq - first);
        let visible = total - seq + first + rows;
        let (keys, values) = (keys.narrow(1, 0, visible)?, values.narrow(1, 0, visible)?);
        let mask = masks.mask(rules.window, first, rows, 0..visible)?;
        let queries = queries.narrow(2, first, rows)?.contiguous()?;
        let inputs = [&queries, &keys, &values];
        parts.push(attend_all(rules, inputs, mask.as_ref(), Mode::Infer)?);
    }
    Tensor::cat(&parts, 2)
}

/// Attention of all these queries to all these keys, with candle's operations.
pub(super) fn attend_all(
    rules: ScoreRules,
    inputs: [&Tensor; 3],
    mask: Option<&Tensor>,
    mode: Mode,
) -> Result<Tensor> {
    let [queries, keys, values] = inputs;
    let (rows, group, seq, head_dim) = queries.dims4()?;
    let total = keys.dim(1)?;
    let queries = multiplied(
        &queries.reshape((rows, group * seq, head_dim))?,
        rules.scale,
    )?;
    let mut scores = queries.matmul(&keys.transpose(1, 2)?)?;
    scores = soft_capped(scores, rules.soft_cap)?;
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
        Some(cap) => multiplied(&multiplied(&x, cap.recip())?.tanh()?, cap),
        None => Ok(x),
    }
}

/// `x` times `factor`, rounded once: torch does not round a Python number to half precision, and candle does.
pub(super) fn multiplied(x: &Tensor, factor: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    (x.to_dtype(at_least_f32(dtype))? * factor)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use half::{bf16, f16};

    use super::*;

    /// As `x * factor` of torch with a Python number: the result alone is rounded.
    #[test]
    fn factors_are_not_rounded_to_half_precision() {
        let values: Vec<f32> = (0..256).map(|n| 1.0 + n as f32 / 128.0).collect();
        let x = Tensor::new(&values[..], &Device::Cpu).unwrap();
        let rounded = |dtype: DType, value: f64| match dtype {
            DType::BF16 => bf16::from_f64(value).to_f64(),
            _ => f16::from_f64(value).to_f64(),
        };
        for dtype in [DType::BF16, DType::F16] {
            let x = x.to_dtype(dtype).unwrap();
            let differing = |found: Tensor| {
                let found: Vec<f32> = found.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
                let exact = |x: f32| rounded(dtype, rounded(dtype, f64::from(x)) * 0.22);
                let pairs = found.into_iter().zip(&values);
                pairs
                    .filter(|(found, x)| f64::from(*found) != exact(**x))
                    .count()
            };
            assert_eq!(differing(multiplied(&x, 0.22).unwrap()), 0);
            // What candle alone would compute.
            assert!(differing((&x * 0.22).unwrap()) > 40);
        }
    }
}
