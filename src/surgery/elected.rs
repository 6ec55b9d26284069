//! Sums of the terms that have the sign of the sum: TIES' election of signs.

use super::node::Node;
use super::places::Scratch;
use crate::Result;

/// Tensors whose terms are elected, with their weights.
pub(super) struct Elected<'a> {
    pub(super) of: Vec<Node<'a>>,
    pub(super) weights: &'a [f64],
    pub(super) normalize: bool,
}

/// Values summed in one go: few enough that all terms stay in the cache of a core.
const SUMMED: usize = 1 << 13;

impl Elected<'_> {
    /// Values of elements `first..`.
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        let mut terms: Vec<Vec<f64>> = self
            .of
            .iter()
            .map(|_| scratch.free.pop().unwrap_or_default())
            .collect();
        for (block, sums) in out.chunks_mut(SUMMED).enumerate() {
            let first = first + (block * SUMMED) as u64;
            for ((part, weight), term) in self.of.iter().zip(self.weights).zip(&mut terms) {
                term.resize(sums.len(), 0.0);
                part.values(first, term, scratch)?;
                term.iter_mut().for_each(|value| *value *= weight);
            }
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = self.elect(terms.iter().map(|term| term[at]));
            }
        }
        scratch.free.append(&mut terms);
        Ok(())
    }

    /// The sum of the terms of one element that have its sign.
    fn elect(&self, terms: impl Iterator<Item = f64> + Clone) -> f64 {
        let all: f64 = terms.clone().sum();
        if all.is_nan() {
            return all;
        }
        let (mut sum, mut weights) = (0.0, 0.0);
        for (term, weight) in terms.zip(self.weights) {
            let is_elected = if all >= 0.0 { term > 0.0 } else { term < 0.0 };
            if is_elected {
                sum += term;
                weights += weight;
            }
        }
        if self.normalize && weights != 0.0 {
            sum / weights
        } else {
            sum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elect(weights: &[f64], normalize: bool, terms: &[f64]) -> f64 {
        let elected = Elected {
            of: Vec::new(),
            weights,
            normalize,
        };
        elected.elect(terms.iter().copied())
    }

    #[test]
    fn terms_of_the_other_sign_are_left_out() {
        assert_eq!(elect(&[1.0, 1.0, 2.0], false, &[1.0, -3.0, 4.0]), 5.0);
        assert_eq!(elect(&[1.0, 1.0, 2.0], true, &[1.0, -3.0, 4.0]), 5.0 / 3.0);
        assert_eq!(elect(&[1.0, 1.0], true, &[1.0, -3.0]), -3.0);
        assert_eq!(elect(&[1.0, 1.0], true, &[1.0, -1.0]), 1.0);
        assert_eq!(elect(&[1.0, 1.0], true, &[0.0, 0.0]), 0.0);
        assert!(elect(&[1.0, 1.0], true, &[f64::NAN, 0.0]).is_nan());
    }
}
