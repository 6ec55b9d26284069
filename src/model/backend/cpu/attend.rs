//! Softmax attention of whole sequences, forward and backward, for training.
//!
//! Nothing keeps scores: the backward pass computes them again, a few queries at a time.

use rayon::prelude::*;

use super::kernels::{multiply, scale, softmax_backward};
use super::matmul::{View, matmul};
use super::rotate::Rotate;
use super::scores::ScoreRule;
use crate::model::pass::AttentionMask;

/// Queries that are handled together.
const CHUNK: usize = 64;

/// The sizes of an attention over a batch of whole sequences.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) seq: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Positions that a query sees, its own included.
    pub(super) window: Option<usize>,
    pub(super) rule: ScoreRule,
    pub(super) mask: AttentionMask,
}

/// Queries `[tokens, heads · head_dim]`, keys and values `[tokens, kv_heads · head_dim]`.
pub(super) struct Inputs<'a> {
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// The gradients of [`Inputs`], in their shapes.
pub(super) struct InputGradients {
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

/// Queries that share a key head, its keys, both rotated where the layer rotates, and its values, each as `[seq, head_dim]`.
struct Group {
    queries: Vec<Vec<f32>>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Space that the chunks of a group use in turn.
#[derive(Default)]
struct Scratch {
    /// The softmax weights.
    scores: Vec<f32>,
    /// The derivatives of capped scores.
    slopes: Vec<f32>,
    /// The gradients of the scores.
    grad_scores: Vec<f32>,
}

impl Sizes {
    pub(super) fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The key heads of all rows of the batch, which threads share out.
    fn parts(&self) -> impl IndexedParallelIterator<Item = (usize, usize)> {
        (0..self.batch * self.kv_heads)
            .into_par_iter()
            .with_max_len(1)
            .map(|n| (n / self.kv_heads, n % self.kv_heads))
    }

    /// The attention's output `[tokens, heads · head_dim]`.
    pub(super) fn forward(&self, inputs: &Inputs, rotate: Option<&Rotate>) -> Vec<f32> {
        let part = |(b, kv_head)| {
            let group = self.group_of(inputs, rotate, b, kv_head);
            let head = |queries: &Vec<f32>| {
                let mut out = vec![0f32; queries.len()];
                let mut scores = Vec::new();
                for first in (0..self.seq).step_by(CHUNK) {
                    let (rows, start, span) =
                        self.weights(b, first, queries, &group.keys, &mut scores, None);
                    let weights = View::new(&scores, rows, span, span);
                    let values = self.view(&group.values, start, span);
                    matmul(
                        &mut out[first * self.head_dim..],
                        self.head_dim,
                        false,
                        1.0,
                        weights,
                        values,
                        1,
                    );
                }
                out
            };
            group.queries.iter().map(head).collect()
        };
        let heads: Vec<Vec<Vec<f32>>> = self.parts().map(part).collect();
        self.side_by_side(&heads, self.width())
    }

    /// The gradients of the inputs, from the gradient of the output.
    pub(super) fn backward(
        &self,
        inputs: &Inputs,
        rotate: Option<&Rotate>,
        grad_output: &[f32],
    ) -> InputGradients {
        let part = |(b, kv_head): (usize, usize)| {
            let group = self.group_of(inputs, rotate, b, kv_head);
            let mut gradients = self.group_backward(b, kv_head, &group, grad_output);
            if let Some(rotate) = rotate {
                let queries = gradients.queries.iter_mut();
                let turned = queries.chain([&mut gradients.keys]);
                turned.for_each(|gradient| rotate.backward(gradient, b));
            }
            gradients
        };
        let groups: Vec<Group> = self.parts().map(part).collect();

        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            queries.push(group.queries);
            keys.push(vec![group.keys]);
            values.push(vec![group.values]);
        }
        InputGradients {
            queries: self.side_by_side(&queries, self.width()),
            keys: self.side_by_side(&keys, self.kv_width()),
            values: self.side_by_side(&values, self.kv_width()),
        }
    }

    /// The gradients of the group of a key head of row `b`, in its own shapes, from the gradient of the output.
    fn group_backward(
        &self,
        b: usize,
        kv_head: usize,
        group: &Group,
        grad_output: &[f32],
    ) -> Group {
        let zeros = || vec![0f32; self.seq * self.head_dim];
        let mut gradients = Group {
            queries: group.queries.iter().map(|_| zeros()).collect(),
            keys: zeros(),
            values: zeros(),
        };
        let mut scratch = Scratch::default();
        for head in 0..self.group() {
            let number = kv_head * self.group() + head;
            let grad_output = self.head(grad_output, self.width(), b, number);
            for first in (0..self.seq).step_by(CHUNK) {
                let grad_output = &grad_output[first * self.head_dim..];
                self.chunk_backward(
                    b,
                    (head, first),
                    group,
                    grad_output,
                    &mut gradients,
                    &mut scratch,
                );
            }
        }
        gradients
    }

    /// Adds what a chunk of a head's queries contributes to the gradients of its group: those from `first` on.
    fn chunk_backward(
        &self,
        b: usize,
        (head, first): (usize, usize),
        group: &Group,
        grad_output: &[f32],
        gradients: &mut Group,
        scratch: &mut Scratch,
    ) {
        let d = self.head_dim;
        let queries = &group.queries[head];
        let Scratch {
            scores,
            slopes,
            grad_scores,
        } = scratch;
        let (rows, start, span) =
            self.weights(b, first, queries, &group.keys, scores, Some(&mut *slopes));
        let weights = View::new(scores, rows, span, span);
        let grad_output = self.view(grad_output, 0, rows);
        let queries = self.view(queries, first, rows);
        let keys = self.view(&group.keys, start, span);
        let values = self.view(&group.values, start, span);

        let grad_values = &mut gradients.values[start * d..];
        matmul(grad_values, d, true, 1.0, weights.t(), grad_output, 1);
        grad_scores.resize(rows * span, 0.0);
        matmul(grad_scores, span, false, 1.0, grad_output, values.t(), 1);
        for (row, (weights, grad_scores)) in scores
            .chunks_exact(span)
            .zip(grad_scores.chunks_exact_mut(span))
            .enumerate()
        {
            let visible = self.mask.visible(b, first + row, self.window);
            let seen = visible.start - start..visible.end - start;
            softmax_backward(&weights[seen.clone()], &mut grad_scores[seen.clone()]);
            if self.rule.has_slopes() {
                let slopes = &slopes[row * span..][seen.clone()];
                multiply(&mut grad_scores[seen.clone()], slopes);
            }
            grad_scores[..seen.start].fill(0.0);
            grad_scores[seen.end..].fill(0.0);
        }

        let grad_scores = View::new(grad_scores, rows, span, span);
        let factor = self.rule.factor;
        let grad_queries = &mut gradients.queries[head][first * d..];
        matmul(grad_queries, d, false, factor, grad_scores, keys, 1);
        let grad_keys = &mut gradients.keys[start * d..];
        matmul(grad_keys, d, true, factor, grad_scores.t(), queries, 1);
    }

    /// Softmax weights of the queries from `first` on: their rows, the first key that any of them sees, and the keys from
    /// there to the last. `slopes` become the derivatives of capped scores, where they are capped.
    fn weights(
        &self,
        b: usize,
        first: usize,
        queries: &[f32],
        keys: &[f32],
        out: &mut Vec<f32>,
        slopes: Option<&mut Vec<f32>>,
    ) -> (usize, usize, usize) {
        let rows = CHUNK.min(self.seq - first);
        let seen = |row: usize| self.mask.visible(b, first + row, self.window);
        let start = (0..rows).map(|row| seen(row).start).min().unwrap_or(0);
        let span = first + rows - start;
        out.resize(rows * span, 0.0);
        matmul(
            out,
            span,
            false,
            1.0,
            self.view(queries, first, rows),
            self.view(keys, start, span).t(),
            1,
        );
        let mut slopes = slopes.filter(|_| self.rule.has_slopes());
        if let Some(slopes) = &mut slopes {
            slopes.resize(rows * span, 0.0);
        }
        for (row, scores) in out.chunks_exact_mut(span).enumerate() {
            let seen = seen(row).start - start..seen(row).end - start;
            let slopes = slopes
                .as_mut()
                .map(|slopes| &mut slopes[row * span..][seen.clone()]);
            let visible = &mut scores[seen.clone()];
            let sum = self.rule.exponentials(visible, slopes);
            scale(visible, 1.0 / sum);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
        }
        (rows, start, span)
    }

    fn view<'a>(&self, values: &'a [f32], first: usize, rows: usize) -> View<'a> {
        View::new(
            &values[first * self.head_dim..],
            rows,
            self.head_dim,
            self.head_dim,
        )
    }

    fn group_of(
        &self,
        inputs: &Inputs,
        rotate: Option<&Rotate>,
        b: usize,
        kv_head: usize,
    ) -> Group {
        let turned = |values: &[f32], width, head| {
            let mut values = self.head(values, width, b, head);
            if let Some(rotate) = rotate {
                rotate.forward(&mut values, b);
            }
            values
        };
        let heads = kv_head * self.group()..(kv_head + 1) * self.group();
        Group {
            queries: heads
                .map(|head| turned(inputs.queries, self.width(), head))
                .collect(),
            keys: turned(inputs.keys, self.kv_width(), kv_head),
            values: self.head(inputs.values, self.kv_width(), b, kv_head),
        }
    }

    /// One head of row `b` of `[tokens, width]`, as `[seq, head_dim]`.
    fn head(&self, values: &[f32], width: usize, b: usize, head: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.seq * self.head_dim);
        for row in values[b * self.seq * width..]
            .chunks_exact(width)
            .take(self.seq)
        {
            out.extend_from_slice(&row[head * self.head_dim..(head + 1) * self.head_dim]);
        }
        out
    }

    /// `[batch · kv heads][heads of each][seq, head_dim]` as `[tokens, width]`.
    fn side_by_side(&self, parts: &[Vec<Vec<f32>>], width: usize) -> Vec<f32> {
        let mut out = vec![0f32; self.tokens() * width];
        out.par_chunks_mut(width)
            .enumerate()
            .with_min_len(CHUNK)
            .for_each(|(token, out)| {
                let (b, position) = (token / self.seq, token % self.seq);
                let heads = parts[b * self.kv_heads..(b + 1) * self.kv_heads]
                    .iter()
                    .flatten();
                for (out, head) in out.chunks_exact_mut(self.head_dim).zip(heads) {
                    out.copy_from_slice(
                        &head[position * self.head_dim..(position + 1) * self.head_dim],
                    );
                }
            });
        out
    }
}
