//! Cross-entropy of a head's logits in chunks of tokens: logits of all tokens never exist at once, and their gradient is
//! taken while they are there.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::record::record;
use crate::model::kernels::{exponentials, scale};
use crate::model::matrix::{View, multiply};
use crate::model::stored::floats;

/// Logits held at a time.
const LOGITS: usize = 1 << 22;

/// The negative log-likelihoods in nats of `targets` behind `hidden` `[tokens, hidden]`, and the sum of them times their `weights`
/// as a scalar of the graph.
///
/// The gradients by `hidden` and by the head `[vocab, hidden]` are computed here, and none without weights; `factor` multiplies
/// the logits.
pub(in crate::model) fn next_token_loss(
    hidden: &Tensor,
    head: &Tensor,
    factor: f32,
    targets: &[u32],
    weights: Option<&[f32]>,
) -> Result<(Vec<f32>, Tensor)> {
    let wanted = (hidden.track_op(), head.track_op());
    let found = gradients(
        &hidden.detach().contiguous()?,
        &head.detach(),
        factor,
        targets,
        weights,
        wanted,
    )?;
    let Found {
        losses,
        hidden: of_hidden,
        head: of_head,
    } = found;
    let Some(weights) = weights else {
        let sum = losses.iter().sum::<f32>();
        return Ok((losses, Tensor::new(sum, &Device::Cpu)?));
    };
    let sum: f64 = losses
        .iter()
        .zip(weights)
        .map(|(loss, weight)| f64::from(*loss) * f64::from(*weight))
        .sum();
    let scalar = record(&[hidden, head], vec![sum as f32], (), move |gradient| {
        let factor = f64::from(gradient.to_scalar::<f32>()?);
        let scaled = |found: &Tensor| {
            if factor == 1.0 {
                Ok(found.clone())
            } else {
                found * factor
            }
        };
        [&of_hidden, &of_head]
            .into_iter()
            .map(|found| found.as_ref().map(scaled).transpose())
            .collect()
    })?;
    Ok((losses, scalar))
}

/// Likelihoods, and the gradients of their weighted sum.
struct Found {
    losses: Vec<f32>,
    hidden: Option<Tensor>,
    head: Option<Tensor>,
}

fn gradients(
    hidden: &Tensor,
    head: &Tensor,
    factor: f32,
    targets: &[u32],
    weights: Option<&[f32]>,
    (of_hidden, of_head): (bool, bool),
) -> Result<Found> {
    let ((tokens, size), vocab) = (hidden.dims2()?, head.dim(0)?);
    if targets.len() != tokens || weights.is_some_and(|weights| weights.len() != tokens) {
        candle_core::bail!("targets or weights of another number than the {tokens} tokens");
    }
    let (of_hidden, of_head) = (of_hidden && weights.is_some(), of_head && weights.is_some());
    let (hidden_values, head_values) = (hidden.storage_and_layout(), head.storage_and_layout());
    let (hidden_values, head_values) = (floats(&hidden_values)?, floats(&head_values)?);
    let matrix = View::new(head_values, vocab, size, size);
    let threads = rayon::current_num_threads();
    let rows = (LOGITS / vocab).clamp(1, tokens.max(1));
    let mut losses = vec![0f32; tokens];
    let mut hidden_gradient = vec![0f32; if of_hidden { tokens * size } else { 0 }];
    let mut head_gradient = vec![0f32; if of_head { vocab * size } else { 0 }];
    let mut logits = vec![0f32; rows * vocab];
    for first in (0..tokens).step_by(rows) {
        let here = rows.min(tokens - first);
        let x = View::new(&hidden_values[first * size..], here, size, size);
        let logits = &mut logits[..here * vocab];
        multiply(logits, vocab, false, factor, x, matrix.t(), threads);
        let losses = &mut losses[first..first + here];
        let row = |(row, (logits, loss)): (usize, (&mut [f32], &mut f32))| {
            let target = targets[first + row] as usize;
            let of_target = logits[target];
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = exponentials(logits, 1.0);
            *loss = most + sum.ln() - of_target;
            if let Some(weights) = weights {
                let weight = weights[first + row] * factor;
                scale(logits, weight / sum);
                logits[target] -= weight;
            }
        };
        logits
            .par_chunks_mut(vocab)
            .zip(losses)
            .enumerate()
            .for_each(row);
        let of_logits = View::new(logits, here, vocab, vocab);
        if of_hidden {
            multiply(
                &mut hidden_gradient[first * size..],
                size,
                false,
                1.0,
                of_logits,
                matrix,
                threads,
            );
        }
        if of_head {
            multiply(
                &mut head_gradient,
                size,
                true,
                1.0,
                of_logits.t(),
                x,
                threads,
            );
        }
    }
    let hidden = of_hidden
        .then(|| Tensor::from_vec(hidden_gradient, (tokens, size), &Device::Cpu))
        .transpose()?;
    let head = of_head
        .then(|| Tensor::from_vec(head_gradient, (vocab, size), &Device::Cpu))
        .transpose()?;
    Ok(Found {
        losses,
        hidden,
        head,
    })
}
