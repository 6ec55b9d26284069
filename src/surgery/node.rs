//! An expression whose sources are looked up: values and bytes of any range of it.

use multiversion::multiversion;

use super::drawn::{Noisy, Redrawn};
use super::elected::Elected;
use super::moved::Moved;
use super::places::Scratch;
use super::plan_error::PlanError;
use super::random::Draws;
use super::scaled::BlockScaled;
use super::slerp::Slerp;
use super::stocked::Stocked;
use super::thinned::Thinned;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::writer::TensorLayout;
use crate::checkpoint::{AdaptedTensor, Dtype, Encoding, TensorEntry, dtype};
use crate::{Error, Result};

/// An expression with its sources looked up and its shapes checked.
pub(super) enum Node<'a> {
    Read {
        checkpoint: &'a Checkpoint,
        entry: &'a TensorEntry,
        tensor: &'a str,
    },
    /// A tensor of a source with adapters, rounded to the dtype that it is stored in.
    Adapted(Box<AdaptedTensor<'a>>),
    BlockScaled(BlockScaled<'a>),
    Sum {
        parts: Vec<Node<'a>>,
        weights: Option<&'a [f64]>,
        divisor: f64,
    },
    Slerp(Slerp<'a>),
    Thinned(Box<Thinned<'a>>),
    Stocked(Stocked<'a>),
    Elected(Elected<'a>),
    Moved(Moved<'a>),
    Scaled {
        of: Box<Node<'a>>,
        by: f64,
    },
    Noisy(Noisy<'a>),
    Redrawn(Redrawn<'a>),
    Normal {
        draws: Draws,
        std: f64,
    },
    Uniform {
        draws: Draws,
        std: f64,
    },
    Orthogonal {
        draws: Draws,
        gain: f64,
        rows: usize,
        columns: usize,
    },
    Constant(f64),
    Identity {
        columns: u64,
    },
}

/// Values summed in one go: few enough that a term and its sum stay in the cache of a core.
const SUMMED: usize = 1 << 14;

/// `sums += weight * values`.
#[multiversion(targets("x86_64+avx2"))]
fn add(sums: &mut [f64], values: &[f64], weight: f64) {
    sums.iter_mut()
        .zip(values)
        .for_each(|(sum, value)| *sum += weight * value);
}

impl<'a> Node<'a> {
    /// Whether in `dtype` it is bytes of sources, never decoded.
    pub(super) fn moves_bytes(&self, dtype: Dtype) -> bool {
        match self {
            Self::Read { entry, .. } => entry.encoding == Encoding::Plain(dtype),
            Self::Adapted(adapted) => adapted.dtype() == dtype,
            Self::Moved(moved) => moved.parts.iter().all(|part| part.moves_bytes(dtype)),
            _ => false,
        }
    }

    /// Bytes of elements `first..`, rounded to `dtype` where they are not moved; `dtype` is a float or they are moved.
    pub(super) fn bytes(
        &self,
        dtype: Dtype,
        first: u64,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let size = dtype.bitsize() / 8;
        match self {
            Self::Read {
                checkpoint, entry, ..
            } if entry.encoding == Encoding::Plain(dtype) => {
                checkpoint.read_bytes(entry, first * size as u64, out)
            }
            Self::Adapted(adapted) if adapted.dtype() == dtype => {
                adapted.bytes(first * size as u64, out)
            }
            Self::Moved(moved) if self.moves_bytes(dtype) => {
                moved.fill(first, out, size, scratch, |part, first, out, scratch| {
                    part.bytes(dtype, first, out, scratch)
                })
            }
            _ => {
                let mut values = std::mem::take(&mut scratch.values);
                values.resize(out.len() / size, 0.0);
                self.values(first, &mut values, scratch)?;
                // The dtype was checked to be a float when the plan was compiled.
                let _ = dtype::encode(dtype, &values, out);
                scratch.values = values;
                Ok(())
            }
        }
    }

    /// Values of elements `first..` in `f64`.
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        match self {
            Self::Read {
                checkpoint, entry, ..
            } => {
                let mut raw = std::mem::take(&mut scratch.raw);
                let done = checkpoint.read_values(entry, first, out, &mut raw);
                scratch.raw = raw;
                done
            }
            Self::Adapted(adapted) => adapted.values(first, out),
            Self::BlockScaled(scaled) => scaled.values(first, out, scratch),
            Self::Sum {
                parts,
                weights,
                divisor,
            } => {
                let mut term = scratch.free.pop().unwrap_or_default();
                for (block, sums) in out.chunks_mut(SUMMED).enumerate() {
                    let first = first + (block * SUMMED) as u64;
                    term.resize(sums.len(), 0.0);
                    for (number, part) in parts.iter().enumerate() {
                        part.values(first, &mut term, scratch)?;
                        let weight = weights.map_or(1.0, |weights| weights[number]);
                        match number {
                            // Not added to 0, which would lose the sign of −0.
                            0 => sums
                                .iter_mut()
                                .zip(&term)
                                .for_each(|(sum, value)| *sum = weight * value),
                            _ => add(sums, &term, weight),
                        }
                    }
                    sums.iter_mut().for_each(|sum| *sum /= divisor);
                }
                scratch.free.push(term);
                Ok(())
            }
            Self::Slerp(slerp) => slerp.values(first, out, scratch),
            Self::Thinned(thinned) => thinned.values(first, out, scratch),
            Self::Stocked(stocked) => stocked.values(first, out, scratch),
            Self::Elected(elected) => elected.values(first, out, scratch),
            Self::Moved(moved) => moved.fill(first, out, 1, scratch, Node::values),
            Self::Scaled { of, by } => {
                of.values(first, out, scratch)?;
                out.iter_mut().for_each(|value| *value *= by);
                Ok(())
            }
            Self::Noisy(noisy) => noisy.values(first, out, scratch),
            Self::Redrawn(redrawn) => redrawn.values(first, out, scratch),
            Self::Normal { draws, std } => {
                draws.normal(first, out);
                out.iter_mut().for_each(|value| *value *= std);
                Ok(())
            }
            Self::Uniform { draws, std } => {
                draws.uniform(first, out);
                let reach = libm::sqrt(3.0) * std;
                out.iter_mut()
                    .for_each(|value| *value = (2.0 * *value - 1.0) * reach);
                Ok(())
            }
            Self::Orthogonal {
                draws,
                gain,
                rows,
                columns,
            } => {
                let matrix = draws.orthonormal(*rows, *columns);
                out.iter_mut()
                    .zip(&matrix[first as usize..])
                    .for_each(|(value, drawn)| *value = gain * drawn);
                Ok(())
            }
            Self::Constant(value) => {
                out.fill(*value);
                Ok(())
            }
            Self::Identity { columns } => {
                for (element, value) in (first..).zip(out) {
                    *value = if element / columns == element % columns {
                        1.0
                    } else {
                        0.0
                    };
                }
                Ok(())
            }
        }
    }

    /// The error for a value that is not finite: which source tensor holds it, or that it overflows.
    pub(super) fn blame(
        &self,
        element: u64,
        layout: &TensorLayout,
        scratch: &mut Scratch,
    ) -> Result<Error> {
        let mut value = [0.0];
        self.values(element, &mut value, scratch)?;
        let parts: Vec<&Node> = match self {
            Self::Sum { parts, .. } | Self::Elected(Elected { of: parts, .. }) => {
                parts.iter().collect()
            }
            Self::Slerp(slerp) => slerp.parts().collect(),
            Self::Thinned(thinned) => vec![thinned.part()],
            Self::Stocked(stocked) => stocked.parts().iter().collect(),
            _ => Vec::new(),
        };
        if !value[0].is_finite() {
            for part in parts {
                if part.is_not_finite(element, scratch)? {
                    return part.blame(element, layout, scratch);
                }
            }
            match self {
                Self::Read {
                    checkpoint,
                    entry,
                    tensor,
                } => {
                    return Ok(PlanError::NotFiniteElement {
                        path: checkpoint.files[entry.file].path().to_path_buf(),
                        tensor: (*tensor).to_owned(),
                        element,
                        value: value[0],
                    }
                    .into());
                }
                Self::Adapted(adapted) => {
                    return Ok(PlanError::NotFiniteElement {
                        path: adapted.path(),
                        tensor: adapted.name().to_owned(),
                        element,
                        value: value[0],
                    }
                    .into());
                }
                Self::Moved(moved) => {
                    let (part, element) = moved.origin(element, scratch);
                    return part.blame(element, layout, scratch);
                }
                Self::BlockScaled(BlockScaled { of, .. })
                | Self::Scaled { of, .. }
                | Self::Noisy(Noisy { of, .. })
                | Self::Redrawn(Redrawn { of, .. })
                    if of.is_not_finite(element, scratch)? =>
                {
                    return of.blame(element, layout, scratch);
                }
                _ => {}
            }
        }
        Ok(PlanError::Overflow {
            tensor: layout.name.clone(),
            element,
            value: value[0],
            dtype: layout.dtype,
        }
        .into())
    }

    fn is_not_finite(&self, element: u64, scratch: &mut Scratch) -> Result<bool> {
        let mut value = [0.0];
        self.values(element, &mut value, scratch)?;
        Ok(!value[0].is_finite())
    }
}
