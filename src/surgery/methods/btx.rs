//! Branch-Train-MiX (Sukhbaatar et al. 2024, arXiv 2403.07816): feed-forward experts beside one averaged attention.

use std::sync::Arc;

use clap::{ArgMatches, Command};

use super::networks::{self, NetworkFlags};
use super::rule::{ExpertRule, SurgeryMethod, Upcycles};
use crate::Result;
use crate::family::USUAL_TOP_K;

/// Branch-Train-MiX.
#[derive(Debug)]
pub(super) struct Btx;

impl SurgeryMethod for Btx {
    fn name(&self) -> &'static str {
        "btx"
    }

    fn about(&self) -> &'static str {
        "A BTX mixture (Branch-Train-MiX, Sukhbaatar et al. 2024, arXiv 2403.07816): feed-forward experts upcycled from dense models."
    }

    fn upcycles(&self) -> Upcycles {
        Upcycles::FeedForward
    }

    fn usual_top_k(&self) -> u64 {
        USUAL_TOP_K
    }

    fn flags(&self, command: Command) -> Command {
        networks::add_flags(command)
    }

    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        NetworkFlags::read(flags)
    }
}
