//! The values of largest magnitude of a tensor, found without holding it: exact, in a few passes.
//!
//! Magnitudes are ordered as their bit patterns are. Each pass counts the next 16 bits of the values that agree with the
//! threshold so far. As soon as few are left they are collected and sorted; a last pass counts values that are equal to the
//! threshold, where there are many.

use super::first_pass::{FirstPass, Whole};
use super::node::Node;
use super::places::Scratch;
use crate::Result;

/// Bits of a magnitude that one pass looks at.
const DIGIT: u32 = 16;

/// Passes that count: four digits are all bits of an `f64`.
const LEVELS: usize = 4;

/// Candidates that are collected and sorted.
const MOST_COLLECTED: u64 = 1 << 16;

/// Which values stay: those above the smallest that stays, and those equal to it up to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Threshold {
    /// The bits of the smallest magnitude that stays.
    bits: u64,
    /// The last element of this magnitude that stays.
    last: u64,
}

impl Threshold {
    /// The threshold of which nothing stays.
    const NOTHING: Self = Self {
        bits: u64::MAX,
        last: 0,
    };

    /// Whether a value stays.
    pub(super) fn keeps(&self, element: u64, value: f64) -> bool {
        let bits = magnitude(value);
        bits > self.bits || bits == self.bits && element <= self.last
    }
}

fn magnitude(value: f64) -> u64 {
    value.abs().to_bits()
}

/// The passes that find the threshold.
#[derive(Default)]
pub(super) struct Selection {
    counts: [FirstPass<Vec<u64>, Digit>; LEVELS],
    collected: FirstPass<Vec<(u64, u64)>, Threshold>,
    equals: FirstPass<Vec<(Piece, u64)>, (Piece, u64)>,
    last: FirstPass<u64, u64>,
}

/// What a pass has found: the digit of the threshold, how many values with this digit there are, and how many of them stay.
#[derive(Clone, Copy, Default)]
struct Digit {
    value: u64,
    count: u64,
    keep: u64,
}

impl Selection {
    /// The threshold above which the `keep` largest magnitudes of `of` are, of equal ones the first.
    pub(super) fn threshold(
        &self,
        of: &Node,
        whole: &Whole,
        keep: u64,
        scratch: &mut Scratch,
    ) -> Result<Threshold> {
        if keep == 0 {
            return Ok(Threshold::NOTHING);
        }
        let (mut known, mut keep) = (0, keep.min(whole.elements));
        for (level, counts) in self.counts.iter().enumerate() {
            let shift = 64 - DIGIT * (level as u32 + 1);
            let digit = counts.result(
                whole.elements,
                |first, count| {
                    let mut digits = vec![0; 1 << DIGIT];
                    each(of, whole, (first, count), scratch, |_, bits| {
                        if level == 0 || bits >> (shift + DIGIT) == known {
                            digits[(bits >> shift) as usize % (1 << DIGIT)] += 1;
                        }
                    })?;
                    Ok(digits)
                },
                |sums, part| {
                    sums.iter_mut()
                        .zip(part)
                        .for_each(|(sum, part)| *sum += part)
                },
                |sums| digit_of(&sums, keep),
            )?;
            known = known << DIGIT | digit.value;
            keep = digit.keep;
            if digit.count <= MOST_COLLECTED {
                return self.collect(of, whole, (known, shift), keep, scratch);
            }
        }
        let last = self.last_of(of, whole, (known, keep), scratch)?;
        Ok(Threshold { bits: known, last })
    }

    /// The threshold among the few values whose upper bits are `known`.
    fn collect(
        &self,
        of: &Node,
        whole: &Whole,
        (known, shift): (u64, u32),
        keep: u64,
        scratch: &mut Scratch,
    ) -> Result<Threshold> {
        self.collected.result(
            whole.elements,
            |first, count| {
                let mut found = Vec::new();
                each(of, whole, (first, count), scratch, |element, bits| {
                    if bits >> shift == known {
                        found.push((bits, element));
                    }
                })?;
                Ok(found)
            },
            |sums, mut part| sums.append(&mut part),
            |mut found| {
                found.sort_unstable_by_key(|(bits, element)| (!bits, *element));
                let (bits, last) = found[keep as usize - 1];
                Threshold { bits, last }
            },
        )
    }

    /// The last of the first `keep` elements whose magnitude is `bits`.
    fn last_of(
        &self,
        of: &Node,
        whole: &Whole,
        (bits, keep): (u64, u64),
        scratch: &mut Scratch,
    ) -> Result<u64> {
        let (piece, keep) = self.equals.result(
            whole.elements,
            |first, count| {
                let mut equals = 0;
                each(of, whole, (first, count), scratch, |_, found| {
                    equals += u64::from(found == bits);
                })?;
                Ok(vec![((first, count), equals)])
            },
            |pieces, mut part| pieces.append(&mut part),
            |pieces| piece_of(&pieces, keep),
        )?;
        let mut equals = 0;
        self.last.result(
            1,
            |_, _| {
                let mut last = piece.0;
                each(of, whole, piece, scratch, |element, found| {
                    if found == bits && equals < keep {
                        equals += 1;
                        last = element;
                    }
                })?;
                Ok(last)
            },
            |_, _| {},
            |last| last,
        )
    }
}

/// Where a piece begins, and its length.
type Piece = (u64, u64);

/// The piece that holds the value number `keep`, and which value of the piece that is.
fn piece_of(pieces: &[(Piece, u64)], mut keep: u64) -> (Piece, u64) {
    let mut found = (0, 0);
    for (piece, count) in pieces {
        found = *piece;
        if keep <= *count {
            break;
        }
        keep -= count;
    }
    (found, keep)
}

/// The digit that the value number `keep`, counted from the largest, has.
fn digit_of(counts: &[u64], mut keep: u64) -> Digit {
    for (value, count) in counts.iter().enumerate().rev() {
        if keep <= *count {
            let (value, count) = (value as u64, *count);
            return Digit { value, count, keep };
        }
        keep -= count;
    }
    // There are at least `keep` values.
    Digit::default()
}

/// Calls `visit` with each element of a piece and the bits of its magnitude.
fn each(
    of: &Node,
    whole: &Whole,
    piece: (u64, u64),
    scratch: &mut Scratch,
    mut visit: impl FnMut(u64, u64),
) -> Result<()> {
    whole.read(&[of], piece, scratch, |first, values, _| {
        for (element, value) in (first..).zip(&values[0]) {
            visit(element, magnitude(*value));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::checkpoint::dtype::{self, Dtype};
    use crate::checkpoint::expression::Expression;
    use crate::checkpoint::writer::TensorLayout;
    use crate::surgery::compile::compile;
    use crate::surgery::plan::Source;

    /// A file with one tensor of float32 values.
    fn source(folder: &Path, values: &[f64]) -> Source {
        let mut bytes = vec![0; values.len() * 4];
        assert!(dtype::encode(Dtype::F32, values, &mut bytes));
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![values.len()], &bytes);
        let file = folder.join("model.safetensors");
        safetensors::serialize_to_file([("x", view.unwrap())], None, &file).unwrap();
        Source {
            name: "a".to_owned(),
            checkpoint: Checkpoint::open(folder).unwrap(),
            side_files: Vec::new(),
            kept: false,
        }
    }

    fn check(values: &[f64], keep: u64) {
        let folder = tempfile::tempdir().unwrap();
        let sources = [source(folder.path(), values)];
        let layout = TensorLayout {
            name: "x".to_owned(),
            dtype: Dtype::F32,
            shape: vec![values.len() as u64],
        };
        let expression = Expression::copy("a", "x");
        let node = compile(&expression, &layout, &sources).unwrap();
        let whole = Whole {
            layout: &layout,
            elements: values.len() as u64,
        };
        let selection = Selection::default();
        let threshold = selection.threshold(&node, &whole, keep, &mut Scratch::default());
        let threshold = threshold.unwrap();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        let mut kept: Vec<usize> = order[..keep as usize].to_vec();
        kept.sort_unstable();
        let found = (0..values.len()).filter(|at| threshold.keeps(*at as u64, values[*at]));
        assert!(found.eq(kept), "{keep} of {}", values.len());
    }

    #[test]
    fn the_largest_stay_and_the_first_of_equal_ones() {
        let few: Vec<f64> = (0..1000u32)
            .map(|n| f64::from(n * 7919 % 1000) - 500.0)
            .collect();
        for keep in [0, 1, 2, 499, 1000] {
            check(&few, keep);
        }
        // More equal values than are collected, over several pieces.
        let equal: Vec<f64> = (0..600_000u32).map(|n| f64::from(n % 3) - 1.0).collect();
        for keep in [1, 300_000, 399_999, 400_000, 400_001] {
            check(&equal, keep);
        }
        // More candidates with the same first digit than are collected.
        let near: Vec<f64> = (0..150_000u32)
            .map(|n| 1.0 + f64::from(n * 7919 % 150_001) / (1 << 23) as f64)
            .collect();
        check(&near, 70_000);
    }
}
