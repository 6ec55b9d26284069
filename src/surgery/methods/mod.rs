//! What becomes of feed-forward networks: one file a method, each a function from settings and networks to expressions.

mod blend;
mod drop;
mod granular;
mod noise;
mod shuffle;
mod split;

use serde_json::{Value, json};

pub use drop::{Drop, DropIndices};
pub use granular::{Granular, WeightScaling};
pub use noise::Noise;
pub use shuffle::Shuffle;
pub use split::Split;

use crate::checkpoint::expression::{Drawn, Expression};
use crate::family::Role;
use crate::{Error, Result};

/// How experts are made of feed-forward networks.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForward {
    /// Each network is an expert (BAM, BTX).
    Networks,
    /// Each network is cut into so many experts (BTX, "splitting").
    Chunks(u64),
    /// Each expert has a chunk of every network (BTX, "blending").
    Blend,
    /// So many copies of one network (sparse upcycling, Komatsuzaki et al. 2022).
    Copies(u64),
    /// Copies with noise.
    Noise(Noise),
    /// Copies with neurons drawn again (Drop-Upcycling).
    Drop(Drop),
    /// Shards of copies, found through virtual groups (He et al. 2024).
    Granular(Granular),
    /// Cuts out of shuffled copies (Qwen2-MoE).
    Shuffle(Shuffle),
    /// The neurons of one network shared out (LLaMA-MoE).
    Split(Split),
}

/// One tensor of one feed-forward expert.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its layer.
    pub layer: u64,
    /// Its expert.
    pub expert: u64,
    /// Gate, up or down.
    pub role: Role,
    /// Whether it is the bias of that projection.
    pub bias: bool,
}

/// What a method needs to know of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Context {
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

impl Part {
    /// The axis along which the network's neurons lie; the bias of the output has none.
    fn neurons(&self) -> Option<u64> {
        match (self.role, self.bias) {
            (Role::Down, true) => None,
            (Role::Down, false) => Some(1),
            _ => Some(0),
        }
    }

    /// Whether it is a part of the down projection.
    fn is_output(&self) -> bool {
        self.role == Role::Down
    }

    /// The key of draws about this layer.
    fn layer_key(&self, what: &str) -> String {
        format!("layers.{}.{what}", self.layer)
    }

    /// The key of draws about this expert, whatever the projection.
    fn expert_key(&self, what: &str) -> String {
        format!("layers.{}.experts.{}.{what}", self.layer, self.expert)
    }

    /// The key of draws about this tensor alone.
    fn own_key(&self, what: &str) -> String {
        let bias = if self.bias { ".bias" } else { "" };
        format!(
            "layers.{}.experts.{}.{}{bias}.{what}",
            self.layer, self.expert, self.role
        )
    }
}

impl FeedForward {
    /// Number and inner width of the experts that come of `networks` networks of inner width `width`.
    ///
    /// # Errors
    /// Numbers that do not fit together: a width that cannot be cut, a ratio that is none.
    pub fn size(&self, networks: u64, width: u64) -> Result<(u64, u64)> {
        match self {
            Self::Networks => Ok((networks, width)),
            Self::Chunks(chunks) => Ok((
                networks.saturating_mul(*chunks),
                cut(width, *chunks, "--split-ffn")?,
            )),
            Self::Blend => Ok((networks, blend::chunk(width, networks)? * networks)),
            Self::Copies(experts) => Ok((*experts, width)),
            Self::Noise(noise) => noise.size(width),
            Self::Drop(drop) => drop.size(width),
            Self::Granular(granular) => granular.size(width),
            Self::Shuffle(shuffle) => shuffle.size(width),
            Self::Split(split) => split.size(width),
        }
    }

    /// Whether experts are made of the seed alone.
    pub fn of_one_network(&self) -> bool {
        !matches!(self, Self::Networks | Self::Chunks(_) | Self::Blend)
    }

    /// Names of the experts, given those of the networks.
    pub fn names(&self, networks: &[String], experts: u64) -> Vec<String> {
        match self {
            Self::Networks => networks.to_vec(),
            Self::Chunks(chunks) => networks
                .iter()
                .flat_map(|name| (0..*chunks).map(move |chunk| format!("{name}.{chunk}")))
                .collect(),
            Self::Blend => (0..experts)
                .map(|expert| format!("blend.{expert}"))
                .collect(),
            _ => vec![networks.first().cloned().unwrap_or_default(); experts as usize],
        }
    }

    /// The networks that an expert is made of, out of `networks`.
    pub fn networks_of(&self, expert: u64, networks: usize) -> std::ops::Range<usize> {
        let one = |number: u64| number as usize..number as usize + 1;
        match self {
            Self::Networks => one(expert),
            Self::Chunks(chunks) => one(expert / chunks),
            Self::Blend => 0..networks,
            _ => one(0),
        }
    }

    /// A tensor of an expert, given that tensor of each of its networks.
    pub fn expression(
        &self,
        part: &Part,
        context: &Context,
        mut of: Vec<Expression>,
    ) -> Expression {
        if let Self::Blend = self {
            return blend::expression(part, context, of);
        }
        // Every other method makes an expert of one network.
        let Some(one) = of.pop() else {
            return Expression::Mean { of };
        };
        match self {
            Self::Networks | Self::Blend | Self::Copies(_) => one,
            Self::Chunks(chunks) => shard(
                one,
                part,
                part.expert % chunks,
                context.width / chunks,
                context,
            ),
            Self::Noise(noise) => noise.expression(part, context, one),
            Self::Drop(drop) => drop.expression(part, context, one),
            Self::Granular(granular) => granular.expression(part, context, one),
            Self::Shuffle(shuffle) => shuffle.expression(part, context, one),
            Self::Split(split) => split.expression(part, context, one),
        }
    }

    /// How often each row of the router is repeated: experts of one virtual group share theirs.
    pub fn router_rows_each(&self) -> u64 {
        match self {
            Self::Granular(granular) => granular.granularity,
            _ => 1,
        }
    }

    /// The number of experts a token goes to where nothing else is asked for.
    pub fn usual_top_k(&self) -> u64 {
        // One shard of each kind make up the whole network.
        self.router_rows_each()
    }

    /// The settings, under the names of the command line.
    pub fn record(&self, context: &Context) -> Vec<(&'static str, Value)> {
        match self {
            Self::Networks | Self::Copies(_) => vec![],
            Self::Chunks(chunks) => vec![("split_ffn", json!(chunks))],
            Self::Blend => vec![("blend", json!(true))],
            Self::Noise(noise) => vec![
                ("noise_std", json!(noise.std)),
                ("noise_ratio", json!(noise.ratio)),
            ],
            Self::Drop(drop) => vec![
                ("drop_ratio", json!(drop.ratio)),
                ("drop_indices", json!(drop.indices)),
            ],
            Self::Granular(granular) => {
                vec![
                    ("granularity", json!(granular.granularity)),
                    ("weight_scaling", json!(granular.scaling)),
                ]
            }
            Self::Shuffle(shuffle) => {
                vec![
                    ("expert_width", json!(shuffle.width)),
                    ("reinit_ratio", json!(shuffle.reinit_ratio)),
                ]
            }
            Self::Split(split) => vec![("output_scale", json!(split.factor(context)))],
        }
    }
}

/// `width` in `parts` equal parts.
fn cut(width: u64, parts: u64, flag: &str) -> Result<u64> {
    match width.checked_rem(parts) {
        Some(0) => Ok(width / parts),
        _ => Err(Error::usage(format!(
            "the feed-forward width {width} does not fall into {parts} equal parts ({flag})"
        ))
        .with_hint(format!("pass {flag} with a divisor of {width}"))),
    }
}

/// The number of neurons that a ratio of `width` is, rounded down.
fn share(ratio: f64, width: u64, flag: &str) -> Result<u64> {
    match (0.0..=1.0).contains(&ratio) {
        true => Ok((ratio * width as f64).floor() as u64),
        false => Err(
            Error::usage(format!("{flag} {ratio} is no part of a whole"))
                .with_hint(format!("pass {flag} from 0 to 1")),
        ),
    }
}

/// The `number`-th run of `width` neurons. A bias of the output is shared out by width, so that parts add up to the whole.
fn shard(of: Expression, part: &Part, number: u64, width: u64, context: &Context) -> Expression {
    match part.neurons() {
        Some(axis) if width < context.width => Expression::Slice {
            of: Box::new(of),
            axis,
            start: number * width,
            length: width,
        },
        Some(_) => of,
        None => scaled(of, width as f64 / context.width as f64),
    }
}

/// Neurons of the network in the order of `key`, from place `start` on.
fn gathered(
    of: Expression,
    axis: u64,
    context: &Context,
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

/// `by · of`, or `of` as it is where that is the same.
fn scaled(of: Expression, by: f64) -> Expression {
    match by == 1.0 {
        true => of,
        false => Expression::Scale {
            of: Box::new(of),
            by,
        },
    }
}
