//! Rotary positions on one head.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use crate::model::rope::Rotation;

/// Cosines and sines of the positions of a pass, on the host.
#[derive(Debug, Clone)]
pub(super) struct Rotate {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    /// Rows of the batch that have positions of their own, or 1.
    rows: usize,
    pairs: usize,
    interleaved: bool,
}

impl Rotate {
    pub(super) fn new(rotation: &Rotation) -> Result<Self> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        Ok(Self {
            cos: values(&rotation.cos)?.into(),
            sin: values(&rotation.sin)?.into(),
            rows: rotation.cos.dim(0)?,
            pairs: rotation.cos.dim(D::Minus1)?,
            interleaved: rotation.interleaved,
        })
    }

    /// Rotates a head `[seq, head_dim]` of row `b`.
    pub(super) fn forward(&self, values: &mut [f32], b: usize) {
        self.turn(values, b, 1.0);
    }

    /// The gradient of [`forward`](Self::forward), which rotates in the other direction.
    pub(super) fn backward(&self, values: &mut [f32], b: usize) {
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
