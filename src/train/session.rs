//! The steps of a run: each is taken, logged, measured and saved when due.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::error::TrainError;
use super::event::{Event, Watcher};
use super::folder::RunFolder;
use super::machine::peak_memory;
use super::measure::{HeldBack, measure};
use super::metrics::{self, Log, Record, Validation};
use super::run_error::RunError;
use super::save::{Position, Saver};
use super::settings::{Operation, Settings, Trouble};
use super::trainer::{Done, Trainer};
use crate::card::{BITS_PER_BYTE, DataScore, LastLosses, PERPLEXITY, TrainedOn, TrainingSummary};
use crate::checkpoint::manifest::FORMAT_VERSION;
use crate::data::{Mixture, Row};
use crate::{Error, Result};

/// What a file of rows begins with.
pub(super) const ROWS: &[u8] = b"{\"step\":";

/// A run that is going on.
pub(super) struct Session<'a> {
    pub(super) trainer: Trainer<'a>,
    pub(super) saver: Saver,
    pub(super) folder: RunFolder,
    pub(super) log: Log,
    pub(super) mixture: Mixture,
    pub(super) held_back: Vec<HeldBack>,
    pub(super) settings: &'a Settings,
    pub(super) operation: &'a Operation,
    /// Whether the output replaces an earlier one.
    pub(super) replaces: bool,
    pub(super) flops_per_token: f64,
    pub(super) matmul_peak: f64,
    /// The step of the latest checkpoint.
    pub(super) saved: Option<u64>,
    pub(super) losses: Losses,
    /// What the card of a checkpoint says of the steps so far.
    pub(super) progress: Progress,
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
    /// Takes the steps that are left; with `stop` it saves after the one that it is in.
    ///
    /// Measures before the first step, too.
    pub(super) fn steps(&mut self, stop: &AtomicBool, watch: Watcher) -> Result<()> {
        loop {
            let step = self.trainer.counters.step;
            // A run that was stopped while it measured measures again.
            if self.is_due(self.operation.validate_every) && self.log.measured() != Some(step) {
                self.measure(stop, watch)?;
            }
            let stopped = stop.load(Ordering::SeqCst);
            if step > 0 && (self.is_due(self.operation.save_every) || stopped) {
                self.save(watch)?;
            }
            if step == self.settings.steps {
                return Ok(());
            }
            if stopped {
                return Err(self.stopped());
            }
            self.note_extension(watch)?;
            self.step(watch)?;
        }
    }

    /// Whether something is due after the present step that happens `every` so many steps, before the first one and at
    /// each planned end; 0 is never.
    fn is_due(&self, every: u64) -> bool {
        let step = self.trainer.counters.step;
        every > 0 && (step.is_multiple_of(every) || self.settings.plans().any(|end| end == step))
    }

    /// Measures on held-back text, unless a signal comes meanwhile.
    fn measure(&mut self, stop: &AtomicBool, watch: Watcher) -> Result<()> {
        if self.held_back.is_empty() {
            return Ok(());
        }
        let model = self.trainer.model;
        let Some(domains) = measure(model, &self.held_back, self.settings, stop)? else {
            return Ok(());
        };
        let step = self.trainer.counters.step;
        watch(&Event::Validation(step, &domains));
        self.add_record(Record::Validation { step, domains })
    }

    /// The end of a run that a signal stopped.
    fn stopped(&self) -> Error {
        let step = self.trainer.counters.step;
        let path = if step > 0 {
            self.folder.checkpoint(step)
        } else {
            self.folder.path().to_path_buf()
        };
        RunError::Stopped { step, path }.into()
    }

    /// Says where a run that was extended leaves an earlier plan, and how it continues.
    fn note_extension(&mut self, watch: Watcher) -> Result<()> {
        let step = self.trainer.counters.step;
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

    fn step(&mut self, watch: Watcher) -> Result<()> {
        let start = Instant::now();
        let counters = self.trainer.counters;
        let (first, count) = (
            counters.step * self.settings.rows() as u64,
            self.settings.rows(),
        );
        let rows = self.mixture.rows(first, count)?;
        let step = counters.step + 1;
        if let Some(path) = &self.operation.dump_rows {
            dump(path, step, &self.mixture, &rows)?;
        }
        let every = self.operation.detail_every;
        let is_end = step == 1 || self.settings.plans().any(|end| end == step);
        let detailed = every > 0 && (step.is_multiple_of(every) || is_end);
        let mut done = self.trainer.step(&self.mixture, &rows, detailed)?;
        if let Some((action, reason)) = done.trouble.take() {
            let named = name_rows(&self.mixture, first, &rows);
            if action == Trouble::Stop {
                self.save(watch)?;
                return Err(TrainError::Stopped {
                    step,
                    reason,
                    rows: named,
                }
                .into());
            }
            watch(&Event::Note(format!(
                "step {step} skipped: {reason}; its batch is {named}"
            )));
            self.trainer.skip(&done);
            return self.log.add(&Record::Skip {
                step,
                reason: reason.to_string(),
                rows: named,
            });
        }
        let record = self.record(step, &mut done, start);
        self.losses.add(&record);
        watch(&Event::Step(&record));
        self.add_record(Record::Step(Box::new(record)))?;
        match done.detail {
            Some(detail) => self.log.add(&Record::Detail(Box::new(detail))),
            None => Ok(()),
        }
    }

    fn record(&self, step: u64, done: &mut Done, start: Instant) -> metrics::Step {
        let seconds = start.elapsed().as_secs_f64();
        let tokens_per_second = done.tokens as f64 / seconds;
        let flops_per_second = self.flops_per_token * tokens_per_second;
        metrics::Step {
            step,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |time| time.as_secs_f64()),
            tokens: self.trainer.counters.tokens,
            loss: done.loss,
            nll: done.nll,
            load_balance: done.load_balance,
            z: done.z,
            learning_rate: done.rates.0,
            router_learning_rate: done.rates.1,
            gradient_norm: done.gradient_norm,
            seconds,
            tokens_per_second,
            flops_per_second,
            peak_share: flops_per_second / self.matmul_peak,
            domains: std::mem::take(&mut done.domains),
        }
    }

    /// Saves a checkpoint, unless this step has one, and removes old ones.
    fn save(&mut self, watch: Watcher) -> Result<()> {
        let step = self.trainer.counters.step;
        if self.saved == Some(step) {
            return Ok(());
        }
        self.mixture.check_unchanged()?;
        // Every line up to this step must outlive whatever comes.
        self.log.sync()?;
        let target = self.folder.checkpoint(step);
        let trainer = &self.trainer;
        self.saver.save(
            &target,
            &trainer.parameters,
            &trainer.states,
            &self.position(),
            self.summary(),
            (true, false),
        )?;
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
        let counters = self.trainer.counters;
        let data = self.settings.data.iter().map(|data| TrainedOn {
            name: data.name.clone(),
            weight: data.weight,
        });
        TrainingSummary {
            steps: counters.step,
            tokens: counters.tokens,
            data: data.collect(),
            learning_rate: self.settings.learning_rate,
            router_learning_rate: self.settings.router_learning_rate,
            last: self.progress.last,
            held_back: self.progress.held_back.clone(),
            held_back_step: self.progress.held_back_step,
        }
    }

    fn position(&self) -> Position {
        let counters = self.trainer.counters;
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
        }
    }

    /// Writes the output.
    pub(super) fn finish(&mut self, out: &Path, began: Instant, watch: Watcher) -> Result<()> {
        let (step, seconds) = (self.trainer.counters.step, began.elapsed().as_secs_f64());
        self.mixture.check_unchanged()?;
        self.log.add(&Record::End {
            step,
            seconds,
            peak_memory_bytes: peak_memory(),
        })?;
        self.log.sync()?;
        let trainer = &self.trainer;
        let how = (false, self.replaces);
        self.saver.save(
            out,
            &trainer.parameters,
            &trainer.states,
            &self.position(),
            self.summary(),
            how,
        )?;
        watch(&Event::Saved(out));
        Ok(())
    }
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
