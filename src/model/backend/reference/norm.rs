//! Root-mean-square and layer norm.

use candle_core::{D, DType, Result, Tensor};

use crate::family::NormType;
use crate::model::modules::Norm;
use crate::model::params::Mode;

/// Normalises `x` `[.., size]` (`[.., heads, size]`).
pub(super) fn forward(norm: &Norm, x: &Tensor, mode: Mode) -> Result<Tensor> {
    // candle's fused norm has no gradient, no weights per head, and no float64.
    let is_fused = mode == Mode::Infer && norm.kind == NormType::Rms && x.dtype() != DType::F64;
    if is_fused && norm.weight.rank() == 1 {
        return candle_nn::ops::rms_norm(&x.contiguous()?, &norm.weight, norm.eps as f32);
    }
    let dtype = x.dtype();
    let x = x.to_dtype(at_least_f32(dtype))?;
    let x = match norm.kind {
        NormType::Rms => x,
        NormType::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
    };
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + norm.eps)?.sqrt()?;
    let x = x.broadcast_div(&deviation)?;
    match norm.kind {
        // Half-precision models round where their family does: Llama before the weight, Cohere after it.
        NormType::Rms => x.to_dtype(dtype)?.broadcast_mul(&norm.weight),
        NormType::Layer => x
            .broadcast_mul(&norm.weight.to_dtype(x.dtype())?)?
            .to_dtype(dtype),
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
