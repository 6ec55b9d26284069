//! Root-mean-square and layer norm, weight only, over the last dimension.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::fused;
use super::kernels::normalise;
use super::params::Mode;
use super::pass::on_cpu;
use super::stored::floats;
use crate::family::NormType;

/// Values below which waking a second thread takes longer than the norm.
const SERIAL: usize = 1 << 14;

/// A norm with its weight `[size]`, or `[heads, size]` where each head has its own.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) kind: NormType,
    pub(super) weight: Tensor,
    pub(super) eps: f64,
    pub(super) mode: Mode,
}

impl Norm {
    /// Normalises `x` `[.., size]` (`[.., heads, size]`); statistics are in float32 at least.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if on_cpu(x) {
            return match self.mode {
                Mode::Train => fused::norm(x, &self.weight, self.fused()?),
                Mode::Infer => self.on_cpu(&x.contiguous()?),
            };
        }
        if self.mode == Mode::Infer && self.kind == NormType::Rms && self.weight.rank() == 1 {
            return candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.eps as f32);
        }
        let dtype = x.dtype();
        let x = x.to_dtype(at_least_f32(dtype))?;
        let x = match self.kind {
            NormType::Rms => x,
            NormType::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        };
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let x = x.broadcast_div(&deviation)?;
        match self.kind {
            // Where the rounding of half-precision models falls is each family's habit: Llama's, and Cohere's.
            NormType::Rms => x.to_dtype(dtype)?.broadcast_mul(&self.weight),
            NormType::Layer => x
                .broadcast_mul(&self.weight.to_dtype(x.dtype())?)?
                .to_dtype(dtype),
        }
    }

    /// For a fused operation.
    pub(super) fn fused(&self) -> Result<fused::Norm> {
        fused::Norm::new(&self.weight, self.eps, self.kind == NormType::Layer)
    }

    /// The same in one pass over float32 on the CPU.
    fn on_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.dim(D::Minus1)?;
        let (values, weight) = (x.storage_and_layout(), self.weight.storage_and_layout());
        let (values, weight) = (floats(&values)?, floats(&weight)?);
        let mut out = vec![0f32; values.len()];
        let heads = weight.len() / size;
        let row = |(number, (x, out)): (usize, (&[f32], &mut [f32]))| {
            let weight = &weight[number % heads * size..][..size];
            normalise(x, weight, self.eps, self.kind == NormType::Layer, out);
        };
        if values.len() < SERIAL {
            values
                .chunks(size)
                .zip(out.chunks_mut(size))
                .enumerate()
                .for_each(row);
        } else {
            values
                .par_chunks(size)
                .zip(out.par_chunks_mut(size))
                .enumerate()
                .with_min_len(16)
                .for_each(row);
        }
        Tensor::from_vec(out, x.shape(), x.device())
    }
}

/// float32, or `dtype` where it is wider.
pub(super) fn at_least_f32(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}
