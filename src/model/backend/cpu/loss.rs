//! Cross-entropy of a head's logits in chunks of tokens. Logits of all tokens never exist at once, and their gradient is
//! taken while they are in memory.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::kernels::{add_scaled, exponentials, multiply, scale, soft_cap, soft_cap_slopes};
use super::matmul::{View, matmul};
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::floats;
use crate::model::backend::operations::TokenLosses;
use crate::model::modules::Head;

/// Logits in memory at a time.
const LOGITS: usize = 1 << 22;

/// [`Operations::loss`](crate::model::backend::Operations::loss).
pub(super) fn next_token(
    head: &Head,
    x: &Tensor,
    targets: &[u32],
    weights: &[f32],
    gradients: &mut Gradients,
) -> Result<TokenLosses<Tensor>> {
    let weight = head.weight.tensor()?;
    let found = losses(head, x, targets, Some(weights))?;
    if weight.is_variable() {
        let grad_head = Tensor::from_vec(found.grad_head, weight.shape(), &Device::Cpu)?;
        gradients.add(weight, &grad_head)?;
    }
    if let Some(bias) = head.bias.as_ref().filter(|bias| bias.is_variable()) {
        let grad_bias = Tensor::from_vec(found.grad_bias, bias.shape(), &Device::Cpu)?;
        gradients.add(bias, &grad_bias)?;
    }
    Ok(TokenLosses {
        nll: Tensor::from_vec(found.nll, targets.len(), &Device::Cpu)?,
        grad_x: Tensor::from_vec(found.grad_x, x.shape(), &Device::Cpu)?,
    })
}

/// [`Operations::likelihoods`](crate::model::backend::Operations::likelihoods).
pub(super) fn likelihoods(head: &Head, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let found = losses(head, x, targets, None)?;
    Tensor::from_vec(found.nll, targets.len(), &Device::Cpu)
}

/// Losses, and the gradients of their weighted sum; empty where they are not wanted.
struct Losses {
    nll: Vec<f32>,
    grad_x: Vec<f32>,
    grad_head: Vec<f32>,
    grad_bias: Vec<f32>,
}

fn losses(head: &Head, x: &Tensor, targets: &[u32], weights: Option<&[f32]>) -> Result<Losses> {
    let x = x.contiguous()?;
    let factor = head.scale.unwrap_or(1.0) as f32;
    let cap = head.soft_cap.map(|cap| cap as f32);
    let is_trained = |tensor: &Tensor| weights.is_some() && tensor.is_variable();
    let train_head = is_trained(head.weight.tensor()?);
    let train_bias = head.bias.as_ref().is_some_and(is_trained);
    let bias = head.bias.as_ref().map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(floats).transpose()?;
    let head = head.weight.tensor()?;
    let ((tokens, size), vocab) = (x.dims2()?, head.dim(0)?);
    if targets.len() != tokens || weights.is_some_and(|weights| weights.len() != tokens) {
        candle_core::bail!("expected targets and weights of {tokens} tokens");
    }
    let (x_values, head_values) = (x.storage_and_layout(), head.storage_and_layout());
    let (x_values, head_values) = (floats(&x_values)?, floats(&head_values)?);
    let matrix = View::new(head_values, vocab, size, size);
    let threads = rayon::current_num_threads();
    let rows = (LOGITS / vocab).clamp(1, tokens.max(1));

    let mut nll = vec![0f32; tokens];
    let mut grad_x = vec![0f32; weights.map_or(0, |_| tokens * size)];
    let mut grad_head = vec![0f32; if train_head { vocab * size } else { 0 }];
    let mut grad_bias = vec![0f32; if train_bias { vocab } else { 0 }];
    let mut logits = vec![0f32; rows * vocab];
    for first in (0..tokens).step_by(rows) {
        let here = rows.min(tokens - first);
        let x = View::new(&x_values[first * size..], here, size, size);
        let logits = &mut logits[..here * vocab];
        matmul(logits, vocab, false, factor, x, matrix.t(), threads);
        logits
            .par_chunks_mut(vocab)
            .zip(&mut nll[first..first + here])
            .enumerate()
            .for_each_init(Vec::new, |slopes, (row, (logits, nll))| {
                if let Some(bias) = bias {
                    add_scaled(logits, bias, factor);
                }
                let weight = weights.map(|weights| weights[first + row] * factor);
                let target = targets[first + row] as usize;
                *nll = match cap {
                    None => token_loss(logits, target, weight),
                    Some(cap) => capped_token_loss(logits, target, weight, cap, slopes),
                };
            });

        let grad_logits = View::new(logits, here, vocab, vocab);
        if weights.is_some() {
            let grad_x = &mut grad_x[first * size..];
            matmul(grad_x, size, false, 1.0, grad_logits, matrix, threads);
        }
        if train_head {
            matmul(&mut grad_head, size, true, 1.0, grad_logits.t(), x, threads);
        }
        if train_bias {
            let rows = logits.chunks_exact(vocab);
            rows.for_each(|row| add_scaled(&mut grad_bias, row, 1.0));
        }
    }
    Ok(Losses {
        nll,
        grad_x,
        grad_head,
        grad_bias,
    })
}

/// The loss of one token; with a weight, the logits become their gradient.
fn token_loss(logits: &mut [f32], target: usize, weight: Option<f32>) -> f32 {
    let target_logit = logits[target];
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = exponentials(logits, 1.0);
    if let Some(weight) = weight {
        scale(logits, weight / sum);
        logits[target] -= weight;
    }
    most + sum.ln() - target_logit
}

/// The loss of one token whose logits are soft-capped; with a weight, the logits become their gradient.
///
/// `slopes` is working space that a thread keeps between tokens.
fn capped_token_loss(
    logits: &mut [f32],
    target: usize,
    weight: Option<f32>,
    cap: f32,
    slopes: &mut Vec<f32>,
) -> f32 {
    soft_cap(logits, 1.0, cap);
    if weight.is_none() {
        return token_loss(logits, target, weight);
    }
    slopes.resize(logits.len(), 0.0);
    soft_cap_slopes(logits, cap, slopes);
    let loss = token_loss(logits, target, weight);
    multiply(logits, slopes);
    loss
}
