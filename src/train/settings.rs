//! What a run is asked for.

use std::path::PathBuf;

use candle_core::DType;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::TrainError;
use super::schedule::{Decay, Schedule};
use crate::Result;
use crate::checkpoint::manifest::DataRecord;
use crate::model::{AdamW, LoadBalance};
use crate::printable::excerpts;

/// What the weights follow from. Keys are the flags of the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Domains with the hashes of their token folders.
    pub data: Vec<DataRecord>,
    /// Updates of the weights.
    pub steps: u64,
    /// Of a run that was extended: the numbers of steps that were planned before, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended: Vec<u64>,
    /// Rows of a batch.
    pub batch: usize,
    /// Batches whose gradients are added up for one step.
    pub accumulate: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Seed of the order of rows.
    pub rng_seed: u64,
    /// Whether rows are read as one text or document by document.
    pub documents: Documents,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Its peak for routers.
    pub router_learning_rate: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// What follows the warm-up.
    pub schedule: Decay,
    /// Steps of the decay of `wsd`.
    pub decay_steps: u64,
    /// Last learning rate by the peak.
    pub floor: f64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// Largest norm of all gradients together; 0 clips nothing.
    pub clip: f64,
    /// How load balance is measured.
    pub load_balance: LoadBalance,
    /// Weight of the load-balancing loss.
    pub aux_loss_coef: f64,
    /// Weight of the router z-loss.
    pub z_loss_coef: f64,
    /// What is added to or taken from the bias of an expert that got less or more than its share; 0 leaves biases alone.
    pub bias_balancing: f64,
    /// What trains.
    pub train: Vec<String>,
    /// What of it does not.
    pub freeze: Vec<String>,
    /// In what is computed.
    pub dtype: Compute,
    /// What happens at a loss or gradient that is no number.
    pub on_nan: Trouble,
    /// What happens at a gradient that is far larger than the ones before.
    pub on_spike: Option<Spike>,
}

/// How a run goes about it; the weights do not depend on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Whether layers run a second time in the backward pass, instead of keeping their activations.
    pub gradient_checkpointing: bool,
    /// Steps between checkpoints; 0 saves at the end and at a signal alone.
    pub save_every: u64,
    /// Checkpoints kept, the latest ones.
    pub keep: usize,
    /// Steps between measurements on held-back text; 0 measures nothing.
    pub validate_every: u64,
    /// Rows of each domain to measure on, at most.
    pub validate_rows: usize,
    /// Steps between records of the updates by role and of routers.
    pub detail_every: u64,
    /// Where to write the rows of each step as JSON lines.
    pub dump_rows: Option<PathBuf>,
    /// Whether to resume a run that was stopped.
    pub resume: bool,
    /// Whether to replace an earlier run and its output.
    pub force: bool,
}

/// In what a model computes while it trains; master weights and moments are float32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// float32.
    F32,
    /// Weights and activations in bfloat16; routers, norms' statistics and losses in float32.
    Bf16,
}

impl Compute {
    /// The dtype of weights and activations.
    pub fn stored(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// How documents that share a row are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Documents {
    /// As one text: a token sees all before it in its row.
    Joined,
    /// Each on its own: a token sees its own document, and the first token of a document is not predicted.
    Separate,
}

/// What happens to a step whose gradients cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The run saves what it had before, and stops.
    Stop,
    /// The step leaves weights and moments as they are.
    Skip,
}

/// A gradient norm of `factor` times the running mean is a spike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spike {
    /// Times the running mean.
    pub factor: f64,
    /// What then happens.
    pub action: Trouble,
}

impl std::str::FromStr for Spike {
    type Err = String;

    /// `10`, `10:skip` or `10:stop`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (factor, action) = text.split_once(':').unwrap_or((text, "skip"));
        let action = match action {
            "stop" => Trouble::Stop,
            "skip" => Trouble::Skip,
            _ => {
                return Err(format!(
                    "expected FACTOR:stop or FACTOR:skip, found `{text}`"
                ));
            }
        };
        match factor.parse() {
            Ok(factor) if f64::is_finite(factor) && factor > 1.0 => Ok(Self { factor, action }),
            _ => Err(format!(
                "expected a finite factor above 1, found `{factor}`"
            )),
        }
    }
}

/// The learning rates of the paper's three phases (section 4.2), small model and large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Pre-training of the small seed: 1.2e-4, 1500 steps of warm-up, cosine to a tenth.
    Seed,
    /// Continued pre-training of a specialist of the small seed: half the seed's peak.
    Expert,
    /// The small mixture: as its seed.
    Mixture,
    /// Pre-training of the large seed: 1e-2, 2000 steps of warm-up, cosine to 3 %.
    LargeSeed,
    /// Continued pre-training of a specialist of the large seed: half the seed's peak.
    LargeExpert,
    /// The large mixture: 1e-4, 1000 steps of warm-up, cosine to a tenth.
    LargeMixture,
}

impl Preset {
    /// Peak of the learning rate, steps of the warm-up, floor. Decay is a cosine and weight decay 0.1 in all of them.
    pub fn values(self) -> (f64, u64, f64) {
        match self {
            Self::Seed | Self::Mixture => (1.2e-4, 1500, 0.1),
            Self::Expert => (6e-5, 1500, 0.1),
            Self::LargeSeed => (1e-2, 2000, 0.03),
            Self::LargeExpert => (5e-3, 2000, 0.03),
            Self::LargeMixture => (1e-4, 1000, 0.1),
        }
    }
}

impl Settings {
    /// Four rows of sixteen tokens in two batches.
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        let settings = serde_json::json!({
            "data": [], "steps": 10, "batch": 2, "accumulate": 2, "seq": 16, "rng-seed": 0,
            "documents": "separate", "learning-rate": 1e-3, "router-learning-rate": 1e-3, "warmup": 1,
            "schedule": "cosine", "decay-steps": 1, "floor": 0.1, "weight-decay": 0.1, "beta1": 0.9,
            "beta2": 0.95, "epsilon": 1e-8, "clip": 1.0, "load-balance": "hard", "aux-loss-coef": 0.05,
            "z-loss-coef": 0.01, "bias-balancing": 0.0, "train": ["all"], "freeze": [], "dtype": "f32",
            "on-nan": "stop", "on-spike": null,
        });
        serde_json::from_value(settings).unwrap()
    }

    /// Refuses values out of their ranges.
    pub fn check(&self) -> Result<()> {
        for steps in self.plans() {
            let schedule = self.schedule();
            Schedule { steps, ..schedule }.check()?;
        }
        for (flag, value) in [
            ("--batch", self.batch),
            ("--accumulate", self.accumulate),
            ("--seq", self.seq),
        ] {
            if value == 0 {
                return Err(TrainError::OutOfRange {
                    flag,
                    expected: "at least 1",
                    found: 0.0,
                }
                .into());
            }
        }
        let tokens = (self.batch as u64)
            .checked_mul(self.accumulate as u64)
            .and_then(|rows| rows.checked_mul((self.seq as u64).checked_add(1)?))
            .and_then(|tokens| tokens.checked_mul(self.steps));
        if tokens.is_none_or(|tokens| tokens > i64::MAX as u64) {
            return Err(TrainError::ManyTokens {
                steps: self.steps,
                batch: self.batch,
                accumulate: self.accumulate,
                seq: self.seq,
            }
            .into());
        }
        self.check_ranges()
    }

    fn check_ranges(&self) -> Result<()> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let below_one = |value: f64| (0.0..1.0).contains(&value);
        let ranges: [(&'static str, f64, bool, &'static str); 10] = [
            (
                "--learning-rate",
                self.learning_rate,
                positive(self.learning_rate),
                "a positive number",
            ),
            (
                "--router-learning-rate",
                self.router_learning_rate,
                not_negative(self.router_learning_rate),
                "0 or more",
            ),
            (
                "--weight-decay",
                self.weight_decay,
                not_negative(self.weight_decay),
                "0 or more",
            ),
            (
                "--beta1",
                self.beta1,
                below_one(self.beta1),
                "0 or more and less than 1",
            ),
            (
                "--beta2",
                self.beta2,
                below_one(self.beta2),
                "0 or more and less than 1",
            ),
            (
                "--epsilon",
                self.epsilon,
                positive(self.epsilon),
                "a positive number",
            ),
            ("--clip", self.clip, not_negative(self.clip), "0 or more"),
            (
                "--aux-loss-coef",
                self.aux_loss_coef,
                not_negative(self.aux_loss_coef),
                "0 or more",
            ),
            (
                "--bias-balancing",
                self.bias_balancing,
                not_negative(self.bias_balancing),
                "0 or more",
            ),
            (
                "--z-loss-coef",
                self.z_loss_coef,
                not_negative(self.z_loss_coef),
                "0 or more",
            ),
        ];
        match ranges.into_iter().find(|(_, _, fits, _)| !fits) {
            Some((flag, found, _, expected)) => Err(TrainError::OutOfRange {
                flag,
                expected,
                found,
            }
            .into()),
            None => Ok(()),
        }
    }

    /// The learning rate over the steps.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            steps: self.steps,
            warmup: self.warmup,
            decay: self.schedule,
            decay_steps: self.decay_steps,
            floor: self.floor,
        }
    }

    /// The learning rate of step `step`, counted from 1, as a share of the peak.
    ///
    /// A step that an earlier plan of an extended run had keeps the rate of that plan. So weights depend on the plans, and
    /// not on where the run was interrupted.
    pub fn share(&self, step: u64) -> f64 {
        let steps = self.plans().find(|end| step <= *end);
        let schedule = Schedule {
            steps: steps.unwrap_or(self.steps),
            ..self.schedule()
        };
        schedule.share(step)
    }

    /// The numbers of steps that were planned, ascending; the last is the present plan.
    pub fn plans(&self) -> impl Iterator<Item = u64> {
        self.extended.iter().copied().chain([self.steps])
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
        }
    }

    /// Rows of one step.
    pub fn rows(&self) -> usize {
        self.batch * self.accumulate
    }

    /// The settings by flag.
    pub fn to_json(&self) -> Map<String, Value> {
        // A structure of numbers, strings and lists is an object.
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
}

/// Names every setting that differs between a run that was `begun` and one that would resume it.
pub(super) fn differences(begun: &Map<String, Value>, now: &Map<String, Value>) -> Vec<String> {
    let keys = now
        .keys()
        .chain(begun.keys().filter(|key| !now.contains_key(*key)));
    let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    keys.filter(|key| begun.get(*key) != now.get(*key))
        .map(|key| {
            let [begun, now] = excerpts(&shown(begun.get(key)), &shown(now.get(key)));
            format!("--{key}: begun with {begun}, found {now}")
        })
        .collect()
}
