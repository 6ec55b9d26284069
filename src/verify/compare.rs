//! The numbers by which two tensors differ.

use std::sync::atomic::{AtomicBool, Ordering};

use super::numbers::share;
use super::pieces::{self, Piece};
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::{Encoding, TensorEntry, dtype};

/// Bytes compared in one go.
const PIECE_BYTES: u64 = 1 << 20;
/// Values compared in one go: a multiple of every block size. It decides where sums are cut, so it is no setting.
const PIECE_VALUES: u64 = 1 << 17;
/// Working memory of one thread: two decoded pieces, two raw ones, and a dequantised one.
const THREAD_MEMORY: u64 = PIECE_VALUES * (2 * 8 + 2 * 8 + 8);

/// Two tensors of one shape.
#[derive(Clone, Copy)]
pub(super) struct Couple<'a> {
    pub a: (&'a Checkpoint, &'a TensorEntry),
    pub b: (&'a Checkpoint, &'a TensorEntry),
}

impl Couple<'_> {
    /// Whether both hold the same kind of bytes.
    pub fn same_encoding(&self) -> bool {
        self.a.1.encoding == self.b.1.encoding
    }

    /// Whether both can be read as numbers.
    pub fn is_numeric(&self) -> bool {
        [self.a.1, self.b.1].iter().all(|entry| entry.encoding.plain().is_none_or(dtype::is_numeric))
    }

    /// Bytes of both.
    pub fn length(&self) -> u64 {
        self.a.1.length + self.b.1.length
    }
}

/// Means to compare with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub threads: usize,
    pub memory: u64,
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Whether each couple has the same bytes; false where the encodings differ.
pub(super) fn equal(couples: &[Couple], means: Means) -> Result<Vec<bool>> {
    let differs: Vec<AtomicBool> = couples.iter().map(|couple| AtomicBool::new(!couple.same_encoding())).collect();
    let pieces = couples.iter().enumerate().flat_map(|(item, couple)| {
        let length = if couple.same_encoding() { couple.a.1.length } else { 0 };
        pieces::cut(item, length, PIECE_BYTES)
    });
    let compare = |piece: &Piece, (left, right): &mut (Vec<u8>, Vec<u8>)| {
        let couple = &couples[piece.item];
        if !differs[piece.item].load(Ordering::Relaxed) {
            left.resize(piece.count as usize, 0);
            right.resize(piece.count as usize, 0);
            couple.a.0.read_bytes(couple.a.1, piece.first, left)?;
            couple.b.0.read_bytes(couple.b.1, piece.first, right)?;
            if left != right {
                differs[piece.item].store(true, Ordering::Relaxed);
            }
        }
        (means.progress)(2 * piece.count);
        Ok(())
    };
    let threads = pieces::affordable(means.threads, means.memory, 2 * PIECE_BYTES);
    pieces::for_each(pieces, threads, Default::default, compare, |_, ()| {})?;
    Ok(differs.into_iter().map(|differs| !differs.into_inner()).collect())
}

/// Sums over the values of two tensors; those that are not finite in either are counted and left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub values: u64,
    pub finite: u64,
    pub changed: u64,
    pub non_finite_a: u64,
    pub non_finite_b: u64,
    pub max_abs: f64,
    pub sum_abs: f64,
    pub squared_difference: f64,
    pub squared_a: f64,
    pub squared_b: f64,
    pub product: f64,
}

impl Sums {
    /// Adds those of what follows.
    pub fn add(&mut self, other: &Self) {
        self.values += other.values;
        self.finite += other.finite;
        self.changed += other.changed;
        self.non_finite_a += other.non_finite_a;
        self.non_finite_b += other.non_finite_b;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.sum_abs += other.sum_abs;
        self.squared_difference += other.squared_difference;
        self.squared_a += other.squared_a;
        self.squared_b += other.squared_b;
        self.product += other.product;
    }

    /// ‖a − b‖ / ‖a‖; `None` where a is zero and b is not.
    pub fn relative(&self) -> Option<f64> {
        if self.squared_difference == 0.0 {
            return Some(0.0);
        }
        Some(self.squared_difference.sqrt() / self.squared_a.sqrt()).filter(|relative| relative.is_finite())
    }

    /// a·b / (‖a‖ ‖b‖); `None` where one of them is zero.
    pub fn cosine(&self) -> Option<f64> {
        if self.squared_difference == 0.0 && self.squared_a > 0.0 {
            return Some(1.0);
        }
        let cosine = self.product / (self.squared_a.sqrt() * self.squared_b.sqrt());
        cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
    }
}

/// Working space of one thread.
#[derive(Default)]
struct Scratch {
    a: Vec<f64>,
    b: Vec<f64>,
    raw_a: Vec<u8>,
    raw_b: Vec<u8>,
}

/// The sums of each couple that is [numeric](Couple::is_numeric) and `wanted`.
pub(super) fn sums(couples: &[Couple], wanted: &[bool], means: Means) -> Result<Vec<Option<Sums>>> {
    let wanted = |item: usize| wanted[item] && couples[item].is_numeric();
    let mut all: Vec<Option<Sums>> = (0..couples.len()).map(|item| wanted(item).then(Sums::default)).collect();
    let pieces = couples.iter().enumerate().flat_map(|(item, couple)| {
        pieces::cut(item, if wanted(item) { couple.a.1.elements() } else { 0 }, PIECE_VALUES)
    });
    let compare = |piece: &Piece, scratch: &mut Scratch| {
        let couple = &couples[piece.item];
        let sums = sums_of(couple, piece, scratch)?;
        (means.progress)(share(couple.a.1, piece) + share(couple.b.1, piece));
        Ok(sums)
    };
    let threads = pieces::affordable(means.threads, means.memory, THREAD_MEMORY);
    pieces::for_each(pieces, threads, Scratch::default, compare, |piece, part| {
        if let Some(sums) = &mut all[piece.item] {
            sums.add(&part);
        }
    })?;
    Ok(all)
}

fn sums_of(couple: &Couple, piece: &Piece, scratch: &mut Scratch) -> Result<Sums> {
    let count = piece.count as usize;
    scratch.a.resize(count, 0.0);
    scratch.b.resize(count, 0.0);
    couple.a.0.read_values(couple.a.1, piece.first, &mut scratch.a, &mut scratch.raw_a)?;
    couple.b.0.read_values(couple.b.1, piece.first, &mut scratch.b, &mut scratch.raw_b)?;
    let mut sums = Sums { values: piece.count, ..Sums::default() };
    for (&a, &b) in scratch.a.iter().zip(&scratch.b) {
        if !a.is_finite() || !b.is_finite() {
            sums.non_finite_a += u64::from(!a.is_finite());
            sums.non_finite_b += u64::from(!b.is_finite());
            sums.changed += u64::from(a != b && !(a.is_nan() && b.is_nan()));
            continue;
        }
        let difference = (a - b).abs();
        sums.finite += 1;
        sums.changed += u64::from(a != b);
        sums.max_abs = sums.max_abs.max(difference);
        sums.sum_abs += difference;
        sums.squared_difference += difference * difference;
        sums.squared_a += a * a;
        sums.squared_b += b * b;
        sums.product += a * b;
    }
    // Of one dtype, what has changed is what has other bytes: −0 is not 0, nor one NaN another.
    if let (true, Encoding::Plain(dtype)) = (couple.same_encoding(), couple.a.1.encoding) {
        let size = dtype.bitsize() / 8;
        let pairs = scratch.raw_a.chunks_exact(size).zip(scratch.raw_b.chunks_exact(size));
        sums.changed = pairs.filter(|(a, b)| a != b).count() as u64;
    }
    Ok(sums)
}
