//! This program's own trainer as an engine: takes each step, measures and reports its state when due.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::DType;

use super::engine::{Engine, Outcome, Report, Reports, Taken};
use super::error::BadStep;
use super::measure::{HeldBack, measure};
use super::parameters::{Parameters, Trained};
use super::save::stored_values;
use super::settings::{Operation, Settings, Trouble};
use super::state::State;
use super::trainer::Trainer;
use crate::checkpoint::Checkpoint;
use crate::data::Mixture;
use crate::model::{CausalLm, OptimiserState};
use crate::{Result, gpu};

/// A model of ours with the data that it trains on.
pub(super) struct NativeEngine<'a> {
    pub(super) trainer: Trainer<'a>,
    pub(super) mixture: &'a Mixture,
    pub(super) held_back: &'a [HeldBack],
    pub(super) settings: &'a Settings,
    pub(super) operation: &'a Operation,
    /// The last step at which held-back text was measured.
    pub(super) measured: Option<u64>,
}

impl Engine for NativeEngine<'_> {
    fn run(&mut self, stop: &AtomicBool, report: Reports) -> Result<Outcome> {
        loop {
            let step = self.trainer.counters.step;
            // A run that was stopped while it measured measures again.
            if self.is_due(self.operation.validate_every) && self.measured != Some(step) {
                self.measure(stop, report)?;
            }
            let stopped = stop.load(Ordering::SeqCst);
            if step > 0 && (self.is_due(self.operation.save_every) || stopped) {
                report(Report::State(self.state()?))?;
            }
            if step == self.settings.steps {
                return Ok(Outcome::Complete);
            }
            if stopped {
                return Ok(Outcome::Stopped);
            }
            if let Some(outcome) = self.step(report)? {
                return Ok(outcome);
            }
        }
    }

    fn state(&self) -> Result<State<'_>> {
        let trainer = &self.trainer;
        Ok(State::Held(&trainer.parameters, &trainer.states))
    }
}

impl NativeEngine<'_> {
    /// Whether something is due after the present step that happens `every` so many steps, before the first one and at
    /// each planned end; 0 is never.
    fn is_due(&self, every: u64) -> bool {
        let step = self.trainer.counters.step;
        every > 0 && (step.is_multiple_of(every) || self.settings.plans().any(|end| end == step))
    }

    /// Measures on held-back text, unless a signal comes meanwhile.
    fn measure(&mut self, stop: &AtomicBool, report: Reports) -> Result<()> {
        if self.held_back.is_empty() {
            return Ok(());
        }
        let model = self.trainer.model;
        if let Some(domains) = measure(model, self.held_back, self.settings, stop)? {
            report(Report::Validation(domains))?;
        }
        Ok(())
    }

    /// Takes a step; returns how the run ends, if the step is trouble that ends it.
    fn step(&mut self, report: Reports) -> Result<Option<Outcome>> {
        let start = Instant::now();
        let counters = self.trainer.counters;
        let (first, count) = (
            counters.step * self.settings.rows() as u64,
            self.settings.rows(),
        );
        let rows = self.mixture.rows(first, count)?;
        // Answers can be far between; a run that stopped here would meet the same step again.
        if self.mixture.has_masks() && self.trainer.predicted(&rows) == 0 {
            self.trainer.counters.step += 1;
            report(Report::Skip(self.trainer.counters, BadStep::NoAnswer))?;
            return Ok(None);
        }
        let step = counters.step + 1;
        let every = self.operation.detail_every;
        let is_end = step == 1 || self.settings.plans().any(|end| end == step);
        let detailed = every > 0 && (step.is_multiple_of(every) || is_end);
        let mut done = self.trainer.step(self.mixture, &rows, detailed)?;
        if let Some((action, reason)) = done.trouble.take() {
            if action == Trouble::Stop {
                report(Report::State(self.state()?))?;
                return Ok(Some(Outcome::Trouble(reason)));
            }
            self.trainer.skip(&done);
            report(Report::Skip(self.trainer.counters, reason))?;
            return Ok(None);
        }
        report(Report::Step(Box::new(Taken {
            counters: self.trainer.counters,
            loss: done.loss,
            nll: done.nll,
            load_balance: done.load_balance,
            z: done.z,
            gradient_norm: done.gradient_norm,
            learning_rate: done.rates.0,
            router_learning_rate: done.rates.1,
            seconds: start.elapsed().as_secs_f64(),
            domains: done.domains,
            memory: gpu::peak_memory(self.trainer.model.device()),
        })))?;
        if let Some(detail) = done.detail {
            report(Report::Detail(Box::new(detail)))?;
        }
        Ok(None)
    }
}

/// The optimiser's state before the first step.
pub(super) fn states(
    folder: &Path,
    model: &CausalLm,
    parameters: &Parameters,
    dtype: DType,
) -> Result<Vec<Box<dyn OptimiserState>>> {
    let checkpoint = (dtype != DType::F32)
        .then(|| model.architecture().as_read(Checkpoint::open(folder)?))
        .transpose()?;
    let state = |parameter: &Trained| {
        let name = &parameter.spec.name;
        let master = checkpoint
            .as_ref()
            .map(|checkpoint| stored_values(checkpoint, name))
            .transpose()?;
        model.optimiser_state(&parameter.var, master)
    };
    parameters.all.iter().map(state).collect()
}
