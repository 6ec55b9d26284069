//! The device and the dtype that a model computes with.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use bam_convert::family::{Architecture, Config};
use bam_convert::gpu;
use bam_convert::model::{LoadOptions, Weights};
use bam_convert::{Error, table};
use candle_core::{DType, Device};
use clap::builder::{PossibleValue, TypedValueParser, ValueParserFactory};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, ValueEnum};
use safetensors::Dtype;

use super::error::{CliError, Result};

/// Values of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// All cores.
    Cpu,
    /// The NVIDIA GPU with this number; without one the first, or all that PyTorch finds.
    Cuda(Option<usize>),
}

/// Names of devices; `N` is a number.
const NAMES: [&str; 3] = ["cpu", "cuda", "cuda:N"];

impl DeviceName {
    /// The number of its GPU, of several the first; none of the CPU.
    pub fn gpu(self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            Self::Cuda(number) => Some(number.unwrap_or(0)),
        }
    }

    /// Opens the device.
    pub fn open(self) -> Result<Device> {
        let Some(number) = self.gpu() else {
            return Ok(Device::Cpu);
        };
        if !candle_core::utils::cuda_is_available() {
            return Err(CliError::NoCuda);
        }
        let found = gpu::count().map_err(|problem| CliError::NoDriver {
            device: self.to_string(),
            problem,
        })?;
        if number >= found {
            return Err(CliError::NoGpu {
                device: self.to_string(),
                found: table::counted(found as u64, "GPU"),
            });
        }
        let device =
            Device::new_cuda(number).map_err(|e| Error::compute("open the CUDA device", e))?;
        gpu::keep_freed(&device);
        Ok(device)
    }
}

impl FromStr for DeviceName {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or(())?;
                let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.parse().map_err(drop)?;
                is_plain.then_some(Self::Cuda(Some(number))).ok_or(())
            }
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

/// Reads values of `--device`.
#[derive(Clone)]
pub struct DeviceParser;

impl ValueParserFactory for DeviceName {
    type Parser = DeviceParser;

    fn value_parser() -> DeviceParser {
        DeviceParser
    }
}

impl TypedValueParser for DeviceParser {
    type Value = DeviceName;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> std::result::Result<DeviceName, clap::Error> {
        let text = value.to_string_lossy();
        text.parse().map_err(|()| {
            let mut error = clap::Error::new(ErrorKind::InvalidValue).with_cmd(command);
            let argument = argument.map(ToString::to_string).unwrap_or_default();
            let names = NAMES.map(str::to_owned).to_vec();
            let context = [
                (ContextKind::InvalidArg, ContextValue::String(argument)),
                (
                    ContextKind::InvalidValue,
                    ContextValue::String(text.into_owned()),
                ),
                (ContextKind::ValidValue, ContextValue::Strings(names)),
            ];
            for (kind, value) in context {
                error.insert(kind, value);
            }
            error
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue>>> {
        let help = [
            "All cores",
            "The first NVIDIA GPU, or as cuda:N the one with the number N; with --engine torch all GPUs, or one",
            "",
        ];
        let values = NAMES.into_iter().zip(help);
        // A shell cannot complete a number that it does not know.
        Some(Box::new(values.map(|(name, help)| {
            PossibleValue::new(name).help(help).hide(help.is_empty())
        })))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [
            ("cpu", DeviceName::Cpu),
            ("cuda", DeviceName::Cuda(None)),
            ("cuda:0", DeviceName::Cuda(Some(0))),
            ("cuda:12", DeviceName::Cuda(Some(12))),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        for text in [
            "", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:N", "cuda:1.0",
        ] {
            assert_eq!(text.parse::<DeviceName>(), Err(()), "{text}");
        }
    }
}
