//! GELU, with the error function or with its approximation.

use std::f64::consts::{PI, SQRT_2};

use candle_core::{Result, Tensor};

use super::outside::with_gradient;

/// `x · Φ(x)` with the error function.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        // candle's own gradient has six digits.
        with_gradient(x, &x.detach().gelu_erf()?, |x, grad_output| {
            let density = ((x.sqr()? / -2.0)?.exp()? / (2.0 * PI).sqrt())?;
            let below = ((x / SQRT_2)?.erf()? + 1.0)?;
            ((below / 2.0)? + (x * density)?)? * grad_output
        })
    } else {
        x.gelu_erf()
    }
}

/// Its approximation with the hyperbolic tangent.
pub(super) fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    /// The factor on the cube.
    const CUBIC: f64 = 0.044_715;
    if x.track_op() {
        with_gradient(x, &x.detach().gelu()?, |x, grad_output| {
            let factor = (2.0 / PI).sqrt();
            let square = x.sqr()?;
            let tanh = ((x * ((&square * CUBIC)? + 1.0)?)? * factor)?.tanh()?;
            let inner = ((square * (3.0 * CUBIC))? + 1.0)? * factor;
            let slope = (1.0 - tanh.sqr()?)? * inner?;
            let twice = ((tanh + 1.0)? + (x * slope?)?)?;
            (twice / 2.0)? * grad_output
        })
    } else {
        x.gelu()
    }
}
