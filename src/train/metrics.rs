//! The log of a run: one JSON object per line, and the same numbers for TensorBoard.
//!
//! `docs/reference/training-log.md` describes each line. A run that resumes cuts both files back to the step
//! that it resumes from. The log of an interrupted run then differs in times only, and in the line that says so.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::error::TrainError;
use super::run_error::RunError;
use super::tensorboard::EventFile;
use crate::checkpoint::{filesystem, json, single};
use crate::{Error, Result};

/// File name of the log within a run's folder.
pub const METRICS: &str = "metrics.jsonl";

/// One line of the log. Likelihoods are in nats, times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Record {
    /// What runs, and how.
    Start {
        tool_version: String,
        architecture: Map<String, Value>,
        settings: Map<String, Value>,
    },
    /// One step.
    Step(Box<Step>),
    /// More about some steps.
    Detail(Box<Detail>),
    /// How well the text held back is predicted.
    Validation {
        step: u64,
        domains: BTreeMap<String, Validation>,
    },
    /// The run went on here after it had been stopped.
    Resume { step: u64 },
    /// The planned end of a run that was extended to `steps`.
    Extend { step: u64, steps: u64, rule: String },
    /// A step whose gradients were not used.
    Skip {
        step: u64,
        reason: String,
        rows: String,
    },
    /// The run is done.
    End {
        step: u64,
        seconds: f64,
        /// Unknown where a GPU's driver does not tell.
        peak_memory_bytes: Option<u64>,
    },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// When it ended, in seconds since 1970.
    #[serde(deserialize_with = "number")]
    pub time: f64,
    /// Tokens predicted up to its end.
    pub tokens: u64,
    /// Everything that is minimised.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Mean negative log-likelihood of a token.
    #[serde(deserialize_with = "number")]
    pub nll: f64,
    /// Load-balancing loss without its weight, summed over layers.
    #[serde(deserialize_with = "number")]
    pub load_balance: f64,
    /// Router z-loss without its weight, summed over layers.
    #[serde(deserialize_with = "number")]
    pub z: f64,
    /// Learning rate.
    #[serde(deserialize_with = "number")]
    pub learning_rate: f64,
    /// Learning rate of routers.
    #[serde(deserialize_with = "number")]
    pub router_learning_rate: f64,
    /// Norm of all gradients, before clipping.
    #[serde(deserialize_with = "number")]
    pub gradient_norm: f64,
    /// Duration.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// Tokens predicted a second.
    #[serde(deserialize_with = "number")]
    pub tokens_per_second: f64,
    /// Floating-point operations per second, without recomputed activations.
    #[serde(deserialize_with = "number")]
    pub flops_per_second: f64,
    /// The same as a share of the machine's rate in a large matmul.
    #[serde(deserialize_with = "number")]
    pub peak_share: f64,
    /// Processes that computed together; absent in this program's own trainer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u64>,
    /// Tokens predicted a second, by the number of processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second_per_rank: Option<f64>,
    /// Largest memory of a process or its GPU so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The domains that the rows came from.
    pub domains: BTreeMap<String, DomainLoss>,
}

/// A domain's part of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainLoss {
    /// Mean negative log-likelihood of a token.
    #[serde(deserialize_with = "number")]
    pub nll: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// More about one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// Its number.
    pub step: u64,
    /// What each kind of parameter got.
    pub roles: BTreeMap<String, RoleDetail>,
    /// Feed-forward routers, by layer.
    pub ffn_routing: Vec<Routing>,
    /// Attention routers, by layer.
    pub attention_routing: Vec<Routing>,
}

/// The update of all parameters of a role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleDetail {
    /// Norm of their gradients, before clipping.
    #[serde(deserialize_with = "number")]
    pub gradient_norm: f64,
    /// Norm of their change by their own norm.
    #[serde(deserialize_with = "number")]
    pub update_ratio: f64,
}

/// What a router did with the tokens of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// Layer, from 0.
    pub layer: usize,
    /// Share of the assignments that each expert got.
    #[serde(deserialize_with = "numbers")]
    pub load: Vec<f64>,
    /// Mean gate of each expert.
    #[serde(deserialize_with = "numbers")]
    pub mean_gates: Vec<f64>,
    /// Entropy divided by its largest value. For a feed-forward router it is of the load, and 1 is an even load. For an
    /// attention router it is the mean over tokens of its probabilities, and 1 is a router without preference.
    #[serde(deserialize_with = "number")]
    pub entropy: f64,
}

/// How well a domain's held-back text is predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Mean negative log-likelihood of a token.
    #[serde(deserialize_with = "number")]
    pub nll: f64,
    /// Its exponential.
    #[serde(deserialize_with = "number")]
    pub perplexity: f64,
    /// The same in bits, divided by the mean number of bytes of text per token of the domain.
    #[serde(deserialize_with = "number")]
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// JSON has no number for NaN and infinities: they are null.
pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let found = Vec::<Option<f64>>::deserialize(from)?.into_iter();
    Ok(found.map(|number| number.unwrap_or(f64::NAN)).collect())
}

impl Record {
    /// The step after which the line was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Start { .. } => 0,
            Self::Step(step) => step.step,
            Self::Detail(detail) => detail.step,
            Self::Validation { step, .. }
            | Self::Resume { step }
            | Self::Extend { step, .. }
            | Self::Skip { step, .. }
            | Self::End { step, .. } => *step,
        }
    }

    /// The numbers of the line, under the names that TensorBoard groups by.
    fn scalars(&self) -> Vec<(String, f64)> {
        let mut found = Vec::new();
        let mut add = |name: String, value: f64| found.push((name, value));
        match self {
            Self::Step(step) => {
                for (name, value) in [
                    ("loss/total", step.loss),
                    ("loss/nll", step.nll),
                    ("loss/load_balance", step.load_balance),
                    ("loss/z", step.z),
                    ("optimiser/learning_rate", step.learning_rate),
                    ("optimiser/router_learning_rate", step.router_learning_rate),
                    ("optimiser/gradient_norm", step.gradient_norm),
                    ("speed/tokens_per_second", step.tokens_per_second),
                    ("speed/flops_per_second", step.flops_per_second),
                    ("speed/peak_share", step.peak_share),
                ] {
                    add(name.to_owned(), value);
                }
                step.domains
                    .iter()
                    .for_each(|(name, domain)| add(format!("nll/{name}"), domain.nll));
                for (name, value) in [
                    (
                        "speed/tokens_per_second_per_rank",
                        step.tokens_per_second_per_rank,
                    ),
                    ("memory/bytes", step.memory_bytes.map(|bytes| bytes as f64)),
                ] {
                    value
                        .into_iter()
                        .for_each(|value| add(name.to_owned(), value));
                }
            }
            Self::Detail(detail) => {
                for (role, numbers) in &detail.roles {
                    add(format!("gradient_norm/{role}"), numbers.gradient_norm);
                    add(format!("update_ratio/{role}"), numbers.update_ratio);
                }
                for (kind, routers) in [
                    ("ffn", &detail.ffn_routing),
                    ("attention", &detail.attention_routing),
                ] {
                    for router in routers {
                        let layer = router.layer;
                        add(format!("{kind}_entropy/layer_{layer}"), router.entropy);
                        for (expert, load) in router.load.iter().enumerate() {
                            add(format!("{kind}_load/layer_{layer}_expert_{expert}"), *load);
                        }
                    }
                }
            }
            Self::Validation { domains, .. } => {
                for (name, numbers) in domains {
                    add(format!("validation_nll/{name}"), numbers.nll);
                    add(format!("validation_perplexity/{name}"), numbers.perplexity);
                }
            }
            Self::Start { .. }
            | Self::Resume { .. }
            | Self::Extend { .. }
            | Self::Skip { .. }
            | Self::End { .. } => {}
        }
        found
    }
}

/// The records of a log; a last line that a killed run left unfinished is left out.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let (records, problems) = parse(path)?;
    match problems.into_iter().next() {
        None => Ok(records),
        Some(problem) => Err(problem.into()),
    }
}

/// The most bytes of a log: some millions of steps.
const LARGEST: u64 = 1 << 30;

/// The records of a log, and what is wrong with the lines that are none. A last line without an end is left out.
fn parse(path: &Path) -> Result<(Vec<Record>, Vec<RunError>)> {
    // Bytes, not text: a crash of the machine can leave anything after the last line that was synced.
    let bytes = json::read_growing_up_to(path, LARGEST)?;
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with(b"\n") => {}
            Err(e) => problems.push(RunError::NotRecord {
                path: path.to_path_buf(),
                line: number + 1,
                source: e,
            }),
        }
    }
    Ok((records, problems))
}

/// The step, if the log in `folder` has held-back text measured there.
pub(super) fn measured(folder: &Path, step: u64) -> Result<Option<u64>> {
    let path = folder.join(METRICS);
    if !path.exists() {
        return Ok(None);
    }
    let (records, _) = parse(&path)?;
    let is_measured = records
        .iter()
        .any(|record| matches!(record, Record::Validation { step: at, .. } if *at == step));
    Ok(is_measured.then_some(step))
}

/// The log of a run, being written.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    events: EventFile,
    time: f64,
    is_empty: bool,
}

impl Log {
    /// Begins the log in `folder`, or continues it after the last record of `step`.
    ///
    /// Nothing depends on the log, so damaged lines are left out: also returns what is wrong with each.
    pub(super) fn begin(folder: &Path, step: Option<u64>) -> Result<(Self, Vec<RunError>)> {
        let path = folder.join(METRICS);
        let (mut kept, mut problems) = (Vec::new(), Vec::new());
        if let Some(step) = step.filter(|_| path.exists()) {
            (kept, problems) = parse(&path)?;
            // The run writes its end again, and its extension where it continues from the planned end.
            kept.retain(|record| match record {
                Record::End { .. } => false,
                Record::Extend { step: end, .. } => *end < step,
                record => record.step() <= step,
            });
        }
        let lines = kept.iter().map(line).collect::<Result<Vec<_>>>()?;
        single::write(&path, &lines.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|e| Error::io("write", &path, e))?;
        let mut log = Self {
            path,
            file,
            events: EventFile::create(folder)?,
            time: 0.0,
            is_empty: kept.is_empty(),
        };
        kept.iter().try_for_each(|record| log.show(record))?;
        Ok((log, problems))
    }

    /// Whether it holds no record yet.
    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Appends a line.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        self.is_empty = false;
        let line = line(record)?;
        self.file
            .write_all(&line)
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.show(record)
    }

    fn show(&mut self, record: &Record) -> Result<()> {
        if let Record::Step(step) = record {
            self.time = step.time;
        }
        self.events.add(self.time, record.step(), &record.scalars())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        filesystem::sync(&self.file).map_err(|e| Error::io("sync", &self.path, e))
    }
}

fn line(record: &Record) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record).map_err(|source| TrainError::NotWritten {
        what: "a record",
        source,
    })?;
    line.push(b'\n');
    Ok(line)
}
