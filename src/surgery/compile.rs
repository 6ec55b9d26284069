//! From an expression to a node: sources looked up, every shape and every place on an axis checked.
//!
//! A manifest is hostile input: nothing here trusts a number in it.

use std::sync::Mutex;

use super::compile_shape::{Compilation, LARGEST_AXIS, inner, with_extent};
use super::drawn::{Noisy, Redrawn};
use super::fp8::is_scale_of_floats;
use super::moved::{Moved, Rule};
use super::node::Node;
use super::places::Places;
use super::plan::{Source, weights};
use super::plan_error::{ExpressionRule, PlanError};
use super::random::Draws;
use super::scaled::BlockScaled;
use crate::checkpoint::expression::{AdapterStep, Drawn, Expression};
use crate::checkpoint::writer::TensorLayout;
use crate::checkpoint::{AdaptedTensor, OpenTensor};
use crate::{Error, Result};

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
    pub(super) fn node(&self, expression: &'a Expression, shape: &[u64]) -> Result<Node<'a>> {
        let boxed = |of: &'a Expression| self.node(of, shape).map(Box::new);
        let name = &self.layout.name;
        Ok(match expression {
            Expression::Copy {
                source: from,
                tensor,
            } => self.read(from, tensor, shape)?,
            Expression::Adapted {
                source: from,
                tensor,
                steps,
            } => self.adapted((from, tensor), steps, shape)?,
            Expression::BlockScaled {
                source: from,
                tensor,
                scale,
                block,
            } => self.block_scaled(from, [tensor, scale], *block, shape)?,
            Expression::Mean { .. } | Expression::Weighted { .. } | Expression::Sum { .. } => {
                self.sum(expression, shape)?
            }
            Expression::Slerp { of, t } => self.slerp(of, *t, shape)?,
            Expression::Trim { .. } | Expression::Thin { .. } | Expression::ThinByRank { .. } => {
                self.thinned(expression, shape)?
            }
            Expression::ModelStock { of, by_row } => self.stocked(of, *by_row, shape)?,
            Expression::Elect {
                of,
                weights,
                normalize,
            } => self.elected(of, weights, *normalize, shape)?,
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
            Expression::Orthogonal { gain, seed } => self.orthogonal(*gain, *seed, shape)?,
            Expression::Trained { of } => {
                let of = of.to_string();
                return Err(self.fault(ExpressionRule::Trained { of }));
            }
            Expression::Constant { value } => Node::Constant(*value),
            Expression::Identity => self.identity(shape)?,
        })
    }

    /// A tensor of a source.
    fn read(&self, from: &str, tensor: &'a str, shape: &[u64]) -> Result<Node<'a>> {
        let OpenTensor {
            checkpoint,
            entry,
            name,
        } = self.open(from, tensor, shape)?;
        Ok(Node::Read {
            checkpoint,
            entry,
            tensor: name,
        })
    }

    /// A tensor of a source, of this shape.
    fn open(&self, from: &str, tensor: &'a str, shape: &[u64]) -> Result<OpenTensor<'a>> {
        let checkpoint = weights(self.sources, from)?;
        let entry = checkpoint.tensor(tensor)?;
        if entry.shape != shape {
            return Err(PlanError::SourceShape {
                path: checkpoint.files[entry.file].path().to_path_buf(),
                tensor: tensor.to_owned(),
                found: entry.shape.as_slice().into(),
                reader: self.layout.name.clone(),
                expected: shape.into(),
            }
            .into());
        }
        Ok(OpenTensor {
            checkpoint,
            entry,
            name: tensor,
        })
    }

    /// A tensor of a source with what adapters make of it.
    fn adapted(
        &self,
        (from, tensor): (&str, &'a str),
        steps: &'a [AdapterStep],
        shape: &[u64],
    ) -> Result<Node<'a>> {
        let base = self.open(from, tensor, shape)?;
        let adapted = AdaptedTensor::new(base, steps, |name| weights(self.sources, name))?;
        Ok(Node::Adapted(Box::new(adapted)))
    }

    /// A matrix of a source whose blocks have scales.
    fn block_scaled(
        &self,
        from: &str,
        [tensor, scale]: [&'a str; 2],
        block: [u64; 2],
        shape: &[u64],
    ) -> Result<Node<'a>> {
        let of = Box::new(self.read(from, tensor, shape)?);
        let checkpoint = weights(self.sources, from)?;
        let by = OpenTensor {
            checkpoint,
            entry: checkpoint.tensor(scale)?,
            name: scale,
        };
        if !is_scale_of_floats(by.entry) {
            let (scale, found) = (scale.to_owned(), by.entry.encoding);
            return Err(self.fault(ExpressionRule::NoScale { scale, found }));
        }
        let [rows, columns] = shape[..] else {
            return Err(self.fault(ExpressionRule::Blocks { block }));
        };
        let blocks = |extent: u64, size: u64| (size > 0).then(|| extent.div_ceil(size));
        let count = blocks(rows, block[0])
            .zip(blocks(columns, block[1]))
            .and_then(|(down, across)| down.checked_mul(across));
        if count != Some(by.entry.elements()) || columns == 0 {
            return Err(self.fault(ExpressionRule::Blocks { block }));
        }
        Ok(Node::BlockScaled(BlockScaled {
            of,
            by,
            columns,
            block,
        }))
    }

    /// A mean, a weighted mean or a weighted sum.
    fn sum(&self, expression: &'a Expression, shape: &[u64]) -> Result<Node<'a>> {
        let (of, weights, divisor) = match expression {
            Expression::Mean { of } => {
                if of.is_empty() {
                    return Err(self.fault(ExpressionRule::EmptyMean));
                }
                (of, None, of.len() as f64)
            }
            Expression::Weighted { of, weights } => {
                let divisor: f64 = weights.iter().sum();
                if of.len() != weights.len() || !divisor.is_finite() || divisor == 0.0 {
                    let parts = of.len();
                    return Err(self.fault(ExpressionRule::MeanWeights { parts }));
                }
                (of, Some(&weights[..]), divisor)
            }
            Expression::Sum { of, weights } => {
                if of.is_empty() || of.len() != weights.len() {
                    let parts = of.len();
                    return Err(self.fault(ExpressionRule::SumWeights { parts }));
                }
                (of, Some(&weights[..]), 1.0)
            }
            other => return Err(self.unexpected(other)),
        };
        let parts = of.iter().map(|part| self.node(part, shape));
        Ok(Node::Sum {
            parts: parts.collect::<Result<_>>()?,
            weights,
            divisor,
        })
    }

    /// A matrix with orthogonal rows.
    fn orthogonal(&self, gain: f64, seed: u64, shape: &[u64]) -> Result<Node<'a>> {
        match shape[..] {
            [rows, columns] if rows <= columns && rows * columns <= 1 << 26 => {
                Ok(Node::Orthogonal {
                    draws: Draws::new(seed, &self.layout.name),
                    gain,
                    rows: rows as usize,
                    columns: columns as usize,
                })
            }
            _ => {
                let shape = shape.to_vec();
                Err(self.fault(ExpressionRule::OrthogonalShape { shape }))
            }
        }
    }

    fn identity(&self, shape: &[u64]) -> Result<Node<'a>> {
        match shape[..] {
            [rows, columns] if rows == columns && rows > 0 => Ok(Node::Identity { columns }),
            _ => {
                let shape = shape.to_vec();
                Err(self.fault(ExpressionRule::IdentityShape { shape }))
            }
        }
    }

    /// An expression that only puts elements elsewhere.
    fn moved(&self, expression: &'a Expression, shape: &[u64]) -> Result<Moved<'a>> {
        let bits = self.layout.dtype.bitsize();
        if !bits.is_multiple_of(8) {
            return Err(self.fault(ExpressionRule::PartsOfBytes { bits }));
        }
        match expression {
            Expression::Slice { .. } | Expression::Entry { .. } | Expression::Gather { .. } => {
                self.cut(expression, shape)
            }
            Expression::Concat { of, axis, blocks } => {
                let shapes = self.parts_of(of, *axis, shape)?;
                self.expect(expression, &self.joined(&shapes, *axis)?, shape)?;
                let runs = shapes.iter().map(|part| {
                    let entries = self.block(part[*axis as usize], *blocks)?;
                    Ok(entries * inner(part, *axis))
                });
                let runs = runs.collect::<Result<Vec<u64>>>()?;
                let total = runs.iter().sum();
                let parts = of.iter().zip(&shapes);
                let parts = parts.map(|(part, shape)| self.node(part, shape));
                Ok(Moved {
                    parts: parts.collect::<Result<_>>()?,
                    rule: Rule::Concat { runs, total },
                })
            }
            Expression::Stack { of } => self.stack(of, shape),
            Expression::Repeat { of, each, times } => {
                let Some(rows) = repeated_rows(shape, *each, *times) else {
                    return Err(self.fault(ExpressionRule::RepeatedShape {
                        expression: expression.to_string(),
                        shape: shape.to_vec(),
                    }));
                };
                let rule = Rule::Repeat {
                    row: shape[1..].iter().product(),
                    rows,
                    each: *each,
                };
                self.one(of, &with_extent(shape, 0, rows), rule)
            }
            Expression::Permute { of, heads } => {
                self.one(of, shape, self.heads(*heads, shape, false)?)
            }
            Expression::Interleave { of, heads } => {
                self.one(of, shape, self.heads(*heads, shape, true)?)
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// One part in another order.
    fn one(&self, of: &'a Expression, shape: &[u64], rule: Rule<'a>) -> Result<Moved<'a>> {
        let parts = vec![self.node(of, shape)?];
        Ok(Moved { parts, rule })
    }

    /// A part of a tensor whose shape the sources say: a slice, an entry of the first axis, or drawn entries.
    fn cut(&self, expression: &'a Expression, shape: &[u64]) -> Result<Moved<'a>> {
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
                self.expect(expression, &made, shape)?;
                let inner = inner(&whole, *axis);
                let rule = Rule::Slice {
                    stride: extent * inner,
                    offset: start * inner,
                    run: length * inner,
                };
                self.one(of, &whole, rule)
            }
            Expression::Entry { of, index } => {
                let whole = self.known(of)?;
                self.within(self.extent(&whole, 0)?, *index, 1)?;
                self.expect(expression, &whole[1..], shape)?;
                let run = inner(&whole, 0);
                let rule = Rule::Slice {
                    stride: run,
                    offset: index * run,
                    run,
                };
                self.one(of, &whole, rule)
            }
            Expression::Gather { of, at } => {
                let whole = self.known(of)?;
                let places = self.places(at, &whole)?;
                let made = with_extent(&whole, at.axis, at.length);
                self.expect(expression, &made, shape)?;
                self.one(of, &whole, Rule::Gather(places))
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Refuses an expression that makes another shape than the output's.
    fn expect(&self, expression: &Expression, made: &[u64], shape: &[u64]) -> Result<()> {
        if made == shape {
            return Ok(());
        }
        Err(self.fault(ExpressionRule::Shape {
            expression: expression.to_string(),
            found: made.to_vec(),
            expected: shape.to_vec(),
        }))
    }

    /// Parts along a new first axis.
    fn stack(&self, of: &'a [Expression], shape: &[u64]) -> Result<Moved<'a>> {
        match shape {
            [count, part @ ..] if *count == of.len() as u64 && *count > 0 => {
                let run: u64 = part.iter().product();
                let parts = of.iter().map(|of| self.node(of, part));
                Ok(Moved {
                    parts: parts.collect::<Result<_>>()?,
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
        }
    }

    /// The order of the rows of heads, from pairs to halves or the other way round.
    fn heads(&self, heads: u64, shape: &[u64], pairs: bool) -> Result<Rule<'a>> {
        let rows = shape.first().copied().unwrap_or(0);
        if heads == 0 || rows % heads != 0 || !(rows / heads).is_multiple_of(2) || rows == 0 {
            return Err(self.fault(ExpressionRule::UnevenHeads { rows, heads }));
        }
        Ok(Rule::Heads {
            rows_per_head: rows / heads,
            row: shape[1..].iter().product(),
            pairs,
        })
    }

    /// A fault of this program: an expression of another kind.
    pub(super) fn unexpected(&self, other: &Expression) -> Error {
        self.fault(ExpressionRule::MovesNothing {
            expression: other.to_string(),
        })
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

/// Rows of the part that, each repeated `each` times and all of it `times` times, makes this shape.
fn repeated_rows(shape: &[u64], each: u64, times: u64) -> Option<u64> {
    let (rows, repetitions) = (shape.first()?, each.checked_mul(times)?);
    (repetitions > 0 && rows.is_multiple_of(repetitions)).then(|| rows / repetitions)
}
