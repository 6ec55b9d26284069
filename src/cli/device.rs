//! The device and the dtype that a model computes with.

use std::path::Path;

use bam_convert::Error;
use bam_convert::family::{Architecture, Config};
use bam_convert::model::{LoadOptions, Weights};
use candle_core::{DType, Device};
use clap::ValueEnum;
use safetensors::Dtype;

use super::error::{CliError, Result};

/// Values of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// All cores.
    Cpu,
    /// The first NVIDIA GPU, in a build with the feature `cuda`.
    Cuda,
}

impl DeviceName {
    /// Opens the device.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda if !candle_core::utils::cuda_is_available() => Err(CliError::NoCuda),
            Self::Cuda => {
                let device = Device::new_cuda(0);
                Ok(device.map_err(|e| Error::compute("open the CUDA device", e))?)
            }
        }
    }
}

/// Values of `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeDtype {
    /// Weights and activations in float32.
    F32,
    /// Weights in bfloat16; activations too, but on the CPU, where they are float32 with stored bfloat16 weights.
    Bf16,
}

/// How to load the checkpoint in `folder` for inference; without `dtype`, in its own.
pub fn load_options(
    folder: &Path,
    device: DeviceName,
    dtype: Option<ComputeDtype>,
) -> Result<LoadOptions> {
    let stored = Architecture::of(&Config::read(folder)?)?.dtype;
    let dtype = dtype.unwrap_or(match stored {
        Some(Dtype::BF16) => ComputeDtype::Bf16,
        _ => ComputeDtype::F32,
    });
    let device = device.open()?;
    let (dtype, weights) = match dtype {
        ComputeDtype::F32 => (DType::F32, Weights::Widened),
        // The same products as from widened weights, in half the memory.
        ComputeDtype::Bf16 if device.is_cpu() && stored == Some(Dtype::BF16) => {
            (DType::F32, Weights::Stored)
        }
        ComputeDtype::Bf16 => (DType::BF16, Weights::Widened),
    };
    Ok(LoadOptions {
        device,
        dtype,
        weights,
        ..LoadOptions::default()
    })
}
