//! The numbers by which two tensors differ.

use std::sync::atomic::{AtomicBool, Ordering};

use multiversion::multiversion;

use super::numbers::share;
use super::pieces::{self, Piece};
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::{Dtype, Encoding, TensorEntry, dtype};

/// Bytes compared in one go.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes by which most tensors already differ.
const BEGINNING: u64 = 4096;
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

    /// Whether the first bytes are the same: of tensors that were trained they are not, and no more need be read to know.
    fn begins_equal(&self) -> Result<bool> {
        let length = BEGINNING.min(self.a.1.length).min(self.b.1.length);
        self.a
            .0
            .same_beginning(self.a.1, self.b.0, self.b.1, length)
    }

    /// Whether both can be read as numbers.
    pub fn is_numeric(&self) -> bool {
        [self.a.1, self.b.1]
            .iter()
            .all(|entry| entry.encoding.plain().is_none_or(dtype::is_numeric))
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
    let differs = |couple: &Couple| {
        Ok(AtomicBool::new(
            !couple.same_encoding() || !couple.begins_equal()?,
        ))
    };
    let differs: Vec<AtomicBool> = couples.iter().map(differs).collect::<Result<_>>()?;
    let pieces = couples.iter().enumerate().flat_map(|(item, couple)| {
        let length = if couple.same_encoding() {
            couple.a.1.length
        } else {
            0
        };
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
    Ok(differs
        .into_iter()
        .map(|differs| !differs.into_inner())
        .collect())
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
    /// Adds the sums of the next piece.
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

    /// Whether no value was infinite or no number.
    fn is_finite(&self) -> bool {
        self.squared_a.is_finite() && self.squared_b.is_finite()
    }

    /// ‖a − b‖ / ‖a‖; `None` where a is zero and b is not.
    pub fn relative(&self) -> Option<f64> {
        if self.squared_difference == 0.0 {
            return Some(0.0);
        }
        Some(self.squared_difference.sqrt() / self.squared_a.sqrt())
            .filter(|relative| relative.is_finite())
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

/// Sums kept side by side, so that additions do not wait for each other. The number is the same on every machine,
/// because the order of additions is part of the result.
const LANES: usize = 8;

/// The sums of two lists of one length, `changed` left out; meaningless where a value is not finite, or too large to square.
#[inline(always)]
fn sums_of_finite<T: Copy>(a: &[T], b: &[T], value: impl Fn(T) -> f64) -> Sums {
    let mut lanes = [[0.0; LANES]; 6];
    let mut add = |lane: usize, a: T, b: T| {
        let (a, b) = (value(a), value(b));
        let difference = (a - b).abs();
        // `difference` where it is larger; `f64::max` would also ask whether it is a number.
        let [
            max_abs,
            sum_abs,
            squared_difference,
            squared_a,
            squared_b,
            product,
        ] = &mut lanes;
        max_abs[lane] = if difference > max_abs[lane] {
            difference
        } else {
            max_abs[lane]
        };
        sum_abs[lane] += difference;
        squared_difference[lane] += difference * difference;
        squared_a[lane] += a * a;
        squared_b[lane] += b * b;
        product[lane] += a * b;
    };
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        (0..LANES).for_each(|lane| add(lane, a[lane], b[lane]));
    }
    a_rest
        .iter()
        .zip(b_rest)
        .enumerate()
        .for_each(|(lane, (&a, &b))| add(lane, a, b));
    let [
        max_abs,
        sum_abs,
        squared_difference,
        squared_a,
        squared_b,
        product,
    ] = lanes;
    let total = |lanes: [f64; LANES]| lanes.iter().sum::<f64>();
    Sums {
        values: a.len() as u64,
        finite: a.len() as u64,
        changed: 0,
        non_finite_a: 0,
        non_finite_b: 0,
        max_abs: max_abs.into_iter().fold(0.0, f64::max),
        sum_abs: total(sum_abs),
        squared_difference: total(squared_difference),
        squared_a: total(squared_a),
        squared_b: total(squared_b),
        product: total(product),
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn sums_of_values(a: &[f64], b: &[f64]) -> Sums {
    sums_of_finite(a, b, |value| value)
}

/// The same of bfloat16, as it is stored: decoding it first would take longer than the sums.
#[multiversion(targets("x86_64+avx2"))]
fn sums_of_bf16(a: &[u8], b: &[u8]) -> Sums {
    let value =
        |bytes: [u8; 2]| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16));
    sums_of_finite(a.as_chunks().0, b.as_chunks().0, value)
}

/// The same of float32.
#[multiversion(targets("x86_64+avx2"))]
fn sums_of_f32(a: &[u8], b: &[u8]) -> Sums {
    sums_of_finite(a.as_chunks().0, b.as_chunks().0, |bytes: [u8; 4]| {
        f64::from(f32::from_le_bytes(bytes))
    })
}

/// The sums of any values, `changed` left out.
fn sums_of_any(a: &[f64], b: &[f64]) -> Sums {
    let usual = sums_of_values(a, b);
    if usual.is_finite() {
        return usual;
    }
    let mut sums = Sums {
        values: a.len() as u64,
        ..Sums::default()
    };
    let is_finite = |(a, b): &(&f64, &f64)| a.is_finite() && b.is_finite();
    let (finite_a, finite_b): (Vec<f64>, Vec<f64>) = a.iter().zip(b).filter(is_finite).unzip();
    for (&a, &b) in a.iter().zip(b).filter(|pair| !is_finite(pair)) {
        sums.non_finite_a += u64::from(!a.is_finite());
        sums.non_finite_b += u64::from(!b.is_finite());
    }
    sums.add(&Sums {
        values: 0,
        ..sums_of_values(&finite_a, &finite_b)
    });
    sums
}

/// How many values of `size` bytes differ.
#[multiversion(targets("x86_64+avx2"))]
fn differing(size: usize, a: &[u8], b: &[u8]) -> u64 {
    macro_rules! words {
        ($size:literal) => {{
            let (a, b) = (a.as_chunks::<$size>().0, b.as_chunks::<$size>().0);
            a.iter().zip(b).map(|(a, b)| u64::from(a != b)).sum()
        }};
    }
    match size {
        1 => words!(1),
        2 => words!(2),
        4 => words!(4),
        8 => words!(8),
        _ => a
            .chunks_exact(size)
            .zip(b.chunks_exact(size))
            .map(|(a, b)| u64::from(a != b))
            .sum(),
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

impl Scratch {
    /// The values of a piece of both.
    fn decoded(&mut self, couple: &Couple, piece: &Piece) -> Result<(&[f64], &[f64])> {
        self.a.resize(piece.count as usize, 0.0);
        self.b.resize(piece.count as usize, 0.0);
        couple
            .a
            .0
            .read_values(couple.a.1, piece.first, &mut self.a, &mut self.raw_a)?;
        couple
            .b
            .0
            .read_values(couple.b.1, piece.first, &mut self.b, &mut self.raw_b)?;
        Ok((&self.a, &self.b))
    }
}

/// The sums of each couple that is [numeric](Couple::is_numeric) and `wanted`.
pub(super) fn sums(couples: &[Couple], wanted: &[bool], means: Means) -> Result<Vec<Option<Sums>>> {
    let wanted = |item: usize| wanted[item] && couples[item].is_numeric();
    let mut all: Vec<Option<Sums>> = (0..couples.len())
        .map(|item| wanted(item).then(Sums::default))
        .collect();
    let pieces = couples.iter().enumerate().flat_map(|(item, couple)| {
        pieces::cut(
            item,
            if wanted(item) {
                couple.a.1.elements()
            } else {
                0
            },
            PIECE_VALUES,
        )
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
    // Of one dtype, what has changed is what has other bytes: −0 is not 0, nor one NaN another.
    if let (true, Encoding::Plain(dtype)) = (couple.same_encoding(), couple.a.1.encoding) {
        let size = dtype.bitsize() / 8;
        for ((checkpoint, entry), raw) in [
            (couple.a, &mut scratch.raw_a),
            (couple.b, &mut scratch.raw_b),
        ] {
            raw.resize(count * size, 0);
            checkpoint.read_bytes(entry, piece.first * size as u64, raw)?;
        }
        let changed = differing(size, &scratch.raw_a, &scratch.raw_b);
        let sums = match dtype {
            Dtype::BF16 => Some(sums_of_bf16(&scratch.raw_a, &scratch.raw_b)),
            Dtype::F32 => Some(sums_of_f32(&scratch.raw_a, &scratch.raw_b)),
            _ => None,
        };
        let sums = match sums.filter(Sums::is_finite) {
            Some(sums) => sums,
            None => {
                let (a, b) = scratch.decoded(couple, piece)?;
                sums_of_any(a, b)
            }
        };
        return Ok(Sums { changed, ..sums });
    }
    let (a, b) = scratch.decoded(couple, piece)?;
    let changed = a
        .iter()
        .zip(b)
        .filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan()))
        .count() as u64;
    Ok(Sums {
        changed,
        ..sums_of_any(a, b)
    })
}
