//! Evaluating expressions, any range of any tensor at a time.

use super::compile::compile;
use super::node::Node;
pub use super::places::Scratch;
use super::plan::{PlannedTensor, Source};
use super::plan_error::{ExpressionRule, PlanError};
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::writer::{TensorBytes, TensorLayout};
use crate::checkpoint::{Encoding, dtype};

/// The tensors of a plan, ready to be computed.
pub struct Evaluator<'a> {
    tensors: Vec<(&'a TensorLayout, Node<'a>)>,
    carries_non_finite: bool,
}

impl<'a> Evaluator<'a> {
    /// Looks up every source tensor and checks every shape and dtype; reads no data.
    pub fn new(tensors: &'a [PlannedTensor], sources: &'a [Source]) -> Result<Self> {
        let mut compiled = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let layout = &tensor.layout;
            let dtype = layout.dtype;
            let fault = |rule| PlanError::Expression {
                tensor: layout.name.clone(),
                rule,
            };
            let elements = layout
                .shape
                .iter()
                .try_fold(1u64, |product, extent| product.checked_mul(*extent));
            if elements
                .and_then(|elements| dtype::byte_length(layout.dtype, elements))
                .is_none()
            {
                let shape = layout.shape.clone();
                return Err(fault(ExpressionRule::WholeBytes { shape, dtype }).into());
            }
            let node = compile(&tensor.expression, layout, sources)?;
            let moves_bytes = node.moves_bytes(layout.dtype);
            if !moves_bytes && !dtype::is_float(layout.dtype) {
                return Err(fault(ExpressionRule::NotComputed { dtype }).into());
            }
            if !moves_bytes && keeps_dtype(&tensor.expression) {
                return Err(fault(ExpressionRule::KeepsDtype { dtype }).into());
            }
            compiled.push((layout, node));
        }
        Ok(Self {
            tensors: compiled,
            carries_non_finite: false,
        })
    }

    /// The same, which lets NaN and infinities of the sources through; those that a rounding would make are refused.
    #[must_use]
    pub fn carrying_non_finite(mut self, carries: bool) -> Self {
        self.carries_non_finite = carries;
        self
    }

    /// Fills `out` with the bytes of tensor number `tensor` from byte `start` on.
    pub fn bytes(
        &self,
        tensor: usize,
        start: u64,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (layout, node) = &self.tensors[tensor];
        // Also of values that are less than a byte, which cannot be counted from `start`.
        if let Node::Read {
            checkpoint, entry, ..
        } = node
            && entry.encoding == Encoding::Plain(layout.dtype)
        {
            return checkpoint.read_bytes(entry, start, out);
        }
        let size = layout.dtype.bitsize() as u64 / 8;
        node.bytes(layout.dtype, start / size, out, scratch)
    }
}

impl TensorBytes for Evaluator<'_> {
    type Scratch = Scratch;

    /// As [`Evaluator::bytes`], and refuses NaN and infinities, naming the source tensor that holds one.
    fn fill(&self, tensor: usize, start: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        self.bytes(tensor, start, out, scratch)?;
        let (layout, node) = &self.tensors[tensor];
        let Some(mut position) = dtype::first_non_finite(layout.dtype, out) else {
            return Ok(());
        };
        let size = layout.dtype.bitsize() / 8;
        if self.carries_non_finite {
            if node.moves_bytes(layout.dtype) {
                return Ok(());
            }
            // `bytes` has left the values before their rounding.
            let overflows = |at: &usize| {
                let stored = &out[at * size..(at + 1) * size];
                scratch.values[*at].is_finite()
                    && dtype::first_non_finite(layout.dtype, stored).is_some()
            };
            match (position..scratch.values.len()).find(overflows) {
                Some(at) => position = at,
                None => return Ok(()),
            }
        }
        Err(node.blame(start / size as u64 + position as u64, layout, scratch)?)
    }
}

/// Whether it is a part of a source as it is, so that another dtype would have to be said.
fn keeps_dtype(expression: &Expression) -> bool {
    match expression {
        Expression::Copy { .. } | Expression::Adapted { .. } => true,
        Expression::Slice { .. }
        | Expression::Concat { .. }
        | Expression::Stack { .. }
        | Expression::Gather { .. }
        | Expression::Repeat { .. } => expression.parts().iter().all(keeps_dtype),
        _ => false,
    }
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
