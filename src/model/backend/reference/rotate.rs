//! Rotary position embeddings of queries and keys.

use candle_core::{D, Result, Tensor};

use crate::model::params::Mode;
use crate::model::rope::Rotation;

/// Rotates queries or keys `[batch, seq, heads, head_dim]`.
pub(in crate::model) fn apply(x: &Tensor, rotation: &Rotation, mode: Mode) -> Result<Tensor> {
    let Rotation {
        cos,
        sin,
        interleaved,
    } = rotation;
    let (pairs, head_dim) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    // candle's fused rotation has no gradient.
    if mode == Mode::Infer && !interleaved && 2 * pairs == head_dim && cos.dim(0)? == 1 {
        let flat = |t: &Tensor| t.reshape((t.dim(1)?, pairs));
        return candle_nn::rotary_emb::rope_thd(&x.contiguous()?, &flat(cos)?, &flat(sin)?);
    }

    let rotated = x.narrow(D::Minus1, 0, 2 * pairs)?;
    let rotated = if *interleaved {
        let (batch, seq, heads, _) = rotated.dims4()?;
        let x = rotated.reshape((batch, seq, heads, pairs, 2))?;
        let (first, second) = (
            x.narrow(4, 0, 1)?.squeeze(4)?,
            x.narrow(4, 1, 1)?.squeeze(4)?,
        );
        let (first, second) = rotate(&first, &second, cos, sin)?;
        Tensor::stack(&[first, second], 4)?.reshape((batch, seq, heads, 2 * pairs))?
    } else {
        let (first, second) = (
            rotated.narrow(D::Minus1, 0, pairs)?,
            rotated.narrow(D::Minus1, pairs, pairs)?,
        );
        let (first, second) = rotate(&first, &second, cos, sin)?;
        Tensor::cat(&[first, second], D::Minus1)?
    };

    if 2 * pairs == head_dim {
        return Ok(rotated);
    }
    let rest = x.narrow(D::Minus1, 2 * pairs, head_dim - 2 * pairs)?;
    Tensor::cat(&[rotated, rest], D::Minus1)
}

fn rotate(first: &Tensor, second: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor)> {
    let new_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let new_second = (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?;
    Ok((new_first, new_second))
}
