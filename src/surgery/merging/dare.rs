//! The base plus task vectors of which drawn values stay.

use super::rule::{MergeRule, MergedPart, MergedTensor};
use super::task_vectors::{added, density, divisor, elected, lambda, task_vector, weights};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// DARE (Yu et al. 2024, arXiv 2311.03099) with task arithmetic.
pub(super) struct DareLinear;

/// DARE with TIES' election of signs.
pub(super) struct DareTies;

/// The parameters of a model.
const OF_MODEL: [&str; 2] = ["weight", "density"];

/// The parameters of the merge as a whole.
const OF_ALL: [&str; 4] = ["normalize", "rescale", "lambda", "int8_mask"];

impl MergeRule for DareLinear {
    fn name(&self) -> &'static str {
        "dare_linear"
    }

    fn about(&self) -> &'static str {
        "task arithmetic with a drawn part `density` of each difference"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &OF_MODEL
    }

    fn of_all(&self) -> &'static [&'static str] {
        &OF_ALL
    }

    fn draws(&self) -> bool {
        true
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        let weights = weights(tensor)?;
        let factor = lambda(tensor)? / divisor(tensor, &weights, false)?;
        let of = tensor.others().map(|part| thinned(tensor, part));
        let of = of.collect::<Result<_>>()?;
        Ok(added(tensor, Expression::Sum { of, weights }, factor))
    }
}

impl MergeRule for DareTies {
    fn name(&self) -> &'static str {
        "dare_ties"
    }

    fn about(&self) -> &'static str {
        "task arithmetic with a drawn part `density` of each difference, where signs agree with their sum's"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &OF_MODEL
    }

    fn of_all(&self) -> &'static [&'static str] {
        &OF_ALL
    }

    fn draws(&self) -> bool {
        true
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        elected(tensor, false, |part| thinned(tensor, part))
    }
}

/// Drawn values of a task vector.
fn thinned(tensor: &MergedTensor, part: &MergedPart) -> Result<Expression> {
    let (of, density) = (task_vector(tensor, part), density(tensor, part)?);
    if density == 1.0 {
        return Ok(of);
    }
    drawn(tensor, part, density)
}

/// Values of a task vector, each drawn with the same probability.
pub(super) fn drawn(tensor: &MergedTensor, part: &MergedPart, density: f64) -> Result<Expression> {
    let of = task_vector(tensor, part);
    Ok(Expression::Thin {
        of: Box::new(of),
        density,
        seed: tensor.seed,
        key: tensor.key(part),
        rescale: tensor.switch("rescale", true)?,
    })
}
