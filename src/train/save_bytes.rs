//! The bytes of a checkpoint's tensors, a range at a time: trained ones rounded from float32, others as they are.

use safetensors::Dtype;

use super::error::TrainError;
use crate::Result;
use crate::checkpoint::writer::{TensorBytes, TensorLayout};
use crate::checkpoint::{Checkpoint, TensorEntry, dtype};
use crate::model::HostValues;

/// Where the bytes of tensors come from.
pub(super) struct Bytes<'a> {
    pub(super) layouts: Vec<TensorLayout>,
    pub(super) sources: Vec<Source<'a>>,
}

/// Where the bytes of a tensor come from.
pub(super) enum Source<'a> {
    /// A tensor of a file, in its own dtype.
    File(&'a Checkpoint, &'a TensorEntry),
    /// Float32 numbers in memory, to round.
    Held(HostValues<'a>),
    /// A float32 tensor of a file, to round.
    Stored(&'a Checkpoint, &'a TensorEntry),
    /// The same as another.
    Same(&'a Source<'a>),
    /// In turn so many bytes of each of these.
    Parts(Vec<(u64, Source<'a>)>),
}

impl TensorBytes for Bytes<'_> {
    type Scratch = Vec<f64>;

    fn fill(
        &self,
        tensor: usize,
        start: u64,
        out: &mut [u8],
        scratch: &mut Vec<f64>,
    ) -> Result<()> {
        self.sources[tensor].fill(&self.layouts[tensor], start, out, scratch)
    }
}

impl Source<'_> {
    /// Whether every number is zero; what cannot be read is not.
    pub(super) fn holds_zeros(&self) -> bool {
        match self {
            Source::Held(values) => values.iter().all(|value| *value == 0.0),
            Source::Same(source) => source.holds_zeros(),
            Source::Parts(parts) => parts.iter().all(|(_, part)| part.holds_zeros()),
            Source::File(checkpoint, entry) | Source::Stored(checkpoint, entry) => {
                checkpoint.holds_zeros(entry)
            }
        }
    }

    /// The bytes from `start` on, in the dtype of `layout`.
    fn fill(
        &self,
        layout: &TensorLayout,
        start: u64,
        out: &mut [u8],
        scratch: &mut Vec<f64>,
    ) -> Result<()> {
        let size = layout.dtype.bitsize() / 8;
        let (first, count) = (start as usize / size, out.len() / size);
        match self {
            Source::File(checkpoint, entry) => return checkpoint.read_bytes(entry, start, out),
            Source::Same(source) => return source.fill(layout, start, out, scratch),
            Source::Parts(parts) => return fill_in_turn(parts, layout, start, out, scratch),
            Source::Held(values) if layout.dtype == Dtype::F32 => {
                let values = &values[first..first + count];
                out.chunks_exact_mut(4)
                    .zip(values)
                    .for_each(|(out, value)| out.copy_from_slice(&value.to_le_bytes()));
            }
            Source::Stored(checkpoint, entry) if layout.dtype == Dtype::F32 => {
                checkpoint.read_bytes(entry, start, out)?;
            }
            Source::Held(values) => {
                scratch.clear();
                let values = &values[first..first + count];
                scratch.extend(values.iter().map(|value| f64::from(*value)));
                round(layout, scratch, out)?;
            }
            Source::Stored(checkpoint, entry) => {
                scratch.resize(count, 0.0);
                checkpoint.read_values(entry, first as u64, scratch, &mut Vec::new())?;
                round(layout, scratch, out)?;
            }
        }
        match dtype::first_non_finite(layout.dtype, out) {
            None => Ok(()),
            Some(element) => Err(TrainError::NotFinite {
                tensor: layout.name.clone(),
                element: first + element,
                dtype: layout.dtype,
            }
            .into()),
        }
    }
}

/// Rounds values once to the dtype of `layout`.
fn round(layout: &TensorLayout, values: &[f64], out: &mut [u8]) -> Result<()> {
    if dtype::encode(layout.dtype, values, out) {
        return Ok(());
    }
    Err(TrainError::NotFloat {
        tensor: layout.name.clone(),
        found: layout.dtype,
    }
    .into())
}

/// The bytes from `start` on of parts that take turns.
fn fill_in_turn(
    parts: &[(u64, Source)],
    layout: &TensorLayout,
    start: u64,
    out: &mut [u8],
    scratch: &mut Vec<f64>,
) -> Result<()> {
    let total: u64 = parts.iter().map(|(length, _)| length).sum();
    let (mut position, mut rest) = (start, out);
    while !rest.is_empty() {
        let (turn, mut within) = (position / total, position % total);
        let mut part = 0;
        while within >= parts[part].0 {
            within -= parts[part].0;
            part += 1;
        }
        let (length, source) = &parts[part];
        let count = (length - within).min(rest.len() as u64);
        let (piece, others) = rest.split_at_mut(count as usize);
        source.fill(layout, turn * length + within, piece, scratch)?;
        (position, rest) = (position + count, others);
    }
    Ok(())
}
