//! From an expression to a node: sources looked up, every shape and every place on an axis checked.
//!
//! The shape of a part follows from the output's where it can (an average has its parts' shape) and from the sources where
//! it cannot (a slice may be cut out of anything). Draws have whatever shape is asked of them, so they cannot be cut, and in a
//! concatenation one part at most can be such: it takes what the others leave.
//! A manifest is hostile input: nothing here trusts a number in it.

use std::sync::Mutex;

use super::drawn::{Noisy, Places, Redrawn};
use super::moved::{Moved, Rule};
use super::node::Node;
use super::plan::{Source, source};
use super::random::Draws;
use crate::checkpoint::expression::{Drawn, Expression};
use crate::checkpoint::writer::TensorLayout;
use crate::{Error, Result};

/// Most entries of an axis that is drawn from: its order, and a row of them, are held whole at every level of an expression.
const LARGEST_AXIS: u64 = 1 << 18;

/// The expression of the tensor `layout`, ready to be computed; reads no data.
pub(super) fn compile<'a>(
    expression: &'a Expression,
    layout: &'a TensorLayout,
    sources: &'a [Source],
) -> Result<Node<'a>> {
    Compiler { layout, sources }.node(expression, &layout.shape)
}

struct Compiler<'a> {
    layout: &'a TensorLayout,
    sources: &'a [Source],
}

impl<'a> Compiler<'a> {
    fn fault(&self, problem: impl std::fmt::Display) -> Error {
        Error::usage(format!(
            "the plan of tensor `{}`: {problem}",
            self.layout.name
        ))
    }

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
                    let problem =
                        format!("has shape {:?}, but `{name}` takes {shape:?}", entry.shape);
                    return Err(Error::tensor(
                        checkpoint.files[entry.file].path(),
                        tensor,
                        problem,
                    ));
                }
                Node::Read {
                    checkpoint,
                    entry,
                    tensor,
                }
            }
            Expression::Mean { of } => match of.len() {
                0 => return Err(self.fault("a mean of nothing")),
                count => Node::Sum {
                    parts: all(of)?,
                    weights: None,
                    divisor: count as f64,
                },
            },
            Expression::Weighted { of, weights } => {
                let divisor: f64 = weights.iter().sum();
                if of.len() != weights.len() || !divisor.is_finite() || divisor == 0.0 {
                    let problem = format!(
                        "expected one weight for each of {} parts and a sum that is not 0",
                        of.len()
                    );
                    return Err(self.fault(problem));
                }
                Node::Sum {
                    parts: all(of)?,
                    weights: Some(weights),
                    divisor,
                }
            }
            Expression::Sum { of, weights } => {
                if of.is_empty() || of.len() != weights.len() {
                    return Err(self.fault(format!(
                        "expected one weight for each of {} parts of a sum",
                        of.len()
                    )));
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
                    return Err(self.fault(format!("expected a finite factor, found {by}")));
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
                    let problem = format!(
                        "orthogonal rows need a matrix with no more rows than columns, found {shape:?}"
                    );
                    return Err(self.fault(problem));
                }
            },
            Expression::Trained { of } => {
                return Err(self.fault(format!("training {of} cannot be computed again")));
            }
            Expression::Constant { value } => Node::Constant(*value),
            Expression::Identity => match shape[..] {
                [rows, columns] if rows == columns && rows > 0 => Node::Identity { columns },
                _ => {
                    return Err(
                        self.fault(format!("the identity is a square matrix, found {shape:?}"))
                    );
                }
            },
        })
    }

    /// What only puts elements elsewhere.
    fn moved(&self, expression: &'a Expression, shape: &[u64]) -> Result<Moved<'a>> {
        let unfit = |made: &[u64]| {
            self.fault(format!(
                "{expression} has shape {made:?}, expected {shape:?}"
            ))
        };
        let bits = self.layout.dtype.bitsize();
        if !bits.is_multiple_of(8) {
            return Err(self.fault(format!("values of {bits} bits cannot be moved one by one")));
        }
        match expression {
            Expression::Slice {
                of,
                axis,
                start,
                length,
            } => {
                let whole = self.known(of)?;
                let extent = self.extent(&whole, *axis)?;
                self.within(extent, *start, *length)?;
                let made = with_extent(&whole, *axis, *length);
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
            Expression::Concat { of, axis } => {
                let shapes = self.parts_of(of, *axis, shape)?;
                let made = self.joined(&shapes, *axis)?;
                if made != shape {
                    return Err(unfit(&made));
                }
                let runs: Vec<u64> = shapes
                    .iter()
                    .map(|part| part[*axis as usize] * inner(part, *axis))
                    .collect();
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
                _ => Err(self.fault(format!(
                    "{} stacked parts do not have shape {shape:?}",
                    of.len()
                ))),
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
                _ => Err(self.fault(format!("{expression} cannot have shape {shape:?}"))),
            },
            Expression::Permute { of, heads } | Expression::Interleave { of, heads } => {
                let rows = shape.first().copied().unwrap_or(0);
                if *heads == 0
                    || rows % heads != 0
                    || !(rows / heads).is_multiple_of(2)
                    || rows == 0
                {
                    return Err(self.fault(format!(
                        "{rows} rows do not fall into {heads} heads of an even size"
                    )));
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
            other => Err(self.fault(format!("{other} moves nothing"))),
        }
    }

    /// The shapes of parts that make `whole` along an axis; one part may have none of its own, and takes what is left.
    fn parts_of(&self, of: &[Expression], axis: u64, whole: &[u64]) -> Result<Vec<Vec<u64>>> {
        let shapes = of
            .iter()
            .map(|part| self.shape(part))
            .collect::<Result<Vec<_>>>()?;
        let open = shapes.iter().filter(|shape| shape.is_none()).count();
        let mut left = self.extent(whole, axis)?;
        for shape in shapes.iter().flatten() {
            left = left.saturating_sub(self.extent(shape, axis)?);
        }
        let parts = of.iter().zip(shapes).map(|(part, shape)| match shape {
            Some(shape) => Ok(shape),
            None if open == 1 && left > 0 => Ok(with_extent(whole, axis, left)),
            None => self.known(part),
        });
        parts.collect()
    }

    /// The shape of a part, which its sources must tell.
    fn known(&self, expression: &Expression) -> Result<Vec<u64>> {
        self.shape(expression)?.ok_or_else(|| {
            self.fault(format!(
                "{expression} has no shape of its own, so it cannot be cut or joined"
            ))
        })
    }

    /// The shape that an expression has of its own; `None` where it takes any.
    fn shape(&self, expression: &Expression) -> Result<Option<Vec<u64>>> {
        Ok(match expression {
            Expression::Copy {
                source: from,
                tensor,
            } => Some(
                source(self.sources, from)?
                    .checkpoint
                    .tensor(tensor)?
                    .shape
                    .clone(),
            ),
            Expression::Slice {
                of, axis, length, ..
            } => {
                let whole = self.known(of)?;
                self.extent(&whole, *axis)?;
                Some(with_extent(&whole, *axis, *length))
            }
            Expression::Entry { of, index } => {
                let whole = self.known(of)?;
                self.within(self.extent(&whole, 0)?, *index, 1)?;
                Some(whole[1..].to_vec())
            }
            Expression::Gather { of, at } => {
                let whole = self.known(of)?;
                self.extent(&whole, at.axis)?;
                Some(with_extent(&whole, at.axis, at.length))
            }
            Expression::Concat { of, axis } => {
                let shapes = of
                    .iter()
                    .map(|part| self.known(part))
                    .collect::<Result<Vec<_>>>()?;
                Some(self.joined(&shapes, *axis)?)
            }
            Expression::Stack { of } => match of.first() {
                Some(part) => self
                    .shape(part)?
                    .map(|part| [&[of.len() as u64], &part[..]].concat()),
                None => None,
            },
            Expression::Repeat { of, each, times } => match self.shape(of)? {
                Some(part) => {
                    let rows = self
                        .extent(&part, 0)?
                        .checked_mul(*each)
                        .and_then(|rows| rows.checked_mul(*times));
                    let rows =
                        rows.ok_or_else(|| self.fault(format!("{expression} has too many rows")))?;
                    Some(with_extent(&part, 0, rows))
                }
                None => None,
            },
            other => {
                let mut found = None;
                for part in other.parts() {
                    found = self.shape(part)?;
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
        })
    }

    fn extent(&self, shape: &[u64], axis: u64) -> Result<u64> {
        let extent = usize::try_from(axis)
            .ok()
            .and_then(|axis| shape.get(axis))
            .copied();
        extent.ok_or_else(|| self.fault(format!("there is no axis {axis} in shape {shape:?}")))
    }

    fn within(&self, extent: u64, start: u64, length: u64) -> Result<()> {
        match start.checked_add(length) {
            Some(end) if end <= extent && length > 0 => Ok(()),
            _ => Err(self.fault(format!(
                "expected some of {extent} entries, found {length} from {start} on"
            ))),
        }
    }

    /// The shape of parts one after another.
    fn joined(&self, shapes: &[Vec<u64>], axis: u64) -> Result<Vec<u64>> {
        let Some(first) = shapes.first() else {
            return Err(self.fault("a concatenation of nothing"));
        };
        let mut sum = 0u64;
        for shape in shapes {
            let extent = self.extent(shape, axis)?;
            if with_extent(shape, axis, 0) != with_extent(first, axis, 0) {
                return Err(self.fault(format!(
                    "{shape:?} and {first:?} cannot be joined along axis {axis}"
                )));
            }
            sum = sum
                .checked_add(extent)
                .ok_or_else(|| self.fault("a concatenation of too many entries"))?;
        }
        Ok(with_extent(first, axis, sum))
    }

    fn places(&self, at: &'a Drawn, shape: &[u64]) -> Result<Places<'a>> {
        let extent = self.extent(shape, at.axis)?;
        self.within(extent, at.start, at.length)?;
        if extent > LARGEST_AXIS {
            let problem = format!(
                "expected at most {LARGEST_AXIS} entries of an axis to draw from, found {extent}"
            );
            return Err(self.fault(problem));
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
            Err(self.fault(format!(
                "expected a standard deviation of 0 or more, found {std}"
            )))
        }
    }
}

/// `shape` with another extent of an axis that it has.
fn with_extent(shape: &[u64], axis: u64, extent: u64) -> Vec<u64> {
    let mut shape = shape.to_vec();
    shape[axis as usize] = extent;
    shape
}

/// Elements of one entry of an axis.
fn inner(shape: &[u64], axis: u64) -> u64 {
    shape[axis as usize + 1..].iter().product()
}
