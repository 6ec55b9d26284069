//! The base plus trimmed task vectors, of which only the values of the elected sign are added.

use super::rule::{MergeRule, MergedPart, MergedTensor};
use super::task_vectors::{density, elected, task_vector};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// TIES-Merging (Yadav et al. 2023, arXiv 2306.01708).
pub(super) struct Ties;

impl MergeRule for Ties {
    fn name(&self) -> &'static str {
        "ties"
    }

    fn about(&self) -> &'static str {
        "task arithmetic with the part --density of each difference that is largest, where signs agree with their sum's"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &["weight", "density"]
    }

    fn of_all(&self) -> &'static [&'static str] {
        &["normalize", "rescale", "lambda", "int8_mask"]
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        elected(tensor, true, |part| trimmed(tensor, part))
    }
}

/// The largest values of a task vector.
fn trimmed(tensor: &MergedTensor, part: &MergedPart) -> Result<Expression> {
    let (of, density) = (task_vector(tensor, part), density(tensor, part)?);
    if density == 1.0 {
        return Ok(of);
    }
    Ok(Expression::Trim {
        of: Box::new(of),
        density,
        rescale: tensor.switch("rescale", false)?,
    })
}
