//! Spherical linear interpolation: each tensor is turned from the base's towards the other model's.

use super::rule::{MergeRule, MergedTensor};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Interpolation along an arc (Shoemake 1985).
pub(super) struct Slerp;

impl MergeRule for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn about(&self) -> &'static str {
        "between two models, each tensor turned from the base's towards the other's by the part --t of the angle"
    }

    fn of_all(&self) -> &'static [&'static str] {
        &["t"]
    }

    fn models(&self) -> Option<usize> {
        Some(2)
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        let t = tensor.needed(None, "t")?;
        let other = tensor.others().map(|part| part.expression.clone());
        Ok(Expression::Slerp {
            of: std::iter::once(tensor.base()).chain(other).collect(),
            t,
        })
    }
}
