//! Layers of models one after another, as they are or times a factor.

use super::rule::{BaseModel, MergeRule, MergedTensor};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Stacks of layers.
pub(super) struct Passthrough;

impl MergeRule for Passthrough {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn about(&self) -> &'static str {
        "layers of models one after another, as they are or times `scale`"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &["scale"]
    }

    fn base(&self) -> BaseModel {
        BaseModel::IsModel
    }

    fn models(&self) -> Option<usize> {
        Some(1)
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        let of = tensor.base();
        let by = tensor.number(tensor.parts.first(), "scale")?.unwrap_or(1.0);
        Ok(if by == 1.0 {
            of
        } else {
            Expression::Scale {
                of: Box::new(of),
                by,
            }
        })
    }
}
