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
/// The gradients by `hidden` and by the head `[vocab, hidden]` are computed here; `factor` multiplies the logits.
pub(in crate::model) fn next_token_loss(
    hidden: &Tensor,
    head: &Tensor,
    factor: f32,
    targets: &[u32],
    weights: &[f32],
) -> Result<(Vec<f32>, Tensor)> {
    let (of_hidden, of_head) = (hidden.track_op(), head.track_op());
    let found = gradients(&hidden.detach().contiguous()?, &head.detach(), factor, targets, weights, of_head)?;
    let Found { losses, hidden: hidden_gradient, head: head_gradient } = found;
    let sum: f64 = losses.iter().zip(weights).map(|(loss, weight)| f64::from(*loss) * f64::from(*weight)).sum();
    let scalar = record(&[hidden, head], vec![sum as f32], (), move |gradient| {
        let factor = f64::from(gradient.to_scalar::<f32>()?);
        let scaled = |found: &Tensor| if factor == 1.0 { Ok(found.clone()) } else { found * factor };
        let of_hidden = of_hidden.then(|| scaled(&hidden_gradient)).transpose()?;
        Ok(vec![of_hidden, head_gradient.as_ref().map(scaled).transpose()?])
    })?;
    Ok((losses, scalar))
}

/// Likelihoods, and the gradients of their weighted sum.
struct Found {
    losses: Vec<f32>,
    hidden: Tensor,
    head: Option<Tensor>,
}

fn gradients(
    hidden: &Tensor,
    head: &Tensor,
    factor: f32,
    targets: &[u32],
    weights: &[f32],
    of_head: bool,
) -> Result<Found> {
    let ((tokens, size), vocab) = (hidden.dims2()?, head.dim(0)?);
    if targets.len() != tokens || weights.len() != tokens {
        candle_core::bail!("{} targets and {} weights for {tokens} tokens", targets.len(), weights.len());
    }
    let (hidden_values, head_values) = (hidden.storage_and_layout(), head.storage_and_layout());
    let (hidden_values, head_values) = (floats(&hidden_values)?, floats(&head_values)?);
    let matrix = View::new(head_values, vocab, size, size);
    let threads = rayon::current_num_threads();
    let rows = (LOGITS / vocab).clamp(1, tokens.max(1));
    let mut losses = vec![0f32; tokens];
    let mut of_hidden = vec![0f32; tokens * size];
    let mut of_matrix = vec![0f32; if of_head { vocab * size } else { 0 }];
    let mut logits = vec![0f32; rows * vocab];
    for first in (0..tokens).step_by(rows) {
        let here = rows.min(tokens - first);
        let x = View::new(&hidden_values[first * size..], here, size, size);
        let logits = &mut logits[..here * vocab];
        multiply(logits, vocab, false, factor, x, matrix.t(), threads);
        let losses = &mut losses[first..first + here];
        let row = |(row, (logits, loss)): (usize, (&mut [f32], &mut f32))| {
            let (target, weight) = (targets[first + row] as usize, weights[first + row]);
            let of_target = logits[target];
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = exponentials(logits, 1.0);
            *loss = most + sum.ln() - of_target;
            scale(logits, weight * factor / sum);
            logits[target] -= weight * factor;
        };
        logits.par_chunks_mut(vocab).zip(losses).enumerate().for_each(row);
        let of_logits = View::new(logits, here, vocab, vocab);
        multiply(&mut of_hidden[first * size..], size, false, 1.0, of_logits, matrix, threads);
        if of_head {
            multiply(&mut of_matrix, size, true, 1.0, of_logits.t(), x, threads);
        }
    }
    let of_head = of_head.then(|| Tensor::from_vec(of_matrix, (vocab, size), &Device::Cpu)).transpose()?;
    Ok(Found { losses, hidden: Tensor::from_vec(of_hidden, (tokens, size), &Device::Cpu)?, head: of_head })
}
