//! Attention, ordinary or of experts: projections, rotation, softmax attention, gates and output projections as one
//! operation.

use candle_core::{Result, Tensor};

use super::attend::{Gradients, Inputs, Sizes};
use super::norm::Norm;
use super::record::{OfInputs, record_sublayer};
use super::rotate::Rotate;
use super::rows::{dot_rows, scale_rows, sum_scaled_rows};
use super::weight::Weight;
use crate::model::kernels::add_scaled;
use crate::model::stored::floats;

/// Queries and output of one expert.
#[derive(Debug, Clone)]
pub(in crate::model) struct Expert {
    pub(in crate::model) q: Weight,
    pub(in crate::model) o: Weight,
    pub(in crate::model) q_norm: Option<Norm>,
}

/// Keys and values of one expert, or of all.
#[derive(Debug, Clone)]
pub(in crate::model) struct KeyValue {
    pub(in crate::model) k: Weight,
    pub(in crate::model) v: Weight,
    pub(in crate::model) k_norm: Option<Norm>,
}

/// What the operation is made of.
#[derive(Debug, Clone)]
pub(in crate::model) struct Attention {
    pub(in crate::model) experts: Vec<Expert>,
    /// One, or one an expert.
    pub(in crate::model) key_values: Vec<KeyValue>,
    pub(in crate::model) sizes: Sizes,
    pub(in crate::model) rotate: Rotate,
}

/// A projection, and the same after its norm; equal where it has none.
struct Projected {
    plain: Vec<f32>,
    normed: Option<Vec<f32>>,
}

impl Projected {
    fn new(weight: &Weight, norm: &Option<Norm>, x: &[f32], tokens: usize) -> Result<Self> {
        let plain = weight.forward(x, tokens)?;
        let normed = norm.as_ref().map(|norm| norm.forward(&plain)).transpose()?;
        Ok(Self { plain, normed })
    }

    fn values(&self) -> &[f32] {
        self.normed.as_ref().unwrap_or(&self.plain)
    }

    /// The gradient before the norm, and that of the norm's weight.
    fn backward(
        &self,
        norm: &Option<Norm>,
        gradient: Vec<f32>,
    ) -> Result<(Vec<f32>, Option<Tensor>)> {
        match norm {
            Some(norm) => norm.backward(&self.plain, &gradient),
            None => Ok((gradient, None)),
        }
    }
}

/// What the backward pass needs.
struct Saved {
    queries: Vec<Projected>,
    keys: Vec<Projected>,
    values: Vec<Vec<f32>>,
    /// Of each expert, before its gate and output projection.
    heads: Vec<Vec<f32>>,
}

/// The output `[batch, seq, hidden]` for `h` of the same shape; `gates` `[batch, seq, experts]` where experts are weighted.
///
/// `weights` are the tensors of the graph in the order of [`Attention::backward`]: of each expert q, its bias, its norm, o, its bias; of each
/// set of keys k, its bias, its norm, v, its bias. Where one is absent there is nothing in its place.
pub(in crate::model) fn attention(
    h: &Tensor,
    gates: Option<&Tensor>,
    weights: &[Option<&Tensor>],
    attention: Attention,
) -> Result<Tensor> {
    let input = h.detach().contiguous()?;
    let gate_values = gates
        .map(|gates| gates.detach().flatten_all()?.to_vec1::<f32>())
        .transpose()?;
    let (out, saved) = {
        let values = input.storage_and_layout();
        attention.forward(floats(&values)?, gate_values.as_deref())?
    };
    record_sublayer((h, input), gates, weights, out, move |h, gradient| {
        attention.backward(h, gate_values.as_deref(), &saved, gradient)
    })
}

impl Attention {
    fn key_value(&self, expert: usize) -> usize {
        if self.key_values.len() == 1 {
            0
        } else {
            expert
        }
    }

    fn forward(&self, h: &[f32], gates: Option<&[f32]>) -> Result<(Vec<f32>, Saved)> {
        let (tokens, experts) = (self.sizes.tokens(), self.experts.len());
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for KeyValue { k, v, k_norm } in &self.key_values {
            keys.push(Projected::new(k, k_norm, h, tokens)?);
            values.push(v.forward(h, tokens)?);
        }
        let (mut queries, mut heads) = (Vec::new(), Vec::new());
        let mut out = vec![0f32; h.len()];
        for (number, Expert { q, o, q_norm }) in self.experts.iter().enumerate() {
            let set = self.key_value(number);
            queries.push(Projected::new(q, q_norm, h, tokens)?);
            let inputs = Inputs {
                queries: queries[number].values(),
                keys: keys[set].values(),
                values: &values[set],
            };
            heads.push(self.sizes.forward(&inputs, &self.rotate));
            let gate = |token: usize| gates.map_or(1.0, |gates| gates[token * experts + number]);
            match gates {
                None => o.product(&heads[number], tokens, &mut out, false)?,
                Some(_) => {
                    let gated = scale_rows(&heads[number], o.columns(), gate);
                    o.product(&gated, tokens, &mut out, number > 0)?;
                }
            }
            if let Some(bias) = o.bias() {
                let bias = bias.storage_and_layout();
                let bias = floats(&bias)?;
                out.chunks_exact_mut(bias.len())
                    .enumerate()
                    .for_each(|(token, out)| add_scaled(out, bias, gate(token)));
            }
        }
        Ok((
            out,
            Saved {
                queries,
                keys,
                values,
                heads,
            },
        ))
    }

    /// The gradients of `h`, of the gates, and of the weights in the order that [`attention`] says.
    fn backward(
        &self,
        h: &[f32],
        gates: Option<&[f32]>,
        saved: &Saved,
        gradient: &[f32],
    ) -> Result<OfInputs> {
        let (tokens, experts) = (self.sizes.tokens(), self.experts.len());
        let hidden = h.len() / tokens;
        let (mut of_h, mut of_weights) = (vec![0f32; h.len()], Vec::new());
        let mut of_gates = vec![0f32; if gates.is_some() { tokens * experts } else { 0 }];
        let mut of_keys: Vec<Option<Gradients>> = self.key_values.iter().map(|_| None).collect();
        for (number, Expert { q, o, q_norm }) in self.experts.iter().enumerate() {
            let (set, heads) = (self.key_value(number), &saved.heads[number]);
            let mut of_heads = vec![0f32; heads.len()];
            o.backward(gradient, tokens, &mut of_heads, false)?;
            let gate = |token: usize| gates.map_or(1.0, |gates| gates[token * experts + number]);
            let of_o = if gates.is_some() {
                let mut of_gate = dot_rows(&of_heads, heads, o.columns());
                o.add_along_bias(gradient, &mut of_gate)?;
                of_gates
                    .iter_mut()
                    .skip(number)
                    .step_by(experts)
                    .zip(of_gate)
                    .for_each(|(all, one)| *all = one);
                of_heads = scale_rows(&of_heads, o.columns(), gate);
                o.of_weight(&scale_rows(heads, o.columns(), gate), gradient, tokens)?
            } else {
                o.of_weight(heads, gradient, tokens)?
            };
            let of_o_bias = o.of_bias(|| sum_scaled_rows(gradient, hidden, gate))?;
            let inputs = Inputs {
                queries: saved.queries[number].values(),
                keys: saved.keys[set].values(),
                values: &saved.values[set],
            };
            let mut found = self.sizes.backward(&inputs, &self.rotate, &of_heads);
            let (of_queries, of_q_norm) =
                saved.queries[number].backward(q_norm, std::mem::take(&mut found.queries))?;
            q.backward(&of_queries, tokens, &mut of_h, number > 0)?;
            of_weights.extend([
                q.of_weight(h, &of_queries, tokens)?,
                q.sum_of_bias(&of_queries)?,
                of_q_norm,
                of_o,
                of_o_bias,
            ]);
            match &mut of_keys[set] {
                None => of_keys[set] = Some(found),
                Some(sum) => {
                    add_scaled(&mut sum.keys, &found.keys, 1.0);
                    add_scaled(&mut sum.values, &found.values, 1.0);
                }
            }
        }
        for (set, (KeyValue { k, v, k_norm }, found)) in
            self.key_values.iter().zip(of_keys).enumerate()
        {
            // Each set of keys has an expert at least.
            let Some(found) = found else {
                candle_core::bail!("keys that no expert looks at")
            };
            let (of_keys, of_k_norm) = saved.keys[set].backward(k_norm, found.keys)?;
            k.backward(&of_keys, tokens, &mut of_h, true)?;
            v.backward(&found.values, tokens, &mut of_h, true)?;
            of_weights.extend([
                k.of_weight(h, &of_keys, tokens)?,
                k.sum_of_bias(&of_keys)?,
                of_k_norm,
            ]);
            of_weights.extend([
                v.of_weight(h, &found.values, tokens)?,
                v.sum_of_bias(&found.values)?,
            ]);
        }
        Ok(OfInputs {
            h: of_h,
            gates: of_gates,
            weights: of_weights,
        })
    }
}
