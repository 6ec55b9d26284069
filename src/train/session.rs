//! The steps of a run, whatever engine takes them: each is logged, and each state that is due is saved.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::engine::{Counters, Engine, EngineFacts, Outcome, Report, Taken};
use super::error::TrainError;
use super::event::{Event, Watcher};
use super::folder::RunFolder;
use super::machine::peak_memory;
use super::metrics::{self, Log, Record, Validation};
use super::run_error::RunError;
use super::save::{Keeps, Position, Saver};
use super::settings::{Operation, Settings};
use super::state::State;
use crate::card::{BITS_PER_BYTE, DataScore, LastLosses, PERPLEXITY, TrainedOn, TrainingSummary};
use crate::checkpoint::manifest::{EngineRecord, FORMAT_VERSION};
use crate::data::{Mixture, Row};
use crate::{Error, Result};

/// What a file of rows begins with.
pub(super) const ROWS: &[u8] = b"{\"step\":";

/// A run that is going on.
pub(super) struct Session<'a> {
    pub(super) saver: Saver,
    pub(super) folder: RunFolder,
    pub(super) log: Log,
    pub(super) mixture: &'a Mixture,
    pub(super) settings: &'a Settings,
    pub(super) operation: &'a Operation,
    /// What computes.
    pub(super) facts: EngineFacts,
    /// Whether the output replaces an earlier one.
    pub(super) replaces: bool,
    pub(super) flops_per_token: f64,
    pub(super) matmul_peak: f64,
    /// After the last step.
    pub(super) counters: Counters,
    /// The step of the latest checkpoint.
    pub(super) saved: Option<u64>,
    /// Which engines took the steps up to the present one.
    pub(super) engines: Vec<EngineRecord>,
    pub(super) losses: Losses,
    /// What the card of a checkpoint says of the steps so far.
    pub(super) progress: Progress,
    /// Whether GPUs compute.
    pub(super) on_gpu: bool,
    /// Largest memory that the engine has reported.
    pub(super) memory: Option<u64>,
}

/// The last losses and the last scores on held-back text.
#[derive(Debug, Default)]
pub(super) struct Progress {
    last: Option<LastLosses>,
    held_back: Vec<DataScore>,
    held_back_step: u64,
}

/// How many steps the mean at the end of a run is of, at most.
const MEAN_OF: usize = 20;

/// The losses at the end of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct EndLosses {
    /// Loss of the last step, with the losses of routers.
    pub loss: f64,
    /// Mean negative log-likelihood of the last step: its loss without the losses of routers.
    pub nll: f64,
    /// Mean loss of the last steps.
    pub mean: f64,
    /// How many steps the mean is of.
    pub mean_of: usize,
}

/// The losses of the last steps.
#[derive(Debug, Default)]
pub(super) struct Losses {
    latest: VecDeque<f64>,
    nll: f64,
}

impl Losses {
    fn add(&mut self, step: &metrics::Step) {
        self.latest.push_back(step.loss);
        if self.latest.len() > MEAN_OF {
            self.latest.pop_front();
        }
        self.nll = step.nll;
    }

    /// What the end of a run says of them; nothing without a step.
    pub(super) fn end(&self) -> Option<EndLosses> {
        let mean_of = self.latest.len();
        Some(EndLosses {
            loss: *self.latest.back()?,
            nll: self.nll,
            mean: self.latest.iter().sum::<f64>() / mean_of as f64,
            mean_of,
        })
    }
}

impl Progress {
    /// After the records of a log, which a run that resumes continues.
    pub(super) fn of(records: &[Record]) -> Self {
        let mut progress = Self::default();
        records.iter().for_each(|record| progress.add(record));
        progress
    }

    fn add(&mut self, record: &Record) {
        match record {
            Record::Step(step) => {
                let (loss, nll) = (step.loss, step.nll);
                self.last = Some(LastLosses { loss, nll });
            }
            Record::Validation { step, domains } => {
                self.held_back_step = *step;
                let score = |(data, found): (&String, &Validation)| DataScore {
                    data: data.clone(),
                    metrics: vec![
                        (PERPLEXITY, found.perplexity),
                        (BITS_PER_BYTE, found.bits_per_byte),
                    ],
                };
                self.held_back = domains.iter().map(score).collect();
            }
            _ => {}
        }
    }
}

impl Session<'_> {
    /// Lets the engine take the steps that are left.
    pub(super) fn steps(
        &mut self,
        engine: &mut dyn Engine,
        stop: &AtomicBool,
        watch: Watcher,
    ) -> Result<()> {
        match engine.run(stop, &mut |report| self.add(report, watch))? {
            Outcome::Complete => Ok(()),
            Outcome::Stopped => Err(stopped(&self.folder, self.counters.step)),
            Outcome::Trouble(reason) => {
                let step = self.counters.step + 1;
                let rows = self.name_rows(step)?;
                Err(TrainError::Stopped { step, reason, rows }.into())
            }
        }
    }

    /// Takes a report of the engine.
    fn add(&mut self, report: Report<'_>, watch: Watcher) -> Result<()> {
        match report {
            Report::Step(taken) => {
                self.begin_step(taken.counters, watch)?;
                if self.operation.dump_rows.is_some() {
                    self.rows_of(taken.counters.step)?;
                }
                let record = self.record(*taken);
                self.losses.add(&record);
                watch(&Event::Step(&record));
                self.add_record(Record::Step(Box::new(record)))
            }
            Report::Skip(counters, reason) => {
                self.begin_step(counters, watch)?;
                let step = counters.step;
                let rows = self.name_rows(step)?;
                watch(&Event::Note(format!(
                    "step {step} skipped: {reason}; its batch is {rows}"
                )));
                let reason = reason.to_string();
                self.log.add(&Record::Skip { step, reason, rows })
            }
            Report::Detail(detail) => self.log.add(&Record::Detail(detail)),
            Report::Validation(domains) => {
                let step = self.counters.step;
                watch(&Event::Validation(step, &domains));
                self.add_record(Record::Validation { step, domains })
            }
            Report::State(state) => self.save(&state, watch),
            Report::Note(text) => {
                watch(&Event::Note(text));
                Ok(())
            }
        }
    }

    /// Moves on to the step with these counters. Says where a run that was extended leaves an earlier plan, and how it
    /// continues.
    fn begin_step(&mut self, counters: Counters, watch: Watcher) -> Result<()> {
        let step = self.counters.step;
        self.counters = counters;
        self.facts.add_step(&mut self.engines, counters.step);
        let mut plans = self.settings.plans().skip_while(|end| *end != step);
        let (Some(_), Some(steps)) = (plans.next(), plans.next()) else {
            return Ok(());
        };
        let (next, warmup) = (step + 1, self.settings.warmup);
        let rule = format!(
            "from step {next}, the learning rate follows the schedule of a run of {steps} steps with a warm-up of {warmup}"
        );
        watch(&Event::Note(format!("extended to {steps} steps: {rule}")));
        self.log.add(&Record::Extend { step, steps, rule })
    }

    /// The rows of a step; written to the file that was asked for, if any.
    fn rows_of(&self, step: u64) -> Result<Vec<Row>> {
        let count = self.settings.rows();
        let rows = self.mixture.rows((step - 1) * count as u64, count)?;
        if let Some(path) = &self.operation.dump_rows {
            dump(path, step, self.mixture, &rows)?;
        }
        Ok(rows)
    }

    /// The rows of a step in words.
    fn name_rows(&self, step: u64) -> Result<String> {
        let first = (step - 1) * self.settings.rows() as u64;
        Ok(name_rows(self.mixture, first, &self.rows_of(step)?))
    }

    fn record(&mut self, taken: Taken) -> metrics::Step {
        // All tokens are computed, also those without loss.
        let computed = self.settings.rows() * self.settings.seq;
        let tokens_per_second = computed as f64 / taken.seconds;
        let flops_per_second = self.flops_per_token * tokens_per_second;
        let ranks = self.facts.ranks();
        self.memory = self.memory.max(taken.memory);
        metrics::Step {
            step: taken.counters.step,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |time| time.as_secs_f64()),
            tokens: taken.counters.tokens,
            loss: taken.loss,
            nll: taken.nll,
            load_balance: taken.load_balance,
            z: taken.z,
            learning_rate: taken.learning_rate,
            router_learning_rate: taken.router_learning_rate,
            gradient_norm: taken.gradient_norm,
            seconds: taken.seconds,
            tokens_per_second,
            flops_per_second,
            peak_share: flops_per_second / self.matmul_peak,
            ranks,
            tokens_per_second_per_rank: ranks.map(|ranks| tokens_per_second / ranks as f64),
            memory_bytes: taken.memory,
            domains: taken.domains,
        }
    }

    /// Saves a checkpoint, unless this step has one, and removes old ones.
    fn save(&mut self, state: &State, watch: Watcher) -> Result<()> {
        let step = self.counters.step;
        if self.saved == Some(step) {
            return state.discard();
        }
        self.mixture.check_unchanged()?;
        // Every line up to this step must outlive whatever comes.
        self.log.sync()?;
        let target = self.folder.checkpoint(step);
        let (position, summary) = (self.position(), self.summary());
        self.saver
            .save(&target, state, &position, summary, Keeps::State, false)?;
        self.saved = Some(step);
        self.folder.prune(self.operation.keep)?;
        watch(&Event::Saved(&target));
        Ok(())
    }

    /// Adds a record to the log, and keeps what cards say of it.
    fn add_record(&mut self, record: Record) -> Result<()> {
        self.progress.add(&record);
        self.log.add(&record)
    }

    fn summary(&self) -> TrainingSummary {
        let data = self.settings.data.iter().map(|data| TrainedOn {
            name: data.name.clone(),
            weight: data.weight,
        });
        TrainingSummary {
            steps: self.counters.step,
            tokens: self.counters.tokens,
            data: data.collect(),
            learning_rate: self.settings.learning_rate,
            router_learning_rate: self.settings.router_learning_rate,
            last: self.progress.last,
            held_back: self.progress.held_back.clone(),
            held_back_step: self.progress.held_back_step,
        }
    }

    fn position(&self) -> Position {
        let counters = self.counters;
        Position {
            format_version: FORMAT_VERSION,
            step: counters.step,
            row: counters.step * self.settings.rows() as u64,
            updates: counters.updates,
            tokens: counters.tokens,
            norm_mean: counters.norm_mean,
            norms: counters.norms,
            settings: self.settings.to_json(),
            parent: self.saver.parent_files().to_vec(),
            engines: self.engines.clone(),
        }
    }

    /// Largest memory of a process that computes, or of its GPU, in bytes; `None` where a GPU's driver does not tell.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.memory.or_else(|| (!self.on_gpu).then(peak_memory))
    }

    /// Writes the output.
    pub(super) fn finish(
        &mut self,
        engine: &dyn Engine,
        out: &Path,
        began: Instant,
        watch: Watcher,
    ) -> Result<()> {
        let (step, seconds) = (self.counters.step, began.elapsed().as_secs_f64());
        self.mixture.check_unchanged()?;
        self.log.add(&Record::End {
            step,
            seconds,
            peak_memory_bytes: self.peak_memory(),
        })?;
        self.log.sync()?;
        let (position, summary, state) = (self.position(), self.summary(), engine.state()?);
        let keeps = Keeps::Weights;
        self.saver
            .save(out, &state, &position, summary, keeps, self.replaces)?;
        watch(&Event::Saved(out));
        Ok(())
    }
}

/// The end of a run that a signal stopped after `step`.
pub(super) fn stopped(folder: &RunFolder, step: u64) -> Error {
    let path = if step > 0 {
        folder.checkpoint(step)
    } else {
        folder.path().to_path_buf()
    };
    RunError::Stopped { step, path }.into()
}

/// Appends rows to a file of JSON lines.
fn dump(path: &Path, step: u64, mixture: &Mixture, rows: &[Row]) -> Result<()> {
    let names: Vec<&str> = mixture.names().collect();
    let line = |row: &Row| {
        format!(
            "{}\n",
            json!({ "step": step, "domain": names[row.domain], "ids": row.ids })
        )
    };
    let lines: String = rows.iter().map(line).collect();
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    file.and_then(|mut file| file.write_all(lines.as_bytes()))
        .map_err(|e| Error::io("write", path, e))
}

/// Rows by number, with the domains that they are from.
fn name_rows(mixture: &Mixture, first: u64, rows: &[Row]) -> String {
    let names: Vec<&str> = mixture.names().collect();
    let mut counts = vec![0; names.len()];
    rows.iter().for_each(|row| counts[row.domain] += 1);
    let counted = names.iter().zip(counts).filter(|(_, count)| *count > 0);
    let domains: Vec<String> = counted
        .map(|(name, count)| format!("{count} of {name}"))
        .collect();
    format!(
        "rows {first} to {} ({})",
        first + rows.len() as u64 - 1,
        domains.join(", ")
    )
}
