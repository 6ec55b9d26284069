//! Root-mean-square and layer norm.

use candle_core::{D, DType, Result, Tensor};

use crate::family::NormType;
use crate::model::modules::Norm;
use crate::model::params::Mode;

/// Normalises `x` `[.., size]` (`[.., heads, size]`).
pub(super) fn forward(norm: &Norm, x: &Tensor, mode: Mode) -> Result<Tensor> {
    // candle's fused norm has no gradient, no weights per head, no bias, no offset, and no float64.
    let is_fused = mode == Mode::Infer && norm.kind == NormType::Rms && x.dtype() != DType::F64;
    if is_fused && norm.weight.rank() == 1 && norm.bias.is_none() && !norm.offset {
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
    // Half-precision models round where their family does: Llama before the weight, Cohere and Gemma after it.
    let x = if norm.kind == NormType::Rms && !norm.offset {
        x.to_dtype(dtype)?
    } else {
        x
    };
    let mut weight = norm.weight.to_dtype(x.dtype())?;
    if norm.offset {
        weight = (weight + 1.0)?;
    }
    let mut out = x.broadcast_mul(&weight)?;
    if let Some(bias) = &norm.bias {
        out = out.broadcast_add(&bias.to_dtype(out.dtype())?)?;
    }
    out.to_dtype(dtype)
}

/// float32, or `dtype` where it is wider.
pub(super) fn at_least_f32(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}
