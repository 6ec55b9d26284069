//! Products with bfloat16 matrices that widen their numbers on the way.
//!
//! Few rows (decoding) are limited by how fast the weights can be read, so the weights are widened in registers and
//! never written back. Many rows (prefill) are limited by arithmetic: the weights are widened tile by tile into a buffer
//! that fits the cache, and an ordinary float32 product does the work.

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::stored::StoredMatrix;

/// Most rows that are multiplied from registers.
const FEW: usize = 4;
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

#[inline(always)]
fn widened(pair: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16)
}

/// `x · matrixᵀ` for `x` `[n, columns]`, as `[n, rows]`.
pub(super) fn multiply(matrix: &StoredMatrix, x: &[f32]) -> Vec<f32> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let n = x.len() / columns.max(1);
    let mut out = vec![0f32; n * rows];
    if n > FEW {
        multiply_many(matrix, x, n, &mut out);
        return out;
    }
    let bytes = matrix.bytes();
    match n {
        0 => {}
        1 => multiply_few::<1>(bytes, columns, x, &mut out),
        2 => transposed::<2>(bytes, columns, x, &mut out),
        3 => transposed::<3>(bytes, columns, x, &mut out),
        _ => transposed::<4>(bytes, columns, x, &mut out),
    }
    out
}

/// [`multiply_few`] with its output turned from `[rows, N]` to `[N, rows]`.
fn transposed<const N: usize>(bytes: &[u8], columns: usize, x: &[f32], out: &mut [f32]) {
    let rows = out.len() / N;
    let mut turned = vec![0f32; out.len()];
    multiply_few::<N>(bytes, columns, x, &mut turned);
    for (row, values) in turned.chunks_exact(N).enumerate() {
        for (n, value) in values.iter().enumerate() {
            out[n * rows + row] = *value;
        }
    }
}

/// Rows of weights `bytes` times the `N` rows of `x`: `out` `[rows, N]`.
fn multiply_few<const N: usize>(bytes: &[u8], columns: usize, x: &[f32], out: &mut [f32]) {
    let width = 2 * columns;
    let pieces = if bytes.len() < SERIAL { 1 } else { 4 * rayon::current_num_threads() };
    let rows_a_piece = (out.len() / N).div_ceil(pieces).max(1);
    let kernel = kernel::<N>();
    let piece = |(out, bytes): (&mut [f32], &[u8])| kernel(bytes, width, x, out);
    if pieces == 1 {
        piece((out, bytes));
    } else {
        out.par_chunks_mut(rows_a_piece * N).zip(bytes.par_chunks(rows_a_piece * width)).for_each(piece);
    }
}

type Kernel = fn(&[u8], usize, &[f32], &mut [f32]);

/// The fastest kernel that this processor can run.
fn kernel<const N: usize>() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has the features.
            return |bytes, width, x, out| unsafe { rows_avx512::<N>(bytes, width, x, out) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the features.
            return |bytes, width, x, out| unsafe { rows_avx2::<N>(bytes, width, x, out) };
        }
    }
    rows_of::<N, 16, false>
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn rows_avx512<const N: usize>(bytes: &[u8], width: usize, x: &[f32], out: &mut [f32]) {
    rows_of::<N, 64, true>(bytes, width, x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2<const N: usize>(bytes: &[u8], width: usize, x: &[f32], out: &mut [f32]) {
    if N <= 2 {
        rows_of::<N, 32, true>(bytes, width, x, out);
    } else {
        rows_of::<N, 16, true>(bytes, width, x, out);
    }
}

/// Each row of `bytes`, `width` bytes long, times each of the `N` rows of `x`; written so that it vectorises.
#[inline(always)]
fn rows_of<const N: usize, const LANES: usize, const FMA: bool>(
    bytes: &[u8],
    width: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let columns = width / 2;
    let whole = columns - columns % LANES;
    for (row, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(N)) {
        let mut sums = [[0f32; LANES]; N];
        for (start, chunk) in (0..whole).step_by(LANES).zip(row.chunks_exact(2 * LANES)) {
            let mut weights = [0f32; LANES];
            for (weight, pair) in weights.iter_mut().zip(chunk.chunks_exact(2)) {
                *weight = widened([pair[0], pair[1]]);
            }
            for (n, sums) in sums.iter_mut().enumerate() {
                let x = &x[n * columns + start..][..LANES];
                for lane in 0..LANES {
                    sums[lane] = if FMA {
                        weights[lane].mul_add(x[lane], sums[lane])
                    } else {
                        weights[lane] * x[lane] + sums[lane]
                    };
                }
            }
        }
        for (n, (out, sums)) in out.iter_mut().zip(&sums).enumerate() {
            let mut sum = sums.iter().sum::<f32>();
            for column in whole..columns {
                sum += widened([row[2 * column], row[2 * column + 1]]) * x[n * columns + column];
            }
            *out = sum;
        }
    }
}

/// The product for many rows, `out` `[n, rows]`.
fn multiply_many(matrix: &StoredMatrix, x: &[f32], n: usize, out: &mut [f32]) {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let rows_a_tile = (TILE / columns).clamp(1, rows);
    let mut tile = vec![0f32; rows_a_tile * columns];
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    for (number, bytes) in matrix.bytes().chunks(2 * rows_a_tile * columns).enumerate() {
        let first = number * rows_a_tile;
        let in_tile = bytes.len() / (2 * columns);
        let tile = &mut tile[..in_tile * columns];
        tile.par_chunks_mut(1 << 15).zip(bytes.par_chunks(1 << 16)).for_each(|(out, bytes)| widen(bytes, out));
        let target = &mut out[first..];
        // SAFETY: `target` holds element (n - 1, in_tile - 1) at (n - 1) * rows + in_tile - 1, since first + in_tile <=
        // rows and `out` has n * rows values; `x` is [n, columns] and `tile` [in_tile, columns], both row-major.
        unsafe {
            gemm(
                n,
                in_tile,
                columns,
                target.as_mut_ptr(),
                1,
                rows as isize,
                false,
                x.as_ptr(),
                1,
                columns as isize,
                tile.as_ptr(),
                columns as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}
