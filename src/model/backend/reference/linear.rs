//! Matmuls with parameters.

use candle_core::{D, Result, Tensor};

use super::outside::with_gradient;
use crate::model::modules::Matrix;

/// `x · matrixᵀ` for `x` `[.., in]`, as `[.., out]`.
pub(super) fn matmul(matrix: &Matrix, x: &Tensor) -> Result<Tensor> {
    let weight = matrix.tensor()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let x = x.reshape(((), x.dim(D::Minus1)?))?;
    let is_frozen = matches!(matrix, Matrix::Frozen(_));
    let product = if is_frozen && x.track_op() {
        // candle's own matmul computes a gradient for both factors, and keeps the weight's until the end of the backward pass.
        let value = x.detach().matmul(&weight.t()?)?;
        let weight = weight.clone();
        with_gradient(&x, &value, move |_, grad_output| {
            grad_output.matmul(&weight)
        })?
    } else {
        x.matmul(&weight.t()?)?
    };
    product.reshape(shape)
}
