//! Expressions in the plan's notation.

use std::fmt;

use super::adapter_step::AdapterStep;
use super::expression::{Drawn, Expression};

/// In the plan's notation, tensor names left out: `mean(seed, code, law)`.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Copy { source, .. } => f.write_str(source),
            Self::Adapted { source, steps, .. } => {
                let mut names: Vec<&str> = steps.iter().map(AdapterStep::source).collect();
                names.dedup();
                write!(f, "adapted({source}, {})", names.join(", "))
            }
            Self::BlockScaled {
                source,
                block: [rows, columns],
                ..
            } => write!(f, "block_scaled({source}, {rows}×{columns})"),
            Self::Mean { of } => write!(f, "mean({})", Listed(of)),
            Self::Weighted { of, weights }
            | Self::Sum { of, weights }
            | Self::Elect { of, weights, .. } => {
                f.write_str(match self {
                    Self::Sum { .. } => "sum(",
                    Self::Elect { .. } => "elect(",
                    _ => "weighted(",
                })?;
                for (number, (part, weight)) in of.iter().zip(weights).enumerate() {
                    write!(f, "{}{weight}·{part}", if number == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Self::Slerp { of, t } => write!(f, "slerp({}, t {t})", Listed(of)),
            Self::Trim { of, density, .. } => write!(f, "trim({of}, density {density})"),
            Self::Thin {
                of, density, seed, ..
            } => write!(f, "thin({of}, density {density}, seed {seed})"),
            Self::ThinByRank {
                of,
                density,
                epsilon,
                seed,
                ..
            } => write!(
                f,
                "thin_by_rank({of}, density {density}, epsilon {epsilon}, seed {seed})"
            ),
            Self::ModelStock { of, .. } => write!(f, "model_stock({})", Listed(of)),
            Self::Cast { of } => write!(f, "cast({of})"),
            Self::Dequantise { of } => write!(f, "dequantise({of})"),
            Self::Permute { of, heads } => write!(f, "permute({of}, heads {heads})"),
            Self::Interleave { of, heads } => write!(f, "interleave({of}, heads {heads})"),
            Self::Slice {
                of,
                axis,
                start,
                length,
                blocks,
            } => {
                write!(
                    f,
                    "slice({of}, axis {axis}, {start}..{}{})",
                    start.saturating_add(*length),
                    Blocks(*blocks)
                )
            }
            Self::Concat { of, axis, blocks } => {
                write!(f, "concat({}, axis {axis}{})", Listed(of), Blocks(*blocks))
            }
            Self::Stack { of } => write!(f, "stack({})", Listed(of)),
            Self::Entry { of, index } => write!(f, "entry({of}, {index})"),
            Self::Gather { of, at } => write!(f, "gather({of}, {at})"),
            Self::Repeat { of, each, times } => {
                write!(f, "repeat({of}, each {each}, times {times})")
            }
            Self::Scale { of, by } => write!(f, "scale({of}, by {by})"),
            Self::AddNoise {
                of,
                std,
                seed,
                at: None,
                ..
            } => write!(f, "add_noise({of}, std {std}, seed {seed})"),
            Self::AddNoise {
                of,
                std,
                seed,
                at: Some(at),
                ..
            } => {
                write!(f, "add_noise({of}, std {std}, {at}, seed {seed})")
            }
            Self::Redraw {
                of,
                at,
                std: None,
                seed,
                ..
            } => {
                write!(f, "redraw({of}, {at}, own mean and std, seed {seed})")
            }
            Self::Redraw {
                of,
                at,
                std: Some(std),
                seed,
                ..
            } => {
                write!(f, "redraw({of}, {at}, std {std}, seed {seed})")
            }
            Self::Normal { std, seed } => write!(f, "normal(std {std}, seed {seed})"),
            Self::Uniform { std, seed } => write!(f, "uniform(std {std}, seed {seed})"),
            Self::Orthogonal { gain, seed } => write!(f, "orthogonal(gain {gain}, seed {seed})"),
            Self::Trained { of } => write!(f, "trained({of})"),
            Self::Constant { value } => write!(f, "constant({value})"),
            Self::Identity => f.write_str("identity"),
        }
    }
}

/// In how many blocks an axis is cut or joined, where there are several.
struct Blocks(u64);

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            1 => Ok(()),
            blocks => write!(f, " in {blocks} blocks"),
        }
    }
}

/// Parts, separated by commas.
struct Listed<'a>(&'a [Expression]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(number, part)| {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{part}")
        })
    }
}

/// The axis and how many entries; the key, which names a layer, is left out as tensor names are.
impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} random of axis {}", self.length, self.axis)
    }
}
