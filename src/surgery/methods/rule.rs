//! What every method has in common: its description, its rule for experts, and the pieces that rules are made of.

use std::fmt::Debug;
use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use serde_json::Value;

use super::error::MethodError;
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};
use crate::family::Role;

/// A surgery method, as the registry lists it.
pub trait SurgeryMethod: Debug + Send + Sync {
    /// The value of `--method`.
    fn name(&self) -> &'static str;

    /// One sentence for the model card, with the paper. It says what experts are, and nothing that a setting can change.
    fn about(&self) -> &'static str;

    /// Which parts of which models become experts.
    fn upcycles(&self) -> Upcycles {
        Upcycles::SeedFeedForward
    }

    /// Adds the flags of this method to a command. Methods may share a flag: they then add the same one.
    fn flags(&self, command: Command) -> Command;

    /// The number of experts that a token goes to where nothing says so.
    fn usual_top_k(&self) -> u64 {
        1
    }

    /// Ids of those flags, beside `--experts`, that set the number or the width of experts; `cost` takes them too.
    ///
    /// `None` where each expert is as wide as the network that it comes from.
    fn size_flags(&self) -> Option<&'static [&'static str]> {
        None
    }

    /// The rule for experts that the flags describe.
    ///
    /// # Errors
    /// A flag that is required and absent, values out of range, flags that exclude each other.
    fn rule(&self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>>;
}

/// Which parts of which models become experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upcycles {
    /// The feed-forward networks of the seed; everything else is the seed's.
    SeedFeedForward,
    /// The feed-forward networks of the seed and of specialists; everything else is averaged.
    FeedForward,
    /// Feed-forward networks and attention of the seed and of specialists; everything else is averaged.
    AttentionAndFeedForward,
}

impl Upcycles {
    /// Whether specialists take part.
    pub fn takes_specialists(self) -> bool {
        self != Self::SeedFeedForward
    }

    /// Whether attention becomes experts.
    pub fn makes_attention_experts(self) -> bool {
        self == Self::AttentionAndFeedForward
    }
}

/// How feed-forward experts are made of feed-forward networks.
pub trait ExpertRule: Debug + Send + Sync {
    /// Number and inner width of the experts made of `networks` networks of inner width `width`.
    ///
    /// # Errors
    /// Numbers that do not fit together: a width that cannot be cut, a ratio outside of 0 to 1.
    fn size(&self, networks: u64, width: u64) -> Result<(u64, u64)>;

    /// The fit rule beyond [`Self::size`]: which rosters of networks the rule accepts.
    ///
    /// # Errors
    /// A roster that the rule cannot use.
    fn check(&self, _roster: Roster) -> Result<()> {
        Ok(())
    }

    /// Whether each expert is one whole network, so that a router row computed for that model fits it.
    fn keeps_networks_whole(&self) -> bool {
        false
    }

    /// Names of the experts, given the names of the networks.
    fn names(&self, networks: &[String], experts: u64) -> Vec<String> {
        vec![networks.first().cloned().unwrap_or_default(); experts as usize]
    }

    /// The networks that an expert is made of, out of `networks`.
    fn networks_of(&self, _expert: u64, _networks: usize) -> Vec<usize> {
        vec![0]
    }

    /// A tensor of an expert, given that tensor of each network in [`Self::networks_of`].
    fn expression(
        &self,
        part: &ExpertPart,
        context: &RuleContext,
        of: Vec<Expression>,
    ) -> Expression;

    /// How often each row of the router is repeated: the experts of one virtual group share a row.
    fn router_rows_each(&self) -> u64 {
        1
    }

    /// Whether the weights of the experts make up for gates that do not sum to 1.
    fn makes_up_for_gates(&self, _context: &RuleContext) -> bool {
        false
    }

    /// The settings for manifest and model card, under the names of the command line.
    fn record(&self, _context: &RuleContext) -> Vec<(&'static str, Value)> {
        Vec::new()
    }
}

/// What the networks of an upcycling are.
#[derive(Clone, Copy, Debug)]
pub struct Roster {
    /// Whether the seed's network is the first of them.
    pub seed_is_expert: bool,
    /// Whether one of them is freshly initialised (`NAME=random`).
    pub has_random: bool,
}

/// One tensor of one feed-forward expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertPart {
    /// Its layer.
    pub layer: u64,
    /// Its expert.
    pub expert: u64,
    /// Gate, up or down.
    pub role: Role,
    /// Whether it is the bias of that projection.
    pub bias: bool,
}

/// What a rule needs to know of the whole mixture.
#[derive(Clone, Copy, Debug)]
pub struct RuleContext {
    /// Inner width of a network of a dense model.
    pub width: u64,
    /// Feed-forward experts of the mixture.
    pub experts: u64,
    /// Experts a token goes to.
    pub top_k: u64,
    /// Whether the gates of these are divided by their sum.
    pub norm_topk_prob: bool,
    /// Whether scaling every projection of a network by `f` is, as the method's paper counts it, a factor of f³.
    pub cubic: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Seed of all random draws.
    pub rng_seed: u64,
}

impl ExpertPart {
    /// The axis of the network's neurons; the bias of the output has none.
    pub(super) fn neurons(&self) -> Option<u64> {
        match (self.role, self.bias) {
            (Role::Down, true) => None,
            (Role::Down, false) => Some(1),
            _ => Some(0),
        }
    }

    /// Whether it is a part of the down projection.
    pub(super) fn is_output(&self) -> bool {
        self.role == Role::Down
    }

    /// The key of draws about this layer.
    pub(super) fn layer_key(&self, what: &str) -> String {
        format!("layers.{}.{what}", self.layer)
    }

    /// The key of draws about this expert, whatever the projection.
    pub(super) fn expert_key(&self, what: &str) -> String {
        format!("layers.{}.experts.{}.{what}", self.layer, self.expert)
    }

    /// The key of draws about this tensor alone.
    pub(super) fn own_key(&self, what: &str) -> String {
        let bias = if self.bias { ".bias" } else { "" };
        format!(
            "layers.{}.experts.{}.{}{bias}.{what}",
            self.layer, self.expert, self.role
        )
    }
}

/// `--experts`, which all methods of the seed alone share.
#[derive(Clone, Debug, Args)]
pub(super) struct ExpertCount {
    /// Number of experts made of the seed; with `granular` the copies that are cut into shards.
    #[arg(long = "experts", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    copies: Option<u64>,
}

impl ExpertCount {
    /// The number for `method`, which requires one.
    pub(super) fn of(&self, method: &dyn SurgeryMethod) -> Result<u64> {
        needed(
            self.copies,
            "--experts",
            method,
            "how many experts are made of the seed",
        )
    }
}

/// A flag group out of the flags of a method.
pub(super) fn group<T: Args>(flags: &ArgMatches) -> Result<T> {
    // Every group that a method reads is one that the method added to the command.
    T::from_arg_matches(flags).map_err(|error| MethodError::Arguments { error }.into())
}

/// A number that a method requires.
pub(super) fn needed(
    number: Option<u64>,
    flag: &'static str,
    method: &dyn SurgeryMethod,
    meaning: &'static str,
) -> Result<u64> {
    number.ok_or_else(|| {
        MethodError::Needed {
            method: method.name(),
            flag,
            meaning,
        }
        .into()
    })
}

/// The only network of an expert.
pub(super) fn only(of: Vec<Expression>) -> Expression {
    // A mean of nothing is refused when the plan is compiled.
    of.into_iter()
        .next()
        .unwrap_or(Expression::Mean { of: Vec::new() })
}

/// `width` in `parts` equal parts.
pub(super) fn cut(width: u64, parts: u64, flag: &'static str) -> Result<u64> {
    match width.checked_rem(parts) {
        Some(0) => Ok(width / parts),
        _ => Err(MethodError::UnequalParts { width, parts, flag }.into()),
    }
}

/// Refuses a ratio outside of 0 to 1.
pub(super) fn check_ratio(ratio: f64, flag: &'static str) -> Result<()> {
    if (0.0..=1.0).contains(&ratio) {
        Ok(())
    } else {
        Err(MethodError::Ratio { flag, found: ratio }.into())
    }
}

/// The number of neurons that a ratio of `width` is, rounded down.
pub(super) fn share(ratio: f64, width: u64) -> u64 {
    (ratio * width as f64).floor() as u64
}

/// The `number`-th run of `width` neurons. A bias of the output is divided by width, so that the parts add up to the whole.
pub(super) fn shard(
    of: Expression,
    part: &ExpertPart,
    number: u64,
    width: u64,
    context: &RuleContext,
) -> Expression {
    match part.neurons() {
        Some(axis) if width < context.width => Expression::Slice {
            of: Box::new(of),
            axis,
            start: number * width,
            length: width,
            blocks: 1,
        },
        Some(_) => of,
        None => scaled(of, width as f64 / context.width as f64),
    }
}

/// Neurons of the network in the order of `key`, from place `start` on.
pub(super) fn gathered(
    of: Expression,
    axis: u64,
    context: &RuleContext,
    key: String,
    start: u64,
    length: u64,
) -> Expression {
    Expression::Gather {
        of: Box::new(of),
        at: Drawn {
            axis,
            seed: context.rng_seed,
            key,
            start,
            length,
        },
    }
}

/// `by · of`, or `of` itself where `by` is 1.
pub(super) fn scaled(of: Expression, by: f64) -> Expression {
    if by == 1.0 {
        return of;
    }
    Expression::Scale {
        of: Box::new(of),
        by,
    }
}
