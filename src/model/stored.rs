//! bfloat16 matrices that stay in the pages of their file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use memmap2::Mmap;

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
    /// The matrix at byte `offset`; the header's reader has checked that it is inside the file.
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
        widen(self.bytes(), &mut values);
        Tensor::from_vec(values, (self.rows, self.columns), &Device::Cpu)
    }

    /// The rows of these numbers in float32, `[ids, columns]`.
    pub(super) fn select(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let mut values = vec![0f32; ids.len() * self.columns];
        for (id, row) in ids.iter().zip(values.chunks_exact_mut(self.columns)) {
            let start = 2 * self.columns * *id as usize;
            widen(&self.bytes()[start..start + 2 * self.columns], row);
        }
        Tensor::from_vec(values, (ids.len(), self.columns), &Device::Cpu)
    }
}

/// Widens little-endian bfloat16 to float32; `out` has half as many values as `bytes` has bytes.
pub(super) fn widen(bytes: &[u8], out: &mut [f32]) {
    for (value, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = widened([pair[0], pair[1]]);
    }
}

/// The float32 of a little-endian bfloat16.
#[inline(always)]
pub(super) fn widened(pair: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16)
}
