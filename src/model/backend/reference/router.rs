//! Routers and their losses.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::{sigmoid, softmax};

use super::norm::at_least_f32;
use super::steps::Steps;
use crate::model::backend::host::Residence;
use crate::model::modules::{Bias, Gates, Matrix, Router};
use crate::model::router::{LoadBalance, RouterLoss, RouterLosses, Routing};

/// The gates of `h` `[batch, seq, hidden]`; `top_k` replaces the router's own.
pub(in crate::model::backend) fn route<S: Steps + ?Sized>(
    steps: &S,
    router: &Router,
    h: &Tensor,
    top_k: Option<usize>,
    dropped: &[usize],
) -> Result<Routing> {
    let dtype = at_least_f32(h.dtype());
    let mut logits = router_logits(steps, router, &h.to_dtype(dtype)?)?;
    if let Bias::Logits(bias) = &router.bias {
        logits = logits.broadcast_add(&bias.to_dtype(dtype)?)?;
    }
    let left = (0..router.experts)
        .filter(|expert| !dropped.contains(expert))
        .count();
    let without_dropped = |scores: Tensor| -> Result<Tensor> {
        if left == router.experts {
            return Ok(scores);
        }
        let mask: Vec<f64> = (0..router.experts)
            .map(|expert| {
                if dropped.contains(&expert) {
                    f64::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        scores.broadcast_add(&Tensor::new(mask, h.device())?.to_dtype(dtype)?)
    };
    let logits = without_dropped(logits)?;
    if let Gates::Sigmoid { scale } = router.gates {
        // Without experts the sum of equal gates stays what it was.
        let scale = scale * router.experts as f64 / left as f64;
        return Ok(Routing {
            gates: (sigmoid(&logits)? * scale)?,
            probabilities: shares_of_sigmoids(&logits.detach())?,
            chosen: all_experts(router.experts, h)?,
            logits,
        });
    }
    let probabilities = softmax(&logits, D::Minus1)?;

    let top_k = top_k.unwrap_or(router.top_k).min(left);
    if top_k == router.experts {
        let chosen = all_experts(router.experts, h)?;
        return Ok(Routing {
            logits,
            gates: probabilities.clone(),
            probabilities,
            chosen,
        });
    }
    let (chosen, mask) = match &router.bias {
        Bias::Choice(bias) => {
            let scores = probabilities
                .detach()
                .broadcast_add(&bias.detach().to_dtype(dtype)?)?;
            largest(&without_dropped(scores)?, top_k, steps.residence())?
        }
        Bias::None | Bias::Logits(_) => largest(&probabilities, top_k, steps.residence())?,
    };
    let mut gates = (&probabilities * mask)?;
    if router.normalise {
        gates = gates.broadcast_div(&gates.sum_keepdim(D::Minus1)?)?;
    }
    Ok(Routing {
        logits,
        probabilities,
        gates,
        chosen,
    })
}

/// The numbers of all experts for each token of `h`, `[batch, seq, experts]`.
fn all_experts(experts: usize, h: &Tensor) -> Result<Tensor> {
    let (batch, seq, _) = h.dims3()?;
    let all: Vec<u32> = (0..experts as u32).collect();
    Tensor::new(all, h.device())?.broadcast_as((batch, seq, experts))
}

/// The share of each expert in the sum of a token's sigmoids.
///
/// It is the softmax of their logarithms, which stay finite where sigmoids round to zero.
fn shares_of_sigmoids(logits: &Tensor) -> Result<Tensor> {
    let small = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    let logarithms = (logits.neg()?.relu()? + small)?.neg()?;
    softmax(&logarithms, D::Minus1)
}

/// The products of `h` with the router's weight in the dtype of `h`.
fn router_logits<S: Steps + ?Sized>(steps: &S, router: &Router, h: &Tensor) -> Result<Tensor> {
    let weight = match &router.weight {
        Matrix::Variable(weight) => Matrix::Variable(weight.to_dtype(h.dtype())?),
        Matrix::Frozen(weight) => Matrix::Frozen(weight.to_dtype(h.dtype())?),
        stored @ Matrix::Stored(_) => stored.clone(),
    };
    steps.matmul(&weight, h)
}

/// The `k` largest of each token's scores: their numbers `[batch, seq, k]`, and a mask of ones and zeros.
///
/// Ties go to the lower number. The choice itself has no gradient.
fn largest(scores: &Tensor, k: usize, residence: Residence) -> Result<(Tensor, Tensor)> {
    let scores = scores.detach();
    match residence {
        Residence::Host => largest_on_host(&scores, k),
        Residence::Device => largest_on_device(&scores, k),
    }
}

fn largest_on_host(scores: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (batch, seq, experts) = scores.dims3()?;
    let rows = scores
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

/// The same without a look at the scores: one maximum after the other, of equal ones the first. A NaN is a largest score, as on
/// the host.
fn largest_on_device(scores: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (device, dtype, shape) = (scores.device(), scores.dtype(), scores.shape());
    let everywhere = |value: f64| {
        Tensor::full(value, (), device)?
            .to_dtype(dtype)?
            .broadcast_as(shape)
    };
    let experts = scores.dim(D::Minus1)? as u32;
    let numbers = Tensor::arange(0, experts, device)?.to_dtype(dtype)?;
    let numbers = numbers.broadcast_as(shape)?.contiguous()?;
    let (most, least) = (everywhere(f64::INFINITY)?, everywhere(f64::NEG_INFINITY)?);
    let last = everywhere(f64::from(experts - 1))?;

    let mut left = scores.eq(scores)?.where_cond(scores, &most)?;
    let mut chosen = Vec::with_capacity(k);
    let mut mask = scores.zeros_like()?;
    for _ in 0..k {
        let is_most = left.broadcast_eq(&left.max_keepdim(D::Minus1)?)?;
        let first = is_most.where_cond(&numbers, &last)?;
        let first = first.min_keepdim(D::Minus1)?;
        let is_first = numbers.broadcast_eq(&first)?;
        left = is_first.where_cond(&least, &left)?;
        mask = (mask + is_first.to_dtype(dtype)?)?;
        chosen.push(first);
    }
    let chosen = Tensor::cat(&chosen, D::Minus1)?.to_dtype(DType::U32)?;
    Ok((chosen, mask))
}

/// The losses of a feed-forward router (BAM, section 3.3, equation 2): their weighted sum in the graph, and each outside it.
///
/// With k experts per token, the `f` of hard balance sum to k, as they do in transformers.
pub(in crate::model::backend) fn losses(
    routing: &Routing,
    wanted: &RouterLosses,
    residence: Residence,
) -> Result<(Tensor, RouterLoss)> {
    let experts = routing.probabilities.dim(2)?;
    let tokens = routing.chosen.dim(0)? * routing.chosen.dim(1)?;
    let probabilities = routing.probabilities.flatten(0, 1)?.mean(0)?;
    let counts = counts(&routing.chosen, experts, residence)?;
    let share = match wanted.kind {
        LoadBalance::Hard => (counts.to_dtype(DType::F64)?.broadcast_div(&Tensor::full(
            tokens as f64,
            (),
            counts.device(),
        )?)?)
        .to_dtype(probabilities.dtype())?,
        LoadBalance::Soft => routing.gates.flatten(0, 1)?.mean(0)?,
    };
    let load_balance = ((probabilities * share)?.sum_all()? * experts as f64)?;
    let z = routing.logits.log_sum_exp(D::Minus1)?.sqr()?.mean_all()?;
    let weighted = (((&load_balance * wanted.load_balance)? + (&z * wanted.z)?)? * wanted.share)?;
    let loss = RouterLoss {
        load_balance: load_balance.detach(),
        z: z.detach(),
        counts,
    };
    Ok((weighted, loss))
}

/// The number (u32) of tokens that chose each expert `[experts]`.
fn counts(chosen: &Tensor, experts: usize, residence: Residence) -> Result<Tensor> {
    let (chosen, device) = (chosen.detach().flatten_all()?, chosen.device());
    if residence == Residence::Host {
        let mut counts = vec![0u32; experts];
        for expert in chosen.to_vec1::<u32>()? {
            counts[expert as usize] += 1;
        }
        return Tensor::from_vec(counts, experts, device);
    }
    let all = Tensor::arange(0, experts as u32, device)?;
    let one_hot = chosen.unsqueeze(1)?.broadcast_eq(&all)?;
    one_hot.to_dtype(DType::U32)?.sum(0)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::backend::readings::Readings;

    fn routing(logits: &Tensor, k: usize) -> Routing {
        let probabilities = softmax(logits, D::Minus1).unwrap();
        let (chosen, mask) = largest(&probabilities, k, Residence::Host).unwrap();
        Routing {
            logits: logits.clone(),
            gates: (&probabilities * mask).unwrap(),
            probabilities,
            chosen,
        }
    }

    fn values() -> Vec<f64> {
        (0..5 * 3)
            .map(|i| f64::from((i * 37) % 11) / 4.0 - 1.0)
            .collect()
    }

    #[test]
    fn router_losses_are_those_of_the_paper() {
        let (tokens, experts) = (5, 3);
        let values = values();
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
            let wanted = RouterLosses {
                kind,
                load_balance: 0.5,
                z: 0.25,
                share: 0.5,
            };
            let routing = routing(&tensor, 2);
            let (weighted, loss) = losses(&routing, &wanted, Residence::Host).unwrap();
            let on_device = losses(&routing, &wanted, Residence::Device).unwrap();
            let mut readings = Readings::default();
            let [loss, on_device] =
                [loss, on_device.1].map(|loss| loss.want(&mut readings).unwrap());
            let read = readings.read().unwrap();
            let found = loss.values(&read);
            assert_eq!(found, on_device.values(&read));
            assert!((found.load_balance - expected).abs() < 1e-12, "{kind:?}");
            assert!((found.z - z).abs() < 1e-12);
            assert_eq!(found.chosen.iter().sum::<u64>(), 2 * tokens as u64);
            let weighted = weighted.to_scalar::<f64>().unwrap();
            assert!((weighted - 0.5 * (0.5 * expected + 0.25 * z)).abs() < 1e-12);
        }
    }

    #[test]
    fn a_device_chooses_as_the_host_does() {
        // Many ties, in every place; the last rows have experts that are left out, infinities and NaN.
        let rows = 64;
        let mut values: Vec<f64> = (0..rows * 6)
            .map(|i| f64::from((i * 7919 + i / 5) % 3) / 4.0)
            .collect();
        values.extend([0.5; 6]);
        values.extend([f64::NEG_INFINITY, 0.1, f64::NEG_INFINITY, 0.1, 0.1, 0.3]);
        values.extend([0.2, f64::INFINITY, f64::INFINITY, 0.0, -0.5, 0.0]);
        values.extend([0.2, 0.9, f64::NAN, 0.0, f64::NAN, 0.0]);
        for dtype in [DType::F32, DType::F64] {
            let scores = Tensor::from_vec(
                values.clone(),
                (2, (rows + 4) as usize / 2, 6),
                &Device::Cpu,
            );
            let scores = scores.unwrap().to_dtype(dtype).unwrap();
            for k in 1..=4 {
                let (chosen, mask) = largest(&scores, k, Residence::Host).unwrap();
                let (found, found_mask) = largest(&scores, k, Residence::Device).unwrap();
                let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<u32>().unwrap();
                assert_eq!(numbers(&found), numbers(&chosen), "{dtype:?} {k}");
                let ones = |t: &Tensor| numbers(&t.to_dtype(DType::U32).unwrap());
                assert_eq!(ones(&found_mask), ones(&mask), "{dtype:?} {k}");
            }
        }
        let even = Tensor::ones((1, 1, 5), DType::F32, &Device::Cpu).unwrap();
        for residence in [Residence::Host, Residence::Device] {
            let (chosen, _) = largest(&even, 3, residence).unwrap();
            let chosen = chosen.flatten_all().unwrap().to_vec1::<u32>().unwrap();
            assert_eq!(chosen, [0, 1, 2]);
        }
    }

    #[test]
    fn gradients_of_router_losses_are_central_differences() {
        let values = values();
        for kind in [LoadBalance::Hard, LoadBalance::Soft] {
            let wanted = RouterLosses {
                kind,
                load_balance: 0.7,
                z: 0.3,
                share: 1.0,
            };
            let weighted = |logits: &Tensor| {
                losses(&routing(logits, 2), &wanted, Residence::Host)
                    .unwrap()
                    .0
            };
            let var = Var::from_vec(values.clone(), (1, 5, 3), &Device::Cpu).unwrap();
            let store = weighted(var.as_tensor()).backward().unwrap();
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
                    weighted(&tensor).to_scalar::<f64>().unwrap()
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
