//! Logits, and the cross-entropy of next tokens in chunks.

use candle_core::{D, DType, Result, Tensor, Var};

use super::attend::soft_capped;
use super::norm::at_least_f32;
use super::steps::Steps;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::operations::TokenLosses;
use crate::model::modules::Head;

/// Logits in memory at once, at most: 32 MiB of float32.
const LOGITS: usize = 1 << 23;

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
    let chunk = chunk_rows(head)?;
    let (mut nll, mut grad_x) = (Vec::new(), Vec::new());
    for (number, (targets, weights)) in targets.chunks(chunk).zip(weights.chunks(chunk)).enumerate()
    {
        let rows = Var::from_tensor(&x.narrow(0, number * chunk, targets.len())?)?;
        let logits = logits(steps, head, &rows)?;
        let weights = Tensor::new(weights, logits.device())?.to_dtype(logits.dtype())?;
        let losses = negative_log_likelihoods(&logits, targets)?;
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
    let chunk = chunk_rows(head)?;
    let mut found = Vec::new();
    for (number, targets) in targets.chunks(chunk).enumerate() {
        let rows = x.narrow(0, number * chunk, targets.len())?;
        let logits = logits(steps, head, &rows)?.detach();
        found.push(negative_log_likelihoods(&logits, targets)?.to_dtype(DType::F32)?);
    }
    Tensor::cat(&found, 0)
}

/// Rows whose logits are in memory at once.
fn chunk_rows(head: &Head) -> Result<usize> {
    Ok((LOGITS / head.weight.rows()?.max(1)).clamp(16, 4096))
}

/// Of logits `[rows, vocab]`, `[rows]`.
fn negative_log_likelihoods(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    logits.log_sum_exp(D::Minus1)? - logits.gather(&targets, 1)?.squeeze(1)?
}
