//! A run that is asked for.

use std::ffi::OsString;
use std::path::PathBuf;

use candle_core::{Device, DeviceLocation};

use super::settings::{Operation, Settings};
use super::torch::Launch;

/// A run that is asked for.
pub struct Request {
    /// Folder of the checkpoint that training begins with.
    pub checkpoint: PathBuf,
    /// The weight file that the folder was converted from for this run, which the output then names as its source.
    pub origin: Option<PathBuf>,
    /// Name, token folder and weight of each domain.
    pub data: Vec<(String, PathBuf, f64)>,
    /// Folder to make.
    pub out: PathBuf,
    /// What the weights follow from; [`Settings::data`] is filled in here.
    pub settings: Settings,
    /// How the run goes about it.
    pub operation: Operation,
    /// What computes.
    pub engine: EngineRequest,
}

/// What computes a run.
#[derive(Clone, Debug)]
pub enum EngineRequest {
    /// This program's trainer, on a device.
    Native(Device),
    /// Processes of PyTorch.
    Torch(TorchRequest),
}

/// Processes of PyTorch that are asked for.
#[derive(Clone, Debug)]
pub struct TorchRequest {
    /// The Python that has torch.
    pub python: PathBuf,
    /// The device of each process.
    pub device: TorchDevice,
    /// Memory of the smallest GPU in bytes, where it is known.
    pub gpu_memory: Option<u64>,
    /// Processes of each node.
    pub processes: u64,
    /// Where they run.
    pub launch: Launch,
    /// Whether torch compiles the layers.
    pub compile: bool,
    /// Words in front of a command that end all that it has started where standard input closes; none to go without.
    pub supervisor: Vec<OsString>,
}

/// A device of PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchDevice {
    /// Cores of the CPU; processes talk by gloo.
    Cpu,
    /// The GPU with this number for the only process of a node, or one GPU for each process; they talk by NCCL.
    Cuda(Option<usize>),
}

/// Where a run computes, as far as estimates need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The number of the GPU, of several the first; none on the CPU.
    pub gpu: Option<usize>,
    /// Number of processes of PyTorch; `None` for this program's trainer.
    pub ranks: Option<u64>,
}

impl EngineRequest {
    /// Where it computes.
    pub fn placement(&self) -> Placement {
        match self {
            Self::Native(device) => Placement {
                gpu: match device.location() {
                    DeviceLocation::Cuda { gpu_id } => Some(gpu_id),
                    _ => None,
                },
                ranks: None,
            },
            Self::Torch(torch) => Placement {
                gpu: match torch.device {
                    TorchDevice::Cpu => None,
                    TorchDevice::Cuda(number) => Some(number.unwrap_or(0)),
                },
                ranks: Some(torch.ranks()),
            },
        }
    }
}

impl TorchRequest {
    /// Number of processes, all nodes together.
    pub fn ranks(&self) -> u64 {
        self.processes * self.launch.nodes()
    }
}

impl TorchDevice {
    /// Its name, as torch has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// The number of the only GPU, where one was chosen.
    pub fn number(self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            Self::Cuda(number) => number,
        }
    }
}
