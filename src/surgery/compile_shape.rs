//! The shapes of expressions: every axis and every range on it is checked.
//!
//! The shape of a part follows from the shape of the output where it can: an average has its parts' shape. Elsewhere it follows
//! from the sources, as a slice may be cut out of anything. Draws take any shape, so they cannot be cut, and a concatenation can
//! have one draw at most, which takes the rows that the other parts leave.

use super::plan::{Source, weights};
use super::plan_error::{ExpressionRule, PlanError};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::writer::TensorLayout;
use crate::{Error, Result};

/// Most entries of an axis that is drawn from: its order, and a row of them, are held whole at every level of an expression.
pub(super) const LARGEST_AXIS: u64 = 1 << 18;

/// A tensor of the plan, and the sources that its expression reads.
pub(super) struct Compilation<'a> {
    pub(super) layout: &'a TensorLayout,
    pub(super) sources: &'a [Source],
}

impl Compilation<'_> {
    pub(super) fn fault(&self, rule: ExpressionRule) -> Error {
        let tensor = self.layout.name.clone();
        PlanError::Expression { tensor, rule }.into()
    }

    /// The shapes of parts that make `whole` along an axis; one part may have none of its own, and takes what is left.
    pub(super) fn parts_of(
        &self,
        of: &[Expression],
        axis: u64,
        whole: &[u64],
    ) -> Result<Vec<Vec<u64>>> {
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
    pub(super) fn known(&self, expression: &Expression) -> Result<Vec<u64>> {
        self.shape(expression)?.ok_or_else(|| {
            self.fault(ExpressionRule::NoShape {
                expression: expression.to_string(),
            })
        })
    }

    /// The shape that an expression has of its own; `None` where it takes any.
    pub(super) fn shape(&self, expression: &Expression) -> Result<Option<Vec<u64>>> {
        Ok(match expression {
            Expression::Copy {
                source: from,
                tensor,
            }
            | Expression::Adapted {
                source: from,
                tensor,
                ..
            }
            | Expression::BlockScaled {
                source: from,
                tensor,
                ..
            } => Some(weights(self.sources, from)?.tensor(tensor)?.shape.clone()),
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
                Some(with_extent(&whole, *axis, length * blocks))
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
            Expression::Concat { of, axis, .. } => {
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
                    let rows = rows.ok_or_else(|| {
                        self.fault(ExpressionRule::ManyRows {
                            expression: expression.to_string(),
                        })
                    })?;
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

    pub(super) fn extent(&self, shape: &[u64], axis: u64) -> Result<u64> {
        let extent = usize::try_from(axis)
            .ok()
            .and_then(|axis| shape.get(axis))
            .copied();
        extent.ok_or_else(|| {
            self.fault(ExpressionRule::NoAxis {
                axis,
                shape: shape.to_vec(),
            })
        })
    }

    /// Entries of each of `blocks` equal blocks of an axis.
    pub(super) fn block(&self, extent: u64, blocks: u64) -> Result<u64> {
        if blocks == 0 || !extent.is_multiple_of(blocks) {
            return Err(self.fault(ExpressionRule::UnevenBlocks { extent, blocks }));
        }
        Ok(extent / blocks)
    }

    pub(super) fn within(&self, extent: u64, start: u64, length: u64) -> Result<()> {
        match start.checked_add(length) {
            Some(end) if end <= extent && length > 0 => Ok(()),
            _ => Err(self.fault(ExpressionRule::Range {
                extent,
                start,
                length,
            })),
        }
    }

    /// The shape of parts one after another.
    pub(super) fn joined(&self, shapes: &[Vec<u64>], axis: u64) -> Result<Vec<u64>> {
        let Some(first) = shapes.first() else {
            return Err(self.fault(ExpressionRule::EmptyConcatenation));
        };
        let mut sum = 0u64;
        for shape in shapes {
            let extent = self.extent(shape, axis)?;
            if with_extent(shape, axis, 0) != with_extent(first, axis, 0) {
                let (part, first) = (shape.clone(), first.clone());
                return Err(self.fault(ExpressionRule::NotJoined { part, first, axis }));
            }
            sum = sum
                .checked_add(extent)
                .ok_or_else(|| self.fault(ExpressionRule::ManyEntries))?;
        }
        Ok(with_extent(first, axis, sum))
    }
}

/// `shape` with another extent of an axis that it has.
pub(super) fn with_extent(shape: &[u64], axis: u64, extent: u64) -> Vec<u64> {
    let mut shape = shape.to_vec();
    shape[axis as usize] = extent;
    shape
}

/// Elements of one entry of an axis.
pub(super) fn inner(shape: &[u64], axis: u64) -> u64 {
    shape[axis as usize + 1..].iter().product()
}
