//! Gated feed-forward networks with SiLU, ordinary or of experts, as one operation.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::record::{OfInputs, record_sublayer};
use super::rows::{PIECE, dot_rows, gather, scale_rows};
use super::weight::Weight;
use crate::model::kernels::{add_scaled, silu_multiply, silu_multiply_backward};
use crate::model::stored::floats;

/// Values that one thread activates at a time.
const ACTIVATED: usize = 1 << 13;

/// One network: `down(silu(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub(in crate::model) struct Mlp {
    pub(in crate::model) gate: Weight,
    pub(in crate::model) up: Weight,
    pub(in crate::model) down: Weight,
}

/// Which tokens go to which expert.
#[derive(Debug, Clone)]
pub(in crate::model) struct Places {
    /// The tokens of each expert, in order.
    tokens: Vec<Vec<u32>>,
    /// Of each token its experts, and its place among the tokens of each.
    experts: Vec<Vec<(u32, u32)>>,
}

impl Places {
    /// Of the experts that each token chose, `[tokens, k]`.
    pub(in crate::model) fn new(chosen: &[u32], k: usize, experts: usize) -> Self {
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

/// Networks of experts with their places, or one for all tokens.
struct Mixture {
    experts: Vec<Mlp>,
    /// Gates `[tokens, experts]`, where there are several.
    routed: Option<(Places, Vec<f32>)>,
}

/// The products of one expert before its activation, `[its tokens, intermediate]`.
struct Saved {
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// The output for `h` `[batch, seq, hidden]`, of the one network, or of those that its tokens go to, weighted by
/// `gates` `[batch, seq, experts]`.
///
/// `weights` are the tensors of the graph: of each expert gate, its bias, up, its bias, down, its bias.
pub(in crate::model) fn mlp(
    h: &Tensor,
    routed: Option<(&Tensor, Places)>,
    weights: &[Option<&Tensor>],
    experts: Vec<Mlp>,
) -> Result<Tensor> {
    let input = h.detach().contiguous()?;
    let gates = routed.as_ref().map(|(gates, _)| *gates);
    let routed = match routed {
        Some((gates, places)) => Some((places, gates.detach().flatten_all()?.to_vec1::<f32>()?)),
        None => None,
    };
    let mixture = Mixture { experts, routed };
    let (out, saved) = {
        let values = input.storage_and_layout();
        mixture.forward(floats(&values)?)?
    };
    record_sublayer((h, input), gates, weights, out, move |h, gradient| {
        mixture.backward(h, &saved, gradient)
    })
}

impl Mixture {
    fn hidden(&self) -> usize {
        self.experts
            .first()
            .map_or(0, |expert| expert.gate.columns())
    }

    /// The rows of `h` that an expert sees.
    fn seen(&self, h: &[f32], expert: usize) -> Option<Vec<f32>> {
        self.routed
            .as_ref()
            .map(|(places, _)| gather(h, self.hidden(), &places.tokens[expert]))
    }

    fn forward(&self, h: &[f32]) -> Result<(Vec<f32>, Vec<Saved>)> {
        let (mut outputs, mut saved) = (Vec::new(), Vec::new());
        for (number, Mlp { gate, up, down }) in self.experts.iter().enumerate() {
            let seen = self.seen(h, number);
            let x = seen.as_deref().unwrap_or(h);
            let n = x.len() / self.hidden();
            let products = Saved {
                gate: gate.forward(x, n)?,
                up: up.forward(x, n)?,
            };
            let mut activated = products.gate.clone();
            let pieces = activated
                .par_chunks_mut(ACTIVATED)
                .zip(products.up.par_chunks(ACTIVATED));
            pieces.for_each(|(gate, up)| silu_multiply(gate, up));
            outputs.push(down.forward(&activated, n)?);
            saved.push(products);
        }
        let out = match &self.routed {
            None => outputs.pop().unwrap_or_default(),
            Some((_, gates)) => self.at_tokens(h.len(), &outputs, |token, expert| {
                gates[token * self.experts.len() + expert]
            }),
        };
        Ok((out, saved))
    }

    /// Rows of the experts' tokens, added up at their tokens.
    fn at_tokens(
        &self,
        length: usize,
        rows: &[Vec<f32>],
        factor: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Vec<f32> {
        let (mut out, hidden) = (vec![0f32; length], self.hidden());
        let Some((places, _)) = &self.routed else {
            return out;
        };
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

    /// The gradients of `h`, of the gates, and of the weights.
    fn backward(&self, h: &[f32], saved: &[Saved], gradient: &[f32]) -> Result<OfInputs> {
        let (experts, hidden) = (self.experts.len(), self.hidden());
        let tokens = h.len() / hidden;
        let mut of_gates = vec![
            0f32;
            if self.routed.is_some() {
                tokens * experts
            } else {
                0
            }
        ];
        let (mut of_h, mut of_weights) = (Vec::new(), Vec::new());
        for (number, (Mlp { gate, up, down }, saved)) in self.experts.iter().zip(saved).enumerate()
        {
            let seen = self.seen(h, number);
            let x = seen.as_deref().unwrap_or(h);
            let n = x.len() / hidden;
            if n == 0 {
                of_h.push(Vec::new());
                of_weights.extend([const { None }; 6]);
                continue;
            }
            // The gradient of the expert's output, where it is not that of all.
            let own = self.routed.as_ref().map(|(places, gates)| {
                let tokens = &places.tokens[number];
                let rows = gather(gradient, hidden, tokens);
                let weights: Vec<f32> = tokens
                    .iter()
                    .map(|token| gates[*token as usize * experts + number])
                    .collect();
                (
                    tokens,
                    scale_rows(&rows, hidden, |row| weights[row]),
                    rows,
                    weights,
                )
            });
            let of_out = own.as_ref().map_or(gradient, |(_, scaled, ..)| scaled);
            let unscaled = own.as_ref().map_or(gradient, |(_, _, rows, _)| rows);
            let mut of_activated = vec![0f32; saved.gate.len()];
            down.backward(unscaled, n, &mut of_activated, false)?;
            let (mut of_gate, mut of_up) = (saved.gate.clone(), saved.up.clone());
            let mut activated = vec![0f32; of_gate.len()];
            // The gates come last: their own gradient is along the unscaled one.
            let pieces = of_gate
                .par_chunks_mut(ACTIVATED)
                .zip(of_up.par_chunks_mut(ACTIVATED));
            let pieces = pieces
                .zip(of_activated.par_chunks(ACTIVATED))
                .zip(activated.par_chunks_mut(ACTIVATED));
            pieces.for_each(|(((gate, up), gradient), activated)| {
                silu_multiply_backward(gate, up, gradient, activated)
            });
            if let Some((tokens, _, rows, weights)) = &own {
                let mut along = dot_rows(&of_activated, &activated, down.columns());
                down.add_along_bias(rows, &mut along)?;
                for (token, along) in tokens.iter().zip(along) {
                    of_gates[*token as usize * experts + number] = along;
                }
                of_gate = scale_rows(&of_gate, gate.rows(), |row| weights[row]);
                of_up = scale_rows(&of_up, up.rows(), |row| weights[row]);
            }
            let mut of_x = vec![0f32; x.len()];
            gate.backward(&of_gate, n, &mut of_x, false)?;
            up.backward(&of_up, n, &mut of_x, true)?;
            of_h.push(of_x);
            of_weights.extend([gate.of_weight(x, &of_gate, n)?, gate.sum_of_bias(&of_gate)?]);
            of_weights.extend([up.of_weight(x, &of_up, n)?, up.sum_of_bias(&of_up)?]);
            of_weights.extend([
                down.of_weight(&activated, of_out, n)?,
                down.sum_of_bias(of_out)?,
            ]);
        }
        let of_h = match &self.routed {
            None => of_h.pop().unwrap_or_default(),
            Some(_) => self.at_tokens(h.len(), &of_h, |_, _| 1.0),
        };
        Ok(OfInputs {
            h: of_h,
            gates: of_gates,
            weights: of_weights,
        })
    }
}
