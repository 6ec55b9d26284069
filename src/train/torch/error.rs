//! What can be wrong with PyTorch as an engine: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use crate::error::ErrorPlace;
use crate::table;

/// A rule that PyTorch, its Python or its processes break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    // ---- before the run
    /// A Python that cannot be started.
    #[error("cannot run Python as {}: {source}", python.display())]
    NoPython {
        /// The program.
        python: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A Python whose libraries are missing or old.
    #[error("{}: {message}", python.display())]
    Unfit {
        /// The program.
        python: PathBuf,
        /// What is missing or old.
        message: String,
        /// The command that installs it; empty where nothing is to be installed.
        install: Vec<String>,
    },
    /// A Python that does not say what it has.
    #[error("{}: does not say which torch it has{}", python.display(), quoted(said))]
    NoAnswer {
        /// The program.
        python: PathBuf,
        /// The last lines that it printed.
        said: Vec<String>,
    },
    /// A GPU that torch does not find.
    #[error(
        "--device cuda{}: torch {torch} of {} finds {}",
        number.map(|number| format!(":{number}")).unwrap_or_default(),
        python.display(),
        found_gpus(*gpus)
    )]
    NoGpu {
        /// The Python.
        python: PathBuf,
        /// Version of PyTorch.
        torch: String,
        /// Number of the GPU, from 0; `None` for any.
        number: Option<usize>,
        /// GPUs that torch finds.
        gpus: usize,
    },
    /// More than one process on a GPU.
    #[error(
        "--nproc-per-node: --device cuda:{number} is one GPU, expected 1 process, found {found}"
    )]
    OneGpu {
        /// Number of the GPU, from 0.
        number: usize,
        /// Processes of this node.
        found: u64,
    },
    /// More processes on a node than it has GPUs.
    #[error(
        "--nproc-per-node: torch finds {gpus} GPUs here, expected one for each of {found} processes"
    )]
    FewGpus {
        /// GPUs of this node.
        gpus: usize,
        /// Processes of this node.
        found: u64,
    },
    /// Batches with fewer rows than there are processes.
    #[error("--batch: expected a row for each of {ranks} ranks, found {batch}")]
    FewRows {
        /// Number of processes.
        ranks: u64,
        /// Rows of a batch.
        batch: usize,
    },
    /// Several nodes that do not know each other.
    #[error(
        "--nnodes {nodes}: expected --node-rank and --rdzv-endpoint, or a job of Slurm with {nodes} nodes"
    )]
    NoRendezvous {
        /// Number of nodes.
        nodes: u64,
    },
    /// A node beyond the last one.
    #[error("--node-rank: expected a number below {nodes}, found {found}")]
    NodeRank {
        /// Number of nodes.
        nodes: u64,
        /// The number.
        found: u64,
    },
    /// A tensor without a place in the module that torch trains.
    #[error("{}: tensor `{tensor}`: the engine torch has no place for it", path.display())]
    NoPlace {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// A file in the folder of the engine that this program has not written.
    #[error("{}: is no file of this program", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },

    // ---- during the run
    /// A line of torch's processes that is no event.
    #[error("{}: torch's processes printed an event that cannot be read: {problem}{}", log.display(), quoted(line))]
    NotEvent {
        /// The file with all else that they printed.
        log: PathBuf,
        /// What the parser says.
        problem: String,
        /// How the line begins.
        line: Vec<String>,
    },
    /// Events that contradict each other.
    #[error("{}: torch's processes reported {found} after step {step}", log.display())]
    OutOfOrder {
        /// The file with all else that they printed.
        log: PathBuf,
        /// The last step that was reported.
        step: u64,
        /// What came then.
        found: String,
    },
    /// Processes that ended without a word.
    #[error("{}: torch's processes ended after step {step} ({status}){}", log.display(), quoted(said))]
    Died {
        /// The file with what they printed.
        log: PathBuf,
        /// The last step that was reported.
        step: u64,
        /// Exit code or signal.
        status: String,
        /// The last lines of the file.
        said: Vec<String>,
    },
    /// Memory of a process or a GPU that is used up.
    #[error("{}: torch ran out of memory after step {step}{}", log.display(), quoted(message))]
    Memory {
        /// The file with what the processes printed.
        log: PathBuf,
        /// The last step that was reported.
        step: u64,
        /// What torch says.
        message: Vec<String>,
    },
    /// A failure that torch's processes describe.
    #[error("{}: torch failed after step {step}{}", log.display(), quoted(message))]
    Failed {
        /// The file with what the processes printed.
        log: PathBuf,
        /// The last step that was reported.
        step: u64,
        /// What they say.
        message: Vec<String>,
    },
}

/// A number of GPUs in words.
fn found_gpus(gpus: usize) -> String {
    if gpus == 0 {
        return "no GPU".to_owned();
    }
    format!("only {}", table::counted(gpus as u64, "GPU"))
}

/// Lines of another program, after a colon.
fn quoted(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    format!(":\n  {}", lines.join("\n  "))
}

impl TorchError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NoPython { .. } => {
                "pass --python PATH, or activate the virtual environment that has torch"
            }
            Self::Unfit { install, .. } => {
                let words: Vec<String> = install.iter().map(|word| table::quoted(word)).collect();
                let command = words.join(" ");
                return (!command.is_empty()).then(|| format!("install it with: {command}").into());
            }
            Self::NoAnswer { .. } => "pass --python PATH of a Python that has torch",
            Self::NoGpu { gpus: 0, .. } => {
                "pass --device cpu, or install a torch for this machine's driver"
            }
            Self::NoGpu { .. } => "GPUs have numbers from 0; --device cuda trains on all of them",
            Self::OneGpu { .. } => "leave out --nproc-per-node, or pass --device cuda",
            Self::FewGpus { .. } => "pass a smaller --nproc-per-node",
            Self::FewRows { .. } => {
                "pass a larger --batch and a smaller --accumulate, or a smaller --nproc-per-node"
            }
            Self::NoRendezvous { .. } => {
                "start the same command on every node, each with its own --node-rank"
            }
            Self::Foreign { .. } => "move it: Python might take it for a module of its own",
            Self::NoPlace { .. } => "train it with --engine native",
            Self::Memory { .. } => {
                "pass --gradient-checkpointing, a smaller --batch or --seq, or more --nproc-per-node, with --resume"
            }
            _ => return None,
        }))
    }

    /// The file that tells more.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Unfit { python, .. } | Self::NoAnswer { python, .. } => ErrorPlace::of(python),
            Self::Foreign { path } => ErrorPlace::of(path),
            Self::NoPlace { path, tensor } => ErrorPlace::of(path).with_tensor(tensor),
            Self::NotEvent { log, .. }
            | Self::OutOfOrder { log, .. }
            | Self::Died { log, .. }
            | Self::Memory { log, .. }
            | Self::Failed { log, .. } => ErrorPlace::of(log),
            _ => ErrorPlace::default(),
        }
    }

    /// Whether the machine or a library failed, and not the request.
    pub fn is_outside(&self) -> bool {
        matches!(
            self,
            Self::NoPython { .. }
                | Self::Unfit { .. }
                | Self::NoAnswer { .. }
                | Self::NoGpu { .. }
                | Self::NotEvent { .. }
                | Self::OutOfOrder { .. }
                | Self::Died { .. }
                | Self::Memory { .. }
                | Self::Failed { .. }
        )
    }

    /// Whether the run can continue from its newest checkpoint with the same command.
    pub fn leaves_run(&self) -> bool {
        matches!(
            self,
            Self::NotEvent { .. }
                | Self::OutOfOrder { .. }
                | Self::Died { .. }
                | Self::Failed { .. }
        )
    }
}
