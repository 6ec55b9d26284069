//! Values that are computed outside candle's graph, with a gradient of their own.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// `value`, which was computed from `x` outside the graph, as an operation on `x`. `gradient` is the gradient of `x` from `x` and
/// the gradient of the output.
pub(super) fn with_gradient(
    x: &Tensor,
    value: &Tensor,
    gradient: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op2(value, Outside(gradient))
}

struct Outside<F>(F);

impl<F: Fn(&Tensor, &Tensor) -> Result<Tensor>> CustomOp2 for Outside<F> {
    fn name(&self) -> &'static str {
        "outside"
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
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some((self.0)(x, grad_output)?), None))
    }
}
