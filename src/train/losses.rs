//! What is minimised: the next token's negative log-likelihood, and the losses of the routers (BAM, section 3.3, equation 2).

use candle_core::{D, DType, Tensor, Var};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::gradients::Gradients;
use super::parameters::Parameters;
use crate::model::{CausalLm, LayerRouting, Routing};
use crate::{Error, Result};

/// Logits in memory at once, at most: 32 MiB of float32.
const LOGITS: usize = 1 << 23;

/// How load balance is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LoadBalance {
    /// `E · Σ fᵢ Pᵢ`: `f` is the share of the tokens that chose expert i, without gradient; `P` the mean probability
    /// (BAM, equation 2; Switch).
    Hard,
    /// `E · Σ uᵢ Pᵢ`: `u` is the mean gate of expert i, zero for tokens that did not choose it, with gradient (BTX).
    Soft,
}

/// Weights of the routers' losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RouterLosses {
    pub(super) kind: LoadBalance,
    pub(super) load_balance: f64,
    pub(super) z: f64,
}

/// The losses of one layer's feed-forward router over the tokens of one batch.
#[derive(Debug)]
pub(super) struct RouterLoss {
    /// Weighted sum, as a scalar that can be differentiated.
    pub(super) weighted: Tensor,
    /// The load-balancing loss, without its weight.
    pub(super) load_balance: f64,
    /// The z-loss, without its weight.
    pub(super) z: f64,
    /// Tokens that chose each expert.
    pub(super) chosen: Vec<u64>,
}

impl RouterLosses {
    /// The losses of a layer, `None` where it has no feed-forward router; soft-routed attention needs no balance.
    ///
    /// With k experts a token, the `f` of hard balance sum to k, as they do in transformers.
    pub(super) fn of(&self, routing: &LayerRouting) -> candle_core::Result<Option<RouterLoss>> {
        let Some(routing) = &routing.feed_forward else {
            return Ok(None);
        };
        let (tokens, chosen) = counts(routing)?;
        let probabilities = routing.probabilities.flatten(0, 1)?.mean(0)?;
        let share = match self.kind {
            LoadBalance::Hard => {
                let share: Vec<f64> = chosen
                    .iter()
                    .map(|count| *count as f64 / tokens as f64)
                    .collect();
                Tensor::from_vec(share, chosen.len(), probabilities.device())?
                    .to_dtype(probabilities.dtype())?
            }
            LoadBalance::Soft => routing.gates.flatten(0, 1)?.mean(0)?,
        };
        let experts = probabilities.dim(0)? as f64;
        let load_balance = ((probabilities * share)?.sum_all()? * experts)?;
        let z = routing.logits.log_sum_exp(D::Minus1)?.sqr()?.mean_all()?;
        let value = |loss: &Tensor| loss.to_dtype(DType::F64)?.to_scalar::<f64>();
        let weighted = ((&load_balance * self.load_balance)? + (&z * self.z)?)?;
        Ok(Some(RouterLoss {
            load_balance: value(&load_balance)?,
            z: value(&z)?,
            weighted,
            chosen,
        }))
    }
}

/// The number of tokens, and of those that chose each expert.
fn counts(routing: &Routing) -> candle_core::Result<(usize, Vec<u64>)> {
    let mut counts = vec![0; routing.probabilities.dim(2)?];
    for expert in routing.chosen.flatten_all()?.to_vec1::<u32>()? {
        counts[expert as usize] += 1;
    }
    Ok((routing.chosen.dim(0)? * routing.chosen.dim(1)?, counts))
}

/// The next token's negative log-likelihoods, and the gradients of their weighted sum.
pub(super) struct NextToken {
    /// In nats, one a row.
    pub(super) nll: Vec<f32>,
    /// The gradient of the hidden states `[rows, hidden]`.
    pub(super) hidden: Tensor,
}

/// The loss of `hidden` `[rows, hidden]`, which has passed the final norm, against the next tokens.
///
/// The gradient of `Σ weights · nll` goes to the hidden states and, for a trainable head, to `gradients`. Logits are made
/// for a few rows at a time, so that those of a whole batch are never in memory.
pub(super) fn next_token(
    model: &CausalLm,
    parameters: &Parameters,
    gradients: &mut Gradients,
    hidden: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> Result<NextToken> {
    let failed = |e| Error::compute("take the loss", e);
    let mut back = |rows: &Var, loss: &Tensor| -> candle_core::Result<Tensor> {
        let mut store = loss.backward()?;
        parameters.take(None, &mut store, gradients)?;
        let Some(gradient) = store.remove(rows) else {
            candle_core::bail!("the head has no gradient")
        };
        Ok(gradient.detach())
    };
    let all = Var::from_tensor(hidden).map_err(failed)?;
    if let Some((nll, loss)) = model.next_token_loss(&all, targets, Some(weights))? {
        return Ok(NextToken {
            nll,
            hidden: back(&all, &loss).map_err(failed)?,
        });
    }
    let chunk = chunk_rows(model);
    let (mut nll, mut parts) = (Vec::with_capacity(targets.len()), Vec::new());
    for (start, targets) in (0..).step_by(chunk).zip(targets.chunks(chunk)) {
        let rows = hidden
            .narrow(0, start, targets.len())
            .and_then(|rows| Var::from_tensor(&rows))
            .map_err(failed)?;
        let logits = model.head(&rows)?;
        let loss = || -> candle_core::Result<(Vec<f32>, Tensor)> {
            let weight = Tensor::new(&weights[start..start + targets.len()], logits.device())?
                .to_dtype(logits.dtype())?;
            let likelihoods = negative_log_likelihoods(&logits, targets)?;
            Ok((
                likelihoods.detach().to_dtype(DType::F32)?.to_vec1()?,
                (likelihoods * weight)?.sum_all()?,
            ))
        };
        let (values, loss) = loss().map_err(failed)?;
        nll.extend(values);
        parts.push(back(&rows, &loss).map_err(failed)?);
    }
    let hidden = Tensor::cat(&parts, 0).map_err(failed)?;
    Ok(NextToken { nll, hidden })
}

/// The negative log-likelihoods in nats of the next tokens behind `hidden` `[rows, hidden]`, which has passed the final norm.
pub(super) fn likelihoods(model: &CausalLm, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    if let Some((found, _)) = model.next_token_loss(hidden, targets, None)? {
        return Ok(found);
    }
    let failed = |e| Error::compute("take the loss", e);
    let mut found = Vec::with_capacity(targets.len());
    let chunk = chunk_rows(model);
    for (number, targets) in targets.chunks(chunk).enumerate() {
        let rows = hidden
            .narrow(0, number * chunk, targets.len())
            .map_err(failed)?;
        let logits = model.head(&rows)?;
        let nll = negative_log_likelihoods(&logits, targets)
            .and_then(|nll| nll.to_dtype(DType::F32)?.to_vec1::<f32>());
        found.extend(nll.map_err(failed)?);
    }
    Ok(found)
}

/// Rows whose logits are in memory at once.
fn chunk_rows(model: &CausalLm) -> usize {
    (LOGITS / model.architecture().vocab_size.max(1) as usize).clamp(16, 4096)
}

/// Of logits `[rows, vocab]`, `[rows]`.
fn negative_log_likelihoods(logits: &Tensor, targets: &[u32]) -> candle_core::Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    logits.log_sum_exp(D::Minus1)? - logits.gather(&targets, 1)?.squeeze(1)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_nn::ops::softmax;

    fn routing(logits: &Tensor, k: usize) -> Routing {
        let probabilities = softmax(logits, D::Minus1).unwrap();
        let rows = probabilities
            .flatten(0, 1)
            .unwrap()
            .detach()
            .to_vec2::<f64>()
            .unwrap();
        let (mut mask, mut chosen) = (Vec::new(), Vec::new());
        for row in &rows {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            mask.extend(
                (0..row.len()).map(|expert| f64::from(u8::from(order[..k].contains(&expert)))),
            );
            chosen.extend(order[..k].iter().map(|expert| *expert as u32));
        }
        let mask = Tensor::from_vec(mask, logits.shape(), &Device::Cpu).unwrap();
        let chosen = Tensor::from_vec(chosen, (1, rows.len(), k), &Device::Cpu).unwrap();
        Routing {
            logits: logits.clone(),
            gates: (&probabilities * mask).unwrap(),
            probabilities,
            chosen,
        }
    }

    fn loss(losses: &RouterLosses, logits: &Tensor) -> RouterLoss {
        let layer = LayerRouting {
            feed_forward: Some(routing(logits, 2)),
            attention: None,
        };
        losses.of(&layer).unwrap().unwrap()
    }

    fn logits() -> Vec<f64> {
        (0..5 * 3)
            .map(|i| f64::from((i * 37) % 11) / 4.0 - 1.0)
            .collect()
    }

    #[test]
    fn router_losses_are_those_of_the_paper() {
        let (tokens, experts) = (5, 3);
        let values = logits();
        let tensor = Tensor::from_vec(values.clone(), (1, tokens, experts), &Device::Cpu).unwrap();
        let (mut f, mut p, mut u, mut z) = ([0.0; 3], [0.0; 3], [0.0; 3], 0.0);
        for row in values.chunks(experts) {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            let lowest = row.iter().copied().fold(f64::INFINITY, f64::min);
            for (expert, logit) in row.iter().enumerate() {
                let (chosen, probability) = (*logit > lowest, logit.exp() / sum);
                p[expert] += probability / tokens as f64;
                f[expert] += if chosen { 1.0 / tokens as f64 } else { 0.0 };
                u[expert] += if chosen {
                    probability / tokens as f64
                } else {
                    0.0
                };
            }
            z += sum.ln().powi(2) / tokens as f64;
        }
        let dot = |a: [f64; 3], b: [f64; 3]| 3.0 * (0..3).map(|i| a[i] * b[i]).sum::<f64>();
        assert!((f.iter().sum::<f64>() - 2.0).abs() < 1e-12);
        for (kind, expected) in [
            (LoadBalance::Hard, dot(f, p)),
            (LoadBalance::Soft, dot(u, p)),
        ] {
            let found = loss(
                &RouterLosses {
                    kind,
                    load_balance: 0.5,
                    z: 0.25,
                },
                &tensor,
            );
            assert!((found.load_balance - expected).abs() < 1e-12, "{kind:?}");
            assert!((found.z - z).abs() < 1e-12);
            let weighted = found.weighted.to_scalar::<f64>().unwrap();
            assert!((weighted - 0.5 * expected - 0.25 * z).abs() < 1e-12);
        }
    }

    #[test]
    fn gradients_of_router_losses_are_central_differences() {
        let values = logits();
        for kind in [LoadBalance::Hard, LoadBalance::Soft] {
            let losses = RouterLosses {
                kind,
                load_balance: 0.7,
                z: 0.3,
            };
            let var = Var::from_vec(values.clone(), (1, 5, 3), &Device::Cpu).unwrap();
            let store = loss(&losses, var.as_tensor()).weighted.backward().unwrap();
            let gradient = store
                .get(&var)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap();
            for i in 0..values.len() {
                let at = |shift: f64| {
                    let mut moved = values.clone();
                    moved[i] += shift;
                    let tensor = Tensor::from_vec(moved, (1, 5, 3), &Device::Cpu).unwrap();
                    loss(&losses, &tensor).weighted.to_scalar::<f64>().unwrap()
                };
                let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!(
                    (gradient[i] - difference).abs() < 1e-8,
                    "{kind:?} {i}: {} {difference}",
                    gradient[i]
                );
            }
        }
    }
}
