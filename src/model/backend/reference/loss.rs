//! Logits, and the cross-entropy of next tokens in chunks.

use candle_core::{D, DType, Result, Tensor, Var};

use super::attend::soft_capped;
use super::norm::at_least_f32;
use super::steps::Steps;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::Residence;
use crate::model::backend::operations::TokenLosses;
use crate::model::modules::Head;

/// Logits `[.., vocab]` of `x` `[.., hidden]`, in float32 at least.
pub(super) fn logits<S: Steps>(steps: &S, head: &Head, x: &Tensor) -> Result<Tensor> {
    let logits = steps.matmul(&head.weight, x)?;
    let mut logits = logits.to_dtype(at_least_f32(logits.dtype()))?;
    if let Some(bias) = &head.bias {
        logits = logits.broadcast_add(&bias.to_dtype(logits.dtype())?)?;
    }
    if let Some(scale) = head.scale {
        logits = (logits * scale)?;
    }
    soft_capped(logits, head.soft_cap)
}

/// [`Operations::loss`](crate::model::backend::Operations::loss).
pub(super) fn next_token<S: Steps>(
    steps: &S,
    head: &Head,
    x: &Tensor,
    targets: &[u32],
    weights: &[f32],
    gradients: &mut Gradients,
) -> Result<TokenLosses<Tensor>> {
    let chunk = chunk_rows(head, steps.residence())?;
    let targets = targets_of(targets, x)?;
    let weights = Tensor::new(weights, x.device())?;
    let (mut nll, mut grad_x) = (Vec::new(), Vec::new());
    for (first, count) in chunks(x, chunk)? {
        let rows = Var::from_tensor(&x.narrow(0, first, count)?)?;
        let logits = logits(steps, head, &rows)?;
        let weights = weights.narrow(0, first, count)?.to_dtype(logits.dtype())?;
        let losses = negative_log_likelihoods(&logits, &targets.narrow(0, first, count)?)?;
        nll.push(losses.detach().to_dtype(DType::F32)?);

        let mut store = (losses * weights)?.sum_all()?.backward()?;
        let Some(grad_rows) = store.remove(&rows) else {
            candle_core::bail!("the head has no gradient")
        };
        grad_x.push(grad_rows.detach());
        gradients.add_all(&store)?;
    }
    Ok(TokenLosses {
        nll: Tensor::cat(&nll, 0)?,
        grad_x: Tensor::cat(&grad_x, 0)?,
    })
}

/// [`Operations::likelihoods`](crate::model::backend::Operations::likelihoods).
pub(super) fn likelihoods<S: Steps>(
    steps: &S,
    head: &Head,
    x: &Tensor,
    targets: &[u32],
) -> Result<Tensor> {
    let chunk = chunk_rows(head, steps.residence())?;
    let targets = targets_of(targets, x)?;
    let mut found = Vec::new();
    for (first, count) in chunks(x, chunk)? {
        let rows = x.narrow(0, first, count)?;
        let logits = logits(steps, head, &rows)?.detach();
        let losses = negative_log_likelihoods(&logits, &targets.narrow(0, first, count)?)?;
        found.push(losses.to_dtype(DType::F32)?);
    }
    Tensor::cat(&found, 0)
}

/// Rows whose logits are in memory at once.
fn chunk_rows(head: &Head, residence: Residence) -> Result<usize> {
    let rows = residence.limits().logits / head.weight.rows()?.max(1);
    Ok(match residence {
        Residence::Host => rows.clamp(16, 4096),
        Residence::Device => rows.max(16),
    })
}

/// The first row of each chunk of `x`, and its number of rows.
fn chunks(x: &Tensor, chunk: usize) -> Result<impl Iterator<Item = (usize, usize)>> {
    let rows = x.dim(0)?;
    let firsts = (0..rows).step_by(chunk);
    Ok(firsts.map(move |first| (first, chunk.min(rows - first))))
}

/// The targets `[rows]` of the rows of `x`, on its device. One upload is for all chunks.
fn targets_of(targets: &[u32], x: &Tensor) -> Result<Tensor> {
    if targets.len() != x.dim(0)? {
        candle_core::bail!("expected a target for each of {} rows", x.dim(0)?);
    }
    Tensor::new(targets, x.device())
}

/// Of logits `[rows, vocab]` and targets `[rows]`, `[rows]`.
fn negative_log_likelihoods(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let of_target = logits.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
    logits.log_sum_exp(D::Minus1)? - of_target
}
