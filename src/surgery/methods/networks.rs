//! The networks of several models as experts (BAM, BTX): whole, split, or blended.
//!
//! Splitting and blending are in section 4.3 of BTX (Sukhbaatar et al. 2024): each network is cut into several experts, or
//! expert n is the n-th chunk of every network, side by side.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use serde_json::{Value, json};

use super::error::MethodError;
use super::rule::{ExpertPart, ExpertRule, Roster, RuleContext, cut, group, only, shard};
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::surgery::scales::ScaleFlags;

/// How experts are made of the networks of several models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkRule {
    /// Each network is an expert.
    Whole,
    /// Each network is cut into this many experts.
    Split(u64),
    /// Each expert has a chunk of every network.
    Blend,
}

/// The flags that choose the rule.
#[derive(Clone, Debug, Args)]
pub(super) struct NetworkFlags {
    /// Cut each feed-forward network into C experts (`bam`, `btx`).
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u64).range(1..))]
    split_ffn: Option<u64>,
    /// Make each expert of one chunk of every feed-forward network (`bam`, `btx`).
    #[arg(long)]
    blend: bool,
}

/// Adds the flags of methods whose experts are networks of several models.
pub(super) fn add_flags(command: Command) -> Command {
    NetworkFlags::augment_args(ScaleFlags::augment_args(command))
}

impl NetworkFlags {
    /// The rule that the flags choose.
    pub(super) fn read(flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        let flags: Self = group(flags)?;
        Ok(Arc::new(match (flags.split_ffn, flags.blend) {
            (Some(_), true) => {
                return Err(MethodError::SplitAndBlend.into());
            }
            (Some(chunks), false) => NetworkRule::Split(chunks),
            (None, true) => NetworkRule::Blend,
            (None, false) => NetworkRule::Whole,
        }))
    }
}

impl ExpertRule for NetworkRule {
    fn size(&self, networks: u64, width: u64) -> Result<(u64, u64)> {
        Ok(match self {
            Self::Whole => (networks, width),
            Self::Split(chunks) => (
                networks.saturating_mul(*chunks),
                cut(width, *chunks, "--split-ffn")?,
            ),
            Self::Blend => (networks, cut(width, networks, "--blend")? * networks),
        })
    }

    fn check(&self, roster: Roster) -> Result<()> {
        if *self == Self::Blend && roster.has_random {
            return Err(MethodError::BlendRandom.into());
        }
        Ok(())
    }

    fn keeps_networks_whole(&self) -> bool {
        *self == Self::Whole
    }

    fn names(&self, networks: &[String], experts: u64) -> Vec<String> {
        match self {
            Self::Whole => networks.to_vec(),
            Self::Split(chunks) => networks
                .iter()
                .flat_map(|name| (0..*chunks).map(move |chunk| format!("{name}.{chunk}")))
                .collect(),
            Self::Blend => (0..experts)
                .map(|expert| format!("blend.{expert}"))
                .collect(),
        }
    }

    fn networks_of(&self, expert: u64, networks: usize) -> Vec<usize> {
        match self {
            Self::Whole => vec![expert as usize],
            Self::Split(chunks) => vec![(expert / chunks) as usize],
            Self::Blend => (0..networks).collect(),
        }
    }

    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression {
        match self {
            Self::Whole => only(of),
            Self::Split(chunks) => shard(
                only(of),
                part,
                part.expert % chunks,
                context.width / chunks,
                context,
            ),
            Self::Blend => blended(part, context, of),
        }
    }

    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        match self {
            Self::Whole => Vec::new(),
            Self::Split(chunks) => vec![("split_ffn", json!(chunks))],
            Self::Blend => vec![("blend", json!(true))],
        }
    }
}

/// The chunks of all networks along the axis of neurons.
///
/// A bias of the output is the mean of the networks' biases: each chunk contributes its share.
fn blended(part: &ExpertPart, context: &RuleContext, of: Vec<Expression>) -> Expression {
    let Some(axis) = part.neurons() else {
        return Expression::Mean { of };
    };
    let width = context.width / of.len().max(1) as u64;

    let chunks = of
        .into_iter()
        .map(|network| shard(network, part, part.expert, width, context))
        .collect();
    Expression::Concat {
        of: chunks,
        axis,
        blocks: 1,
    }
}
