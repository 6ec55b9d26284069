//! Noise upcycling: copies of one network with N(0, std²) added to the weights, everywhere or at some neurons.
//!
//! The second is a baseline of Drop-Upcycling (Nakamura et al. 2025), with half of the neurons. Biases stay as they are.

use super::{Context, Part, share};
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};

/// Settings of noise upcycling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Number of experts.
    pub experts: u64,
    /// Standard deviation of the noise.
    pub std: f64,
    /// The part of an expert's neurons that get noise; 1 is every weight.
    pub ratio: f64,
}

impl Noise {
    pub(super) fn size(&self, width: u64) -> Result<(u64, u64)> {
        share(self.ratio, width, "--noise-ratio")?;
        Ok((self.experts, width))
    }

    pub(super) fn expression(&self, part: &Part, context: &Context, of: Expression) -> Expression {
        let noisy = (self.ratio * context.width as f64).floor() as u64;
        let Some(axis) = part.neurons().filter(|_| !part.bias && noisy > 0) else {
            return of;
        };
        let (seed, start) = (context.rng_seed, 0);
        let at = (noisy < context.width).then(|| Drawn {
            axis,
            seed,
            key: part.expert_key("noisy"),
            start,
            length: noisy,
        });
        Expression::AddNoise {
            of: Box::new(of),
            std: self.std,
            seed,
            key: part.own_key("noise"),
            at,
        }
    }
}
