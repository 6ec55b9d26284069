//! What `train` says while it runs: on a terminal a bar, elsewhere a line now and then.

use std::time::Instant;

use bam_convert::memory::MachineMemory;
use bam_convert::progress::{Progress, Unit};
use bam_convert::table;
use bam_convert::train::{EngineFacts, Event, Memory, StepRecord};
use indicatif::ProgressBar;

use super::printer::{LINE_EVERY, Printer};

/// The progress of a run.
pub(super) struct TrainingProgress<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
    steps: u64,
    /// The first step that this process took, and when it ended.
    first: Option<(u64, Instant)>,
    /// When the last line was printed.
    printed: Instant,
}

impl<'a> TrainingProgress<'a> {
    /// Of a run of so many steps.
    pub(super) fn new(printer: &'a Printer, steps: u64) -> Self {
        Self {
            printer,
            bar: printer.message_bar(steps),
            steps,
            first: None,
            printed: Instant::now(),
        }
    }

    /// The bar, to draw something above it.
    pub(super) fn bar(&self) -> &ProgressBar {
        &self.bar
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: &Event) {
        match event {
            Event::Step(step) => self.step(step),
            Event::Begins {
                trained,
                parameters,
                memory,
                matmul_peak,
                engine,
            } => self.begins([*trained, *parameters], memory, *matmul_peak, engine),
            Event::Validation(step, domains) => {
                let each = domains
                    .iter()
                    .map(|(name, numbers)| format!("{name} {:.3}", numbers.perplexity));
                let each = each.collect::<Vec<_>>().join(", ");
                self.note(&format!("step {step}: perplexity {each}"));
            }
            Event::Resumes(step) => self.note(&format!("resumed after step {step}")),
            Event::Saved(path) => self.note(&format!("saved {}", path.display())),
            Event::Note(text) => self.note(&format!(" note: {text}")),
        }
    }

    fn note(&self, text: &str) {
        self.bar.suspend(|| self.printer.note(text));
    }

    fn begins(
        &self,
        [trained, parameters]: [u64; 2],
        memory: &Memory,
        matmul_peak: f64,
        engine: &EngineFacts,
    ) {
        self.note(&format!(
            "training {} of {} parameters; matmuls at {}",
            table::grouped(trained),
            table::grouped(parameters),
            table::rate(matmul_peak)
        ));
        let more = match engine.ranks() {
            Some(ranks) => format!(" in each of {}", table::counted(ranks, "rank")),
            None => MachineMemory::now()
                .map_or_else(String::new, |machine| format!("; {}", machine.text())),
        };
        self.note(&format!(
            "memory about {}{more}",
            table::bytes(memory.total())
        ));
        self.note(&format!("  {}", memory.parts()));
        self.note(&engine.to_string());
    }

    fn step(&mut self, step: &StepRecord) {
        let progress = Progress {
            details: vec![
                format!("loss {:.4}", step.loss),
                format!("rate {:.2e}", step.learning_rate),
            ],
            seconds_left: Some(self.seconds_left(step)),
            ..Progress::new("step", Unit::Steps, step.step, self.steps)
        };
        self.bar.set_position(step.step);
        self.bar.set_message(progress.to_string());
        if self.bar.is_hidden() && self.printed.elapsed() >= LINE_EVERY {
            self.printed = Instant::now();
            self.printer.note(&progress.to_string());
        }
    }

    /// The mean time of a step so far, with measurements and checkpoints, times the steps that are left.
    fn seconds_left(&mut self, step: &StepRecord) -> f64 {
        let left = self.steps.saturating_sub(step.step) as f64;
        let (first, ended) = *self.first.get_or_insert((step.step, Instant::now()));
        let taken = step.step - first;
        let each = if taken == 0 {
            step.seconds
        } else {
            ended.elapsed().as_secs_f64() / taken as f64
        };
        left * each
    }
}
