//! Passes over the rows of a matrix, shared by the cores.

use rayon::prelude::*;

use super::kernels::{add_scaled, dot};

/// Rows that a thread takes at a time; fixed, so that sums do not depend on the number of threads.
pub(super) const PIECE: usize = 64;

/// The sum of rows of `width` values.
pub(super) fn sum_rows(values: &[f32], width: usize) -> Vec<f32> {
    sum_scaled_rows(values, width, |_| 1.0)
}

/// The sum of rows of `width` values, each times its factor.
pub(super) fn sum_scaled_rows(
    values: &[f32],
    width: usize,
    factor: impl Fn(usize) -> f32 + Sync,
) -> Vec<f32> {
    let piece = |(number, rows): (usize, &[f32])| {
        let mut sum = vec![0f32; width];
        for (row, values) in rows.chunks_exact(width).enumerate() {
            add_scaled(&mut sum, values, factor(number * PIECE + row));
        }
        sum
    };
    let sums: Vec<Vec<f32>> = values
        .par_chunks(PIECE * width)
        .enumerate()
        .map(piece)
        .collect();
    add_up(sums, width)
}

/// The sum of several vectors, in their order.
pub(super) fn add_up(sums: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut total = vec![0f32; width];
    sums.iter().for_each(|sum| add_scaled(&mut total, sum, 1.0));
    total
}

/// Each row of `width` values times its factor.
pub(super) fn scale_rows(
    values: &[f32],
    width: usize,
    factor: impl Fn(usize) -> f32 + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; values.len()];
    out.par_chunks_mut(PIECE * width)
        .zip(values.par_chunks(PIECE * width))
        .enumerate()
        .for_each(|(number, (out, x))| {
            for (row, (out, x)) in out
                .chunks_exact_mut(width)
                .zip(x.chunks_exact(width))
                .enumerate()
            {
                let factor = factor(number * PIECE + row);
                out.iter_mut().zip(x).for_each(|(out, x)| *out = factor * x);
            }
        });
    out
}

/// The dot product of each pair of rows of `width` values.
pub(super) fn dot_rows(a: &[f32], b: &[f32], width: usize) -> Vec<f32> {
    a.par_chunks(width)
        .zip(b.par_chunks(width))
        .with_min_len(PIECE)
        .map(|(a, b)| dot(a, b))
        .collect()
}

/// Rows of `width` values in the order of `places`.
pub(super) fn gather(values: &[f32], width: usize, places: &[u32]) -> Vec<f32> {
    let mut out = vec![0f32; places.len() * width];
    out.par_chunks_mut(width)
        .zip(places)
        .with_min_len(PIECE)
        .for_each(|(out, place)| {
            out.copy_from_slice(&values[*place as usize * width..][..width]);
        });
    out
}
