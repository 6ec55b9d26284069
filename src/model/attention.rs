//! Attention, ordinary or of experts (BAM, section 3.4).
//!
//! Experts run as one attention: `E` times the query heads, over `E` times the key heads or over the seed's own where
//! keys and values are shared; each head's output is weighted by the gate of its token and expert, and the output
//! projections stand side by side. This equals the sum of `E` attentions, each weighted after its output projection.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

use super::cache::LayerCache;
use super::linear::Linear;
use super::norm::Norm;
use super::params::Mode;
use super::pass::Pass;
use super::rope::Rope;
use super::router::{Router, Routing};

/// Queries that inference looks at together: bounds the memory for scores, and skips most of what is in the future.
const CHUNK: usize = 128;

/// Query and output projection of one expert, or of the ordinary attention.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) q: Linear,
    pub(super) o: Linear,
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
        let (batch, seq, _) = h.dims3()?;
        let (keys, values) = self.keys_and_values(h, rope, pass)?;
        let (keys, values) = match cache {
            Some(cache) => cache.append(&keys, &values, pass.offset)?,
            None => (keys, values),
        };
        let queries = self.queries(h, rope, pass)?;
        let sets = self.key_values.len();
        let out = self.attend(&queries, &keys, &values, pass)?;
        // [batch, sets, kv heads, experts a set, group, seq, head_dim] to [batch, seq, expert, head · head_dim].
        let experts = self.heads.len();
        let out = out
            .reshape(vec![batch, sets, self.kv_heads, experts / sets, out.dim(1)? * sets / experts, seq, self.head_dim])?
            .permute(vec![0, 5, 1, 3, 2, 4, 6])?
            .reshape((batch, seq, experts, ()))?;
        let Some(router) = &self.router else {
            return Ok((self.heads[0].o.forward(&out.squeeze(2)?)?, None));
        };
        let routing = router.route(h, pass.overrides.attention_top_k, &pass.overrides.dropped)?;
        let gates = routing.gates.to_dtype(h.dtype())?.unsqueeze(3)?;
        let gated = out.broadcast_mul(&gates)?;
        let mut sum: Option<Tensor> = None;
        for (number, Heads { o, .. }) in self.heads.iter().enumerate() {
            let mut part = o.weight.multiply(&gated.narrow(2, number, 1)?.squeeze(2)?)?;
            if let Some(bias) = &o.bias {
                part = (part + gates.narrow(2, number, 1)?.squeeze(2)?.broadcast_mul(bias)?)?;
            }
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        match sum {
            Some(sum) => Ok((sum, Some(routing))),
            None => candle_core::bail!("an attention without heads"),
        }
    }

    /// Rotated keys, and values: `[batch · sets · kv heads, seq, head_dim]`.
    fn keys_and_values(&self, h: &Tensor, rope: &Rope, pass: &Pass) -> Result<(Tensor, Tensor)> {
        let (batch, seq, _) = h.dims3()?;
        let shape = (batch, seq, self.kv_heads, self.head_dim);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for KeyValue { k, v, k_norm } in &self.key_values {
            let mut key = k.forward(h)?.reshape(shape)?;
            if let Some(norm) = k_norm {
                key = norm.forward(&key)?;
            }
            keys.push(rope.apply(&key, &pass.rotation)?);
            values.push(v.forward(h)?.reshape(shape)?);
        }
        let fold = |parts: Vec<Tensor>| -> Result<Tensor> {
            let heads = self.key_values.len() * self.kv_heads;
            let all = if parts.len() == 1 { parts[0].clone() } else { Tensor::cat(&parts, 2)? };
            all.transpose(1, 2)?.contiguous()?.reshape((batch * heads, seq, self.head_dim))
        };
        Ok((fold(keys)?, fold(values)?))
    }

    /// Rotated queries, grouped by the key heads that they look at:
    /// `[batch · sets · kv heads, experts a set · group, seq, head_dim]`.
    fn queries(&self, h: &Tensor, rope: &Rope, pass: &Pass) -> Result<Tensor> {
        let (batch, seq, _) = h.dims3()?;
        let (sets, experts) = (self.key_values.len(), self.heads.len());
        let mut queries = Vec::with_capacity(experts);
        for Heads { q, q_norm, .. } in &self.heads {
            let mut query = q.forward(h)?.reshape((batch, seq, (), self.head_dim))?;
            if let Some(norm) = q_norm {
                query = norm.forward(&query)?;
            }
            queries.push(rope.apply(&query, &pass.rotation)?);
        }
        let all = Tensor::stack(&queries, 2)?;
        let group = all.dim(3)? / self.kv_heads;
        all.reshape(vec![batch, seq, sets, experts / sets, self.kv_heads, group, self.head_dim])?
            .permute(vec![0, 2, 4, 3, 5, 1, 6])?
            .reshape((batch * sets * self.kv_heads, (experts / sets) * group, seq, self.head_dim))
    }

    /// Softmax attention of queries `[rows, group, seq, head_dim]` over `[rows, positions, head_dim]`.
    fn attend(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, pass: &Pass) -> Result<Tensor> {
        let seq = queries.dim(2)?;
        let total = keys.dim(1)?;
        let chunk = if self.mode == Mode::Infer { CHUNK } else { seq };
        if seq <= chunk {
            return self.attend_all(queries, keys, values, pass.mask(self.window, 0, seq, total)?.as_ref());
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

    fn attend_all(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (rows, group, seq, head_dim) = queries.dims4()?;
        let total = keys.dim(1)?;
        let queries = (queries.reshape((rows, group * seq, head_dim))? * (head_dim as f64).powf(-0.5))?;
        let mut scores = queries.matmul(&keys.transpose(1, 2)?)?;
        if let Some(mask) = mask {
            let batch = mask.dim(0)?;
            let by_row = scores.reshape((batch, rows / batch * group, seq, total))?;
            scores = by_row.broadcast_add(mask)?.reshape((rows, group * seq, total))?;
        }
        let weights = match self.mode {
            Mode::Train => softmax(&scores, D::Minus1)?,
            Mode::Infer => softmax_last_dim(&scores)?,
        };
        weights.matmul(values)?.reshape((rows, group, seq, head_dim))
    }
}
