//! How the processes of PyTorch are started: on this machine, on one node of several, or on every node of a job of Slurm.

use std::ffi::OsString;
use std::path::Path;

use crate::train::request::TorchRequest;

/// Runs Python on a node of a job of Slurm, which knows the number of its node itself.
const ON_NODE: &str = r#"exec "$0" -m torch.distributed.run --node-rank="$SLURM_NODEID" "$@""#;

/// Where the processes run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launch {
    /// All on this machine.
    Here,
    /// This machine's share of them; the same command runs on every node.
    Node {
        /// Number of nodes.
        nodes: u64,
        /// This node, from 0.
        rank: u64,
        /// `HOST:PORT` of the first node.
        endpoint: String,
    },
    /// On every node of a job of Slurm, by `srun`.
    Slurm {
        /// Number of nodes.
        nodes: u64,
        /// `HOST:PORT` of the first node, which is this one.
        endpoint: String,
        /// Cores of each task, as the job has them: `srun` does not take them from the job.
        cpus: Option<String>,
    },
}

impl Launch {
    /// Number of nodes.
    pub fn nodes(&self) -> u64 {
        match self {
            Self::Here => 1,
            Self::Node { nodes, .. } | Self::Slurm { nodes, .. } => *nodes,
        }
    }

    /// The command that starts the processes, each of which runs `script` with `plan`.
    pub(super) fn command(
        &self,
        torch: &TorchRequest,
        script: &Path,
        plan: &Path,
    ) -> Vec<OsString> {
        let python = torch.python.clone().into_os_string();
        let mut words = match self {
            Self::Here => vec![
                python,
                "-m".into(),
                "torch.distributed.run".into(),
                "--standalone".into(),
            ],
            Self::Node {
                nodes,
                rank,
                endpoint,
            } => {
                let mut words = vec![python, "-m".into(), "torch.distributed.run".into()];
                words.push(format!("--node-rank={rank}").into());
                words.extend(rendezvous(*nodes, endpoint));
                words
            }
            Self::Slurm {
                nodes,
                endpoint,
                cpus,
            } => {
                let mut words: Vec<OsString> = vec!["srun".into()];
                words.push(format!("--nodes={nodes}").into());
                words.push(format!("--ntasks={nodes}").into());
                words.extend(["--ntasks-per-node=1".into(), "--kill-on-bad-exit=1".into()]);
                words.extend(
                    cpus.as_ref()
                        .map(|cpus| format!("--cpus-per-task={cpus}").into()),
                );
                words.extend(["sh".into(), "-c".into(), ON_NODE.into(), python]);
                words.extend(rendezvous(*nodes, endpoint));
                words
            }
        };
        words.push(format!("--nproc-per-node={}", torch.processes).into());
        words.push("--max-restarts=0".into());
        words.extend([script.into(), plan.into()]);
        words
    }
}

/// Flags by which nodes find each other. The static rendezvous keeps the first process on the first node.
fn rendezvous(nodes: u64, endpoint: &str) -> [OsString; 3] {
    [
        format!("--nnodes={nodes}").into(),
        "--rdzv-backend=static".into(),
        format!("--rdzv-endpoint={endpoint}").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::request::TorchDevice;

    fn words(launch: Launch) -> Vec<String> {
        let torch = TorchRequest {
            python: "/opt/my env/bin/python".into(),
            device: TorchDevice::Cuda(None),
            gpu_memory: None,
            processes: 8,
            launch: Launch::Here,
            compile: false,
            supervisor: Vec::new(),
        };
        let words = launch.command(
            &torch,
            Path::new("a b/train_bam.py"),
            Path::new("plan.json"),
        );
        let words = words.into_iter().map(|word| word.into_string().unwrap());
        words.collect()
    }

    #[test]
    fn words_with_spaces_stay_words() {
        let here = words(Launch::Here);
        assert_eq!(here[0], "/opt/my env/bin/python");
        assert!(here.contains(&"--standalone".to_owned()));
        assert!(here.ends_with(&["a b/train_bam.py".to_owned(), "plan.json".to_owned()]));
    }

    #[test]
    fn every_node_of_a_job_gets_one_task() {
        let slurm = words(Launch::Slurm {
            nodes: 4,
            endpoint: "n1:29500".to_owned(),
            cpus: Some("12".to_owned()),
        });
        let begin = [
            "srun",
            "--nodes=4",
            "--ntasks=4",
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=1",
            "--cpus-per-task=12",
            "sh",
            "-c",
            ON_NODE,
            "/opt/my env/bin/python",
            "--nnodes=4",
            "--rdzv-backend=static",
            "--rdzv-endpoint=n1:29500",
            "--nproc-per-node=8",
        ];
        assert_eq!(slurm[..begin.len()], begin.map(str::to_owned));
    }
}
