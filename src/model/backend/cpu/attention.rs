//! Attention for training, ordinary or of experts: projections, rotation, softmax attention, gates and output projections
//! as one operation.

use std::borrow::Cow;

use candle_core::{Device, Result, Tensor};

use super::attend::{InputGradients, Inputs, Sizes};
use super::kernels::add_scaled;
use super::norm;
use super::rotate::Rotate;
use super::router::RouterRecord;
use super::rows::{dot_rows, scale_rows, sum_scaled_rows};
use super::scores::ScoreRule;
use super::weight::Weight;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::{add_to, floats};
use crate::model::backend::operations::OperationRecord;
use crate::model::modules::{Attention, Norm};
use crate::model::pass::Pass;

/// Queries and output of one expert.
struct Expert {
    q: Weight,
    o: Weight,
    q_norm: Option<Norm>,
}

/// Keys and values of one expert, or of all.
struct KeyValue {
    k: Weight,
    v: Weight,
    k_norm: Option<Norm>,
}

/// The operation, with its parameters.
struct Operation {
    experts: Vec<Expert>,
    /// One, or one per expert.
    key_values: Vec<KeyValue>,
    sizes: Sizes,
    /// Absent in a layer that does not rotate.
    rotate: Option<Rotate>,
    /// Factors on queries, `[1 or batch, seq]`. A rotation of a scaled query is the scaled rotation.
    query_scales: Option<Vec<f32>>,
}

/// A projection, and its values after the norm where it has one.
struct Projected {
    plain: Vec<f32>,
    normed: Option<Vec<f32>>,
}

impl Projected {
    fn new(weight: &Weight, norm: &Option<Norm>, x: &[f32], tokens: usize) -> Result<Self> {
        let plain = weight.forward(x, tokens)?;
        let normed = match norm {
            Some(norm) => Some(norm::forward(norm, &plain)?),
            None => None,
        };
        Ok(Self { plain, normed })
    }

    fn values(&self) -> &[f32] {
        self.normed.as_ref().unwrap_or(&self.plain)
    }

    /// The gradient before the norm.
    fn backward(
        &self,
        norm: &Option<Norm>,
        grad_output: Vec<f32>,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        match norm {
            Some(norm) => norm::backward(norm, &self.plain, &grad_output, gradients),
            None => Ok(grad_output),
        }
    }
}

/// The activations that the backward pass needs.
struct Saved {
    queries: Vec<Projected>,
    keys: Vec<Projected>,
    values: Vec<Vec<f32>>,
    /// The heads of each expert, before its gate and output projection.
    heads: Vec<Vec<f32>>,
}

/// The record of an attention sublayer.
pub(super) struct AttentionRecord {
    operation: Operation,
    h: Tensor,
    saved: Saved,
    router: Option<RouterRecord>,
}

/// The output for `h` `[batch, seq, hidden]`; `router` has run on the same `h`.
pub(super) fn recorded(
    attention: &Attention,
    h: &Tensor,
    pass: &Pass,
    router: Option<RouterRecord>,
) -> Result<(Tensor, AttentionRecord)> {
    let h = h.contiguous()?;
    let operation = Operation::new(attention, &h, pass)?;
    let (out, saved) = {
        let values = h.storage_and_layout();
        operation.forward(floats(&values)?, router.as_ref().map(RouterRecord::gates))?
    };
    let out = Tensor::from_vec(out, h.shape(), &Device::Cpu)?;
    let record = AttentionRecord {
        operation,
        h,
        saved,
        router,
    };
    Ok((out, record))
}

impl OperationRecord for AttentionRecord {
    fn backward(
        self: Box<Self>,
        grad_output: &Tensor,
        mut grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let grad_output = grad_output.contiguous()?;
        let gates = self.router.as_ref().map(RouterRecord::gates);
        let (grad_h, grad_gates) = {
            let (h, grad_output) = (
                self.h.storage_and_layout(),
                grad_output.storage_and_layout(),
            );
            self.operation.backward(
                floats(&h)?,
                gates,
                &self.saved,
                floats(&grad_output)?,
                gradients,
            )?
        };
        if let Some(router) = self.router {
            grad_input = Some(router.backward(grad_gates, grad_input, gradients)?);
        }
        add_to(grad_input, grad_h, self.h.shape())
    }
}

impl Operation {
    fn new(attention: &Attention, h: &Tensor, pass: &Pass) -> Result<Self> {
        let (batch, seq, _) = h.dims3()?;
        let experts: Vec<Expert> = attention
            .heads
            .iter()
            .map(|heads| {
                Ok(Expert {
                    q: Weight::new(&heads.q)?,
                    o: Weight::new(&heads.o)?,
                    q_norm: heads.q_norm.clone(),
                })
            })
            .collect::<Result<_>>()?;
        let key_values = attention
            .key_values
            .iter()
            .map(|key_value| {
                Ok(KeyValue {
                    k: Weight::new(&key_value.k)?,
                    v: Weight::new(&key_value.v)?,
                    k_norm: key_value.k_norm.clone(),
                })
            })
            .collect::<Result<_>>()?;
        let sizes = Sizes {
            batch,
            seq,
            heads: experts[0].q.rows() / attention.head_dim,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            window: attention.window,
            rule: ScoreRule::new(attention),
            mask: pass.attention_mask.clone(),
        };
        let rotation = pass.rotations.of(attention.rotation);
        Ok(Self {
            experts,
            key_values,
            sizes,
            rotate: rotation.map(Rotate::new).transpose()?,
            query_scales: match &pass.query_scales {
                Some(scales) => Some(scales.flatten_all()?.to_vec1()?),
                None => None,
            },
        })
    }

    /// Queries of one expert, or their gradients, times the factors of their positions.
    fn scaled<'a>(&self, queries: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(scales) = &self.query_scales else {
            return queries.into();
        };
        let width = self.sizes.heads * self.sizes.head_dim;
        scale_rows(queries, width, |token| scales[token % scales.len()]).into()
    }

    /// The number of the keys and values that an expert uses.
    fn set(&self, expert: usize) -> usize {
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
            let set = self.set(number);
            queries.push(Projected::new(q, q_norm, h, tokens)?);
            let inputs = Inputs {
                queries: &self.scaled(queries[number].values()),
                keys: keys[set].values(),
                values: &values[set],
            };
            heads.push(self.sizes.forward(&inputs, self.rotate.as_ref()));

            let gate = |token: usize| gates.map_or(1.0, |gates| gates[token * experts + number]);
            match gates {
                None => o.matmul(&heads[number], tokens, &mut out, false)?,
                Some(_) => {
                    let gated = scale_rows(&heads[number], o.columns(), gate);
                    o.matmul(&gated, tokens, &mut out, number > 0)?;
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
        let saved = Saved {
            queries,
            keys,
            values,
            heads,
        };
        Ok((out, saved))
    }

    /// The gradients of `h`, and of the gates `[tokens, experts]` where there are any.
    fn backward(
        &self,
        h: &[f32],
        gates: Option<&[f32]>,
        saved: &Saved,
        grad_output: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (tokens, experts) = (self.sizes.tokens(), self.experts.len());
        let mut grad_h = vec![0f32; h.len()];
        let mut grad_gates = vec![0f32; gates.map_or(0, <[f32]>::len)];
        let mut grad_keys: Vec<Option<InputGradients>> =
            self.key_values.iter().map(|_| None).collect();
        for (number, Expert { q, q_norm, .. }) in self.experts.iter().enumerate() {
            let set = self.set(number);
            let (grad_heads, grad_gate) =
                self.output_backward(number, gates, saved, grad_output, gradients)?;
            grad_gates
                .iter_mut()
                .skip(number)
                .step_by(experts)
                .zip(grad_gate)
                .for_each(|(all, one)| *all = one);

            let inputs = Inputs {
                queries: &self.scaled(saved.queries[number].values()),
                keys: saved.keys[set].values(),
                values: &saved.values[set],
            };
            let mut found = self
                .sizes
                .backward(&inputs, self.rotate.as_ref(), &grad_heads);
            let grad_queries = std::mem::take(&mut found.queries);
            let scaled = match self.scaled(&grad_queries) {
                Cow::Owned(scaled) => Some(scaled),
                Cow::Borrowed(_) => None,
            };
            let grad_queries = scaled.unwrap_or(grad_queries);
            let grad_queries = saved.queries[number].backward(q_norm, grad_queries, gradients)?;
            q.backward(&grad_queries, tokens, &mut grad_h, number > 0)?;
            q.add_grad_weight(h, &grad_queries, tokens, gradients)?;
            q.add_grad_bias(&grad_queries, gradients)?;

            match &mut grad_keys[set] {
                None => grad_keys[set] = Some(found),
                Some(sum) => {
                    add_scaled(&mut sum.keys, &found.keys, 1.0);
                    add_scaled(&mut sum.values, &found.values, 1.0);
                }
            }
        }

        for (set, (KeyValue { k, v, k_norm }, found)) in
            self.key_values.iter().zip(grad_keys).enumerate()
        {
            let Some(found) = found else {
                candle_core::bail!("keys that no expert uses")
            };
            let grad_keys = saved.keys[set].backward(k_norm, found.keys, gradients)?;
            k.backward(&grad_keys, tokens, &mut grad_h, true)?;
            v.backward(&found.values, tokens, &mut grad_h, true)?;
            k.add_grad_weight(h, &grad_keys, tokens, gradients)?;
            k.add_grad_bias(&grad_keys, gradients)?;
            v.add_grad_weight(h, &found.values, tokens, gradients)?;
            v.add_grad_bias(&found.values, gradients)?;
        }
        Ok((grad_h, grad_gates))
    }

    /// The gradients of an expert's heads, and of its gate for each token where there are gates.
    fn output_backward(
        &self,
        number: usize,
        gates: Option<&[f32]>,
        saved: &Saved,
        grad_output: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (tokens, experts) = (self.sizes.tokens(), self.experts.len());
        let (o, heads) = (&self.experts[number].o, &saved.heads[number]);
        let gate = |token: usize| gates.map_or(1.0, |gates| gates[token * experts + number]);
        let mut grad_heads = vec![0f32; heads.len()];
        let mut grad_gate = Vec::new();
        o.backward(grad_output, tokens, &mut grad_heads, false)?;
        if gates.is_some() {
            grad_gate = dot_rows(&grad_heads, heads, o.columns());
            o.add_along_bias(grad_output, &mut grad_gate)?;
            grad_heads = scale_rows(&grad_heads, o.columns(), gate);
            let gated = scale_rows(heads, o.columns(), gate);
            o.add_grad_weight(&gated, grad_output, tokens, gradients)?;
        } else {
            o.add_grad_weight(heads, grad_output, tokens, gradients)?;
        }
        let hidden = grad_output.len() / tokens;
        o.add_grad_bias_of(|| sum_scaled_rows(grad_output, hidden, gate), gradients)?;
        Ok((grad_heads, grad_gate))
    }
}
