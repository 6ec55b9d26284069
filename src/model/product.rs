//! Products with bfloat16 matrices that widen their numbers on the way.
//!
//! Few rows (decoding) are limited by how fast the weights can be read, so the weights are widened in registers and
//! never written back. Many rows (prefill) are limited by arithmetic: the weights are widened tile by tile into a buffer
//! that fits the cache, and an ordinary float32 product does the work.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::kernels::avx2;
use super::kernels::widened;
use super::matrix::{self, View};
use super::stored::StoredMatrix;

/// Weights widened at a time for many rows: 2 MiB of float32.
const TILE: usize = 1 << 19;
/// Bytes of weights below which waking a second thread takes longer than the product.
const SERIAL: usize = 1 << 15;

/// Widens little-endian bfloat16 to float32; `out` has half as many values as `bytes` has bytes.
pub(super) fn widen(bytes: &[u8], out: &mut [f32]) {
    for (value, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = widened([pair[0], pair[1]]);
    }
}

/// A sum of products `x · matrixᵀ` with matrices of the same number of rows, and where it goes.
pub(super) struct Sum<'a> {
    /// Matrices `[rows, columns]`, and `x` `[n, columns]` of each.
    pub(super) terms: Vec<(&'a StoredMatrix, &'a [f32])>,
    /// `[n, rows]`.
    pub(super) out: Vec<f32>,
}

impl<'a> Sum<'a> {
    /// `n` rows of zeros that the terms are added to; there must be one term at least.
    pub(super) fn new(n: usize, terms: Vec<(&'a StoredMatrix, &'a [f32])>) -> Self {
        let rows = terms.first().map_or(0, |(matrix, _)| matrix.rows());
        Self {
            terms,
            out: vec![0f32; n * rows],
        }
    }
}

/// Computes sums of `n` rows each, together where rows are few.
pub(super) fn multiply(n: usize, sums: &mut [Sum]) {
    match n {
        0 => {}
        1 => multiply_few::<1>(sums),
        2 => multiply_few::<2>(sums),
        3 => multiply_few::<3>(sums),
        4 => multiply_few::<4>(sums),
        _ => {
            for Sum { terms, out } in sums {
                for (number, (matrix, x)) in terms.iter().enumerate() {
                    multiply_many(matrix, x, n, out, number > 0);
                }
            }
        }
    }
}

/// Some rows of the matrices of one sum.
struct Piece<'a> {
    terms: &'a [(&'a StoredMatrix, &'a [f32])],
    first: usize,
    /// `[rows, N]`.
    out: &'a mut [f32],
}

/// All sums of `N` rows, cut into pieces that the threads share.
fn multiply_few<const N: usize>(sums: &mut [Sum]) {
    let kernel = kernel::<N>();
    let bytes: usize = sums
        .iter()
        .flat_map(|sum| &sum.terms)
        .map(|(matrix, _)| matrix.bytes().len())
        .sum();
    let rows: usize = sums.iter().map(|sum| sum.out.len() / N).sum();
    let pieces = if bytes < SERIAL {
        1
    } else {
        4 * rayon::current_num_threads()
    };
    let rows_a_piece = rows.div_ceil(pieces).max(1);
    let mut turned: Vec<Vec<f32>> = sums
        .iter_mut()
        .map(|sum| {
            if N == 1 {
                std::mem::take(&mut sum.out)
            } else {
                sum.out.clone()
            }
        })
        .collect();
    let mut jobs = Vec::with_capacity(pieces + sums.len());
    for (sum, out) in sums.iter().zip(&mut turned) {
        for (number, out) in out.chunks_mut(rows_a_piece * N).enumerate() {
            jobs.push(Piece {
                terms: &sum.terms,
                first: number * rows_a_piece,
                out,
            });
        }
    }
    let run = |piece: &mut Piece| {
        let rows = piece.out.len() / N;
        let mut more = Vec::new();
        for (number, (matrix, x)) in piece.terms.iter().enumerate() {
            let width = 2 * matrix.columns();
            let bytes = &matrix.bytes()[piece.first * width..(piece.first + rows) * width];
            if number == 0 {
                kernel(bytes, width, x, piece.out);
            } else {
                more.resize(piece.out.len(), 0.0);
                kernel(bytes, width, x, &mut more);
                piece
                    .out
                    .iter_mut()
                    .zip(&more)
                    .for_each(|(out, more)| *out += more);
            }
        }
    };
    if pieces == 1 {
        jobs.iter_mut().for_each(run);
    } else {
        jobs.par_iter_mut().for_each(run);
    }
    for (sum, turned) in sums.iter_mut().zip(turned) {
        if N == 1 {
            sum.out = turned;
            continue;
        }
        let rows = turned.len() / N;
        for (row, values) in turned.chunks_exact(N).enumerate() {
            for (n, value) in values.iter().enumerate() {
                sum.out[n * rows + row] = *value;
            }
        }
    }
}

pub(super) type Kernel = fn(&[u8], usize, &[f32], &mut [f32]);

/// The fastest kernel that this processor can run.
pub(super) fn kernel<const N: usize>() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features.
        return if N == 1 {
            |bytes, width, x, out| unsafe { avx2::rows::<N, 4>(bytes, width, x, out) }
        } else {
            |bytes, width, x, out| unsafe { avx2::rows::<N, 2>(bytes, width, x, out) }
        };
    }
    rows::<N>
}

/// Each row of `bytes`, `width` bytes long, times each of the `N` rows of `x`, on any processor.
pub(super) fn rows<const N: usize>(bytes: &[u8], width: usize, x: &[f32], out: &mut [f32]) {
    const LANES: usize = 16;
    let columns = width / 2;
    let mut weights = vec![0f32; columns];
    for (row, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(N)) {
        widen(row, &mut weights);
        for (out, x) in out.iter_mut().zip(x.chunks_exact(columns)) {
            let mut sums = [0f32; LANES];
            for (weights, x) in weights.chunks(LANES).zip(x.chunks(LANES)) {
                for ((sum, weight), x) in sums.iter_mut().zip(weights).zip(x) {
                    *sum += weight * x;
                }
            }
            *out = sums.iter().sum();
        }
    }
}

/// The product for many rows, written or added to `out` `[n, rows]`.
fn multiply_many(matrix: &StoredMatrix, x: &[f32], n: usize, out: &mut [f32], add: bool) {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let rows_a_tile = (TILE / columns).clamp(1, rows);
    let mut tile = vec![0f32; rows_a_tile * columns];
    for (number, bytes) in matrix.bytes().chunks(2 * rows_a_tile * columns).enumerate() {
        let first = number * rows_a_tile;
        let in_tile = bytes.len() / (2 * columns);
        let tile = &mut tile[..in_tile * columns];
        tile.par_chunks_mut(1 << 15)
            .zip(bytes.par_chunks(1 << 16))
            .for_each(|(out, bytes)| widen(bytes, out));
        let target = &mut out[first..];
        let (x, tile) = (
            View::new(x, n, columns, columns),
            View::new(tile, in_tile, columns, columns),
        );
        matrix::multiply(
            target,
            rows,
            add,
            1.0,
            x,
            tile.t(),
            rayon::current_num_threads(),
        );
    }
}
