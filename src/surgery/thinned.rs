//! Tensors of which only some values stay: the largest, or drawn ones. TIES trims task vectors, DARE and DELLA thin them.

use super::first_pass::{FirstPass, Whole};
use super::node::Node;
use super::places::Scratch;
use super::random::Draws;
use super::selected::{Selection, Threshold};
use crate::Result;

/// A tensor some of whose values become 0.
pub(super) struct Thinned<'a> {
    of: Box<Node<'a>>,
    stays: Stays,
    rescale: bool,
    whole: Whole<'a>,
    magnitudes: FirstPass<Magnitudes, f64>,
}

/// Which values stay.
pub(super) enum Stays {
    /// So many of largest magnitude.
    Largest {
        keep: u64,
        selection: Box<Selection>,
    },
    /// Each with the same probability.
    Drawn { density: f64, draws: Draws },
    /// Each with a probability that grows with the rank of its magnitude in its row.
    Ranked {
        /// The least probability, and the greatest.
        probabilities: [f64; 2],
        draws: Draws,
        /// Values of a row.
        row: u64,
    },
}

/// What is known of the whole tensor: the threshold, where there is one.
type Known = Option<Threshold>;

impl<'a> Thinned<'a> {
    pub(super) fn new(of: Box<Node<'a>>, stays: Stays, rescale: bool, whole: Whole<'a>) -> Self {
        Self {
            of,
            stays,
            rescale,
            whole,
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
        let known = match &self.stays {
            Stays::Largest { keep, selection } => {
                Some(selection.threshold(&self.of, &self.whole, *keep, scratch)?)
            }
            _ => None,
        };
        let factor = if self.rescale {
            self.factor(known, scratch)?
        } else {
            1.0
        };
        self.of.values(first, out, scratch)?;
        let mut places = scratch.free.pop().unwrap_or_default();
        places.resize(out.len(), 0.0);
        self.stays(known, first, out, &mut places, scratch)?;
        for (value, stays) in out.iter_mut().zip(&places) {
            *value = if *stays > 0.0 {
                factor * *value
            } else if value.is_finite() {
                0.0
            } else {
                // What is refused must not go away by chance.
                f64::NAN
            };
        }
        scratch.free.push(places);
        Ok(())
    }

    /// Writes a number above 0 into `places` for each of `values` that stays; the first of them is element `first`.
    fn stays(
        &self,
        known: Known,
        first: u64,
        values: &[f64],
        places: &mut [f64],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let draw = |draws: &Draws, places: &mut [f64]| draws.uniform(first, places);
        match &self.stays {
            Stays::Largest { .. } => {
                for ((element, value), place) in (first..).zip(values).zip(places) {
                    let keeps = known.is_some_and(|known| known.keeps(element, *value));
                    *place = f64::from(u8::from(keeps));
                }
            }
            Stays::Drawn { density, draws } => {
                draw(draws, places);
                places
                    .iter_mut()
                    .for_each(|place| *place = density - *place);
            }
            Stays::Ranked {
                probabilities,
                draws,
                row,
            } => {
                draw(draws, places);
                self.minus_chances(*probabilities, *row, first, places, scratch)?;
            }
        }
        Ok(())
    }

    /// Replaces each draw by the probability that its value stays, minus the draw.
    fn minus_chances(
        &self,
        [least, most]: [f64; 2],
        row: u64,
        first: u64,
        places: &mut [f64],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut values = scratch.free.pop().unwrap_or_default();
        let mut ranks: Vec<u32> = vec![0; row as usize];
        let (mut position, mut rest) = (first, places);
        while !rest.is_empty() {
            let (begin, column) = (position / row * row, (position % row) as usize);
            let length = rest.len().min(row as usize - column);
            values.resize(row as usize, 0.0);
            self.of.values(begin, &mut values, scratch)?;
            rank(&values, &mut ranks);
            let (piece, others) = rest.split_at_mut(length);
            for (place, rank) in piece.iter_mut().zip(&ranks[column..]) {
                let part = if row == 1 {
                    0.5
                } else {
                    f64::from(*rank) / (row - 1) as f64
                };
                *place = least + part * (most - least) - *place;
            }
            (position, rest) = (position + length as u64, others);
        }
        scratch.free.push(values);
        Ok(())
    }

    /// What the values that stay are multiplied by.
    fn factor(&self, known: Known, scratch: &mut Scratch) -> Result<f64> {
        let mut places = Vec::new();
        self.magnitudes.result(
            self.whole.elements,
            |first, count| {
                let mut sums = Magnitudes::default();
                self.whole.read(
                    &[&*self.of],
                    (first, count),
                    scratch,
                    |first, values, scratch| {
                        places.resize(values[0].len(), 0.0);
                        self.stays(known, first, &values[0], &mut places, scratch)?;
                        for (value, stays) in values[0].iter().zip(&places) {
                            sums.add(*value, *stays > 0.0);
                        }
                        Ok(())
                    },
                )?;
                Ok(sums)
            },
            Magnitudes::fold,
            |sums| sums.factor(),
        )
    }
}

/// Writes the rank of each magnitude, from 0 for the smallest; of equal ones the first has the lower rank.
fn rank(values: &[f64], ranks: &mut [u32]) {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by_key(|at| values[*at as usize].abs().to_bits());
    for (rank, at) in order.into_iter().enumerate() {
        ranks[at as usize] = rank as u32;
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
