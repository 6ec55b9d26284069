//! From products of queries and keys to the weights of a softmax: their factor, and their soft cap where they have one.

use super::kernels::{exponentials, soft_cap, soft_cap_slopes};
use crate::model::modules::Attention;

/// What happens to the products of queries and keys before the softmax.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScoreRule {
    /// Factor on the products; above zero.
    pub(super) factor: f32,
    cap: Option<f32>,
}

impl ScoreRule {
    pub(super) fn new(attention: &Attention) -> Self {
        let usual = || (attention.head_dim as f32).powf(-0.5);
        Self {
            factor: attention.scale.map_or_else(usual, |scale| scale as f32),
            cap: attention.soft_cap.map(|cap| cap as f32),
        }
    }

    /// Whether the gradient of scores needs the slopes of [`Self::exponentials`].
    pub(super) fn has_slopes(&self) -> bool {
        self.cap.is_some()
    }

    /// Turns the products of one query into softmax weights times the sum that it returns.
    ///
    /// Where they are capped, `slopes` become the derivatives of the capped scores by the scores.
    pub(super) fn exponentials(&self, products: &mut [f32], slopes: Option<&mut [f32]>) -> f32 {
        let Some(cap) = self.cap else {
            return exponentials(products, self.factor);
        };
        soft_cap(products, self.factor, cap);
        if let Some(slopes) = slopes {
            soft_cap_slopes(products, cap, slopes);
        }
        exponentials(products, 1.0)
    }
}
