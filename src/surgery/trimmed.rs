//! Tensors of which only the values of largest magnitude stay: TIES' trimming.

use super::first_pass::{FirstPass, Whole};
use super::node::Node;
use super::places::Scratch;
use super::selected::{Selection, Threshold};
use crate::Result;

/// A tensor whose small values become 0.
pub(super) struct Trimmed<'a> {
    of: Box<Node<'a>>,
    /// Number of values that stay.
    keep: u64,
    rescale: bool,
    whole: Whole<'a>,
    selection: Selection,
    magnitudes: FirstPass<Magnitudes, f64>,
}

impl<'a> Trimmed<'a> {
    pub(super) fn new(of: Box<Node<'a>>, keep: u64, rescale: bool, whole: Whole<'a>) -> Self {
        Self {
            of,
            keep,
            rescale,
            whole,
            selection: Selection::default(),
            magnitudes: FirstPass::default(),
        }
    }

    pub(super) fn part(&self) -> &Node<'a> {
        &self.of
    }

    /// Values of elements `first..`.
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let threshold = self
            .selection
            .threshold(&self.of, &self.whole, self.keep, scratch)?;
        let factor = if self.rescale {
            self.factor(threshold, scratch)?
        } else {
            1.0
        };
        self.of.values(first, out, scratch)?;
        for (element, value) in (first..).zip(out) {
            *value = if threshold.keeps(element, *value) {
                factor * *value
            } else {
                0.0
            };
        }
        Ok(())
    }

    /// What the values that stay are multiplied by.
    fn factor(&self, threshold: Threshold, scratch: &mut Scratch) -> Result<f64> {
        self.magnitudes.result(
            self.whole.elements,
            |first, count| {
                let mut sums = Magnitudes::default();
                self.whole
                    .read(&[&*self.of], (first, count), scratch, |first, values| {
                        for (element, value) in (first..).zip(&values[0]) {
                            sums.add(*value, threshold.keeps(element, *value));
                        }
                    })?;
                Ok(sums)
            },
            Magnitudes::fold,
            |sums| sums.factor(),
        )
    }
}

/// The sums of the magnitudes of all values, and of those that stay.
#[derive(Default)]
pub(super) struct Magnitudes {
    all: f64,
    kept: f64,
}

/// A sum of magnitudes that is too small to divide by.
const NOTHING: f64 = 1e-7;

impl Magnitudes {
    pub(super) fn add(&mut self, value: f64, is_kept: bool) {
        self.all += value.abs();
        if is_kept {
            self.kept += value.abs();
        }
    }

    pub(super) fn fold(&mut self, other: Self) {
        self.all += other.all;
        self.kept += other.kept;
    }

    /// The factor that gives the values that stay the sum of all.
    pub(super) fn factor(&self) -> f64 {
        if self.all < NOTHING || self.kept < NOTHING {
            1.0
        } else {
            self.all / self.kept
        }
    }
}
