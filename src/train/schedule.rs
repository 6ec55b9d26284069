//! The learning rate over the steps of a run.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::error::TrainError;
use crate::Result;

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Along half a cosine, from the peak at the end of the warm-up to the floor at the last step.
    Cosine,
    /// Along a straight line between the same two points.
    Linear,
    /// Warm-up, stable, decay: at the peak until the last `decay_steps` steps, then along a straight line to the floor.
    Wsd,
    /// It stays at the peak.
    Constant,
}

/// A warm-up along a straight line, then a decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps of the run.
    pub steps: u64,
    /// Steps in which the rate rises from 0 to the peak.
    pub warmup: u64,
    /// What follows.
    pub decay: Decay,
    /// Steps of the decay of [`Decay::Wsd`].
    pub decay_steps: u64,
    /// The rate after the last step, as a share of the peak.
    pub floor: f64,
}

impl Schedule {
    /// Refuses a schedule whose parts do not fit into the run.
    pub fn check(&self) -> Result<()> {
        let (steps, warmup) = (self.steps, self.warmup);
        if steps == 0 {
            return Err(TrainError::OutOfRange {
                flag: "--steps",
                expected: "at least one step",
                found: 0.0,
            }
            .into());
        }
        if warmup > steps {
            return Err(TrainError::LongWarmup { warmup, steps }.into());
        }
        if self.decay == Decay::Wsd && (self.decay_steps == 0 || self.decay_steps > steps - warmup)
        {
            return Err(TrainError::DecaySteps {
                most: steps - warmup,
                found: self.decay_steps,
            }
            .into());
        }
        if !(0.0..=1.0).contains(&self.floor) {
            return Err(TrainError::OutOfRange {
                flag: "--floor",
                expected: "a share of the peak, 0 to 1",
                found: self.floor,
            }
            .into());
        }
        Ok(())
    }

    /// The rate of step `step`, counted from 1, as a share of the peak.
    ///
    /// The warm-up reaches 1 at step `warmup`, and the decay reaches the floor at the last step.
    pub fn share(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let fall = |from: u64| (step - from) as f64 / (self.steps - from).max(1) as f64;
        let kept = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - fall(self.warmup),
            // libm: the same on every machine.
            Decay::Cosine => 0.5 + 0.5 * libm::cos(std::f64::consts::PI * fall(self.warmup)),
            Decay::Wsd => {
                let start = self.steps - self.decay_steps;
                if step <= start {
                    1.0
                } else {
                    1.0 - fall(start)
                }
            }
        };
        self.floor + (1.0 - self.floor) * kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn schedule(decay: Decay) -> Schedule {
        Schedule {
            steps: 110,
            warmup: 10,
            decay,
            decay_steps: 20,
            floor: 0.1,
        }
    }

    #[test]
    fn closed_forms() {
        for decay in [Decay::Cosine, Decay::Linear, Decay::Wsd, Decay::Constant] {
            let schedule = schedule(decay);
            schedule.check().unwrap();
            assert_eq!(schedule.share(1), 0.1);
            assert_eq!(schedule.share(5), 0.5);
            assert_eq!(schedule.share(10), 1.0);
            let last = if decay == Decay::Constant { 1.0 } else { 0.1 };
            assert!((schedule.share(110) - last).abs() < 1e-15, "{decay:?}");
        }
        let half = 0.1 + 0.9 * 0.5;
        assert!((schedule(Decay::Cosine).share(60) - half).abs() < 1e-15);
        assert!((schedule(Decay::Linear).share(60) - half).abs() < 1e-15);
        assert!((schedule(Decay::Linear).share(35) - 0.775).abs() < 1e-15);
        assert_eq!(schedule(Decay::Wsd).share(90), 1.0);
        assert!((schedule(Decay::Wsd).share(100) - half).abs() < 1e-15);
        let quarter = 0.1 + 0.9 * (0.5 + 0.5 * (std::f64::consts::PI / 4.0).cos());
        assert!((schedule(Decay::Cosine).share(35) - quarter).abs() < 1e-15);
    }

    #[test]
    fn without_a_warm_up_the_first_step_falls_already() {
        let schedule = Schedule {
            steps: 1,
            warmup: 0,
            decay: Decay::Cosine,
            decay_steps: 0,
            floor: 0.0,
        };
        schedule.check().unwrap();
        assert_eq!(schedule.share(1), 0.0);
        let schedule = Schedule {
            steps: 4,
            warmup: 0,
            decay: Decay::Linear,
            decay_steps: 0,
            floor: 0.0,
        };
        assert_eq!(
            [1, 2, 3, 4].map(|step| schedule.share(step)),
            [0.75, 0.5, 0.25, 0.0]
        );
    }

    #[test]
    fn parts_must_fit() {
        let refused = |schedule: Schedule| match schedule.check().unwrap_err() {
            Error::Train(error) => error,
            error => panic!("{error}"),
        };
        let warmup = schedule(Decay::Cosine).warmup;
        assert!(matches!(
            refused(Schedule {
                steps: 5,
                ..schedule(Decay::Cosine)
            }),
            TrainError::LongWarmup { warmup: found, steps: 5 } if found == warmup
        ));
        assert!(matches!(
            refused(Schedule {
                decay_steps: 101,
                ..schedule(Decay::Wsd)
            }),
            TrainError::DecaySteps { found: 101, .. }
        ));
        assert!(matches!(
            refused(Schedule {
                floor: 1.5,
                ..schedule(Decay::Cosine)
            }),
            TrainError::OutOfRange {
                flag: "--floor",
                found: 1.5,
                ..
            }
        ));
    }
}
