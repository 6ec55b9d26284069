//! Matmuls in float32 on the CPU, in place and of any strides.

use gemm::{Parallelism, gemm};

/// A matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// The number of values from the first element to the last, both included.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    }
}

impl<'a> View<'a> {
    /// `rows` of `columns` values side by side, `stride` values from one row to the next.
    ///
    /// # Panics
    ///
    /// If `values` is too short, which is a mistake of the caller.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            extent(rows, columns, stride, 1) <= values.len(),
            "a matrix beyond its values"
        );
        Self {
            values,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// Rows and columns exchanged.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Writes `factor · a · b` to `out` `[a rows, b columns]`, or adds it. `stride` is the distance from one row of `out` to the next.
///
/// # Panics
///
/// If sizes do not fit, which is a mistake of the caller.
pub(super) fn matmul(
    out: &mut [f32],
    stride: usize,
    add: bool,
    factor: f32,
    a: View,
    b: View,
    threads: usize,
) {
    assert!(
        a.columns == b.rows,
        "a matmul of {} columns with {} rows",
        a.columns,
        b.rows
    );
    assert!(
        extent(a.rows, b.columns, stride, 1) <= out.len(),
        "a matmul beyond its output"
    );
    let parallelism = if threads > 1 {
        Parallelism::Rayon(threads)
    } else {
        Parallelism::None
    };
    // SAFETY: the extents of all three were checked against their slices, here and in `View::new`.
    unsafe {
        gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}
