//! The base plus task vectors of which drawn values stay, large ones more often than small ones.

use super::dare::drawn;
use super::rule::{MergeRule, MergedPart, MergedTensor};
use super::task_vectors::{density, elected, task_vector};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// DELLA-Merging (Deep et al. 2024, arXiv 2406.11617).
pub(super) struct Della;

/// `epsilon` where nothing says so.
const EPSILON: f64 = 0.15;

impl MergeRule for Della {
    fn name(&self) -> &'static str {
        "della"
    }

    fn about(&self) -> &'static str {
        "as `dare_ties`, but large values of a row stay more often than small ones"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &["weight", "density", "epsilon"]
    }

    fn of_all(&self) -> &'static [&'static str] {
        &["normalize", "rescale", "lambda", "int8_mask"]
    }

    fn draws(&self) -> bool {
        true
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        elected(tensor, true, |part| thinned(tensor, part))
    }
}

/// Drawn values of a task vector.
fn thinned(tensor: &MergedTensor, part: &MergedPart) -> Result<Expression> {
    let (of, density) = (task_vector(tensor, part), density(tensor, part)?);
    if density == 1.0 {
        return Ok(of);
    }
    if density == 0.0 {
        return drawn(tensor, part, density);
    }
    let epsilon = tensor.number(Some(part), "epsilon")?.unwrap_or(EPSILON);
    // Written so that NaN is refused, too.
    if !(epsilon >= 0.0 && density - epsilon > 0.0 && density + epsilon < 1.0) {
        let expected = "0 or more, and `density` further than it from 0 and 1";
        return Err(tensor.refused("epsilon", expected, epsilon.to_string()));
    }
    Ok(Expression::ThinByRank {
        of: Box::new(of),
        density,
        epsilon,
        seed: tensor.seed,
        key: tensor.key(part),
        rescale: tensor.switch("rescale", true)?,
    })
}
