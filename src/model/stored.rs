//! bfloat16 matrices that stay in the pages of their file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::{CpuStorage, Device, Layout, Storage, StorageRef, Tensor};
use memmap2::Mmap;

use super::product::{self, Sum};
use crate::checkpoint::source_file::changed;
use crate::{Error, Result};

/// A weight file mapped into memory.
#[derive(Debug)]
pub(super) struct Pages(Mmap);

impl Pages {
    /// Maps the file at `path`, of which `length` bytes have been checked.
    pub(super) fn map(path: &Path, length: u64) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        // SAFETY: the map is only read. A process that shrinks the file meanwhile could stop ours by a signal, as with
        // any mapped file; `Checkpoint` notices changes of the file while it loads.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        if (map.len() as u64) < length {
            return Err(changed(path));
        }
        Ok(Arc::new(Self(map)))
    }
}

/// A row-major bfloat16 matrix `[rows, columns]` in the pages of a file.
#[derive(Debug)]
pub(super) struct StoredMatrix {
    pages: Arc<Pages>,
    offset: usize,
    rows: usize,
    columns: usize,
}

impl StoredMatrix {
    /// The matrix at byte `offset`; the header's reader has checked that it lies in the file.
    pub(super) fn new(pages: &Arc<Pages>, offset: usize, rows: usize, columns: usize) -> Self {
        Self {
            pages: Arc::clone(pages),
            offset,
            rows,
            columns,
        }
    }

    /// Its little-endian bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.pages.0[self.offset..self.offset + 2 * self.rows * self.columns]
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Its values in float32, `[rows, columns]`.
    pub(super) fn to_tensor(&self) -> candle_core::Result<Tensor> {
        let mut values = vec![0f32; self.rows * self.columns];
        product::widen(self.bytes(), &mut values);
        Tensor::from_vec(values, (self.rows, self.columns), &Device::Cpu)
    }

    /// The rows of these numbers in float32, `[ids, columns]`.
    pub(super) fn select(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let mut values = vec![0f32; ids.len() * self.columns];
        for (id, row) in ids.iter().zip(values.chunks_exact_mut(self.columns)) {
            let start = 2 * self.columns * *id as usize;
            product::widen(&self.bytes()[start..start + 2 * self.columns], row);
        }
        Tensor::from_vec(values, (ids.len(), self.columns), &Device::Cpu)
    }

    /// `x · selfᵀ` of float32 `x` `[.., columns]`, as `[.., rows]`.
    pub(super) fn multiply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut products = multiply_together(&[self], x)?;
        products
            .pop()
            .ok_or_else(|| candle_core::Error::msg("a product of nothing"))
    }
}

/// `x · matrixᵀ` for several matrices.
pub(super) fn multiply_together(
    matrices: &[&StoredMatrix],
    x: &Tensor,
) -> candle_core::Result<Vec<Tensor>> {
    let x = x.contiguous()?;
    let values = x.storage_and_layout();
    let values = floats(&values)?;
    let mut sums = Vec::with_capacity(matrices.len());
    let mut n = 0;
    for matrix in matrices {
        n = values.len() / matrix.columns.max(1);
        check(matrix, &x)?;
        sums.push(Sum::new(n, vec![(*matrix, values)]));
    }
    product::multiply(n, &mut sums);
    let tensors = sums
        .into_iter()
        .zip(matrices)
        .map(|(sum, matrix)| shaped(sum.out, &x, matrix.rows));
    tensors.collect()
}

/// The sum of `x · matrixᵀ` over all terms, each with its own `x`, all of the same shape.
pub(super) fn sum_of_products(terms: &[(&StoredMatrix, Tensor)]) -> candle_core::Result<Tensor> {
    let [(first, shape), ..] = terms else {
        candle_core::bail!("a sum of nothing")
    };
    let inputs: Vec<Tensor> = terms
        .iter()
        .map(|(_, x)| x.contiguous())
        .collect::<candle_core::Result<_>>()?;
    let storages: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let mut parts = Vec::with_capacity(terms.len());
    for (((matrix, x), input), storage) in terms.iter().zip(&inputs).zip(&storages) {
        check(matrix, x)?;
        if matrix.rows != first.rows || input.dims() != shape.dims() {
            candle_core::bail!("a sum of products of different shapes");
        }
        parts.push((*matrix, floats(storage)?));
    }
    let n = shape.elem_count() / first.columns.max(1);
    let mut sums = [Sum::new(n, parts)];
    product::multiply(n, &mut sums);
    let [sum] = sums;
    shaped(sum.out, shape, first.rows)
}

fn check(matrix: &StoredMatrix, x: &Tensor) -> candle_core::Result<()> {
    match x.dims().last() {
        Some(last) if *last == matrix.columns => Ok(()),
        _ => candle_core::bail!(
            "stored product: {:?} against {} columns",
            x.dims(),
            matrix.columns
        ),
    }
}

/// The values of a contiguous tensor.
pub(super) fn floats<'a>(
    (storage, layout): &'a (StorageRef<'_>, &Layout),
) -> candle_core::Result<&'a [f32]> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected contiguous float32 on the CPU"),
    }
}

/// `values` in the shape of `x`, but for the last extent.
fn shaped(values: Vec<f32>, x: &Tensor, last: usize) -> candle_core::Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if let Some(extent) = shape.last_mut() {
        *extent = last;
    }
    Tensor::from_vec(values, shape, &Device::Cpu)
}
