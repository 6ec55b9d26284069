//! Feed-forward networks, ordinary or of experts (BAM, section 3.3).

use candle_core::{D, Result, Tensor};
use candle_nn::ops::sigmoid;
use rayon::prelude::*;

use super::fused;
use super::kernels::silu_multiply;
use super::linear::{Linear, Matrix, forward_together};
use super::params::Mode;
use super::pass::{Pass, on_cpu};
use super::router::{Router, Routing};
use super::stored::floats;
use crate::family::Activation;

/// Values that one thread activates at a time.
const PIECE: usize = 1 << 13;

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Relu2 => x.relu()?.sqr(),
    }
}

/// One network: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub(super) struct Mlp {
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
    /// What the output passes, in experts with adapters.
    pub(super) adapter: Option<Matrix>,
    pub(super) activation: Activation,
    pub(super) mode: Mode,
}

impl Mlp {
    /// `[.., hidden]` to `[.., hidden]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.can_fuse(x) {
            return fused_experts(x, &[self], None);
        }
        let inner = match &self.gate {
            Some(gate) => {
                let both = forward_together(&[gate, &self.up], x)?;
                self.gated(&both[0], &both[1])?
            }
            None => activate(self.activation, &self.up.forward(x)?)?,
        };
        let out = self.down.forward(&inner)?;
        self.adapter
            .as_ref()
            .map_or(Ok(out.clone()), |adapter| adapter.multiply(&out))
    }

    /// Whether it can be one operation, for training on the CPU.
    fn can_fuse(&self, x: &Tensor) -> bool {
        self.mode == Mode::Train
            && on_cpu(x)
            && self.activation == Activation::Silu
            && self.gate.is_some()
            && self.adapter.is_none()
    }

    /// `act(gate) · up`.
    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if self.mode == Mode::Train || self.activation != Activation::Silu || !on_cpu(gate) {
            return activate(self.activation, gate)? * up;
        }
        let (gate, up) = (gate.contiguous()?, up.contiguous()?);
        let (gate_values, up_values) = (gate.storage_and_layout(), up.storage_and_layout());
        let mut out = floats(&gate_values)?.to_vec();
        let up_values = floats(&up_values)?;
        if out.len() <= PIECE {
            silu_multiply(&mut out, up_values);
        } else {
            out.par_chunks_mut(PIECE)
                .zip(up_values.par_chunks(PIECE))
                .for_each(|(out, up)| silu_multiply(out, up));
        }
        Tensor::from_vec(out, gate.shape(), gate.device())
    }
}

/// The feed-forward network of a layer.
#[derive(Debug, Clone)]
pub(super) enum FeedForward {
    Dense(Mlp),
    Experts {
        router: Router,
        experts: Vec<Mlp>,
        shared: Option<SharedExpert>,
    },
}

/// A network that every token goes to beside its experts.
#[derive(Debug, Clone)]
pub(super) struct SharedExpert {
    pub(super) mlp: Mlp,
    /// `[1, hidden]`: its product with a token, through a sigmoid, weights the output for that token.
    pub(super) gate: Option<Matrix>,
}

impl SharedExpert {
    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let out = self.mlp.forward(h)?;
        match &self.gate {
            Some(gate) => out.broadcast_mul(&sigmoid(&gate.multiply(h)?)?),
            None => Ok(out),
        }
    }
}

impl FeedForward {
    /// The output for `h` `[batch, seq, hidden]`, and how its tokens were routed.
    pub(super) fn forward(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, Option<Routing>)> {
        match self {
            Self::Dense(mlp) => Ok((mlp.forward(h)?, None)),
            Self::Experts {
                router,
                experts,
                shared,
            } => {
                let routing = router.route(h, pass.overrides.top_k, &pass.overrides.dropped)?;
                let out = if experts.iter().all(|expert| expert.can_fuse(h)) {
                    fused_experts(h, &experts.iter().collect::<Vec<_>>(), Some(&routing))?
                } else if routing.chosen.dim(D::Minus1)? == experts.len() {
                    all_experts(h, experts, &routing)?
                } else {
                    chosen_experts(h, experts, &routing)?
                };
                let out = match shared {
                    Some(shared) => (out + shared.forward(h)?)?,
                    None => out,
                };
                Ok((out, Some(routing)))
            }
        }
    }
}

/// The networks as one operation, for training on the CPU.
fn fused_experts(h: &Tensor, experts: &[&Mlp], routing: Option<&Routing>) -> Result<Tensor> {
    let (mut weights, mut parts) = (Vec::new(), Vec::new());
    for Mlp { gate, up, down, .. } in experts {
        let Some(gate) = gate else {
            candle_core::bail!("a network without a gate is not fused")
        };
        parts.push(fused::Mlp {
            gate: gate.fused()?,
            up: up.fused()?,
            down: down.fused()?,
        });
        weights.extend([gate, up, down].into_iter().flat_map(Linear::tensors));
    }
    let routed = match routing {
        Some(Routing { gates, chosen, .. }) => {
            let k = chosen.dim(D::Minus1)?;
            let places =
                fused::Places::new(&chosen.flatten_all()?.to_vec1::<u32>()?, k, experts.len());
            Some((gates, places))
        }
        None => None,
    };
    fused::mlp(h, routed, &weights, parts)
}

/// Every token through every expert, weighted.
fn all_experts(h: &Tensor, experts: &[Mlp], routing: &Routing) -> Result<Tensor> {
    let gates = routing.gates.to_dtype(h.dtype())?;
    let mut sum: Option<Tensor> = None;
    for (number, expert) in experts.iter().enumerate() {
        let part = expert
            .forward(h)?
            .broadcast_mul(&gates.narrow(D::Minus1, number, 1)?)?;
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

/// Each expert gathers its tokens; the weighted outputs are put back in the order of the tokens and added up.
fn chosen_experts(h: &Tensor, experts: &[Mlp], routing: &Routing) -> Result<Tensor> {
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
        outputs.push(expert.forward(&x)?.broadcast_mul(&gate)?);
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
