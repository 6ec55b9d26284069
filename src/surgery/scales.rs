//! Noise on the weights of single experts, and factors on what they add to the residual stream (mergekit-moe's
//! `noise_scale` and `residual_scale`).

use clap::Args;
use serde_json::{Map, Value, json};

use super::upcycle::SEED;
use crate::arguments::Named;
use crate::checkpoint::expression::Expression;
use crate::error::nearest;
use crate::family::{Role, TensorSpec};
use crate::{Error, Result};

/// The name of the shared expert here.
pub const SHARED: &str = "shared";

/// Noise and factors for single experts, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scales {
    /// Standard deviations of the noise on every feed-forward weight.
    pub noise: Vec<(String, f64)>,
    /// Factors on the down projection, after the noise.
    pub residual: Vec<(String, f64)>,
}

/// The flags that say so.
#[derive(Clone, Debug, Args)]
pub struct ScaleFlags {
    /// Add noise of this standard deviation to the feed-forward weights of one expert, or of `shared` (`bam`, `btx`; repeat).
    #[arg(long, value_name = "NAME=STD")]
    noise_scale: Vec<Named<f64>>,
    /// Multiply the down projection of one expert, or of `shared`, by a factor (`bam`, `btx`; repeat).
    #[arg(long, value_name = "NAME=FACTOR")]
    residual_scale: Vec<Named<f64>>,
}

impl From<ScaleFlags> for Scales {
    fn from(flags: ScaleFlags) -> Self {
        Self {
            noise: pairs(flags.noise_scale),
            residual: pairs(flags.residual_scale),
        }
    }
}

/// Each name with its number.
fn pairs(named: Vec<Named<f64>>) -> Vec<(String, f64)> {
    named
        .into_iter()
        .map(|Named { name, value }| (name, value))
        .collect()
}

impl Scales {
    /// Refuses numbers that make no sense, and names that are neither those of `experts` nor, if there is one, the shared
    /// expert's.
    pub(super) fn check(&self, experts: &[String], shared: bool) -> Result<()> {
        let known = || {
            experts
                .iter()
                .map(String::as_str)
                .chain(shared.then_some(SHARED))
        };
        for (flag, scales) in [
            ("--noise-scale", &self.noise),
            ("--residual-scale", &self.residual),
        ] {
            for (number, (name, value)) in scales.iter().enumerate() {
                if !value.is_finite() || (flag == "--noise-scale" && *value < 0.0) {
                    return Err(Error::usage(format!(
                        "{flag} {name}={value}: expected a number that can be a factor"
                    )));
                }
                if !known().any(|known| known == name) {
                    let error = Error::usage(format!(
                        "{flag} {name}={value}: there is no expert `{name}`"
                    ));
                    return Err(match nearest(name, known()) {
                        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
                        None => error.with_hint(format!(
                            "there are: {}",
                            known().collect::<Vec<_>>().join(", ")
                        )),
                    });
                }
                if scales[..number].iter().any(|(other, _)| other == name) {
                    return Err(Error::usage(format!(
                        "{flag} names `{name}` twice, expected each expert once"
                    )));
                }
            }
        }
        if shared && experts.iter().any(|name| name == SHARED) && *self != Self::default() {
            return Err(Error::usage(format!(
                "`{SHARED}` may be the expert of that name or the shared expert"
            ))
            .with_hint(format!(
                "name the --expert differently; `{SEED}` is the seed itself"
            )));
        }
        Ok(())
    }

    /// The tensor `spec`, made of `of`, as the expert `name` has it.
    pub(super) fn applied(
        &self,
        of: Expression,
        name: &str,
        spec: &TensorSpec,
        seed: u64,
    ) -> Expression {
        let value = |scales: &[(String, f64)]| {
            scales
                .iter()
                .find(|(of, _)| of == name)
                .map(|(_, value)| *value)
        };
        let mut made = of;
        if let Some(std) = value(&self.noise) {
            let key = format!("{}.noise", spec.name);
            made = Expression::AddNoise {
                of: Box::new(made),
                std,
                seed,
                key,
                at: None,
            };
        }
        match value(&self.residual) {
            Some(by) if matches!(spec.role, Role::Down | Role::SharedDown) => Expression::Scale {
                of: Box::new(made),
                by,
            },
            _ => made,
        }
    }

    /// For the manifest, under the names of the command line.
    pub(super) fn record(&self) -> impl Iterator<Item = (&'static str, Value)> {
        let map = |scales: &[(String, f64)]| {
            json!(
                scales
                    .iter()
                    .map(|(name, value)| (name.clone(), json!(value)))
                    .collect::<Map<String, Value>>()
            )
        };
        let all = [
            ("noise_scale", &self.noise),
            ("residual_scale", &self.residual),
        ];
        all.into_iter()
            .filter(|(_, scales)| !scales.is_empty())
            .map(move |(key, scales)| (key, map(scales)))
    }
}
