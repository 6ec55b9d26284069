//! Noise upcycling: copies of one network with N(0, std²) added to the weights, everywhere or at some neurons.
//!
//! Noise at half of the neurons is a baseline of Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261). Biases stay as they are.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use serde_json::{Value, json};

use super::error::MethodError;
use super::rule::{
    ExpertCount, ExpertPart, ExpertRule, RuleContext, SurgeryMethod, check_ratio, group, only,
    share,
};
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};

/// Noise upcycling.
#[derive(Debug)]
pub(super) struct Noise;

#[derive(Clone, Debug, Args)]
struct NoiseFlags {
    /// Standard deviation of the noise (`noise`) [default: 0.02].
    #[arg(long, value_name = "STD")]
    noise_std: Option<f64>,
    /// The part of each expert's neurons that gets noise (`noise`) [default: 1].
    #[arg(long, value_name = "R")]
    noise_ratio: Option<f64>,
}

impl SurgeryMethod for Noise {
    fn name(&self) -> &'static str {
        "noise"
    }

    fn about(&self) -> &'static str {
        "A mixture by noise upcycling: every expert is a copy of a dense model's feed-forward network, with noise added."
    }

    fn flags(&self, command: Command) -> Command {
        NoiseFlags::augment_args(ExpertCount::augment_args(command))
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        let own: NoiseFlags = group(flags)?;

        let std = own.noise_std.unwrap_or(0.02);
        if !std.is_finite() || std < 0.0 {
            return Err(MethodError::NoiseStd { found: std }.into());
        }

        Ok(Arc::new(NoisyCopies {
            experts: group::<ExpertCount>(flags)?.of(self)?,
            std,
            ratio: own.noise_ratio.unwrap_or(1.0),
        }))
    }
}

/// Copies of one network with noise.
#[derive(Debug)]
struct NoisyCopies {
    experts: u64,
    /// Standard deviation of the noise.
    std: f64,
    /// The part of an expert's neurons that get noise; 1 is every weight.
    ratio: f64,
}

impl ExpertRule for NoisyCopies {
    fn size(&self, _networks: u64, width: u64) -> Result<(u64, u64)> {
        check_ratio(self.ratio, "--noise-ratio")?;
        Ok((self.experts, width))
    }

    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        let of = only(of);
        let noisy = share(self.ratio, context.width);
        let Some(axis) = part.neurons().filter(|_| !part.bias && noisy > 0) else {
            return of;
        };

        let seed = context.rng_seed;
        let at = (noisy < context.width).then(|| Drawn {
            axis,
            seed,
            key: part.expert_key("noisy"),
            start: 0,
            length: noisy,
        });
        Expression::AddNoise {
            of: Box::new(of),
            std: self.std,
            seed,
            key: part.own_key("noise"),
            at,
        }
    }

    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        vec![
            ("noise_std", json!(self.std)),
            ("noise_ratio", json!(self.ratio)),
        ]
    }
}
