//! The events that `train_bam.py` prints: JSON objects, each on a line that begins with one byte of its own.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::train::engine::Counters;
use crate::train::error::BadStep;
use crate::train::metrics::{Detail, DomainLoss, number};

/// What a line of ours begins with (ASCII's record separator); all else is talk of libraries.
pub(super) const MARK: u8 = 0x1e;

/// An event.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum TorchEvent {
    Probe(Probe),
    Ready(Ready),
    Step(Box<StepEvent>),
    Skip(SkipEvent),
    Detail(Box<Detail>),
    Validation {
        step: u64,
        domains: BTreeMap<String, Likelihood>,
    },
    State(StateEvent),
    Note {
        message: String,
    },
    Stopped {
        step: u64,
    },
    End {
        step: u64,
    },
    Failed(Failure),
}

/// The libraries and GPUs of a Python.
#[derive(Clone, Debug, Deserialize)]
pub struct Probe {
    /// Version of Python.
    pub python: String,
    /// Version of PyTorch.
    pub torch: String,
    /// Version of transformers.
    pub transformers: String,
    /// Name of each GPU.
    #[serde(default)]
    pub cuda: Vec<String>,
    /// Memory of each GPU, in bytes.
    #[serde(default)]
    pub cuda_memory: Vec<u64>,
}

/// All processes have loaded the model.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    pub(super) torch: String,
    pub(super) ranks: u64,
    #[serde(default)]
    pub(super) device_names: Vec<String>,
    /// Floating-point operations per second of one device.
    pub(super) matmul_peak: f64,
    pub(super) attention: String,
    #[serde(default)]
    pub(super) compiled: bool,
    #[serde(default)]
    pub(super) notes: Vec<String>,
}

/// The progress of the run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Position {
    step: u64,
    updates: u64,
    tokens: u64,
    #[serde(deserialize_with = "number")]
    norm_mean: f64,
    norms: u64,
}

impl Position {
    pub(super) fn counters(self) -> Counters {
        Counters {
            step: self.step,
            updates: self.updates,
            tokens: self.tokens,
            norm_mean: self.norm_mean,
            norms: self.norms,
        }
    }
}

/// A step with an update.
#[derive(Debug, Deserialize)]
pub(super) struct StepEvent {
    #[serde(flatten)]
    pub(super) position: Position,
    #[serde(deserialize_with = "number")]
    pub(super) loss: f64,
    #[serde(deserialize_with = "number")]
    pub(super) nll: f64,
    #[serde(deserialize_with = "number")]
    pub(super) load_balance: f64,
    #[serde(deserialize_with = "number")]
    pub(super) z: f64,
    #[serde(deserialize_with = "number")]
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) router_learning_rate: f64,
    pub(super) seconds: f64,
    pub(super) domains: BTreeMap<String, DomainLoss>,
    /// Bytes of each process.
    #[serde(default)]
    pub(super) memory: Vec<u64>,
}

/// A step without an update.
#[derive(Debug, Deserialize)]
pub(super) struct SkipEvent {
    #[serde(flatten)]
    pub(super) position: Position,
    #[serde(flatten)]
    pub(super) reason: Reason,
}

/// A state that is whole.
#[derive(Debug, Deserialize)]
pub(super) struct StateEvent {
    #[serde(flatten)]
    pub(super) position: Position,
    /// Names of all its files.
    pub(super) files: BTreeSet<String>,
}

/// Mean negative log-likelihood of a token.
#[derive(Debug, Deserialize)]
pub(super) struct Likelihood {
    #[serde(deserialize_with = "number")]
    pub(super) nll: f64,
    pub(super) tokens: u64,
}

/// Why the processes end.
#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    pub(super) kind: String,
    #[serde(default)]
    pub(super) message: String,
    /// Arguments of pip that install what is missing.
    #[serde(default)]
    pub(super) install: Vec<String>,
    #[serde(flatten)]
    reason: Reason,
}

impl Failure {
    /// What was wrong with a step, where that is why.
    pub(super) fn bad_step(&self) -> Option<BadStep> {
        self.reason.of(&self.kind)
    }
}

/// What is wrong with a step.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Reason {
    kind: Option<String>,
    what: Option<String>,
    #[serde(default, deserialize_with = "number")]
    norm: f64,
    #[serde(default)]
    factor: f64,
    #[serde(default)]
    mean: f64,
}

impl Reason {
    /// Of a step that was skipped.
    pub(super) fn skipped(&self) -> Option<BadStep> {
        self.of(self.kind.as_deref()?)
    }

    fn of(&self, kind: &str) -> Option<BadStep> {
        match kind {
            "nan" => Some(BadStep::NotFinite {
                what: match self.what.as_deref() {
                    Some("the norm of the gradients") => "the norm of the gradients",
                    _ => "the loss",
                },
            }),
            "no-answer" => Some(BadStep::NoAnswer),
            "spike" => Some(BadStep::Spike {
                norm: self.norm,
                factor: self.factor,
                mean: self.mean,
            }),
            _ => None,
        }
    }
}
