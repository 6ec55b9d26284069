//! Attention, ordinary or of experts (BAM, section 3.4).
//!
//! Experts run as one attention: `E` times the query heads, over `E` times the key heads or over the seed's own where
//! keys and values are shared; each head's output is weighted by the gate of its token and expert, and the output
//! projections stand side by side. This equals the sum of `E` attentions, each weighted after its output projection.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

use super::attend::attend;
use super::cache::LayerCache;
use super::fused;
use super::linear::{Linear, Matrix, forward_together, sum_of_products};
use super::norm::Norm;
use super::params::Mode;
use super::pass::{Pass, on_cpu};
use super::rope::Rope;
use super::router::{Router, Routing};

/// Queries that inference looks at together: bounds the memory for scores, and skips most of what is in the future.
const CHUNK: usize = 128;

/// Query and output projection of one expert, or of the ordinary attention.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) q: Linear,
    pub(super) o: Linear,
    /// What the output passes, in experts with adapters.
    pub(super) adapter: Option<Matrix>,
    pub(super) q_norm: Option<Norm>,
}

/// Keys and values: of one expert, or of all of them.
#[derive(Debug, Clone)]
pub(super) struct KeyValue {
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) k_norm: Option<Norm>,
}

/// The attention of one layer.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    /// One a expert; one where attention is ordinary.
    pub(super) heads: Vec<Heads>,
    /// One a expert; one where it is shared or attention is ordinary.
    pub(super) key_values: Vec<KeyValue>,
    /// Where there are experts.
    pub(super) router: Option<Router>,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Positions that it looks back, its own counted.
    pub(super) window: Option<usize>,
    /// Largest magnitude of queries, keys and values, where limited.
    pub(super) clip: Option<f64>,
    pub(super) mode: Mode,
}

impl Attention {
    /// The output for `h` `[batch, seq, hidden]`, and how its tokens were routed.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        rope: &Rope,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, Option<Routing>)> {
        let adapted = self.heads.iter().any(|heads| heads.adapter.is_some());
        if self.mode == Mode::Train
            && on_cpu(h)
            && cache.is_none()
            && !adapted
            && self.clip.is_none()
        {
            return self.fused(h, rope, pass);
        }
        let (batch, seq, _) = h.dims3()?;
        let (queries, keys, values) = self.project(h, rope, pass)?;
        let (keys, values) = match cache {
            Some(cache) => cache.append(&keys, &values, pass.sight.offset)?,
            None => (keys, values),
        };
        let out = if self.mode == Mode::Infer && on_cpu(h) {
            attend(
                &queries,
                &keys,
                &values,
                (self.key_values.len(), self.kv_heads),
                self.window,
                pass,
            )?
        } else {
            self.attend_in_groups(&queries, &keys, &values, pass)?
        };
        let out = out.reshape((batch, seq, self.heads.len(), ()))?;
        let Some(router) = &self.router else {
            return Ok((self.heads[0].o.forward(&out.squeeze(2)?)?, None));
        };
        let routing = router.route(h, pass.overrides.attention_top_k, &pass.overrides.dropped)?;
        let gates = routing.gates.to_dtype(h.dtype())?.unsqueeze(3)?;
        let gated = out.broadcast_mul(&gates)?;
        let of_expert = |number: usize| gated.narrow(2, number, 1)?.squeeze(2);
        if self.heads.iter().any(|heads| heads.adapter.is_some()) {
            return Ok((self.adapted_sum(&gates, of_expert)?, Some(routing)));
        }
        let terms = self
            .heads
            .iter()
            .enumerate()
            .map(|(number, heads)| Ok((&heads.o.weight, of_expert(number)?)));
        let mut sum = sum_of_products(&terms.collect::<Result<Vec<_>>>()?)?;
        for (number, Heads { o, .. }) in self.heads.iter().enumerate() {
            if let Some(bias) = &o.bias {
                sum = (sum
                    + gates
                        .narrow(2, number, 1)?
                        .squeeze(2)?
                        .broadcast_mul(bias)?)?;
            }
        }
        Ok((sum, Some(routing)))
    }

    /// The same as one operation, for training on the CPU.
    fn fused(&self, h: &Tensor, rope: &Rope, pass: &Pass) -> Result<(Tensor, Option<Routing>)> {
        let (batch, seq, _) = h.dims3()?;
        let (mut weights, mut experts, mut key_values) = (Vec::new(), Vec::new(), Vec::new());
        let norm = |norm: &Option<Norm>| norm.as_ref().map(Norm::fused).transpose();
        for Heads { q, o, q_norm, .. } in &self.heads {
            experts.push(fused::Expert {
                q: q.fused()?,
                o: o.fused()?,
                q_norm: norm(q_norm)?,
            });
            weights.extend(q.tensors());
            weights.push(q_norm.as_ref().map(|norm| &norm.weight));
            weights.extend(o.tensors());
        }
        for KeyValue { k, v, k_norm } in &self.key_values {
            key_values.push(fused::KeyValue {
                k: k.fused()?,
                v: v.fused()?,
                k_norm: norm(k_norm)?,
            });
            weights.extend(k.tensors());
            weights.push(k_norm.as_ref().map(|norm| &norm.weight));
            weights.extend(v.tensors());
        }
        let sizes = fused::Sizes {
            batch,
            seq,
            heads: self.heads[0].q.weight.rows()? / self.head_dim,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: self.window,
            sight: pass.sight.clone(),
        };
        let routing = match &self.router {
            Some(router) => {
                Some(router.route(h, pass.overrides.attention_top_k, &pass.overrides.dropped)?)
            }
            None => None,
        };
        let gates = routing.as_ref().map(|routing| &routing.gates);
        let parts = fused::Attention {
            experts,
            key_values,
            sizes,
            rotate: rope.fused(&pass.rotation)?,
        };
        Ok((fused::attention(h, gates, &weights, parts)?, routing))
    }

    /// The sum of the experts' outputs through their adapters; a gate commutes with an adapter, which has no bias.
    fn adapted_sum(
        &self,
        gates: &Tensor,
        gated: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let outputs = self
            .heads
            .iter()
            .enumerate()
            .map(|(number, Heads { o, adapter, .. })| {
                let mut out = o.weight.multiply(&gated(number)?)?;
                if let Some(bias) = &o.bias {
                    out = (out
                        + gates
                            .narrow(2, number, 1)?
                            .squeeze(2)?
                            .broadcast_mul(bias)?)?;
                }
                Ok((adapter.as_ref(), out))
            });
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let adapted: Vec<_> = outputs
            .into_iter()
            .filter_map(|(adapter, out)| adapter.map(|adapter| (adapter, out)))
            .collect();
        sum_of_products(&adapted)
    }

    /// Rotated queries `[batch, seq, experts, heads, head_dim]`; rotated keys, and values,
    /// `[batch · sets · kv heads, seq, head_dim]`.
    fn project(&self, h: &Tensor, rope: &Rope, pass: &Pass) -> Result<(Tensor, Tensor, Tensor)> {
        let (batch, seq, _) = h.dims3()?;
        let queries = self.heads.iter().map(|heads| &heads.q);
        let keys = self.key_values.iter().map(|key_value| &key_value.k);
        let values = self.key_values.iter().map(|key_value| &key_value.v);
        let linears: Vec<&Linear> = queries.chain(keys).chain(values).collect();
        let mut projected = forward_together(&linears, h)?.into_iter();
        let (sets, experts) = (self.key_values.len(), self.heads.len());
        let mut rotated =
            |count: usize, norms: &mut dyn Iterator<Item = &Option<Norm>>| -> Result<Vec<Tensor>> {
                projected
                    .by_ref()
                    .take(count)
                    .zip(norms)
                    .map(|(mut x, norm)| {
                        if let Some(norm) = norm {
                            // One head, or all of them together.
                            x = norm.forward(&x.reshape((
                                batch,
                                seq,
                                (),
                                norm.weight.dim(D::Minus1)?,
                            ))?)?;
                        }
                        rope.apply(
                            &self.clipped(x.reshape((batch, seq, (), self.head_dim))?)?,
                            &pass.rotation,
                        )
                    })
                    .collect()
            };
        let queries = rotated(experts, &mut self.heads.iter().map(|heads| &heads.q_norm))?;
        let keys = rotated(
            sets,
            &mut self.key_values.iter().map(|key_value| &key_value.k_norm),
        )?;
        let values: Vec<Tensor> = projected
            .map(|v| self.clipped(v.reshape((batch, seq, self.kv_heads, self.head_dim))?))
            .collect::<Result<_>>()?;
        let fold = |parts: Vec<Tensor>| -> Result<Tensor> {
            let all = if parts.len() == 1 {
                parts[0].clone()
            } else {
                Tensor::cat(&parts, 2)?
            };
            all.transpose(1, 2)?.contiguous()?.reshape((
                batch * sets * self.kv_heads,
                seq,
                self.head_dim,
            ))
        };
        Ok((Tensor::stack(&queries, 2)?, fold(keys)?, fold(values)?))
    }

    fn clipped(&self, x: Tensor) -> Result<Tensor> {
        self.clip.map_or(Ok(x.clone()), |most| x.clamp(-most, most))
    }

    /// Attention as products of matrices, which can be differentiated: queries of all heads that look at the same keys
    /// are rows of one matrix. Shapes as of [`project`](Self::project), out as queries.
    fn attend_in_groups(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        pass: &Pass,
    ) -> Result<Tensor> {
        let (batch, seq, experts, heads, head_dim) = queries.dims5()?;
        let (sets, kv_heads) = (self.key_values.len(), self.kv_heads);
        let (in_set, group) = (experts / sets, heads / kv_heads);
        let grouped = queries
            .reshape(vec![batch, seq, sets, in_set, kv_heads, group, head_dim])?
            .permute(vec![0, 2, 4, 3, 5, 1, 6])?
            .reshape((batch * sets * kv_heads, in_set * group, seq, head_dim))?;
        self.attend(&grouped, keys, values, pass)?
            .reshape(vec![batch, sets, kv_heads, in_set, group, seq, head_dim])?
            .permute(vec![0, 5, 1, 3, 2, 4, 6])?
            .reshape((batch, seq, experts, heads, head_dim))
    }

    /// Softmax attention of queries `[rows, group, seq, head_dim]` over `[rows, positions, head_dim]`.
    fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        pass: &Pass,
    ) -> Result<Tensor> {
        let seq = queries.dim(2)?;
        let total = keys.dim(1)?;
        let chunk = if self.mode == Mode::Infer { CHUNK } else { seq };
        if seq <= chunk {
            return self.attend_all(
                queries,
                keys,
                values,
                pass.mask(self.window, 0, seq, total)?.as_ref(),
            );
        }
        let mut parts = Vec::with_capacity(seq.div_ceil(chunk));
        for first in (0..seq).step_by(chunk) {
            let rows = chunk.min(seq - first);
            let visible = total - seq + first + rows;
            let (keys, values) = (keys.narrow(1, 0, visible)?, values.narrow(1, 0, visible)?);
            let mask = pass.mask(self.window, first, rows, visible)?;
            let queries = queries.narrow(2, first, rows)?.contiguous()?;
            parts.push(self.attend_all(&queries, &keys, &values, mask.as_ref())?);
        }
        Tensor::cat(&parts, 2)
    }

    fn attend_all(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, group, seq, head_dim) = queries.dims4()?;
        let total = keys.dim(1)?;
        let queries =
            (queries.reshape((rows, group * seq, head_dim))? * (head_dim as f64).powf(-0.5))?;
        let mut scores = queries.matmul(&keys.transpose(1, 2)?)?;
        if let Some(mask) = mask {
            let batch = mask.dim(0)?;
            let by_row = scores.reshape((batch, rows / batch * group, seq, total))?;
            scores = by_row
                .broadcast_add(mask)?
                .reshape((rows, group * seq, total))?;
        }
        let weights = match self.mode {
            Mode::Train => softmax(&scores, D::Minus1)?,
            Mode::Infer => softmax_last_dim(&scores)?,
        };
        weights
            .matmul(values)?
            .reshape((rows, group, seq, head_dim))
    }
}
