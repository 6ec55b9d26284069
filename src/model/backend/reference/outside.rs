//! Values that are computed outside candle's graph, with a gradient of their own.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor};

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

/// `value`, which was computed from three tensors outside the graph, as an operation on them. `gradients` are their gradients
/// from the tensors and the gradient of the output.
pub(super) fn with_gradients(
    inputs: [&Tensor; 3],
    value: Tensor,
    gradients: impl Fn([&Tensor; 3], &Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let [first, second, third] = inputs;
    let value = Mutex::new(Some(value));
    first.apply_op3(second, third, OutsideOfThree { value, gradients })
}

struct OutsideOfThree<F> {
    /// Taken by the forward pass, so that the graph does not hold it twice.
    value: Mutex<Option<Tensor>>,
    gradients: F,
}

impl<F> OutsideOfThree<F> {
    fn value(&self) -> Result<Tensor> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        match value.take() {
            Some(value) => value.contiguous(),
            None => candle_core::bail!("the value of an operation was taken before"),
        }
    }
}

impl<F: Fn([&Tensor; 3], &Tensor) -> Result<[Tensor; 3]>> CustomOp3 for OutsideOfThree<F> {
    fn name(&self) -> &'static str {
        "outside-of-three"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let value = self.value()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("expected a value on the CPU"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let value = self.value()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("expected a value on a GPU"),
        }
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        third: &Tensor,
        _: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [first, second, third] = (self.gradients)([first, second, third], grad_output)?;
        Ok((Some(first), Some(second), Some(third)))
    }
}
