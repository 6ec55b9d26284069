//! Matmuls with bfloat16 matrices, whose numbers are widened to float32 while they are read.
//!
//! Few rows (decoding) are limited by how fast the weights can be read, so the weights are widened in registers and
//! never written back. Many rows (prefill) are limited by arithmetic: the weights are widened tile by tile into a buffer
//! that fits the cache, and an ordinary float32 product does the work.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::kernels::avx2;
use super::matmul::{View, matmul};
use crate::model::backend::host::floats;
use crate::model::stored::{StoredMatrix, widen};

/// Weights widened at a time for many rows: 2 MiB of float32.
const TILE: usize = 1 << 19;
/// Bytes of weights below which waking a second thread takes longer than the product.
const SERIAL: usize = 1 << 15;

/// `x · matrixᵀ` of float32 `x` `[.., columns]` for several matrices, each as `[.., rows]`.
pub(super) fn multiply_together(matrices: &[&StoredMatrix], x: &Tensor) -> Result<Vec<Tensor>> {
    let x = x.contiguous()?;
    let values = x.storage_and_layout();
    let values = floats(&values)?;

    let mut sums = Vec::with_capacity(matrices.len());
    let mut n = 0;
    for matrix in matrices {
        n = values.len() / matrix.columns().max(1);
        check(matrix, &x)?;
        sums.push(Sum::new(n, vec![(*matrix, values)]));
    }
    multiply(n, &mut sums);

    sums.into_iter()
        .zip(matrices)
        .map(|(sum, matrix)| shaped(sum.out, &x, matrix.rows()))
        .collect()
}

/// The sum of `x · matrixᵀ` over all terms, each with its own `x`, all of the same shape.
pub(super) fn sum_of_products(terms: &[(&StoredMatrix, Tensor)]) -> Result<Tensor> {
    let [(first, shape), ..] = terms else {
        candle_core::bail!("expected at least one term of a sum, found none")
    };
    let inputs: Vec<Tensor> = terms
        .iter()
        .map(|(_, x)| x.contiguous())
        .collect::<Result<_>>()?;
    let storages: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();

    let mut parts = Vec::with_capacity(terms.len());
    for (((matrix, x), input), storage) in terms.iter().zip(&inputs).zip(&storages) {
        check(matrix, x)?;
        if matrix.rows() != first.rows() || input.dims() != shape.dims() {
            candle_core::bail!("expected terms of the same shape in a sum of matmuls");
        }
        parts.push((*matrix, floats(storage)?));
    }

    let n = shape.elem_count() / first.columns().max(1);
    let mut sums = [Sum::new(n, parts)];
    multiply(n, &mut sums);
    let [sum] = sums;
    shaped(sum.out, shape, first.rows())
}

fn check(matrix: &StoredMatrix, x: &Tensor) -> Result<()> {
    match x.dims().last() {
        Some(last) if *last == matrix.columns() => Ok(()),
        _ => candle_core::bail!(
            "stored matmul: {:?} against {} columns",
            x.dims(),
            matrix.columns()
        ),
    }
}

/// `values` in the shape of `x`, except for the last dimension.
fn shaped(values: Vec<f32>, x: &Tensor, last: usize) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if let Some(extent) = shape.last_mut() {
        *extent = last;
    }
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A sum of matmuls `x · matrixᵀ` with matrices of the same number of rows, and its output.
struct Sum<'a> {
    /// Matrices `[rows, columns]`, and `x` `[n, columns]` of each.
    terms: Vec<(&'a StoredMatrix, &'a [f32])>,
    /// `[n, rows]`.
    out: Vec<f32>,
}

impl<'a> Sum<'a> {
    /// `n` rows of zeros that the terms are added to; there must be one term at least.
    fn new(n: usize, terms: Vec<(&'a StoredMatrix, &'a [f32])>) -> Self {
        let rows = terms.first().map_or(0, |(matrix, _)| matrix.rows());
        Self {
            terms,
            out: vec![0f32; n * rows],
        }
    }
}

/// Computes sums of `n` rows each, together where rows are few.
fn multiply(n: usize, sums: &mut [Sum]) {
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

type Kernel = fn(&[u8], usize, &[f32], &mut [f32]);

/// The fastest kernel that this processor can run.
fn kernel<const N: usize>() -> Kernel {
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
fn rows<const N: usize>(bytes: &[u8], width: usize, x: &[f32], out: &mut [f32]) {
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
        matmul(
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use candle_core::DType;

    use super::*;
    use crate::model::stored::Pages;

    /// Numbers that bfloat16 holds exactly.
    fn weights(count: usize) -> Vec<half::bf16> {
        (0..count)
            .map(|i| half::bf16::from_f32(((i * 37 % 101) as f32 - 50.0) / 64.0))
            .collect()
    }

    #[test]
    fn stored_products_are_exact_products() {
        for (rows, columns) in [(1, 1), (5, 3), (7, 64), (33, 100), (300, 576), (70, 1000)] {
            let weights = weights(rows * columns);
            let mut file = tempfile::NamedTempFile::new().unwrap();
            // An odd offset: nothing may depend on alignment.
            file.write_all(b"x").unwrap();
            weights
                .iter()
                .for_each(|weight| file.write_all(&weight.to_le_bytes()).unwrap());
            let pages = Pages::map(file.path(), 1 + 2 * weights.len() as u64).unwrap();
            let matrix = Arc::new(StoredMatrix::new(&pages, 1, rows, columns));
            let expected: Vec<f32> = weights.iter().map(|weight| weight.to_f32()).collect();
            let wide = matrix.to_tensor().unwrap();
            assert_eq!(
                wide.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                expected
            );
            let ids = [rows as u32 - 1, 0];
            let selected = matrix.select(&ids).unwrap();
            let by_candle = wide
                .index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0)
                .unwrap();
            assert_eq!(
                selected.to_vec2::<f32>().unwrap(),
                by_candle.to_vec2::<f32>().unwrap()
            );
            for n in [1, 2, 3, 4, 5, 17] {
                let x: Vec<f32> = (0..n * columns)
                    .map(|i| ((i * 13 % 29) as f32 - 14.0) / 16.0)
                    .collect();
                let x = Tensor::from_vec(x, (1, n, columns), &Device::Cpu).unwrap();
                let product = multiply_together(&[&matrix], &x).unwrap()[0]
                    .squeeze(0)
                    .unwrap();
                let in_f64 = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
                let expected = in_f64(&x.squeeze(0).unwrap())
                    .matmul(&in_f64(&wide).t().unwrap())
                    .unwrap();
                assert_eq!(product.dims(), [n, rows]);
                let difference = (in_f64(&product) - expected)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap();
                assert!(
                    difference.to_scalar::<f64>().unwrap() < 1e-4,
                    "{n} x {columns} x {rows}"
                );
            }
        }
    }

    #[test]
    fn products_are_the_same_on_any_processor() {
        let (rows, columns) = (7, 100);
        let bytes: Vec<u8> = weights(rows * columns)
            .iter()
            .flat_map(|weight| weight.to_le_bytes())
            .collect();
        let x: Vec<f32> = (0..3 * columns)
            .map(|i| ((i * 13 % 29) as f32 - 14.0) / 16.0)
            .collect();
        let [mut plain, mut fastest] = [const { [0f32; 21] }; 2];
        super::rows::<3>(&bytes, 2 * columns, &x, &mut plain);
        kernel::<3>()(&bytes, 2 * columns, &x, &mut fastest);
        assert!(
            plain
                .iter()
                .zip(&fastest)
                .all(|(plain, fastest)| (plain - fastest).abs() < 1e-5)
        );
    }
}
