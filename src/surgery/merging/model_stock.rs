//! A point between the base and the average of the models, as near to the average as their task vectors agree.

use super::rule::{MergeRule, MergedTensor};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// Model Stock (Jang et al. 2024, arXiv 2403.19522).
pub(super) struct ModelStock;

impl MergeRule for ModelStock {
    fn name(&self) -> &'static str {
        "model_stock"
    }

    fn about(&self) -> &'static str {
        "a point between the base and the average of the models, nearer to the average where their differences agree"
    }

    fn of_all(&self) -> &'static [&'static str] {
        &["filter_wise"]
    }

    fn least_models(&self) -> usize {
        3
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        let others = tensor.others().map(|part| part.expression.clone());
        Ok(Expression::ModelStock {
            of: std::iter::once(tensor.base()).chain(others).collect(),
            by_row: tensor.switch("filter_wise", false)?,
        })
    }
}
