//! Rotary positions on one head.

use std::sync::Arc;

/// Cosines and sines of the positions of a pass.
#[derive(Debug, Clone)]
pub(in crate::model) struct Rotate {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    /// Rows of the batch that have positions of their own, or 1.
    rows: usize,
    pairs: usize,
    interleaved: bool,
}

impl Rotate {
    /// `cos` and `sin` `[rows, seq, pairs]`, where `rows` is 1 or the batch.
    pub(in crate::model) fn new(
        cos: Vec<f32>,
        sin: Vec<f32>,
        rows: usize,
        pairs: usize,
        interleaved: bool,
    ) -> Self {
        Self {
            cos: cos.into(),
            sin: sin.into(),
            rows,
            pairs,
            interleaved,
        }
    }

    /// Rotates a head `[seq, head_dim]` of row `b`.
    pub(super) fn forth(&self, values: &mut [f32], b: usize) {
        self.turn(values, b, 1.0);
    }

    /// The gradient of [`forth`](Self::forth): rotates back.
    pub(super) fn back(&self, values: &mut [f32], b: usize) {
        self.turn(values, b, -1.0);
    }

    fn turn(&self, values: &mut [f32], b: usize, direction: f32) {
        let length = self.cos.len() / self.rows;
        let row = b % self.rows * length..(b % self.rows + 1) * length;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let seq = length / self.pairs;
        let head_dim = values.len() / seq;
        let positions = cos
            .chunks_exact(self.pairs)
            .zip(sin.chunks_exact(self.pairs));
        for (values, (cos, sin)) in values.chunks_exact_mut(head_dim).zip(positions) {
            if self.interleaved {
                for (pair, (cos, sin)) in values.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                    let (first, second, sin) = (pair[0], pair[1], direction * sin);
                    (pair[0], pair[1]) = (first * cos - second * sin, second * cos + first * sin);
                }
            } else {
                let (first, second) = values.split_at_mut(self.pairs);
                for ((first, second), (cos, sin)) in
                    first.iter_mut().zip(second).zip(cos.iter().zip(sin))
                {
                    let sin = direction * sin;
                    (*first, *second) =
                        (*first * cos - *second * sin, *second * cos + *first * sin);
                }
            }
        }
    }
}
