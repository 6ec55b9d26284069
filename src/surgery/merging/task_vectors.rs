//! Task vectors: what separates a model from the base that it was trained from.

use super::rule::{MergedPart, MergedTensor};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// A model minus the base.
pub(super) fn task_vector(tensor: &MergedTensor, part: &MergedPart) -> Expression {
    Expression::Sum {
        of: vec![part.expression.clone(), tensor.base()],
        weights: vec![1.0, -1.0],
    }
}

/// The base plus `factor` times `of`.
pub(super) fn added(tensor: &MergedTensor, of: Expression, factor: f64) -> Expression {
    Expression::Sum {
        of: vec![tensor.base(), of],
        weights: vec![1.0, factor],
    }
}

/// The base plus the sum of what `of` makes of each task vector, of values of the elected signs alone.
pub(super) fn elected(
    tensor: &MergedTensor,
    normalize: bool,
    of: impl Fn(&MergedPart) -> Result<Expression>,
) -> Result<Expression> {
    let elected = Expression::Elect {
        of: tensor.others().map(of).collect::<Result<_>>()?,
        weights: weights(tensor)?,
        normalize: tensor.switch("normalize", normalize)?,
    };
    Ok(added(tensor, elected, lambda(tensor)?))
}

/// The weight of each model but the base.
pub(super) fn weights(tensor: &MergedTensor) -> Result<Vec<f64>> {
    let weights = tensor
        .others()
        .map(|part| tensor.needed(Some(part), "weight"));
    weights.collect()
}

/// The factor on the sum of all task vectors.
pub(super) fn lambda(tensor: &MergedTensor) -> Result<f64> {
    Ok(tensor.number(None, "lambda")?.unwrap_or(1.0))
}

/// The part of a task vector's values that stay, from 0 to 1.
pub(super) fn density(tensor: &MergedTensor, part: &MergedPart) -> Result<f64> {
    let expected = ("0 or more", is_density as fn(f64) -> bool);
    let density = tensor.within(Some(part), "density", 1.0, expected)?;
    // As in mergekit, lists may go beyond it.
    Ok(density.min(1.0))
}

fn is_density(number: f64) -> bool {
    number >= 0.0
}

/// A sum of weights that is too small to divide by.
const NOTHING: f64 = 1e-8;

/// What the sum of all task vectors is divided by.
pub(super) fn divisor(tensor: &MergedTensor, weights: &[f64], default: bool) -> Result<f64> {
    let sum: f64 = weights.iter().sum();
    let divides = tensor.switch("normalize", default)? && sum.abs() >= NOTHING;
    Ok(if divides { sum } else { 1.0 })
}
