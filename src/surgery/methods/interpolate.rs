//! Interpolated experts: each is a specialist's network moved back towards the seed's, (1 − α) · seed + α · specialist.
//!
//! WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) interpolates in the same way. It finds models between a base and its
//! fine-tuned descendant that keep the descendant's skill and the base's generality. Everything else is averaged, as in BTX.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use serde_json::{Value, json};

use super::error::MethodError;
use super::rule::{
    ExpertPart, ExpertRule, Roster, RuleContext, SurgeryMethod, Upcycles, group, only,
};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Interpolation between the seed and each specialist.
#[derive(Debug)]
pub(super) struct Interpolate;

#[derive(Clone, Debug, Args)]
struct InterpolateFlags {
    /// The specialist's share of its expert's feed-forward weights; the rest is the seed's (`interpolate`) [default: 0.5].
    #[arg(long, value_name = "A")]
    expert_weight: Option<f64>,
}

impl SurgeryMethod for Interpolate {
    fn name(&self) -> &'static str {
        "interpolate"
    }

    fn about(&self) -> &'static str {
        "A mixture of interpolated experts (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): each feed-forward expert is between the seed's network and a specialist's."
    }

    fn upcycles(&self) -> Upcycles {
        Upcycles::FeedForward
    }

    fn flags(&self, command: Command) -> Command {
        InterpolateFlags::augment_args(command)
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        let share = group::<InterpolateFlags>(flags)?
            .expert_weight
            .unwrap_or(0.5);
        if !(share > 0.0 && share <= 1.0) {
            return Err(MethodError::ExpertWeight { found: share }.into());
        }
        Ok(Arc::new(Interpolation { share }))
    }
}

/// Networks between the seed's and the specialists'.
#[derive(Debug)]
struct Interpolation {
    /// The specialist's share, α.
    share: f64,
}

impl ExpertRule for Interpolation {
    fn size(&self, networks: u64, width: u64) -> Result<(u64, u64)> {
        Ok((networks, width))
    }

    fn check(&self, roster: Roster) -> Result<()> {
        if roster.seed_is_expert {
            return Ok(());
        }
        Err(MethodError::NoSeed.into())
    }

    fn names(&self, networks: &[String], _experts: u64) -> Vec<String> {
        networks.to_vec()
    }

    fn networks_of(&self, expert: u64, _networks: usize) -> Vec<usize> {
        if expert == 0 || self.share == 1.0 {
            vec![expert as usize]
        } else {
            vec![0, expert as usize]
        }
    }

    fn expression(
        &self,
        _part: &ExpertPart,
        _context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        match &of[..] {
            // Expert 0 and further copies of the seed are the seed's network, byte for byte.
            [seed, specialist] if seed != specialist => Expression::Sum {
                of,
                weights: vec![1.0 - self.share, self.share],
            },
            _ => only(of),
        }
    }

    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        vec![("expert_weight", json!(self.share))]
    }
}
