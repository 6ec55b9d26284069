//! What takes the steps of a run. An engine computes and reports; the session does everything else, once for all engines.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicBool;

use super::error::BadStep;
use super::metrics::{Detail, DomainLoss, Validation};
use super::state::State;
use crate::Result;
use crate::checkpoint::manifest::EngineRecord;
use crate::model::BackendChoice;
use crate::table::counted;

/// Names of the engines.
const NATIVE: &str = "native";
const TORCH: &str = "torch";

/// A run's way to compute: this program's trainer, or processes of PyTorch.
pub(super) trait Engine {
    /// Takes the steps that are left, and hands each report to `report`. Once `stop` is true, the engine ends after the step
    /// that it is in.
    ///
    /// The engine measures before the first step, and reports its state whenever a checkpoint is due, before it ends early,
    /// and before trouble stops it.
    fn run(&mut self, stop: &AtomicBool, report: Reports) -> Result<Outcome>;

    /// The state after the last step.
    fn state(&self) -> Result<State<'_>>;
}

/// Receives each report of an engine.
pub(super) type Reports<'a> = &'a mut dyn FnMut(Report<'_>) -> Result<()>;

/// What an engine reports.
pub(super) enum Report<'a> {
    /// A step with an update.
    Step(Box<Taken>),
    /// A step whose gradients were not used; the counters after it.
    Skip(Counters, BadStep),
    /// More about the last step.
    Detail(Box<Detail>),
    /// How well held-back text is predicted after the last step.
    Validation(BTreeMap<String, Validation>),
    /// The state after the last step, for a checkpoint.
    State(State<'a>),
    /// Something that a user should know.
    Note(String),
}

/// How the steps of an engine ended.
pub(super) enum Outcome {
    /// With the last step.
    Complete,
    /// Early, because it was asked to.
    Stopped,
    /// The step after the last one has no update, and the settings say that the run then stops.
    Trouble(BadStep),
}

/// The progress of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) step: u64,
    pub(super) updates: u64,
    pub(super) tokens: u64,
    /// Running mean of the gradients' norm, and its number of terms.
    pub(super) norm_mean: f64,
    pub(super) norms: u64,
}

/// A step with an update.
pub(super) struct Taken {
    /// After it.
    pub(super) counters: Counters,
    pub(super) loss: f64,
    pub(super) nll: f64,
    pub(super) load_balance: f64,
    pub(super) z: f64,
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) router_learning_rate: f64,
    pub(super) seconds: f64,
    pub(super) domains: BTreeMap<String, DomainLoss>,
    /// Largest memory of a process or its GPU, in bytes, where the engine measures it.
    pub(super) memory: Option<u64>,
}

/// Which engine computes, and how.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineFacts {
    /// This program's trainer.
    Native {
        /// The backend of the model.
        backend: BackendChoice,
    },
    /// Processes of PyTorch.
    Torch {
        /// Version of PyTorch.
        torch: String,
        /// Number of processes.
        ranks: u64,
        /// The device of each process.
        device: String,
        /// How attention is computed.
        attention: String,
        /// Whether `torch.compile` compiled the layers.
        compiled: bool,
        /// SHA-256 of each program that PyTorch runs.
        code: BTreeMap<String, String>,
    },
}

impl fmt::Display for EngineFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native { backend } => write!(f, "backend: {backend}"),
            Self::Torch {
                torch,
                ranks,
                device,
                attention,
                compiled,
                ..
            } => {
                let processes = counted(*ranks, "rank");
                let compiled = if *compiled { ", compiled" } else { "" };
                write!(
                    f,
                    "engine: torch {torch}, {processes} on {device}, attention {attention}{compiled}"
                )
            }
        }
    }
}

impl EngineFacts {
    /// The engine's name, as `--engine` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Native { .. } => NATIVE,
            Self::Torch { .. } => TORCH,
        }
    }

    /// The backend of this program's trainer.
    pub fn backend(&self) -> Option<&BackendChoice> {
        match self {
            Self::Native { backend } => Some(backend),
            Self::Torch { .. } => None,
        }
    }

    /// Number of processes that compute together; `None` where this process computes.
    pub fn ranks(&self) -> Option<u64> {
        match self {
            Self::Native { .. } => None,
            Self::Torch { ranks, .. } => Some(*ranks),
        }
    }

    /// Adds a step of this engine to the records of all steps before it. Steps of our own trainer alone need no record.
    pub(super) fn add_step(&self, records: &mut Vec<EngineRecord>, step: u64) {
        let native = EngineRecord {
            engine: NATIVE.to_owned(),
            first_step: 1,
            last_step: step - 1,
            torch: None,
            ranks: None,
            device: None,
            code: BTreeMap::new(),
        };
        // The steps of the record are set below.
        let mut record = match self {
            Self::Native { .. } if records.is_empty() => return,
            Self::Native { .. } => native,
            Self::Torch {
                torch,
                ranks,
                device,
                code,
                ..
            } => {
                if records.is_empty() && step > 1 {
                    records.push(native);
                }
                EngineRecord {
                    engine: TORCH.to_owned(),
                    first_step: step,
                    last_step: step,
                    torch: Some(torch.clone()),
                    ranks: Some(*ranks),
                    device: Some(device.clone()),
                    code: code.clone(),
                }
            }
        };
        (record.first_step, record.last_step) = (step, step);
        if let Some(last) = records.last_mut() {
            record.first_step = last.first_step;
            last.last_step = step;
            if *last == record {
                return;
            }
            last.last_step = step - 1;
            record.first_step = step;
        }
        records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackendName;

    #[test]
    fn records_say_which_engine_took_which_steps() {
        let native = EngineFacts::Native {
            backend: BackendChoice {
                name: BackendName::Cpu,
                reasons: std::collections::BTreeSet::new(),
            },
        };
        let torch = |ranks| EngineFacts::Torch {
            torch: "2.9.1".to_owned(),
            ranks,
            device: "cpu".to_owned(),
            attention: "sdpa".to_owned(),
            compiled: false,
            code: BTreeMap::from([("train_bam.py".to_owned(), "00".to_owned())]),
        };
        let mut records = Vec::new();
        for step in 1..4 {
            native.add_step(&mut records, step);
        }
        assert!(records.is_empty());
        for (engine, step) in [
            (&torch(2), 4),
            (&torch(2), 5),
            (&torch(4), 6),
            (&native, 7),
            (&native, 8),
        ] {
            engine.add_step(&mut records, step);
        }
        let spans = records.iter().map(|one| {
            (
                one.engine.as_str(),
                one.first_step,
                one.last_step,
                one.ranks,
            )
        });
        let spans: Vec<_> = spans.collect();
        assert_eq!(
            spans,
            [
                ("native", 1, 3, None),
                ("torch", 4, 5, Some(2)),
                ("torch", 6, 6, Some(4)),
                ("native", 7, 8, None)
            ]
        );
    }
}
