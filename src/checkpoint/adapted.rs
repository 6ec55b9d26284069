//! What adapters make of the tensors of a checkpoint, computed range by range as it is read.
//!
//! `docs/reference/manifest.md` says which values these are. Steps are computed in `f64`, the sum over the rank in order, without
//! fused multiplication and addition, and rounded once at the end. So any program can compute the same bytes.

use std::path::PathBuf;

use multiversion::multiversion;

use super::adapter_error::AdapterError;
use super::dtype::{self, Dtype};
use super::encoding::{Encoding, TensorEntry};
use super::expression::AdapterStep;
use super::folder::Checkpoint;
use crate::Result;

/// Values of a factor that are held at a time, of each side; they stay in the cache of a core.
const HELD: usize = 1 << 15;
/// Columns that are computed in one go at least.
const LEAST_COLUMNS: usize = 64;
/// Values that are computed in one go, where rows are not longer.
const AT_ONCE: usize = 1 << 18;

/// A tensor of an opened checkpoint.
#[derive(Clone, Copy)]
pub(crate) struct OpenTensor<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) entry: &'a TensorEntry,
    pub(crate) name: &'a str,
}

/// A step whose tensors are looked up.
enum OpenStep<'a> {
    LowRank(LowRank<'a>),
    Added { tensor: OpenTensor<'a>, scale: f64 },
    Replaced(OpenTensor<'a>),
}

/// Two factors, and the magnitudes of rows.
struct LowRank<'a> {
    a: OpenTensor<'a>,
    b: OpenTensor<'a>,
    rank: usize,
    scale: f64,
    magnitude: Option<OpenTensor<'a>>,
    /// Whether the transposed product is added.
    is_embedding: bool,
}

/// A stored tensor with the steps of adapters, ready to be computed.
pub(crate) struct AdaptedTensor<'a> {
    base: OpenTensor<'a>,
    dtype: Dtype,
    columns: usize,
    steps: Vec<OpenStep<'a>>,
}

impl<'a> AdaptedTensor<'a> {
    /// Looks up the tensors of `steps` and checks their shapes. `base` is the whole tensor as its file has it.
    pub(crate) fn new(
        base: OpenTensor<'a>,
        steps: &'a [AdapterStep],
        open: impl Fn(&str) -> Result<&'a Checkpoint>,
    ) -> Result<Self> {
        let shape = &base.entry.shape;
        let Encoding::Plain(dtype) = base.entry.encoding else {
            return Err(unfit(base, base.entry.encoding).into());
        };
        if !dtype::is_float(dtype) || dtype.bitsize() < 16 {
            return Err(unfit(base, base.entry.encoding).into());
        }
        let find = |source: &str, name: &'a str, expected: &[u64]| {
            let checkpoint = open(source)?;
            let found = OpenTensor {
                checkpoint,
                entry: checkpoint.tensor(name)?,
                name,
            };
            found.expect(base, expected).map(|()| found)
        };
        let mut opened = Vec::with_capacity(steps.len());
        for step in steps {
            opened.push(match step {
                AdapterStep::LowRank {
                    source,
                    a,
                    b,
                    scale,
                    magnitude,
                    embedding,
                } => {
                    let [rows, columns] = shape[..] else {
                        return Err(AdapterError::NotMatrix {
                            path: base.path(),
                            tensor: base.name.to_owned(),
                            found: shape.clone(),
                        }
                        .into());
                    };
                    let rank = open(source)?.tensor(a)?.shape.first().copied().unwrap_or(0);
                    let (inner, outer) = if *embedding {
                        (rows, columns)
                    } else {
                        (columns, rows)
                    };
                    let magnitude = magnitude.as_ref();
                    OpenStep::LowRank(LowRank {
                        a: find(source, a, &[rank, inner])?,
                        b: find(source, b, &[outer, rank])?,
                        rank: rank as usize,
                        scale: finite(base, *scale)?,
                        magnitude: magnitude
                            .map(|name| find(source, name, &[rows]))
                            .transpose()?,
                        is_embedding: *embedding,
                    })
                }
                AdapterStep::Added {
                    source,
                    tensor,
                    scale,
                } => OpenStep::Added {
                    tensor: find(source, tensor, shape)?,
                    scale: finite(base, *scale)?,
                },
                AdapterStep::Replaced { source, tensor } => {
                    OpenStep::Replaced(find(source, tensor, shape)?)
                }
            });
        }
        Ok(Self {
            base,
            dtype,
            columns: shape.last().map_or(1, |columns| *columns as usize).max(1),
            steps: opened,
        })
    }

    /// The dtype of its file, to which its values are rounded.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The file of the base.
    pub(crate) fn path(&self) -> PathBuf {
        self.base.path()
    }

    /// Its name in that file.
    pub(crate) fn name(&self) -> &str {
        self.base.name
    }

    /// Its bytes from `start` on, in the dtype of its file.
    pub(crate) fn bytes(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let size = self.dtype.bitsize() / 8;
        // Whole rows where they are short, as a norm needs the whole row.
        let most = (AT_ONCE / self.columns).max(1) * self.columns;
        let (mut values, mut encoded) = (Vec::new(), Vec::new());
        let mut first = start / size as u64;
        let mut skip = (start % size as u64) as usize;
        let mut rest = out;
        while !rest.is_empty() {
            let left = (skip + rest.len()).div_ceil(size);
            // To the end of a row at first, then whole rows.
            let into_row = (first % self.columns as u64) as usize;
            let count = left.min(most - into_row);
            values.resize(count, 0.0);
            self.values_after(self.steps.len(), first, &mut values)?;
            encoded.resize(count * size, 0);
            self.round(first, &values, &mut encoded)?;

            let length = rest.len().min(count * size - skip);
            let (piece, others) = rest.split_at_mut(length);
            piece.copy_from_slice(&encoded[skip..skip + length]);
            (first, skip, rest) = (first + count as u64, 0, others);
        }
        Ok(())
    }

    /// Its values from element `first` on, rounded to the dtype of its file.
    pub(crate) fn values(&self, first: u64, out: &mut [f64]) -> Result<()> {
        let size = self.dtype.bitsize() / 8;
        let mut bytes = vec![0; out.len() * size];
        self.bytes(first * size as u64, &mut bytes)?;
        // The dtype was checked to be a float.
        let _ = dtype::decode(self.dtype, &bytes, out);
        Ok(())
    }

    /// Rounds values; one that leaves the range of the dtype is refused.
    fn round(&self, first: u64, values: &[f64], out: &mut [u8]) -> Result<()> {
        let _ = dtype::encode(self.dtype, values, out);
        let Some(position) = dtype::first_non_finite(self.dtype, out) else {
            return Ok(());
        };
        let size = self.dtype.bitsize() / 8;
        let mut stored = [0.0];
        for (number, value) in values.iter().enumerate().skip(position) {
            let _ = dtype::decode(self.dtype, &out[number * size..][..size], &mut stored);
            if value.is_finite() && !stored[0].is_finite() {
                return Err(AdapterError::Overflow {
                    path: self.base.path(),
                    tensor: self.base.name.to_owned(),
                    element: first + number as u64,
                    value: *value,
                    dtype: self.dtype,
                }
                .into());
            }
        }
        Ok(())
    }

    /// The values after so many steps, not rounded.
    fn values_after(&self, steps: usize, first: u64, out: &mut [f64]) -> Result<()> {
        let Some(number) = steps.checked_sub(1) else {
            let OpenTensor {
                checkpoint, entry, ..
            } = self.base;
            return checkpoint.read_stored_values(entry, first, out, &mut Vec::new());
        };
        match &self.steps[number] {
            OpenStep::Replaced(tensor) => tensor.read(first, out),
            OpenStep::Added { tensor, scale } => {
                self.values_after(number, first, out)?;
                let mut term = vec![0.0; out.len()];
                tensor.read(first, &mut term)?;
                out.iter_mut()
                    .zip(&term)
                    .for_each(|(value, term)| *value += scale * term);
                Ok(())
            }
            OpenStep::LowRank(step) => {
                self.values_after(number, first, out)?;
                step.add(self.columns, first, out)?;
                match step.magnitude {
                    None => Ok(()),
                    Some(magnitude) => self.set_norms(number, step, magnitude, first, out),
                }
            }
        }
    }

    /// Gives each row the norm that its magnitude says; `out` has the values of the step `number` without it.
    fn set_norms(
        &self,
        number: usize,
        step: &LowRank,
        magnitude: OpenTensor,
        first: u64,
        out: &mut [f64],
    ) -> Result<()> {
        let columns = self.columns as u64;
        let mut whole = Vec::new();
        let mut wanted = [0.0];
        for piece in pieces(self.columns, first, out.len()) {
            let part = &mut out[piece.start..piece.start + piece.length];
            let norm = if part.len() == self.columns {
                norm(part)
            } else {
                whole.resize(self.columns, 0.0);
                self.values_after(number, piece.row * columns, &mut whole)?;
                step.add(self.columns, piece.row * columns, &mut whole)?;
                norm(&whole)
            };
            magnitude.read(piece.row, &mut wanted)?;
            let factor = wanted[0] / norm;
            part.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(())
    }
}

/// The part of a row in a range of elements.
struct Piece {
    row: u64,
    /// Its first column.
    column: usize,
    /// Where it begins in the range.
    start: usize,
    length: usize,
}

/// The rows that `count` elements from `first` on are parts of.
fn pieces(columns: usize, first: u64, count: usize) -> impl Iterator<Item = Piece> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let element = first + start as u64;
        let (row, column) = (
            element / columns as u64,
            (element % columns as u64) as usize,
        );
        let length = (columns - column).min(count - start);
        let piece = Piece {
            row,
            column,
            start,
            length,
        };
        start += length;
        (length > 0).then_some(piece)
    })
}

/// The Euclidean norm, its squares added in order.
fn norm(row: &[f64]) -> f64 {
    row.iter()
        .fold(0.0, |sum, value| sum + value * value)
        .sqrt()
}

impl LowRank<'_> {
    /// Adds the scaled product to the elements of a matrix from `first` on.
    fn add(&self, columns: usize, first: u64, out: &mut [f64]) -> Result<()> {
        if self.rank == 0 {
            return Ok(());
        }
        let rows_at_once = (HELD / self.rank).max(1);
        let columns_at_once = (HELD / self.rank).max(LEAST_COLUMNS).min(columns);
        let all: Vec<Piece> = pieces(columns, first, out.len()).collect();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let mut sums = vec![0.0; columns_at_once];
        for rows in all.chunks(rows_at_once) {
            self.left(rows, &mut left)?;
            let begin = rows.iter().map(|piece| piece.column).min().unwrap_or(0);
            let ends = rows.iter().map(|piece| piece.column + piece.length);
            let end = ends.max().unwrap_or(0);
            for from in (begin..end).step_by(columns_at_once) {
                let to = (from + columns_at_once).min(end);
                self.right(from, to, &mut right)?;
                for (piece, left) in rows.iter().zip(left.chunks_exact(self.rank)) {
                    let low = from.max(piece.column);
                    let high = to.min(piece.column + piece.length);
                    if low >= high {
                        continue;
                    }
                    let sums = &mut sums[..high - low];
                    let start = piece.start + (low - piece.column);
                    let out = &mut out[start..start + (high - low)];
                    add_product(out, sums, left, &right[low - from..], to - from, self.scale);
                }
            }
        }
        Ok(())
    }

    /// The factors of rows, the rank innermost.
    fn left(&self, rows: &[Piece], left: &mut Vec<f64>) -> Result<()> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Ok(());
        };
        let (first, count) = (first.row, (last.row - first.row + 1) as usize);
        left.resize(count * self.rank, 0.0);
        if !self.is_embedding {
            return self.b.read(first * self.rank as u64, left);
        }
        let mut row = vec![0.0; count];
        for number in 0..self.rank {
            self.a
                .read(number as u64 * self.a.entry.shape[1] + first, &mut row)?;
            for (place, value) in row.iter().enumerate() {
                left[place * self.rank + number] = *value;
            }
        }
        Ok(())
    }

    /// The factors of columns, the rank outermost.
    fn right(&self, from: usize, to: usize, right: &mut Vec<f64>) -> Result<()> {
        let width = to - from;
        right.resize(width * self.rank, 0.0);
        if !self.is_embedding {
            let columns = self.a.entry.shape[1];
            for (number, row) in right.chunks_exact_mut(width).enumerate() {
                self.a.read(number as u64 * columns + from as u64, row)?;
            }
            return Ok(());
        }
        let mut rows = vec![0.0; width * self.rank];
        self.b.read((from * self.rank) as u64, &mut rows)?;
        for (place, row) in rows.chunks_exact(self.rank).enumerate() {
            for (number, value) in row.iter().enumerate() {
                right[number * width + place] = *value;
            }
        }
        Ok(())
    }
}

/// `out[j] += scale · Σₖ left[k] · right[k][j]`, summed from the first k on; rows of `right` are `width` apart.
#[multiversion(targets("x86_64+avx2"))]
fn add_product(
    out: &mut [f64],
    sums: &mut [f64],
    left: &[f64],
    right: &[f64],
    width: usize,
    scale: f64,
) {
    sums.fill(0.0);
    let count = sums.len();
    // Four terms of a sum at a time, in their order: fewer loads and stores of the sums.
    let mut fours = left.chunks_exact(4);
    for (number, four) in fours.by_ref().enumerate() {
        let row = |at: usize| &right[(4 * number + at) * width..][..count];
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        for (place, sum) in sums.iter_mut().enumerate() {
            *sum = *sum
                + four[0] * a[place]
                + four[1] * b[place]
                + four[2] * c[place]
                + four[3] * d[place];
        }
    }
    let done = left.len() - fours.remainder().len();
    for (number, factor) in fours.remainder().iter().enumerate() {
        let row = &right[(done + number) * width..][..count];
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += factor * value);
    }
    out.iter_mut()
        .zip(&*sums)
        .for_each(|(value, sum)| *value += scale * sum);
}

impl OpenTensor<'_> {
    /// Its values from element `first` on.
    pub(crate) fn read(&self, first: u64, out: &mut [f64]) -> Result<()> {
        self.checkpoint
            .read_values(self.entry, first, out, &mut Vec::new())
    }

    fn path(&self) -> PathBuf {
        self.checkpoint.files[self.entry.file].path().to_path_buf()
    }

    /// Refuses a tensor of an adapter that does not fit `base`; extents of 1 do not count.
    fn expect(&self, base: OpenTensor, expected: &[u64]) -> Result<()> {
        let is_number = self.entry.encoding.plain().is_some_and(dtype::is_float);
        if !is_number {
            return Err(unfit(*self, self.entry.encoding).into());
        }
        let long = |shape: &[u64]| -> Vec<u64> {
            shape
                .iter()
                .copied()
                .filter(|extent| *extent != 1)
                .collect()
        };
        if self.entry.shape == expected
            || expected.len() == 1 && long(&self.entry.shape) == long(expected)
        {
            return Ok(());
        }
        Err(AdapterError::Shape {
            path: self.path(),
            tensor: self.name.to_owned(),
            found: self.entry.shape.as_slice().into(),
            expected: expected.into(),
            base: base.name.to_owned(),
        }
        .into())
    }
}

/// The error for a tensor whose values no sum can be made of.
fn unfit(tensor: OpenTensor, found: Encoding) -> AdapterError {
    AdapterError::NotFloat {
        path: tensor.path(),
        tensor: tensor.name.to_owned(),
        found,
    }
}

fn finite(base: OpenTensor, scale: f64) -> Result<f64> {
    if scale.is_finite() {
        return Ok(scale);
    }
    Err(AdapterError::Scale {
        tensor: base.name.to_owned(),
        found: scale,
    }
    .into())
}
