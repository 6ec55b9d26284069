//! GPUs: how many there are, their memory, and how a library says that it has run out of it.
//!
//! Only a build with the feature `cuda` can ask. All of this file's differences between builds are in `driver`.

use candle_core::Device;

use crate::table;

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// All of it.
    pub total: u64,
    /// The part that nobody uses.
    pub free: u64,
}

impl GpuMemory {
    /// Of the GPU of `device` as it is now; `None` on a CPU, and where the driver does not tell.
    pub fn of(device: &Device) -> Option<Self> {
        driver::memory(device)
    }

    /// Of the GPU that this thread computes on; `None` without one, and where the driver does not tell.
    pub(crate) fn current() -> Option<Self> {
        driver::current_memory()
    }

    /// In words: `20.1 GB of 23.0 GB free`.
    pub fn text(self) -> String {
        let (free, total) = (table::bytes(self.free), table::bytes(self.total));
        format!("{free} of {total} free")
    }
}

/// The number of GPUs that CUDA finds, or why it cannot say.
///
/// # Errors
/// A build without CUDA, and a machine without a driver.
pub fn count() -> Result<usize, String> {
    driver::count()
}

/// The largest memory that tensors on the GPU of `device` have had, in bytes; `None` on a CPU, and where the driver does not
/// tell.
pub fn peak_memory(device: &Device) -> Option<u64> {
    driver::peak_memory(device)
}

/// Makes the memory in use now the peak, once the GPU has done all its work.
pub fn forget_peak(device: &Device) {
    driver::forget_peak(device);
}

/// Lets freed memory of a GPU stay with this process for the next tensor, instead of going back to the driver at every wait.
pub fn keep_freed(device: &Device) {
    driver::keep_freed(device);
}

/// Whether an error of the tensor library says that a device has run out of memory.
///
/// candle passes on the names of the driver's and of cuBLAS's errors, as text alone.
pub(crate) fn is_out_of_memory(problem: &str) -> bool {
    const NAMES: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
    NAMES.iter().any(|name| problem.contains(name))
}

#[cfg(feature = "cuda")]
mod driver {
    use std::ffi::c_void;

    use candle_core::Device;
    use candle_core::cuda_backend::cudarc::driver::sys::{
        CUmemPool_attribute, CUmemoryPool, cuMemPoolGetAttribute, cuMemPoolSetAttribute,
    };
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};

    use super::GpuMemory;

    pub(super) fn count() -> Result<usize, String> {
        match CudaContext::device_count() {
            Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(problem) => Err(problem.to_string()),
        }
    }

    pub(super) fn memory(device: &Device) -> Option<GpuMemory> {
        let stream = device.as_cuda_device().ok()?.cuda_stream();
        stream.context().bind_to_thread().ok()?;
        current_memory()
    }

    pub(super) fn current_memory() -> Option<GpuMemory> {
        let (free, total) = result::mem_get_info().ok()?;
        Some(GpuMemory {
            total: total as u64,
            free: free as u64,
        })
    }

    pub(super) fn peak_memory(device: &Device) -> Option<u64> {
        let pool = pool(device)?;
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's own, and this attribute is a 64-bit number, which `bytes` has room for.
        let status = unsafe {
            cuMemPoolGetAttribute(
                pool,
                CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
                (&raw mut bytes).cast::<c_void>(),
            )
        };
        status.result().ok()?;
        Some(bytes).filter(|bytes| *bytes > 0)
    }

    pub(super) fn forget_peak(device: &Device) {
        // Tensors are freed in the order of the stream: without this, those that were dropped may count.
        if device.synchronize().is_ok() {
            // The driver takes no number but 0 here, and continues from the memory in use.
            set(
                device,
                CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
                0,
            );
        }
    }

    pub(super) fn keep_freed(device: &Device) {
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        set(device, attribute, u64::MAX);
    }

    /// Sets an attribute whose values are 64-bit numbers. Where the driver refuses, the pool works as before.
    fn set(device: &Device, attribute: CUmemPool_attribute, mut value: u64) {
        let Some(pool) = pool(device) else { return };
        // SAFETY: the pool is the device's own, and the driver reads a 64-bit number for these attributes.
        let _ =
            unsafe { cuMemPoolSetAttribute(pool, attribute, (&raw mut value).cast::<c_void>()) };
    }

    /// The pool that tensors on a device come from.
    fn pool(device: &Device) -> Option<CUmemoryPool> {
        let stream = device.as_cuda_device().ok()?.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().ok()?;
        // SAFETY: the device is the one of an open context.
        unsafe { result::device::get_mem_pool(context.cu_device()) }.ok()
    }
}

#[cfg(not(feature = "cuda"))]
mod driver {
    use candle_core::Device;

    use super::GpuMemory;

    pub(super) fn count() -> Result<usize, String> {
        Err("this build of bam-convert has no CUDA support".to_owned())
    }

    pub(super) fn memory(_: &Device) -> Option<GpuMemory> {
        None
    }

    pub(super) fn current_memory() -> Option<GpuMemory> {
        None
    }

    pub(super) fn peak_memory(_: &Device) -> Option<u64> {
        None
    }

    pub(super) fn forget_peak(_: &Device) {}

    pub(super) fn keep_freed(_: &Device) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc 0.19 prints its errors, which candle 0.11 passes on.
    #[test]
    fn errors_of_the_driver_and_of_cublas_say_that_memory_is_out() {
        for problem in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            assert!(is_out_of_memory(problem), "{problem}");
        }
        for problem in [
            "DriverError(CUDA_ERROR_INVALID_DEVICE, \"invalid device ordinal\")",
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
            "shape mismatch in add, lhs: [2], rhs: [3]",
        ] {
            assert!(!is_out_of_memory(problem), "{problem}");
        }
    }

    #[test]
    fn a_cpu_has_no_memory_of_a_gpu() {
        assert_eq!(GpuMemory::of(&Device::Cpu), None);
        assert_eq!(peak_memory(&Device::Cpu), None);
    }
}
