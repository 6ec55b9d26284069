//! Numbers of candle tensors in the host's memory.

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor};

/// Values that a thread takes at a time in elementwise passes. Sums are taken over pieces of this size, in order, so that
/// they are the same on any number of threads.
pub(super) const PIECE: usize = 1 << 14;

/// Where the numbers of gradients and of the optimiser are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residence {
    /// In memory that kernels for the CPU change in place.
    Host,
    /// On a device, where candle computes.
    Device,
}

/// What the reference computes at once, at most. Both limits bound memory; a GPU has more of it, and needs larger matmuls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkLimits {
    /// Logits of tokens.
    pub logits: usize,
    /// Scores of queries and keys.
    pub scores: usize,
    /// Queries of a sequence, whatever their number of scores.
    pub least_queries: usize,
}

impl WorkLimits {
    /// On a GPU, or on the host, where caches are small.
    pub const fn of(gpu: bool) -> Self {
        if gpu {
            Self {
                logits: 1 << 28,
                scores: 1 << 27,
                least_queries: 16,
            }
        } else {
            Self {
                logits: 1 << 23,
                scores: 1 << 24,
                least_queries: 16,
            }
        }
    }

    /// Queries of a sequence that attention handles together, if each has so many scores.
    pub fn queries(self, scores_of_query: usize) -> usize {
        (self.scores / scores_of_query.max(1)).max(self.least_queries)
    }
}

impl Residence {
    pub(super) fn limits(self) -> WorkLimits {
        WorkLimits::of(self == Self::Device)
    }
}

/// The values of a contiguous float32 tensor on the CPU.
pub(super) fn floats<'a>((storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<&'a [f32]> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected contiguous float32 on the CPU"),
    }
}

/// `values` of `shape`, added to `grad_input` where there is a sum already.
pub(super) fn add_to(
    grad_input: Option<Tensor>,
    values: Vec<f32>,
    shape: &Shape,
) -> Result<Tensor> {
    let gradient = Tensor::from_vec(values, shape, &Device::Cpu)?;
    match grad_input {
        Some(sum) => sum + gradient,
        None => Ok(gradient),
    }
}
