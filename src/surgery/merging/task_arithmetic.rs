//! The base plus weighted task vectors.

use super::rule::{MergeRule, MergedTensor};
use super::task_vectors::{added, divisor, lambda, task_vector, weights};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089).
pub(super) struct TaskArithmetic;

impl MergeRule for TaskArithmetic {
    fn name(&self) -> &'static str {
        "task_arithmetic"
    }

    fn about(&self) -> &'static str {
        "the base plus the weighted differences of the models from it, times --lambda"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &["weight"]
    }

    fn of_all(&self) -> &'static [&'static str] {
        &["normalize", "lambda", "int8_mask"]
    }

    fn without_effect(&self) -> &'static [&'static str] {
        &["density", "rescale"]
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        let weights = weights(tensor)?;
        let factor = lambda(tensor)? / divisor(tensor, &weights, false)?;
        // Differences, so that a tensor which no model has changed keeps its values exactly.
        let of = tensor.others().map(|part| task_vector(tensor, part));
        let of = of.collect();
        Ok(added(tensor, Expression::Sum { of, weights }, factor))
    }
}
