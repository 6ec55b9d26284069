//! Feed-forward networks, ordinary or of experts, composed of steps.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::sigmoid;

use super::router::route;
use super::steps::{Steps, activate};
use crate::model::modules::{Experts, FeedForward, Mlp, SharedExpert};
use crate::model::pass::Pass;
use crate::model::router::Routing;

/// The output for `h` `[batch, seq, hidden]`, and how its tokens were routed.
pub(super) fn forward<S: Steps>(
    steps: &S,
    feed_forward: &FeedForward,
    h: &Tensor,
    pass: &Pass,
) -> Result<(Tensor, Option<Routing>)> {
    match feed_forward {
        FeedForward::Dense(mlp) => Ok((network(steps, mlp, h)?, None)),
        FeedForward::Experts(layer) => {
            let (out, routing) = experts(steps, layer, h, pass)?;
            let out = match &layer.shared {
                Some(expert) => (out + shared(steps, expert, h)?)?,
                None => out,
            };
            Ok((out, Some(routing)))
        }
    }
}

/// The weighted outputs of the experts, without the shared one.
pub(in crate::model::backend) fn experts<S: Steps>(
    steps: &S,
    layer: &Experts,
    h: &Tensor,
    pass: &Pass,
) -> Result<(Tensor, Routing)> {
    let overrides = &pass.overrides;
    let routing = route(steps, &layer.router, h, overrides.top_k, &overrides.dropped)?;
    let out = if routing.chosen.dim(D::Minus1)? == layer.experts.len() {
        all_experts(steps, &layer.experts, h, &routing)?
    } else {
        chosen_experts(steps, &layer.experts, h, &routing)?
    };
    Ok((out, routing))
}

fn shared<S: Steps>(steps: &S, expert: &SharedExpert, h: &Tensor) -> Result<Tensor> {
    let out = network(steps, &expert.mlp, h)?;
    match &expert.gate {
        Some(gate) => out.broadcast_mul(&sigmoid(&steps.matmul(gate, h)?)?),
        None => Ok(out),
    }
}

/// One network, `[.., hidden]` to `[.., hidden]`.
pub(in crate::model::backend) fn network<S: Steps>(
    steps: &S,
    mlp: &Mlp,
    x: &Tensor,
) -> Result<Tensor> {
    let inner = match &mlp.gate {
        Some(gate) => {
            let both = steps.project(&[gate, &mlp.up], x)?;
            steps.gated(mlp.activation, &both[0], &both[1])?
        }
        None => activate(mlp.activation, &steps.linear(&mlp.up, x)?)?,
    };
    let out = steps.linear(&mlp.down, &inner)?;
    match &mlp.adapter {
        Some(adapter) => steps.matmul(adapter, &out),
        None => Ok(out),
    }
}

/// Every token through every expert, weighted.
fn all_experts<S: Steps>(
    steps: &S,
    experts: &[Mlp],
    h: &Tensor,
    routing: &Routing,
) -> Result<Tensor> {
    let gates = routing.gates.to_dtype(h.dtype())?;
    let mut sum: Option<Tensor> = None;
    for (number, expert) in experts.iter().enumerate() {
        let part =
            network(steps, expert, h)?.broadcast_mul(&gates.narrow(D::Minus1, number, 1)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => candle_core::bail!("a mixture without experts"),
    }
}

/// Each expert gathers its tokens. The weighted outputs return to the order of the tokens and are added up.
///
/// The number of an expert's tokens is the shape of its tensors, so the host reads the choice. On a device, this is the only
/// look at numbers within a step.
fn chosen_experts<S: Steps>(
    steps: &S,
    experts: &[Mlp],
    h: &Tensor,
    routing: &Routing,
) -> Result<Tensor> {
    let (batch, seq, hidden) = h.dims3()?;
    let tokens = batch * seq;
    let h = h.reshape((tokens, hidden))?;
    let gates = routing.gates.to_dtype(h.dtype())?.flatten_all()?;
    let k = routing.chosen.dim(D::Minus1)?;
    let order = ExpertOrder::of(&routing.chosen, experts.len())?;

    let mut outputs = Vec::new();
    let mut done = 0;
    for (expert, count) in experts.iter().zip(&order.counts) {
        if *count == 0 {
            continue;
        }
        let all_in_order = *count == tokens && k == 1;
        let x = if all_in_order {
            h.clone()
        } else {
            h.index_select(&order.tokens.narrow(0, done, *count)?, 0)?
        };
        let gate = gates
            .index_select(&order.gates.narrow(0, done, *count)?, 0)?
            .unsqueeze(1)?;
        outputs.push(network(steps, expert, &x)?.broadcast_mul(&gate)?);
        if all_in_order {
            return outputs[0].reshape((batch, seq, hidden));
        }
        done += count;
    }

    let outputs = Tensor::cat(&outputs, 0)?.index_select(&order.places, 0)?;
    let summed = if k == 1 {
        outputs
    } else {
        outputs.reshape((tokens, k, hidden))?.sum(1)?
    };
    summed.reshape((batch, seq, hidden))
}

/// The choices of all tokens, expert by expert, and for one expert in the order of the tokens.
struct ExpertOrder {
    /// Choices of each expert.
    counts: Vec<usize>,
    /// The token of each choice.
    tokens: Tensor,
    /// Where the gate of each choice is among all gates, token by token.
    gates: Tensor,
    /// Where each choice of each token is in this order.
    places: Tensor,
}

impl ExpertOrder {
    /// Of `chosen` `[batch, seq, k]`. All places go to the device in one upload.
    fn of(chosen: &Tensor, experts: usize) -> Result<Self> {
        let (batch, seq, k) = chosen.dims3()?;
        let choices = chosen.flatten_all()?.to_vec1::<u32>()?;
        let mut counts = vec![0; experts];
        choices
            .iter()
            .for_each(|expert| counts[*expert as usize] += 1);
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |first, count| {
                *first += count;
                Some(*first - count)
            })
            .collect();

        let length = batch * seq * k;
        let mut all = vec![0u32; 3 * length];
        for (choice, expert) in choices.iter().enumerate() {
            let token = choice / k;
            let place = next[*expert as usize];
            next[*expert as usize] += 1;
            all[place] = token as u32;
            all[length + place] = (token * experts) as u32 + expert;
            all[2 * length + choice] = place as u32;
        }
        let all = Tensor::from_vec(all, 3 * length, chosen.device())?;
        Ok(Self {
            counts,
            tokens: all.narrow(0, 0, length)?,
            gates: all.narrow(0, length, length)?,
            places: all.narrow(0, 2 * length, length)?,
        })
    }
}
