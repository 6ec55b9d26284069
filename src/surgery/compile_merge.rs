//! Expressions of merges, checked and ready to be computed.

use super::compile_shape::Compilation;
use super::elected::Elected;
use super::first_pass::Whole;
use super::node::Node;
use super::plan_error::ExpressionRule;
use super::slerp::Slerp;
use super::trimmed::Trimmed;
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

    /// A tensor that keeps its largest values.
    pub(super) fn trimmed(
        &self,
        of: Box<Node<'a>>,
        density: f64,
        rescale: bool,
        shape: &[u64],
    ) -> Result<Node<'a>> {
        let whole = self.whole(shape);
        let keep = (self.density(density)? * whole.elements as f64) as u64;
        Ok(Node::Trimmed(Box::new(Trimmed::new(
            of, keep, rescale, whole,
        ))))
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

    fn density(&self, density: f64) -> Result<f64> {
        if (0.0..=1.0).contains(&density) {
            Ok(density)
        } else {
            Err(self.fault(ExpressionRule::Density { found: density }))
        }
    }
}
