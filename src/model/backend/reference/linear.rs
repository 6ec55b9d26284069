//! Matmuls with parameters.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};

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
        let value = x.detach().matmul(&weight.t()?)?;
        x.apply_op2(&value, FrozenMatmul(weight.clone()))?
    } else {
        x.matmul(&weight.t()?)?
    };
    product.reshape(shape)
}

/// `value`, which is `x · weightᵀ` computed outside the graph, as an operation whose gradient goes to `x` alone.
///
/// candle's own matmul computes a gradient for both factors, and keeps the weight's until the end of the backward pass.
struct FrozenMatmul(Tensor);

impl CustomOp2 for FrozenMatmul {
    fn name(&self) -> &'static str {
        "frozen-matmul"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        value: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        value: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad_output.matmul(&self.0)?), None))
    }
}
