//! Expressions of merges, checked and ready to be computed.

use super::compile_shape::{Compilation, LARGEST_AXIS};
use super::elected::Elected;
use super::first_pass::Whole;
use super::node::Node;
use super::plan_error::ExpressionRule;
use super::random::Draws;
use super::slerp::Slerp;
use super::stocked::Stocked;
use super::thinned::{Stays, Thinned};
use crate::Result;
use crate::checkpoint::expression::Expression;

impl<'a> Compilation<'a> {
    fn whole(&self, shape: &[u64]) -> Whole<'a> {
        Whole {
            layout: self.layout,
            elements: shape.iter().product(),
        }
    }

    /// An interpolation between two tensors.
    pub(super) fn slerp(&self, of: &'a [Expression], t: f64, shape: &[u64]) -> Result<Node<'a>> {
        let [a, b] = of else {
            let parts = of.len();
            return Err(self.fault(ExpressionRule::TwoParts { parts }));
        };
        if !t.is_finite() {
            return Err(self.fault(ExpressionRule::Factor { found: t }));
        }
        let of = [self.node(a, shape)?, self.node(b, shape)?];
        Ok(Node::Slerp(Slerp::new(of, t, self.whole(shape))))
    }

    /// A tensor that keeps some of its values.
    pub(super) fn thinned(&self, expression: &'a Expression, shape: &[u64]) -> Result<Node<'a>> {
        let whole = self.whole(shape);
        let (of, rescale, stays) = match expression {
            Expression::Trim {
                of,
                density,
                rescale,
            } => {
                let density = self.probability(*density)?;
                let least = u64::from(density > 0.0);
                let keep = ((density * whole.elements as f64) as u64).max(least);
                let selection = Box::default();
                (of, *rescale, Stays::Largest { keep, selection })
            }
            Expression::Thin {
                of,
                density,
                seed,
                key,
                rescale,
            } => {
                let (density, draws) = (self.probability(*density)?, Draws::new(*seed, key));
                (of, *rescale, Stays::Drawn { density, draws })
            }
            Expression::ThinByRank {
                of,
                density,
                epsilon,
                seed,
                key,
                rescale,
            } => {
                let stays = Stays::Ranked {
                    probabilities: [
                        self.probability(density - epsilon)?,
                        self.probability(density + epsilon)?,
                    ],
                    draws: Draws::new(*seed, key),
                    row: self.row(shape)?,
                };
                (of, *rescale, stays)
            }
            other => return Err(self.unexpected(other)),
        };
        let of = Box::new(self.node(of, shape)?);
        Ok(Node::Thinned(Box::new(Thinned::new(
            of, stays, rescale, whole,
        ))))
    }

    /// A point between a base and the average of models.
    pub(super) fn stocked(
        &self,
        of: &'a [Expression],
        by_row: bool,
        shape: &[u64],
    ) -> Result<Node<'a>> {
        if of.len() < 3 {
            let parts = of.len();
            return Err(self.fault(ExpressionRule::FewModels { parts }));
        }
        let row = by_row.then(|| self.row(shape)).transpose()?;
        let parts = of.iter().map(|part| self.node(part, shape));
        let parts = parts.collect::<Result<_>>()?;
        Ok(Node::Stocked(Stocked::new(parts, row, self.whole(shape))))
    }

    /// Values of a row, which is held whole.
    fn row(&self, shape: &[u64]) -> Result<u64> {
        match shape.last() {
            Some(row) if *row > LARGEST_AXIS => Err(self.fault(ExpressionRule::LongAxis {
                most: LARGEST_AXIS,
                found: *row,
            })),
            row => Ok(row.copied().unwrap_or(1)),
        }
    }

    /// A sum of elected terms.
    pub(super) fn elected(
        &self,
        of: &'a [Expression],
        weights: &'a [f64],
        normalize: bool,
        shape: &[u64],
    ) -> Result<Node<'a>> {
        if of.is_empty() || of.len() != weights.len() {
            let parts = of.len();
            return Err(self.fault(ExpressionRule::SumWeights { parts }));
        }
        let parts = of.iter().map(|part| self.node(part, shape));
        Ok(Node::Elected(Elected {
            of: parts.collect::<Result<_>>()?,
            weights,
            normalize,
        }))
    }

    fn probability(&self, density: f64) -> Result<f64> {
        if (0.0..=1.0).contains(&density) {
            Ok(density)
        } else {
            Err(self.fault(ExpressionRule::Density { found: density }))
        }
    }
}
