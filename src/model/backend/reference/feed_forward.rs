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
    let chosen = routing.chosen.reshape((tokens, k))?.to_vec2::<u32>()?;
    let mut of_expert = vec![Vec::new(); experts.len()];
    for (token, chosen) in chosen.iter().enumerate() {
        for (slot, expert) in chosen.iter().enumerate() {
            of_expert[*expert as usize].push((token, slot));
        }
    }

    let (mut outputs, mut place) = (Vec::new(), vec![0u32; tokens * k]);
    let mut done = 0;
    for (number, (expert, list)) in experts.iter().zip(&of_expert).enumerate() {
        if list.is_empty() {
            continue;
        }
        for (token, slot) in list {
            place[token * k + slot] = done;
            done += 1;
        }
        let own: Vec<u32> = list.iter().map(|(token, _)| *token as u32).collect();
        let gate_places: Vec<u32> = own
            .iter()
            .map(|token| token * experts.len() as u32 + number as u32)
            .collect();
        let all_in_order = own.len() == tokens && k == 1;
        let x = if all_in_order {
            h.clone()
        } else {
            h.index_select(&Tensor::new(own, h.device())?, 0)?
        };
        let gate = gates
            .index_select(&Tensor::new(gate_places, h.device())?, 0)?
            .unsqueeze(1)?;
        outputs.push(network(steps, expert, &x)?.broadcast_mul(&gate)?);
        if all_in_order {
            return outputs[0].reshape((batch, seq, hidden));
        }
    }

    let outputs = Tensor::cat(&outputs, 0)?.index_select(&Tensor::new(place, h.device())?, 0)?;
    let summed = if k == 1 {
        outputs
    } else {
        outputs.reshape((tokens, k, hidden))?.sum(1)?
    };
    summed.reshape((batch, seq, hidden))
}
