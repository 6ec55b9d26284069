//! Routers: which experts a token goes to, and with what weight.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax;

use super::linear::Matrix;
use super::norm::at_least_f32;

/// Changes to a model's routing while it runs; the default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Feed-forward experts a token goes to.
    pub top_k: Option<usize>,
    /// Attention experts a token goes to.
    pub attention_top_k: Option<usize>,
    /// Experts that no token goes to, feed-forward and attention alike; gates are a softmax over the others.
    pub dropped: Vec<usize>,
}

/// How one router sent the tokens of a pass, in float32 (float64 where the model computes in it).
#[derive(Debug, Clone)]
pub struct Routing {
    /// Router logits `[batch, seq, experts]`.
    pub logits: Tensor,
    /// Their softmax over all experts.
    pub probabilities: Tensor,
    /// Weights of the experts' outputs, zero for those not chosen `[batch, seq, experts]`.
    pub gates: Tensor,
    /// Numbers (u32) of the chosen experts, the best first `[batch, seq, top_k]`; in order where all are chosen.
    pub chosen: Tensor,
}

/// The routing of one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerRouting {
    /// Of the feed-forward experts.
    pub feed_forward: Option<Routing>,
    /// Of the attention experts.
    pub attention: Option<Routing>,
}

/// The bias `[experts]` of a router.
#[derive(Debug, Clone)]
pub(super) enum Bias {
    None,
    /// Added to the logits.
    Logits(Tensor),
    /// Added to the gates where the largest are chosen; has no gradient.
    Choice(Tensor),
}

/// A softmax router with its weight `[experts, hidden]`.
#[derive(Debug, Clone)]
pub(super) struct Router {
    pub(super) weight: Matrix,
    pub(super) bias: Bias,
    pub(super) experts: usize,
    pub(super) top_k: usize,
    /// Whether the chosen gates are divided by their sum.
    pub(super) normalise: bool,
}

impl Router {
    /// Gates of `h` `[batch, seq, hidden]`: a softmax over all experts, then the `top_k` largest (BAM, sections 3.3, 3.4).
    pub(super) fn route(
        &self,
        h: &Tensor,
        top_k: Option<usize>,
        dropped: &[usize],
    ) -> Result<Routing> {
        let (batch, seq, _) = h.dims3()?;
        let dtype = at_least_f32(h.dtype());
        let mut logits = self.logits(&h.to_dtype(dtype)?)?;
        if let Bias::Logits(bias) = &self.bias {
            logits = logits.broadcast_add(&bias.to_dtype(dtype)?)?;
        }
        let left = (0..self.experts)
            .filter(|expert| !dropped.contains(expert))
            .count();
        let without_dropped = |scores: Tensor| -> Result<Tensor> {
            if left == self.experts {
                return Ok(scores);
            }
            let mask: Vec<f64> = (0..self.experts)
                .map(|e| {
                    if dropped.contains(&e) {
                        f64::NEG_INFINITY
                    } else {
                        0.0
                    }
                })
                .collect();
            scores.broadcast_add(&Tensor::new(mask, h.device())?.to_dtype(dtype)?)
        };
        let logits = without_dropped(logits)?;
        let probabilities = softmax(&logits, D::Minus1)?;
        let top_k = top_k.unwrap_or(self.top_k).min(left);
        if top_k == self.experts {
            let all: Vec<u32> = (0..self.experts as u32).collect();
            let chosen = Tensor::new(all, h.device())?.broadcast_as((batch, seq, self.experts))?;
            return Ok(Routing {
                logits,
                gates: probabilities.clone(),
                probabilities,
                chosen,
            });
        }
        let (chosen, mask) = match &self.bias {
            Bias::Choice(bias) => {
                let scores = probabilities
                    .detach()
                    .broadcast_add(&bias.detach().to_dtype(dtype)?)?;
                largest(&without_dropped(scores)?, top_k)?
            }
            Bias::None | Bias::Logits(_) => largest(&probabilities, top_k)?,
        };
        let mut gates = (&probabilities * mask)?;
        if self.normalise {
            gates = gates.broadcast_div(&gates.sum_keepdim(D::Minus1)?)?;
        }
        Ok(Routing {
            logits,
            probabilities,
            gates,
            chosen,
        })
    }

    fn logits(&self, h: &Tensor) -> Result<Tensor> {
        let weight = match &self.weight {
            Matrix::Variable(weight) => Matrix::Variable(weight.to_dtype(h.dtype())?),
            Matrix::Frozen(weight, mode) => Matrix::Frozen(weight.to_dtype(h.dtype())?, *mode),
            stored @ Matrix::Stored(_) => stored.clone(),
        };
        weight.multiply(h)
    }
}

/// The `k` largest of each token's scores: their numbers `[batch, seq, k]`, and a mask of ones and zeros.
///
/// Chosen on the host, where ties go to the lower number; the choice itself has no gradient.
fn largest(scores: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (batch, seq, experts) = scores.dims3()?;
    let rows = scores
        .detach()
        .to_dtype(DType::F64)?
        .reshape((batch * seq, experts))?
        .to_vec2::<f64>()?;
    let mut chosen = Vec::with_capacity(batch * seq * k);
    let mut mask = vec![0f64; batch * seq * experts];
    for (row, mask) in rows.iter().zip(mask.chunks_exact_mut(experts)) {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        for expert in &order[..k] {
            chosen.push(*expert as u32);
            mask[*expert] = 1.0;
        }
    }
    let device = scores.device();
    let chosen = Tensor::from_vec(chosen, (batch, seq, k), device)?;
    let mask = Tensor::from_vec(mask, (batch, seq, experts), device)?.to_dtype(scores.dtype())?;
    Ok((chosen, mask))
}
