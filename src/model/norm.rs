//! Root-mean-square and layer norm, weight only, over the last dimension.

use candle_core::{D, DType, Result, Tensor};

use super::params::Mode;
use crate::family::NormType;

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
            NormType::Layer => x.broadcast_mul(&self.weight.to_dtype(x.dtype())?)?.to_dtype(dtype),
        }
    }
}

/// float32, or `dtype` where it is wider.
pub(super) fn at_least_f32(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
