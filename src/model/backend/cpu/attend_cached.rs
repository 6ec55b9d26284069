//! Softmax attention for inference, over keys and values that may come from a cache.
//!
//! Nothing computes future positions or makes a mask, and scores are in memory for a few queries only.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor};
use rayon::prelude::*;

use super::kernels::{add_scaled, dot};
use super::matmul::{View, matmul};
use super::scores::ScoreRule;
use crate::model::modules::Attention;
use crate::model::pass::{AttentionMask, Pass};

/// Queries that are handled together.
const CHUNK: usize = 32;
/// Multiplications below which waking a second thread takes longer than doing them.
const SERIAL: usize = 1 << 16;

/// The sizes of one attention.
struct Sizes<'a> {
    batch: usize,
    seq: usize,
    experts: usize,
    heads: usize,
    head_dim: usize,
    /// Sets of key heads: one, or one per expert.
    sets: usize,
    kv_heads: usize,
    /// Distance from one key head to the next, in values.
    stride: usize,
    window: Option<usize>,
    rule: ScoreRule,
    mask: &'a AttentionMask,
}

/// Outputs `[batch, seq, experts, heads, head_dim]` of queries of that shape over keys and values
/// `[batch · sets · kv heads, positions, head_dim]`.
pub(super) fn attend(
    attention: &Attention,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    pass: &Pass,
) -> Result<Tensor> {
    let queries = queries.contiguous()?;
    let (batch, seq, experts, heads, head_dim) = queries.dims5()?;
    let sizes = Sizes {
        batch,
        seq,
        experts,
        heads,
        head_dim,
        sets: attention.key_values.len(),
        kv_heads: attention.kv_heads,
        stride: keys.stride()[0],
        window: attention.window,
        rule: ScoreRule::new(attention),
        mask: &pass.attention_mask,
    };
    let (q, k, v) = (
        queries.storage_and_layout(),
        keys.storage_and_layout(),
        values.storage_and_layout(),
    );
    let (
        Storage::Cpu(CpuStorage::F32(q_all)),
        Storage::Cpu(CpuStorage::F32(k_all)),
        Storage::Cpu(CpuStorage::F32(v_all)),
    ) = (&*q.0, &*k.0, &*v.0)
    else {
        candle_core::bail!("attention: expected float32 on the CPU");
    };
    if k.1.stride() != v.1.stride() || k.1.stride()[1..] != [head_dim, 1] {
        candle_core::bail!(
            "attention: expected keys and values side by side, found {:?}, {:?}",
            k.1,
            v.1
        );
    }
    let out = sizes.run(
        &q_all[q.1.start_offset()..],
        &k_all[k.1.start_offset()..],
        &v_all[v.1.start_offset()..],
    );
    Tensor::from_vec(out, (batch, seq, experts, heads, head_dim), &Device::Cpu)
}

impl Sizes<'_> {
    fn run(&self, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let token = self.experts * self.heads * self.head_dim;
        let mut out = vec![0f32; self.batch * self.seq * token];
        if self.seq == 1 {
            // One query a row: a piece is the heads that share a key head.
            let piece = self.heads / self.kv_heads * self.head_dim;
            let pieces = out
                .par_chunks_mut(piece)
                .zip(queries.par_chunks(piece))
                .enumerate();
            let work = self.batch * token * (self.mask.offset + 1);
            let least = if work < SERIAL { usize::MAX } else { 1 };
            pieces
                .with_min_len(least)
                .for_each(|(number, (out, queries))| {
                    let (b, head) = (
                        number / (self.experts * self.kv_heads),
                        number % (self.experts * self.kv_heads),
                    );
                    let start =
                        self.key_head(b, head / self.kv_heads, head % self.kv_heads) * self.stride;
                    self.one(
                        queries,
                        &keys[start..],
                        &values[start..],
                        self.mask.visible(b, self.mask.offset, self.window),
                        out,
                    );
                });
            return out;
        }
        let chunks_a_row = self.seq.div_ceil(CHUNK);
        let rows = out
            .par_chunks_mut(self.seq * token)
            .zip(queries.par_chunks(self.seq * token))
            .enumerate();
        rows.for_each(|(b, (out, queries))| {
            let chunks = out
                .par_chunks_mut(CHUNK * token)
                .zip(queries.par_chunks(CHUNK * token))
                .enumerate();
            chunks
                .with_max_len(
                    chunks_a_row
                        .div_ceil(4 * rayon::current_num_threads())
                        .max(1),
                )
                .for_each(|(number, (out, queries))| {
                    self.several(b, number * CHUNK, queries, keys, values, out)
                });
        });
        out
    }

    fn key_head(&self, b: usize, expert: usize, kv_head: usize) -> usize {
        let set = if self.sets == 1 { 0 } else { expert };
        (b * self.sets + set) * self.kv_heads + kv_head
    }

    /// Queries of one token that share a key head.
    fn one(
        &self,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        visible: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        let d = self.head_dim;
        let mut scores = vec![0f32; visible.len()];
        for (query, out) in queries.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            for (score, key) in scores
                .iter_mut()
                .zip(keys[visible.start * d..].chunks_exact(d))
            {
                *score = dot(query, key);
            }
            let sum = self.rule.exponentials(&mut scores, None);
            for (score, value) in scores
                .iter()
                .zip(values[visible.start * d..].chunks_exact(d))
            {
                add_scaled(out, value, *score / sum);
            }
        }
    }

    /// All heads of the queries from `first` on: `queries` and `out` `[tokens, experts, heads, head_dim]`.
    fn several(
        &self,
        b: usize,
        first: usize,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        out: &mut [f32],
    ) {
        let (d, token) = (self.head_dim, self.experts * self.heads * self.head_dim);
        let tokens = queries.len() / token;
        let position = self.mask.offset + first;
        let start = (0..tokens)
            .map(|t| self.mask.visible(b, position + t, self.window).start)
            .min()
            .unwrap_or(0);
        let span = position + tokens - start;
        let mut scores = vec![0f32; tokens * span];
        for head in 0..self.experts * self.heads {
            let kv_head = head % self.heads / (self.heads / self.kv_heads);
            let keys_start = self.key_head(b, head / self.heads, kv_head) * self.stride + start * d;
            let (keys, values) = (
                &keys[keys_start..][..span * d],
                &values[keys_start..][..span * d],
            );
            let queries = &queries[head * d..];
            let by_row = View::new(queries, tokens, d, token);
            matmul(
                &mut scores,
                span,
                false,
                1.0,
                by_row,
                View::new(keys, span, d, d).t(),
                1,
            );
            let mut sums = [0f32; CHUNK];
            for (t, (row, sum)) in scores.chunks_exact_mut(span).zip(&mut sums).enumerate() {
                let visible = self.mask.visible(b, position + t, self.window);
                row[..visible.start - start].fill(0.0);
                row[visible.end - start..].fill(0.0);
                let visible = &mut row[visible.start - start..visible.end - start];
                *sum = self.rule.exponentials(visible, None);
            }
            let target = &mut out[head * d..];
            let weights = View::new(&scores, tokens, span, span);
            matmul(
                target,
                token,
                false,
                1.0,
                weights,
                View::new(values, span, d, d),
                1,
            );
            for (row, sum) in out.chunks_exact_mut(token).zip(&sums) {
                row[head * d..(head + 1) * d]
                    .iter_mut()
                    .for_each(|value| *value /= sum);
            }
        }
    }
}
