//! The language of plans and manifests: how one output tensor follows from source tensors.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An expression over source tensors, or a draw of random numbers.
///
/// Everything but [`Copy`](Self::Copy) computes in `f64` and rounds once, to nearest even, to the
/// dtype that the output tensor is stored in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Expression {
    /// A source tensor. At the top of a tensor of its own dtype: its bytes, never decoded.
    Copy {
        /// Name of the source.
        source: String,
        /// Name of the tensor in that source.
        tensor: String,
    },
    /// `(of₀ + of₁ + …) / n`: the sum in source order, one division.
    Mean {
        /// What is averaged.
        of: Vec<Expression>,
    },
    /// `(w₀·of₀ + w₁·of₁ + …) / (w₀ + w₁ + …)`: the sum in source order, one division.
    Weighted {
        /// What is averaged.
        of: Vec<Expression>,
        /// One weight each.
        weights: Vec<f64>,
    },
    /// `w₀·of₀ + w₁·of₁ + …`: the sum in source order.
    Sum {
        /// What is added.
        of: Vec<Expression>,
        /// One weight each.
        weights: Vec<f64>,
    },
    /// The values rounded to the output's dtype.
    Cast {
        /// What is rounded.
        of: Box<Expression>,
    },
    /// The values of a block-quantised tensor, rounded to the output's dtype.
    Dequantise {
        /// The quantised tensor.
        of: Box<Expression>,
    },
    /// Rows of each head re-ordered from interleaved pairs (0, 1, 2, 3, …) to two halves (0, 2, …, 1, 3, …).
    Permute {
        /// What is re-ordered along its first axis.
        of: Box<Expression>,
        /// Number of heads that the first axis holds.
        heads: u64,
    },
    /// Independent draws from N(0, std²); see `docs/random.md` for the generator.
    Normal {
        /// Standard deviation.
        std: f64,
        /// Seed of the generator.
        seed: u64,
    },
    /// Independent draws from the uniform distribution of mean 0 with this standard deviation.
    Uniform {
        /// Standard deviation; the draws lie within ±√3 of it.
        std: f64,
        /// Seed of the generator.
        seed: u64,
    },
    /// Orthonormal rows, times `gain`.
    Orthogonal {
        /// Length of each row.
        gain: f64,
        /// Seed of the generator.
        seed: u64,
    },
    /// What training has made of the values: it cannot be computed again from the sources alone.
    Trained {
        /// What training began with.
        of: Box<Expression>,
    },
    /// The same value everywhere.
    Constant {
        /// The value.
        value: f64,
    },
    /// The identity matrix.
    Identity,
}

impl Expression {
    /// A source tensor.
    pub fn copy(source: &str, tensor: &str) -> Self {
        Self::Copy { source: source.to_owned(), tensor: tensor.to_owned() }
    }

    /// Calls `visit` with each source tensor below: source and tensor name.
    pub fn for_each_copy<'a>(&'a self, visit: &mut impl FnMut(&'a str, &'a str)) {
        match self {
            Self::Copy { source, tensor } => visit(source, tensor),
            Self::Mean { of } | Self::Weighted { of, .. } | Self::Sum { of, .. } => {
                of.iter().for_each(|part| part.for_each_copy(visit))
            }
            Self::Cast { of } | Self::Dequantise { of } | Self::Permute { of, .. } | Self::Trained { of } => {
                of.for_each_copy(visit);
            }
            Self::Normal { .. }
            | Self::Uniform { .. }
            | Self::Orthogonal { .. }
            | Self::Constant { .. }
            | Self::Identity => {}
        }
    }
}

/// In the plan's notation, tensor names left out: `mean(seed, code, law)`.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Copy { source, .. } => f.write_str(source),
            Self::Mean { of } => {
                f.write_str("mean(")?;
                for (number, part) in of.iter().enumerate() {
                    write!(f, "{}{part}", if number == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Self::Weighted { of, weights } | Self::Sum { of, weights } => {
                f.write_str(if matches!(self, Self::Sum { .. }) { "sum(" } else { "weighted(" })?;
                for (number, (part, weight)) in of.iter().zip(weights).enumerate() {
                    write!(f, "{}{weight}·{part}", if number == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Self::Cast { of } => write!(f, "cast({of})"),
            Self::Dequantise { of } => write!(f, "dequantise({of})"),
            Self::Permute { of, heads } => write!(f, "permute({of}, heads {heads})"),
            Self::Normal { std, seed } => write!(f, "normal(std {std}, seed {seed})"),
            Self::Uniform { std, seed } => write!(f, "uniform(std {std}, seed {seed})"),
            Self::Orthogonal { gain, seed } => write!(f, "orthogonal(gain {gain}, seed {seed})"),
            Self::Trained { of } => write!(f, "trained({of})"),
            Self::Constant { value } => write!(f, "constant({value})"),
            Self::Identity => f.write_str("identity"),
        }
    }
}
