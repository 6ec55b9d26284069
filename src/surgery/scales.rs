//! Noise on the weights of single experts, and factors on what they add to the residual stream (mergekit-moe's
//! `noise_scale` and `residual_scale`).

use clap::Args;
use serde_json::{Map, Value, json};

use super::error::SurgeryError;
use super::names::SHARED;
use crate::Result;
use crate::arguments::Named;
use crate::checkpoint::expression::Expression;
use crate::family::{Role, TensorSpec};

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
    /// Refuses numbers that make no sense, and names that are neither in `experts` nor, where `shared`, the shared expert's.
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
                    let (name, value) = (name.clone(), *value);
                    return Err(SurgeryError::ScaleFactor { flag, name, value }.into());
                }
                if !known().any(|known| known == name) {
                    return Err(SurgeryError::UnknownExpert {
                        argument: format!("{flag} {name}={value}"),
                        name: name.clone(),
                        known: known().map(str::to_owned).collect(),
                    }
                    .into());
                }
                if scales[..number].iter().any(|(other, _)| other == name) {
                    return Err(SurgeryError::NamedTwice {
                        flag,
                        named: format!("`{name}`"),
                        expected: "each expert",
                    }
                    .into());
                }
            }
        }
        if shared && experts.iter().any(|name| name == SHARED) && *self != Self::default() {
            return Err(SurgeryError::AmbiguousShared.into());
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
