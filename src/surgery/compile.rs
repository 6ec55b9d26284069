//! From an expression to a node: sources looked up, every shape and every place on an axis checked.
//!
//! A manifest is hostile input: nothing here trusts a number in it.

use std::sync::Mutex;

use super::compile_shape::{Compilation, inner, with_extent};
use super::drawn::{Noisy, Redrawn};
use super::moved::{Moved, Rule};
use super::node::Node;
use super::places::Places;
use super::plan::{Source, source};
use super::plan_error::{ExpressionRule, PlanError};
use super::random::Draws;
use crate::Result;
use crate::checkpoint::expression::{Drawn, Expression};
use crate::checkpoint::writer::TensorLayout;

/// Most entries of an axis that is drawn from: its order, and a row of them, are held whole at every level of an expression.
const LARGEST_AXIS: u64 = 1 << 18;

/// The expression of the tensor `layout`, ready to be computed; reads no data.
pub(super) fn compile<'a>(
    expression: &'a Expression,
    layout: &'a TensorLayout,
    sources: &'a [Source],
) -> Result<Node<'a>> {
    Compilation { layout, sources }.node(expression, &layout.shape)
}

impl<'a> Compilation<'a> {
    /// The node of an expression of this shape.
    fn node(&self, expression: &'a Expression, shape: &[u64]) -> Result<Node<'a>> {
        let all = |of: &'a [Expression]| {
            of.iter()
                .map(|part| self.node(part, shape))
                .collect::<Result<Vec<_>>>()
        };
        let boxed = |of: &'a Expression| self.node(of, shape).map(Box::new);
        let name = &self.layout.name;
        Ok(match expression {
            Expression::Copy {
                source: from,
                tensor,
            } => {
                let checkpoint = &source(self.sources, from)?.checkpoint;
                let entry = checkpoint.tensor(tensor)?;
                if entry.shape != shape {
                    return Err(PlanError::SourceShape {
                        path: checkpoint.files[entry.file].path().to_path_buf(),
                        tensor: tensor.clone(),
                        found: entry.shape.as_slice().into(),
                        reader: name.clone(),
                        expected: shape.into(),
                    }
                    .into());
                }
                Node::Read {
                    checkpoint,
                    entry,
                    tensor,
                }
            }
            Expression::Mean { of } => match of.len() {
                0 => return Err(self.fault(ExpressionRule::EmptyMean)),
                count => Node::Sum {
                    parts: all(of)?,
                    weights: None,
                    divisor: count as f64,
                },
            },
            Expression::Weighted { of, weights } => {
                let divisor: f64 = weights.iter().sum();
                if of.len() != weights.len() || !divisor.is_finite() || divisor == 0.0 {
                    let parts = of.len();
                    return Err(self.fault(ExpressionRule::MeanWeights { parts }));
                }
                Node::Sum {
                    parts: all(of)?,
                    weights: Some(weights),
                    divisor,
                }
            }
            Expression::Sum { of, weights } => {
                if of.is_empty() || of.len() != weights.len() {
                    let parts = of.len();
                    return Err(self.fault(ExpressionRule::SumWeights { parts }));
                }
                Node::Sum {
                    parts: all(of)?,
                    weights: Some(weights),
                    divisor: 1.0,
                }
            }
            Expression::Cast { of } | Expression::Dequantise { of } => self.node(of, shape)?,
            Expression::Permute { .. }
            | Expression::Interleave { .. }
            | Expression::Slice { .. }
            | Expression::Concat { .. }
            | Expression::Stack { .. }
            | Expression::Entry { .. }
            | Expression::Gather { .. }
            | Expression::Repeat { .. } => Node::Moved(self.moved(expression, shape)?),
            Expression::Scale { of, by } => {
                if !by.is_finite() {
                    return Err(self.fault(ExpressionRule::Factor { found: *by }));
                }
                Node::Scaled {
                    of: boxed(of)?,
                    by: *by,
                }
            }
            Expression::AddNoise {
                of,
                std,
                seed,
                key,
                at,
            } => Node::Noisy(Noisy {
                of: boxed(of)?,
                places: at.as_ref().map(|at| self.places(at, shape)).transpose()?,
                std: self.std(*std)?,
                draws: Draws::new(*seed, key),
            }),
            Expression::Redraw {
                of,
                at,
                std,
                seed,
                key,
            } => Node::Redrawn(Redrawn {
                of: boxed(of)?,
                places: self.places(at, shape)?,
                draws: Draws::new(*seed, key),
                std: std.map(|std| self.std(std)).transpose()?,
                measured: Mutex::new(None),
                layout: self.layout,
                elements: shape.iter().product(),
            }),
            Expression::Normal { std, seed } => Node::Normal {
                draws: Draws::new(*seed, name),
                std: *std,
            },
            Expression::Uniform { std, seed } => Node::Uniform {
                draws: Draws::new(*seed, name),
                std: *std,
            },
            Expression::Orthogonal { gain, seed } => match shape[..] {
                [rows, columns] if rows <= columns && rows * columns <= 1 << 26 => {
                    Node::Orthogonal {
                        draws: Draws::new(*seed, name),
                        gain: *gain,
                        rows: rows as usize,
                        columns: columns as usize,
                    }
                }
                _ => {
                    let shape = shape.to_vec();
                    return Err(self.fault(ExpressionRule::OrthogonalShape { shape }));
                }
            },
            Expression::Trained { of } => {
                let of = of.to_string();
                return Err(self.fault(ExpressionRule::Trained { of }));
            }
            Expression::Constant { value } => Node::Constant(*value),
            Expression::Identity => match shape[..] {
                [rows, columns] if rows == columns && rows > 0 => Node::Identity { columns },
                _ => {
                    let shape = shape.to_vec();
                    return Err(self.fault(ExpressionRule::IdentityShape { shape }));
                }
            },
        })
    }

    /// What only puts elements elsewhere.
    fn moved(&self, expression: &'a Expression, shape: &[u64]) -> Result<Moved<'a>> {
        let unfit = |made: &[u64]| {
            self.fault(ExpressionRule::Shape {
                expression: expression.to_string(),
                found: made.to_vec(),
                expected: shape.to_vec(),
            })
        };
        let bits = self.layout.dtype.bitsize();
        if !bits.is_multiple_of(8) {
            return Err(self.fault(ExpressionRule::PartsOfBytes { bits }));
        }
        match expression {
            Expression::Slice {
                of,
                axis,
                start,
                length,
                blocks,
            } => {
                let whole = self.known(of)?;
                let extent = self.block(self.extent(&whole, *axis)?, *blocks)?;
                self.within(extent, *start, *length)?;
                let made = with_extent(&whole, *axis, length * blocks);
                if made != shape {
                    return Err(unfit(&made));
                }
                let inner = inner(&whole, *axis);
                let rule = Rule::Slice {
                    stride: extent * inner,
                    offset: start * inner,
                    run: length * inner,
                };
                Ok(Moved {
                    parts: vec![self.node(of, &whole)?],
                    rule,
                })
            }
            Expression::Concat { of, axis, blocks } => {
                let shapes = self.parts_of(of, *axis, shape)?;
                let made = self.joined(&shapes, *axis)?;
                if made != shape {
                    return Err(unfit(&made));
                }
                let runs = shapes.iter().map(|part| {
                    let entries = self.block(part[*axis as usize], *blocks)?;
                    Ok(entries * inner(part, *axis))
                });
                let runs = runs.collect::<Result<Vec<u64>>>()?;
                let parts = of
                    .iter()
                    .zip(&shapes)
                    .map(|(part, shape)| self.node(part, shape))
                    .collect::<Result<Vec<_>>>()?;
                let total = runs.iter().sum();
                Ok(Moved {
                    parts,
                    rule: Rule::Concat { runs, total },
                })
            }
            Expression::Stack { of } => match shape {
                [count, part @ ..] if *count == of.len() as u64 && *count > 0 => {
                    let run: u64 = part.iter().product();
                    let parts = of
                        .iter()
                        .map(|of| self.node(of, part))
                        .collect::<Result<Vec<_>>>()?;
                    Ok(Moved {
                        parts,
                        rule: Rule::Concat {
                            runs: vec![run; of.len()],
                            total: run * count,
                        },
                    })
                }
                _ => Err(self.fault(ExpressionRule::StackedShape {
                    parts: of.len(),
                    shape: shape.to_vec(),
                })),
            },
            Expression::Entry { of, index } => {
                let whole = self.known(of)?;
                self.within(self.extent(&whole, 0)?, *index, 1)?;
                if whole[1..] != *shape {
                    return Err(unfit(&whole[1..]));
                }
                let run = inner(&whole, 0);
                let rule = Rule::Slice {
                    stride: run,
                    offset: index * run,
                    run,
                };
                Ok(Moved {
                    parts: vec![self.node(of, &whole)?],
                    rule,
                })
            }
            Expression::Gather { of, at } => {
                let whole = self.known(of)?;
                let places = self.places(at, &whole)?;
                let made = with_extent(&whole, at.axis, at.length);
                if made != shape {
                    return Err(unfit(&made));
                }
                Ok(Moved {
                    parts: vec![self.node(of, &whole)?],
                    rule: Rule::Gather(places),
                })
            }
            Expression::Repeat { of, each, times } => match (shape, each.checked_mul(*times)) {
                ([rows, row @ ..], Some(repetitions))
                    if repetitions > 0 && rows.is_multiple_of(repetitions) =>
                {
                    let rows = rows / repetitions;
                    let part = self.node(of, &[&[rows], row].concat())?;
                    Ok(Moved {
                        parts: vec![part],
                        rule: Rule::Repeat {
                            row: row.iter().product(),
                            rows,
                            each: *each,
                        },
                    })
                }
                _ => Err(self.fault(ExpressionRule::RepeatedShape {
                    expression: expression.to_string(),
                    shape: shape.to_vec(),
                })),
            },
            Expression::Permute { of, heads } | Expression::Interleave { of, heads } => {
                let rows = shape.first().copied().unwrap_or(0);
                if *heads == 0
                    || rows % heads != 0
                    || !(rows / heads).is_multiple_of(2)
                    || rows == 0
                {
                    let heads = *heads;
                    return Err(self.fault(ExpressionRule::UnevenHeads { rows, heads }));
                }
                let pairs = matches!(expression, Expression::Interleave { .. });
                let rule = Rule::Heads {
                    rows_per_head: rows / heads,
                    row: shape[1..].iter().product(),
                    pairs,
                };
                Ok(Moved {
                    parts: vec![self.node(of, shape)?],
                    rule,
                })
            }
            other => Err(self.fault(ExpressionRule::MovesNothing {
                expression: other.to_string(),
            })),
        }
    }

    fn places(&self, at: &'a Drawn, shape: &[u64]) -> Result<Places<'a>> {
        let extent = self.extent(shape, at.axis)?;
        self.within(extent, at.start, at.length)?;
        if extent > LARGEST_AXIS {
            return Err(self.fault(ExpressionRule::LongAxis {
                most: LARGEST_AXIS,
                found: extent,
            }));
        }
        Ok(Places {
            drawn: at,
            extent,
            inner: inner(shape, at.axis),
        })
    }

    fn std(&self, std: f64) -> Result<f64> {
        if std.is_finite() && std >= 0.0 {
            Ok(std)
        } else {
            Err(self.fault(ExpressionRule::StandardDeviation { found: std }))
        }
    }
}
