//! Entries of an axis drawn at random, and new values for them.

use std::sync::{Mutex, PoisonError};

use super::node::Node;
use super::places::{Places, Scratch};
use super::random::Draws;
use crate::Result;
use crate::checkpoint::writer::TensorLayout;

/// A tensor with noise.
pub(super) struct Noisy<'a> {
    pub(super) of: Box<Node<'a>>,
    pub(super) places: Option<Places<'a>>,
    pub(super) std: f64,
    pub(super) draws: Draws,
}

impl Noisy<'_> {
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        self.of.values(first, out, scratch)?;
        let add = |value: &mut f64, drawn: f64| *value += self.std * drawn;
        match &self.places {
            Some(places) => places.draw(&self.draws, first, out, scratch, add),
            None => self.draws.normal_where(
                first,
                out.len(),
                |_| true,
                |at, drawn| add(&mut out[at], drawn),
            ),
        }
        Ok(())
    }
}

/// A tensor some of whose entries are replaced by draws.
pub(super) struct Redrawn<'a> {
    pub(super) of: Box<Node<'a>>,
    pub(super) places: Places<'a>,
    pub(super) draws: Draws,
    /// Around 0; if absent, draws have the mean and the standard deviation of the values that they replace.
    pub(super) std: Option<f64>,
    /// Mean and standard deviation of what is replaced, once a thread has measured them.
    pub(super) measured: Mutex<Option<(f64, f64)>>,
    pub(super) layout: &'a TensorLayout,
    pub(super) elements: u64,
}

/// Values that are measured at a time.
const PIECE: u64 = 1 << 16;

impl Redrawn<'_> {
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        self.of.values(first, out, scratch)?;
        let (mean, std) = match self.std {
            Some(std) => (0.0, std),
            None => self.moments(scratch)?,
        };
        self.places
            .draw(&self.draws, first, out, scratch, |value, drawn| {
                *value = mean + std * drawn
            });
        Ok(())
    }

    /// Mean and standard deviation of the values that are replaced, all of them, in the order in which they lie.
    fn moments(&self, scratch: &mut Scratch) -> Result<(f64, f64)> {
        // Other threads wait for the first, whose pass over the source would otherwise be theirs too.
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(moments) = *measured {
            return Ok(moments);
        }
        let mut count = 0.0;
        let mut sum = 0.0;
        self.for_each_replaced(scratch, |value| {
            count += 1.0;
            sum += value;
        })?;
        let mean = sum / count;
        let mut squares = 0.0;
        self.for_each_replaced(scratch, |value| squares += (value - mean) * (value - mean))?;
        Ok(*measured.insert((mean, libm::sqrt(squares / count))))
    }

    fn for_each_replaced(&self, scratch: &mut Scratch, mut visit: impl FnMut(f64)) -> Result<()> {
        let mask = self.places.mask(scratch);
        let Places { extent, inner, .. } = self.places;
        let mut values = scratch.free.pop().unwrap_or_default();
        let mut position = 0;
        while position < self.elements {
            // Entries of many elements that stay are not read.
            let length = if inner == 1 {
                PIECE
            } else {
                (inner - position % inner).min(PIECE)
            };
            let length = length.min(self.elements - position);
            let mut entry = (position / inner % extent) as usize;
            if inner == 1 || mask[entry] {
                values.resize(length as usize, 0.0);
                self.of.values(position, &mut values, scratch)?;
                for (element, value) in (position..).zip(&values) {
                    if mask[entry] {
                        if !value.is_finite() {
                            return Err(self.of.blame(element, self.layout, scratch)?);
                        }
                        visit(*value);
                    }
                    if inner == 1 {
                        entry = if entry + 1 == mask.len() {
                            0
                        } else {
                            entry + 1
                        };
                    }
                }
            }
            position += length;
        }
        scratch.free.push(values);
        Ok(())
    }
}
