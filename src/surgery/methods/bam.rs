//! Branch-Attend-Mix (Zhang et al. 2024, arXiv 2408.08274): attention and feed-forward experts of a seed and its specialists.

use std::sync::Arc;

use clap::{ArgMatches, Command};

use super::networks::{self, NetworkFlags};
use super::rule::{ExpertRule, SurgeryMethod, Upcycles};
use crate::Result;
use crate::family::USUAL_TOP_K;

/// Branch-Attend-Mix.
#[derive(Debug)]
pub(super) struct Bam;

impl SurgeryMethod for Bam {
    fn name(&self) -> &'static str {
        "bam"
    }

    fn about(&self) -> &'static str {
        "A BAM mixture (Branch-Attend-Mix, Zhang et al. 2024, arXiv 2408.08274): attention and feed-forward experts upcycled from dense models."
    }

    fn upcycles(&self) -> Upcycles {
        Upcycles::AttentionAndFeedForward
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
