//! `--engine`: what trains, where, and in how many processes.

use std::ffi::OsString;
use std::path::PathBuf;

use bam_convert::arguments::TrustedText;
use bam_convert::train::{
    EngineRequest, Launch, Placement, Probe, TorchDevice, TorchError, TorchRequest, default_python,
    probe,
};
use candle_core::Device;
use clap::{Args, ValueEnum};

use super::device::DeviceName;
use super::error::{CliError, Result};
use super::printer::Printer;
use super::run::SUPERVISE;

/// Port of the first node on which the processes of a job of Slurm find each other: the first, plus the job's number.
const FIRST_PORT: u64 = 20_000;
const PORTS: u64 = 40_000;

/// What trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// This program.
    Native,
    /// PyTorch, on GPUs or the CPU, in one process or many.
    Torch,
    /// PyTorch where it finds a GPU or trains on several nodes, else this program.
    Auto,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineFlags {
    /// What trains.
    #[arg(long, value_enum, default_value_t = EngineName::Native)]
    engine: EngineName,
    /// The Python that has torch [default: the active virtual environment's, or python3].
    #[arg(long, value_name = "PYTHON")]
    python: Option<TrustedText>,
    /// Processes of torch on each node [default: one for each GPU; one on the CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    nproc_per_node: Option<u64>,
    /// Nodes that train together [default: all nodes of a job of Slurm, else 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65536))]
    nnodes: Option<u64>,
    /// Number of this node, from 0; the same command runs on each. Slurm knows it itself.
    #[arg(long, value_name = "K", requires = "rdzv_endpoint")]
    node_rank: Option<u64>,
    /// Where the processes of all nodes find each other: a port of node 0.
    #[arg(long, value_name = "HOST:PORT", requires = "node_rank")]
    rdzv_endpoint: Option<TrustedText>,
    /// Let torch compile the layers, which takes some minutes at the start.
    #[arg(long)]
    compile: bool,
}

/// Why an engine is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To train.
    Run,
    /// To estimate what training would take.
    DryRun,
}

/// A job of Slurm that this process is the first of, and not one of its tasks.
struct SlurmJob {
    nodes: u64,
    endpoint: String,
    cpus: Option<String>,
}

impl SlurmJob {
    fn of_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let job: u64 = variable("SLURM_JOB_ID")?.parse().ok()?;
        if variable("SLURM_STEP_ID").is_some() {
            return None;
        }
        let host = variable("SLURMD_NODENAME")?;
        Some(Self {
            nodes: variable("SLURM_JOB_NUM_NODES")?.parse().ok()?,
            endpoint: format!("{host}:{}", FIRST_PORT + job % PORTS),
            cpus: variable("SLURM_CPUS_PER_TASK"),
        })
    }
}

impl EngineFlags {
    /// What was asked for. Looks for torch and its GPUs, unless this program trains.
    pub(super) fn choose(
        &self,
        device: Option<DeviceName>,
        purpose: Purpose,
        printer: &Printer,
    ) -> Result<EngineRequest> {
        let native = || {
            Ok(EngineRequest::Native(match purpose {
                Purpose::Run => device.unwrap_or(DeviceName::Cpu).open()?,
                // A dry run computes nothing.
                Purpose::DryRun => Device::Cpu,
            }))
        };
        match self.engine {
            EngineName::Native => {
                self.refuse_flags_of_torch()?;
                native()
            }
            EngineName::Torch => {
                let found = probe(&self.python())?;
                let device = device.unwrap_or(DeviceName::Cpu);
                if device == DeviceName::Cpu && !found.cuda.is_empty() {
                    let gpus = found.cuda.len();
                    printer.note(&format!(
                        " note: torch trains on the CPU, but finds {gpus} GPUs: --device cuda uses them"
                    ));
                }
                self.torch(device, &found, purpose, printer)
            }
            EngineName::Auto => {
                let found = probe(&self.python());
                let wants_gpu = device != Some(DeviceName::Cpu);
                let why = match &found {
                    Ok(found) if wants_gpu && !found.cuda.is_empty() => {
                        let device = device.unwrap_or(DeviceName::Cuda(None));
                        let gpus = chosen(device, &found.cuda);
                        if let Some(gpu) = gpus.first() {
                            printer.note(&format!(
                                " note: --engine auto: torch {} trains, on {} x {gpu}",
                                found.torch,
                                gpus.len(),
                            ));
                        }
                        return self.torch(device, found, purpose, printer);
                    }
                    // Our own trainer has one node: each node would start a run of its own into the same folder.
                    _ if self.has_nodes() => {
                        let device = device.unwrap_or(DeviceName::Cuda(None));
                        return self.torch(device, &found?, purpose, printer);
                    }
                    Ok(_) if !wants_gpu => "--device is cpu".to_owned(),
                    Ok(found) => format!("torch {} finds no GPU", found.torch),
                    Err(error) => error.to_string(),
                };
                printer.note(&format!(" note: --engine auto: this program trains: {why}"));
                native()
            }
        }
    }

    /// The same without a look at the machine, for estimates.
    pub(super) fn placement(&self, device: Option<DeviceName>) -> Placement {
        let gpu = device.and_then(DeviceName::gpu);
        let ranks = (self.engine == EngineName::Torch).then(|| {
            let nodes = SlurmJob::of_environment().map_or(1, |job| job.nodes);
            self.nproc_per_node.unwrap_or(1) * self.nnodes.unwrap_or(nodes)
        });
        Placement { gpu, ranks }
    }

    /// Whether this process only starts the processes of a node that is not the first.
    pub(super) fn is_follower(&self) -> bool {
        self.engine != EngineName::Native && self.node_rank.is_some_and(|rank| rank > 0)
    }

    /// Whether the flags ask for several nodes, on each of which the same command runs.
    fn has_nodes(&self) -> bool {
        self.node_rank.is_some() || self.nnodes.is_some_and(|nodes| nodes > 1)
    }

    /// The Python that was named, or the usual one.
    fn python(&self) -> PathBuf {
        let named = self.python.as_ref().map(|python| PathBuf::from(&**python));
        let python = named.unwrap_or_else(default_python);
        // Torch's processes have another current folder; a plain name is looked for on the search path.
        if python.components().count() > 1 {
            std::path::absolute(&python).unwrap_or(python)
        } else {
            python
        }
    }

    fn refuse_flags_of_torch(&self) -> Result<()> {
        let given = [
            ("--python", self.python.is_some()),
            ("--nproc-per-node", self.nproc_per_node.is_some()),
            ("--nnodes", self.nnodes.is_some()),
            ("--node-rank", self.node_rank.is_some()),
            ("--compile", self.compile),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(CliError::WithoutTorch { flag }),
            None => Ok(()),
        }
    }

    fn torch(
        &self,
        device: DeviceName,
        found: &Probe,
        purpose: Purpose,
        printer: &Printer,
    ) -> Result<EngineRequest> {
        let python = self.python();
        let gpus = chosen(device, &found.cuda);
        let usual = gpus.len().max(1) as u64;
        let processes = self.nproc_per_node.unwrap_or(usual);
        let fault = match device {
            DeviceName::Cuda(number) if gpus.is_empty() => Some(TorchError::NoGpu {
                python: python.clone(),
                torch: found.torch.clone(),
                number,
                gpus: found.cuda.len(),
            }),
            DeviceName::Cuda(Some(number)) if processes > 1 => Some(TorchError::OneGpu {
                number,
                found: processes,
            }),
            DeviceName::Cuda(None) if processes > gpus.len() as u64 => Some(TorchError::FewGpus {
                gpus: gpus.len(),
                found: processes,
            }),
            _ => None,
        };
        match (fault, purpose) {
            // Clusters are planned on machines without GPUs.
            (Some(fault), Purpose::DryRun) => printer.note(&format!(" note: {fault}")),
            (Some(fault), Purpose::Run) => return Err(library(fault)),
            (None, _) => {}
        }
        let program = std::env::current_exe()
            .map_err(|e| bam_convert::Error::io("find", "this program", e))?;
        let supervisor = std::iter::once(program.into_os_string());
        Ok(EngineRequest::Torch(TorchRequest {
            python,
            device: match device {
                DeviceName::Cpu => TorchDevice::Cpu,
                DeviceName::Cuda(number) => TorchDevice::Cuda(number),
            },
            gpu_memory: chosen(device, &found.cuda_memory).iter().copied().min(),
            processes,
            launch: self.launch(purpose)?,
            compile: self.compile,
            supervisor: supervisor.chain(SUPERVISE.map(OsString::from)).collect(),
        }))
    }

    fn launch(&self, purpose: Purpose) -> Result<Launch> {
        let job = SlurmJob::of_environment();
        let of_job = job.as_ref().map_or(1, |job| job.nodes);
        let nodes = self.nnodes.unwrap_or(of_job);
        match (&self.rdzv_endpoint, self.node_rank) {
            (Some(_), Some(found)) if found >= nodes => {
                Err(library(TorchError::NodeRank { nodes, found }))
            }
            (Some(endpoint), Some(rank)) => Ok(Launch::Node {
                nodes,
                rank,
                endpoint: endpoint.to_string(),
            }),
            _ if nodes == 1 => Ok(Launch::Here),
            _ => match job.filter(|job| job.nodes >= nodes) {
                Some(SlurmJob { endpoint, cpus, .. }) => Ok(Launch::Slurm {
                    nodes,
                    endpoint,
                    cpus,
                }),
                None if purpose == Purpose::DryRun => Ok(Launch::Node {
                    nodes,
                    rank: 0,
                    endpoint: String::new(),
                }),
                None => Err(library(TorchError::NoRendezvous { nodes })),
            },
        }
    }
}

/// What is known of the GPUs that a device names, out of all that torch finds.
fn chosen<T>(device: DeviceName, all: &[T]) -> &[T] {
    match device {
        DeviceName::Cpu => &[],
        DeviceName::Cuda(None) => all,
        DeviceName::Cuda(Some(number)) => all.get(number..=number).unwrap_or_default(),
    }
}

fn library(error: TorchError) -> CliError {
    bam_convert::Error::from(error).into()
}
