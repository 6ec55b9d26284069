//! Shuffle and cut, as in Qwen2-57B-A14B (Yang et al. 2024, arXiv 2407.10671): copies of one network, each in a random order of its
//! neurons, stand one after another; experts of any width are cut through them, and part of each is drawn again.
//!
//! ⌈n · expert width / width⌉ copies are needed; what is left of the last is not used. The report does not say which half
//! is drawn again, nor from what: here it is neurons, from N(0, std²) with the family's standard deviation of fresh
//! weights, biases from 0.

use super::{Context, Part, gathered, scaled, share};
use crate::checkpoint::expression::{Drawn, Expression};
use crate::{Error, Result};

/// Copies that one expert spans, at most: each is a part of an expression of the manifest, which has few enough to be replayed.
const MOST_COPIES: u64 = 500;

/// Settings of shuffle and cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shuffle {
    /// Number of experts.
    pub experts: u64,
    /// Inner width of one.
    pub width: u64,
    /// The part of an expert's neurons that is drawn again.
    pub reinit_ratio: f64,
}

impl Shuffle {
    pub(super) fn size(&self, width: u64) -> Result<(u64, u64)> {
        share(self.reinit_ratio, width, "--reinit-ratio")?;
        if self.width == 0 || self.experts.checked_mul(self.width).is_none() {
            return Err(Error::usage(format!(
                "{} experts of width {} cannot be cut",
                self.experts, self.width
            ))
            .with_hint("pass --expert-width with the inner width of one expert"));
        }
        if self.width / MOST_COPIES > width {
            let problem = format!(
                "an expert of width {} spans more than {MOST_COPIES} copies of a network of width {width}",
                self.width
            );
            return Err(Error::usage(problem).with_hint("pass a smaller --expert-width"));
        }
        Ok((self.experts, self.width))
    }

    pub(super) fn expression(&self, part: &Part, context: &Context, of: Expression) -> Expression {
        let Some(axis) = part.neurons() else {
            return scaled(of, self.width as f64 / context.width as f64);
        };
        let (begin, end) = (part.expert * self.width, (part.expert + 1) * self.width);
        let mut pieces = Vec::new();
        let mut place = begin;
        while place < end {
            let (copy, start) = (place / context.width, place % context.width);
            let length = (context.width - start).min(end - place);
            let key = part.layer_key(&format!("copies.{copy}.order"));
            pieces.push(gathered(of.clone(), axis, context, key, start, length));
            place += length;
        }
        let cut = match pieces.len() {
            1 => pieces.remove(0),
            _ => Expression::Concat { of: pieces, axis },
        };
        let fresh = (self.reinit_ratio * self.width as f64).floor() as u64;
        if fresh == 0 {
            return cut;
        }
        let seed = context.rng_seed;
        let at = Drawn {
            axis,
            seed,
            key: part.expert_key("fresh"),
            start: 0,
            length: fresh,
        };
        let std = if part.bias {
            0.0
        } else {
            context.initializer_range
        };
        Expression::Redraw {
            of: Box::new(cut),
            at,
            std: Some(std),
            seed,
            key: part.own_key("redrawn"),
        }
    }
}
