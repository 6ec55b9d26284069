//! What a run had used at each of its steps: the axes that charts can have instead of steps.

use serde::Serialize;

use super::input::Subject;

/// Rows of the table of a run: as many as a chart has points.
const ROWS: usize = 600;

/// Tokens, seconds of computation and floating-point operations by step; all columns have one length.
#[derive(Debug, Default, Serialize)]
pub(super) struct Axes {
    steps: Vec<f64>,
    tokens: Vec<f64>,
    /// Durations of the steps added up: pauses of a run that was resumed do not count.
    seconds: Vec<f64>,
    flops: Vec<f64>,
}

impl Axes {
    /// The table of a run, from nothing at step 0 to its last step.
    pub(super) fn of(subject: &Subject) -> Self {
        let mut axes = Self::default();
        let (mut seconds, mut flops) = (0.0, 0.0);
        let count = subject.steps().count();
        let every = count.div_ceil(ROWS).max(1);
        axes.add(0.0, 0.0, seconds, flops);
        for (number, step) in (1..).zip(subject.steps()) {
            seconds += step.seconds;
            flops += step.seconds * step.flops_per_second;
            if number % every == 0 || number == count {
                axes.add(step.step as f64, step.tokens as f64, seconds, flops);
            }
        }
        axes
    }

    fn add(&mut self, step: f64, tokens: f64, seconds: f64, flops: f64) {
        self.steps.push(step);
        self.tokens.push(tokens);
        self.seconds.push(seconds);
        self.flops.push(flops);
    }
}
