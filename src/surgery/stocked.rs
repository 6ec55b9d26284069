//! Model Stock: the point nearest to the centre of fine-tuned models, between their average and the base.

use super::first_pass::{FirstPass, Whole};
use super::node::Node;
use super::places::Scratch;
use crate::Result;

/// A base and models that were trained from it.
pub(super) struct Stocked<'a> {
    /// The base first.
    of: Vec<Node<'a>>,
    /// Values of a row, if each row has an angle of its own.
    row: Option<u64>,
    whole: Whole<'a>,
    shares: FirstPass<Vec<f64>, f64>,
}

/// The least product of two lengths that is divided by.
const LEAST_PRODUCT: f64 = 1e-6;

/// The least `|1 + (n−1)·c|` that is divided by: task vectors that cancel each other say no share.
const LEAST_DIVISOR: f64 = 1e-6;

impl<'a> Stocked<'a> {
    pub(super) fn new(of: Vec<Node<'a>>, row: Option<u64>, whole: Whole<'a>) -> Self {
        Self {
            of,
            row,
            whole,
            shares: FirstPass::default(),
        }
    }

    pub(super) fn parts(&self) -> &[Node<'a>] {
        &self.of
    }

    /// Values of elements `first..`.
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        let length = self.row.unwrap_or(self.whole.elements);
        let (mut position, mut rest) = (first, out);
        while !rest.is_empty() {
            let begin = position / length * length;
            let count = (length - position % length).min(rest.len() as u64);
            let share = self.share(begin, length, scratch)?;
            let (piece, others) = rest.split_at_mut(count as usize);
            self.between(position, piece, share, scratch)?;
            (position, rest) = (position + count, others);
        }
        Ok(())
    }

    /// The share of the models' average in a row, or in the whole tensor.
    fn share(&self, begin: u64, length: u64, scratch: &mut Scratch) -> Result<f64> {
        let models = self.of.len() - 1;
        if self.row.is_some() {
            let products = self.products(begin, length, scratch)?;
            return Ok(share(&products, models));
        }
        self.shares.result(
            self.whole.elements,
            |first, count| self.products(first, count, scratch),
            |sums, part| {
                sums.iter_mut()
                    .zip(part)
                    .for_each(|(sum, part)| *sum += part)
            },
            |sums| share(&sums, models),
        )
    }

    /// The products of each two task vectors, row by row of a symmetric matrix.
    fn products(&self, first: u64, count: u64, scratch: &mut Scratch) -> Result<Vec<f64>> {
        let models = self.of.len() - 1;
        let mut products = vec![0.0; models * models];
        let parts: Vec<&Node> = self.of.iter().collect();
        self.whole
            .read(&parts, (first, count), scratch, |_, values, _| {
                let (base, models) = (&values[0], &values[1..]);
                for (i, a) in models.iter().enumerate() {
                    for (j, b) in models.iter().enumerate().skip(i) {
                        let product = a.iter().zip(b).zip(base);
                        products[i * models.len() + j] += product
                            .map(|((a, b), base)| (a - base) * (b - base))
                            .sum::<f64>();
                    }
                }
                Ok(())
            })?;
        Ok(products)
    }

    /// `share` of the models' average and the rest of the base.
    fn between(
        &self,
        first: u64,
        out: &mut [f64],
        share: f64,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut term = scratch.free.pop().unwrap_or_default();
        term.resize(out.len(), 0.0);
        out.fill(0.0);
        for model in &self.of[1..] {
            model.values(first, &mut term, scratch)?;
            out.iter_mut()
                .zip(&term)
                .for_each(|(sum, value)| *sum += value);
        }
        let models = (self.of.len() - 1) as f64;
        self.of[0].values(first, &mut term, scratch)?;
        for (sum, base) in out.iter_mut().zip(&term) {
            *sum = share * (*sum / models) + (1.0 - share) * base;
        }
        scratch.free.push(term);
        Ok(())
    }
}

/// The share of the average, `n·c / (1 + (n−1)·c)`, where `c` is the mean cosine between two task vectors; 0 where that divides
/// by almost nothing.
fn share(products: &[f64], models: usize) -> f64 {
    let length = |at: usize| libm::sqrt(products[at * models + at]);
    let (mut sum, mut pairs) = (0.0, 0.0);
    for a in 0..models {
        for b in a + 1..models {
            let lengths = (length(a) * length(b)).max(LEAST_PRODUCT);
            sum += (products[a * models + b] / lengths).clamp(-1.0, 1.0);
            pairs += 1.0;
        }
    }
    let (cosine, models) = (sum / pairs, models as f64);
    let divisor = 1.0 + (models - 1.0) * cosine;
    if divisor.abs() < LEAST_DIVISOR {
        return 0.0;
    }
    models * cosine / divisor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_counts_as_much_as_task_vectors_agree() {
        assert_eq!(share(&[1.0, 0.0, 0.0, 4.0], 2), 0.0);
        assert_eq!(share(&[1.0, 2.0, 0.0, 4.0], 2), 1.0);
        assert_eq!(share(&[1.0, 1.0, 0.0, 4.0], 2), 2.0 * 0.5 / 1.5);
    }

    #[test]
    fn task_vectors_that_cancel_each_other_leave_the_base() {
        assert_eq!(share(&[1.0, -2.0, 0.0, 4.0], 2), 0.0);
        assert_eq!(share(&[1.0, -2.0 + 1e-7, 0.0, 4.0], 2), 0.0);
        assert!(share(&[1.0, -1.99, 0.0, 4.0], 2) < -100.0);
        // Three vectors of a plane, each 120 degrees from the others.
        let apart = [1.0, -0.5, -0.5, 0.0, 1.0, -0.5, 0.0, 0.0, 1.0];
        assert_eq!(share(&apart, 3), 0.0);
    }
}
