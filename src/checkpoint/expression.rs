//! The language of plans and manifests: how one output tensor follows from source tensors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::adapter_step::AdapterStep;

/// An expression over source tensors, or a draw of random numbers.
///
/// [`Copy`](Self::Copy), and what only puts bytes elsewhere ([`Slice`](Self::Slice), [`Concat`](Self::Concat),
/// [`Stack`](Self::Stack), [`Entry`](Self::Entry), [`Gather`](Self::Gather), [`Repeat`](Self::Repeat), [`Permute`](Self::Permute)), moves bytes where
/// the output has the source's dtype. Everything else computes in `f64` and rounds once, to nearest even, to the dtype that
/// the output tensor is stored in. `docs/reference/random.md` says how draws and orders follow from a seed and a key.
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
    /// A source tensor with what adapters (LoRA) make of it. The steps are computed in order in `f64`, and the result is rounded
    /// once, to the dtype of the source tensor.
    Adapted {
        /// Name of the source.
        source: String,
        /// Name of the tensor in that source.
        tensor: String,
        /// What the adapters do, in order.
        steps: Vec<AdapterStep>,
    },
    /// A matrix of FP8 numbers, each times the scale of its block.
    BlockScaled {
        /// Name of the source.
        source: String,
        /// Name of the matrix in that source.
        tensor: String,
        /// Name of the scales in it, one for each block, row by row.
        scale: String,
        /// Rows and columns of a block; the last blocks may have fewer.
        block: [u64; 2],
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
    /// `a` turned towards `b` by the part `t` of the angle between them, both seen as one vector: `s₀·a + s₁·b` with
    /// `s₀ = sin((1−t)·θ)/sin θ` and `s₁ = sin(t·θ)/sin θ`; `(1−t)·a + t·b` where `|cos θ| > 0.9995`.
    Slerp {
        /// `a` and `b`.
        of: Vec<Expression>,
        /// Part of the way from `a` to `b`.
        t: f64,
    },
    /// `of` with only its `⌊density·n⌋` values of largest magnitude, of equal ones the first; all others are 0. One stays at
    /// least, unless the density is 0.
    Trim {
        /// What keeps some of its `n` values.
        of: Box<Expression>,
        /// Part of the values that stay.
        density: f64,
        /// Whether what stays is scaled so that the sum of magnitudes stays as it was.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rescale: bool,
    },
    /// `of` with only its drawn values, each drawn with the same probability; all others are 0.
    Thin {
        /// What keeps some of its values.
        of: Box<Expression>,
        /// The probability that a value stays.
        density: f64,
        /// Seed of the generator.
        seed: u64,
        /// Key of the generator.
        key: String,
        /// Whether what stays is scaled so that the sum of magnitudes stays as it was.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rescale: bool,
    },
    /// `of` with only its drawn values. The probability is `density − epsilon` for the smallest magnitude of a row, and grows
    /// with the rank to `density + epsilon` for the largest.
    ThinByRank {
        /// What keeps some of its values.
        of: Box<Expression>,
        /// The mean probability that a value stays.
        density: f64,
        /// How far probabilities are from it at most.
        epsilon: f64,
        /// Seed of the generator.
        seed: u64,
        /// Key of the generator.
        key: String,
        /// Whether what stays is scaled so that the sum of magnitudes stays as it was.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rescale: bool,
    },
    /// `s·a + (1−s)·b` with the average `a` of all but the first of `of`, which is `b`. With the mean cosine `c` between the `n`
    /// differences from `b`, the share `s` is `n·c / (1 + (n−1)·c)`.
    ModelStock {
        /// The base, then at least two models.
        of: Vec<Expression>,
        /// Whether each row has a share of its own.
        by_row: bool,
    },
    /// The sum `w₀·of₀ + w₁·of₁ + …` of those terms only that have its sign, element by element; 0 counts as positive.
    Elect {
        /// What is added.
        of: Vec<Expression>,
        /// One weight each.
        weights: Vec<f64>,
        /// Whether each sum is divided by the sum of the weights of its terms.
        normalize: bool,
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
    /// Rows of each head re-ordered from two halves to interleaved pairs: what [`Permute`](Self::Permute) undoes.
    Interleave {
        /// What is re-ordered along its first axis.
        of: Box<Expression>,
        /// Number of heads that the first axis holds.
        heads: u64,
    },
    /// `length` entries of an axis from `start` on.
    Slice {
        /// What is cut.
        of: Box<Expression>,
        /// The axis, counted from 0.
        axis: u64,
        /// First entry, of each block.
        start: u64,
        /// Number of entries, of each block.
        length: u64,
        /// Equal blocks that the axis falls into.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        blocks: u64,
    },
    /// The parts one after another along an axis.
    Concat {
        /// Parts whose other axes agree.
        of: Vec<Expression>,
        /// The axis, counted from 0.
        axis: u64,
        /// Equal blocks that the axis of each part falls into: the first block of every part, then the second of every part,
        /// and so on.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        blocks: u64,
    },
    /// Parts of one shape below a new first axis.
    Stack {
        /// The parts.
        of: Vec<Expression>,
    },
    /// One entry of the first axis, without that axis.
    Entry {
        /// What it is taken from.
        of: Box<Expression>,
        /// Which one, counted from 0.
        index: u64,
    },
    /// Entries of an axis that were drawn at random, in the order in which they were drawn.
    Gather {
        /// What they are taken from.
        of: Box<Expression>,
        /// The axis and the entries.
        at: Drawn,
    },
    /// Each entry of the first axis `each` times in a row, and all of that `times` times over.
    Repeat {
        /// What is repeated.
        of: Box<Expression>,
        /// Repetitions of each entry.
        each: u64,
        /// Repetitions of the whole.
        times: u64,
    },
    /// `by · of`.
    Scale {
        /// What is scaled.
        of: Box<Expression>,
        /// The factor.
        by: f64,
    },
    /// `of` plus independent draws from N(0, std²).
    AddNoise {
        /// What the noise is added to.
        of: Box<Expression>,
        /// Standard deviation.
        std: f64,
        /// Seed of the generator.
        seed: u64,
        /// Key of the generator.
        key: String,
        /// Where; everywhere if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Drawn>,
    },
    /// `of`, with entries of an axis replaced by independent draws from a normal distribution.
    Redraw {
        /// What keeps its other entries.
        of: Box<Expression>,
        /// The axis and the entries.
        at: Drawn,
        /// Standard deviation around 0; if absent, draws have the mean and the standard deviation of the values replaced.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        std: Option<f64>,
        /// Seed of the generator.
        seed: u64,
        /// Key of the generator.
        key: String,
    },
    /// Independent draws from N(0, std²); see `docs/reference/random.md` for the generator.
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

/// The blocks of an axis that is cut or joined as a whole.
fn one() -> u64 {
    1
}

fn is_one(blocks: &u64) -> bool {
    *blocks == 1
}

/// Entries of an axis of `n` entries: those from place `start` to `start + length` of a random order of 0 … n − 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// The axis, counted from 0.
    pub axis: u64,
    /// Seed of the generator.
    pub seed: u64,
    /// Key of the generator.
    pub key: String,
    /// First place in the order.
    pub start: u64,
    /// Number of entries.
    pub length: u64,
}

impl Expression {
    /// A source tensor.
    pub fn copy(source: &str, tensor: &str) -> Self {
        Self::Copy {
            source: source.to_owned(),
            tensor: tensor.to_owned(),
        }
    }

    /// What it is computed from, one level down.
    pub fn parts(&self) -> &[Self] {
        match self {
            Self::Mean { of }
            | Self::Weighted { of, .. }
            | Self::Sum { of, .. }
            | Self::Slerp { of, .. }
            | Self::ModelStock { of, .. }
            | Self::Elect { of, .. }
            | Self::Concat { of, .. }
            | Self::Stack { of } => of,
            Self::Cast { of }
            | Self::Trim { of, .. }
            | Self::Thin { of, .. }
            | Self::ThinByRank { of, .. }
            | Self::Dequantise { of }
            | Self::Permute { of, .. }
            | Self::Interleave { of, .. }
            | Self::Slice { of, .. }
            | Self::Entry { of, .. }
            | Self::Gather { of, .. }
            | Self::Repeat { of, .. }
            | Self::Scale { of, .. }
            | Self::AddNoise { of, .. }
            | Self::Redraw { of, .. }
            | Self::Trained { of } => std::slice::from_ref(of),
            Self::Copy { .. }
            | Self::Adapted { .. }
            | Self::BlockScaled { .. }
            | Self::Normal { .. }
            | Self::Uniform { .. }
            | Self::Orthogonal { .. }
            | Self::Constant { .. }
            | Self::Identity => &[],
        }
    }

    /// Calls `visit` with each source tensor below: source and tensor name.
    pub fn for_each_copy<'a>(&'a self, visit: &mut impl FnMut(&'a str, &'a str)) {
        match self {
            Self::Copy { source, tensor } => visit(source, tensor),
            Self::Adapted {
                source,
                tensor,
                steps,
            } => {
                visit(source, tensor);
                for step in steps {
                    step.for_each_tensor(&mut |tensor| visit(step.source(), tensor));
                }
            }
            Self::BlockScaled {
                source,
                tensor,
                scale,
                ..
            } => {
                visit(source, tensor);
                visit(source, scale);
            }
            other => other
                .parts()
                .iter()
                .for_each(|part| part.for_each_copy(visit)),
        }
    }
}
