//! Gated feed-forward networks with SiLU for training, ordinary or of experts, as one operation.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::kernels::{add_scaled, silu_multiply, silu_multiply_backward};
use super::router::RouterRecord;
use super::rows::{PIECE, dot_rows, gather, scale_rows};
use super::weight::Weight;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::{add_to, floats};
use crate::model::backend::operations::OperationRecord;
use crate::model::modules::Mlp;

/// Values that one thread activates at a time.
const ACTIVATED: usize = 1 << 13;

/// One network: `down(silu(gate(x)) · up(x))`.
struct Network {
    gate: Weight,
    up: Weight,
    down: Weight,
}

impl Network {
    fn new(mlp: &Mlp) -> Result<Self> {
        let Some(gate) = &mlp.gate else {
            candle_core::bail!("expected a feed-forward network with a gate")
        };
        Ok(Self {
            gate: Weight::new(gate)?,
            up: Weight::new(&mlp.up)?,
            down: Weight::new(&mlp.down)?,
        })
    }
}

/// Which tokens go to which expert.
struct Places {
    /// The tokens of each expert, in order.
    tokens: Vec<Vec<u32>>,
    /// For each token its experts, and its place among the tokens of each.
    experts: Vec<Vec<(u32, u32)>>,
}

impl Places {
    /// From the experts that each token chose, `[tokens, k]`.
    fn new(chosen: &[u32], k: usize, experts: usize) -> Self {
        let mut tokens = vec![Vec::new(); experts];
        let place = |(token, chosen): (usize, &[u32])| {
            let place = |expert: &u32| {
                let list = &mut tokens[*expert as usize];
                list.push(token as u32);
                (*expert, list.len() as u32 - 1)
            };
            chosen.iter().map(place).collect()
        };
        let experts = chosen.chunks_exact(k).enumerate().map(place).collect();
        Self { tokens, experts }
    }
}

/// A router that has run, and the experts that its tokens go to.
struct Routed {
    places: Places,
    router: RouterRecord,
}

/// The networks of experts, or one for all tokens.
struct Operation {
    networks: Vec<Network>,
    routed: Option<Routed>,
}

/// The projections of one expert before its activation, `[its tokens, intermediate]`.
struct Saved {
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// The record of feed-forward networks.
pub(super) struct MlpRecord {
    operation: Operation,
    h: Tensor,
    saved: Vec<Saved>,
}

/// The output of one network for `h` `[.., hidden]`.
pub(super) fn recorded(mlp: &Mlp, h: &Tensor) -> Result<(Tensor, MlpRecord)> {
    let operation = Operation {
        networks: vec![Network::new(mlp)?],
        routed: None,
    };
    operation.run(h)
}

/// The outputs of experts for `h` `[batch, seq, hidden]`, weighted by the gates of their router, which has run on the same
/// `h` and chose the experts `chosen` `[batch, seq, k]`.
pub(super) fn experts_recorded(
    experts: &[Mlp],
    h: &Tensor,
    router: RouterRecord,
    chosen: &Tensor,
) -> Result<(Tensor, MlpRecord)> {
    let k = chosen.dim(D::Minus1)?;
    let places = Places::new(&chosen.flatten_all()?.to_vec1::<u32>()?, k, experts.len());
    let operation = Operation {
        networks: experts.iter().map(Network::new).collect::<Result<_>>()?,
        routed: Some(Routed { places, router }),
    };
    operation.run(h)
}

impl OperationRecord for MlpRecord {
    fn backward(
        self: Box<Self>,
        grad_output: &Tensor,
        mut grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let grad_output = grad_output.contiguous()?;
        let (grad_h, grad_gates) = {
            let (h, grad_output) = (
                self.h.storage_and_layout(),
                grad_output.storage_and_layout(),
            );
            self.operation
                .backward(floats(&h)?, &self.saved, floats(&grad_output)?, gradients)?
        };
        if let Some(Routed { router, .. }) = self.operation.routed {
            grad_input = Some(router.backward(grad_gates, grad_input, gradients)?);
        }
        add_to(grad_input, grad_h, self.h.shape())
    }
}

impl Operation {
    fn run(self, h: &Tensor) -> Result<(Tensor, MlpRecord)> {
        let h = h.contiguous()?;
        let (out, saved) = {
            let values = h.storage_and_layout();
            self.forward(floats(&values)?)?
        };
        let out = Tensor::from_vec(out, h.shape(), &Device::Cpu)?;
        let record = MlpRecord {
            operation: self,
            h,
            saved,
        };
        Ok((out, record))
    }

    fn hidden(&self) -> usize {
        self.networks
            .first()
            .map_or(0, |network| network.gate.columns())
    }

    /// The rows of `h` that go to an expert; `None` where all do.
    fn rows_of(&self, expert: usize, h: &[f32]) -> Option<Vec<f32>> {
        self.routed
            .as_ref()
            .map(|routed| gather(h, self.hidden(), &routed.places.tokens[expert]))
    }

    fn forward(&self, h: &[f32]) -> Result<(Vec<f32>, Vec<Saved>)> {
        let (mut outputs, mut saved) = (Vec::new(), Vec::new());
        for (number, Network { gate, up, down }) in self.networks.iter().enumerate() {
            let rows = self.rows_of(number, h);
            let x = rows.as_deref().unwrap_or(h);
            let n = x.len() / self.hidden();
            let projected = Saved {
                gate: gate.forward(x, n)?,
                up: up.forward(x, n)?,
            };
            let mut activated = projected.gate.clone();
            activated
                .par_chunks_mut(ACTIVATED)
                .zip(projected.up.par_chunks(ACTIVATED))
                .for_each(|(gate, up)| silu_multiply(gate, up));
            outputs.push(down.forward(&activated, n)?);
            saved.push(projected);
        }
        let out = match &self.routed {
            None => outputs.pop().unwrap_or_default(),
            Some(routed) => {
                let gates = routed.router.gates();
                self.at_tokens(&routed.places, h.len(), &outputs, |token, expert| {
                    gates[token * self.networks.len() + expert]
                })
            }
        };
        Ok((out, saved))
    }

    /// The rows of the experts' tokens, each times its factor, added up at their tokens.
    fn at_tokens(
        &self,
        places: &Places,
        length: usize,
        rows: &[Vec<f32>],
        factor: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Vec<f32> {
        let (mut out, hidden) = (vec![0f32; length], self.hidden());
        out.par_chunks_mut(hidden)
            .zip(&places.experts)
            .enumerate()
            .with_min_len(PIECE)
            .for_each(|(token, (out, experts))| {
                for (expert, place) in experts {
                    let row = &rows[*expert as usize][*place as usize * hidden..][..hidden];
                    add_scaled(out, row, factor(token, *expert as usize));
                }
            });
        out
    }

    /// The gradients of `h`, and of the gates `[tokens, experts]` where there are any.
    fn backward(
        &self,
        h: &[f32],
        saved: &[Saved],
        grad_output: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let gates = self.routed.as_ref().map(|routed| routed.router.gates());
        let mut grad_gates = vec![0f32; gates.map_or(0, <[f32]>::len)];
        let mut grad_rows = Vec::new();
        for (number, saved) in saved.iter().enumerate() {
            let rows = self.rows_of(number, h);
            let x = rows.as_deref().unwrap_or(h);
            if x.is_empty() {
                grad_rows.push(Vec::new());
                continue;
            }
            let (grad_x, grad_gate) =
                self.network_backward(number, x, saved, grad_output, gradients)?;
            if let Some(routed) = &self.routed {
                let tokens = &routed.places.tokens[number];
                for (token, grad_gate) in tokens.iter().zip(grad_gate) {
                    grad_gates[*token as usize * self.networks.len() + number] = grad_gate;
                }
            }
            grad_rows.push(grad_x);
        }
        let grad_h = match &self.routed {
            None => grad_rows.pop().unwrap_or_default(),
            Some(routed) => self.at_tokens(&routed.places, h.len(), &grad_rows, |_, _| 1.0),
        };
        Ok((grad_h, grad_gates))
    }

    /// The gradients of the rows `x` that go to one network, and of their gates where there are any.
    fn network_backward(
        &self,
        number: usize,
        x: &[f32],
        saved: &Saved,
        grad_output: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let hidden = self.hidden();
        let Network { gate, up, down } = &self.networks[number];
        let n = x.len() / hidden;
        // The gradient of an expert's output is the gradient of its tokens times their gates.
        let own = self.routed.as_ref().map(|routed| {
            let (tokens, gates) = (&routed.places.tokens[number], routed.router.gates());
            let rows = gather(grad_output, hidden, tokens);
            let weights: Vec<f32> = tokens
                .iter()
                .map(|token| gates[*token as usize * self.networks.len() + number])
                .collect();
            (scale_rows(&rows, hidden, |row| weights[row]), rows, weights)
        });
        let scaled = own.as_ref().map_or(grad_output, |(scaled, ..)| scaled);
        let unscaled = own.as_ref().map_or(grad_output, |(_, rows, _)| rows);

        let mut grad_activated = vec![0f32; saved.gate.len()];
        down.backward(unscaled, n, &mut grad_activated, false)?;
        let (mut grad_gate, mut grad_up) = (saved.gate.clone(), saved.up.clone());
        let mut activated = vec![0f32; grad_gate.len()];
        grad_gate
            .par_chunks_mut(ACTIVATED)
            .zip(grad_up.par_chunks_mut(ACTIVATED))
            .zip(grad_activated.par_chunks(ACTIVATED))
            .zip(activated.par_chunks_mut(ACTIVATED))
            .for_each(|(((gate, up), grad_activated), activated)| {
                silu_multiply_backward(gate, up, grad_activated, activated)
            });

        // The gates scale last: their own gradient is along the unscaled one.
        let mut grad_gates = Vec::new();
        if let Some((_, rows, weights)) = &own {
            grad_gates = dot_rows(&grad_activated, &activated, down.columns());
            down.add_along_bias(rows, &mut grad_gates)?;
            grad_gate = scale_rows(&grad_gate, gate.rows(), |row| weights[row]);
            grad_up = scale_rows(&grad_up, up.rows(), |row| weights[row]);
        }

        let mut grad_x = vec![0f32; x.len()];
        gate.backward(&grad_gate, n, &mut grad_x, false)?;
        up.backward(&grad_up, n, &mut grad_x, true)?;
        gate.add_grad_weight(x, &grad_gate, n, gradients)?;
        gate.add_grad_bias(&grad_gate, gradients)?;
        up.add_grad_weight(x, &grad_up, n, gradients)?;
        up.add_grad_bias(&grad_up, gradients)?;
        down.add_grad_weight(&activated, scaled, n, gradients)?;
        down.add_grad_bias(scaled, gradients)?;
        Ok((grad_x, grad_gates))
    }
}
