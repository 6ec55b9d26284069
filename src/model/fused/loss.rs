//! Cross-entropy of a head's logits in chunks of tokens: logits of all tokens never exist at once, and their gradient is
//! taken while they are there.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::model::kernels::{exponentials, scale};
use crate::model::matrix::{View, multiply};
use crate::model::stored::floats;

/// Logits held at a time.
const LOGITS: usize = 1 << 22;

/// The weighted sum of the tokens' negative log-likelihoods in nats, its gradient by the hidden states `[tokens, hidden]`, and by the
/// head `[vocab, hidden]` where that is wanted.
///
/// `factor` multiplies the logits. Tokens of weight 0 cost nothing but their product.
pub(in crate::model) fn next_token_loss(
    hidden: &Tensor,
    head: &Tensor,
    factor: f32,
    targets: &[u32],
    weights: &[f32],
    of_head: bool,
) -> Result<(Vec<f32>, Tensor, Option<Tensor>)> {
    let ((tokens, size), vocab) = (hidden.dims2()?, head.dim(0)?);
    let (hidden, head) = (hidden.detach().contiguous()?, head.detach());
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
    Ok((losses, Tensor::from_vec(of_hidden, (tokens, size), &Device::Cpu)?, of_head))
}
