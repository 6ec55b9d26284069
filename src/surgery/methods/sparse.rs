//! Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055): every expert is a copy of the seed's network.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command};

use super::rule::{ExpertCount, ExpertPart, ExpertRule, RuleContext, SurgeryMethod, group, only};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Sparse upcycling.
#[derive(Debug)]
pub(super) struct Sparse;

impl SurgeryMethod for Sparse {
    fn name(&self) -> &'static str {
        "sparse"
    }

    fn about(&self) -> &'static str {
        "A sparsely upcycled mixture (Komatsuzaki et al. 2022, arXiv 2212.05055): every expert is a copy of a dense model's feed-forward network."
    }

    fn flags(&self, command: Command) -> Command {
        ExpertCount::augment_args(command)
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        Ok(Arc::new(Copies {
            experts: group::<ExpertCount>(flags)?.of(self)?,
        }))
    }
}

/// Copies of one network.
#[derive(Debug)]
struct Copies {
    experts: u64,
}

impl ExpertRule for Copies {
    fn size(&self, _networks: u64, width: u64) -> Result<(u64, u64)> {
        Ok((self.experts, width))
    }

    fn expression(
        &self,
        _part: &ExpertPart,
        _context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        only(of)
    }
}
