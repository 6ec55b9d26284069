//! The weighted average, or the weighted sum.

use super::rule::{BaseModel, MergeRule, MergedTensor};
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::surgery::error::SurgeryError;

/// Model soups (Wortsman et al. 2022, arXiv 2203.05482).
pub(super) struct Linear;

impl MergeRule for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn about(&self) -> &'static str {
        "the weighted average, or without --normalize the weighted sum"
    }

    fn of_model(&self) -> &'static [&'static str] {
        &["weight"]
    }

    fn of_all(&self) -> &'static [&'static str] {
        &["normalize"]
    }

    fn base(&self) -> BaseModel {
        BaseModel::IsModel
    }

    fn expression(&self, tensor: &MergedTensor) -> Result<Expression> {
        let weights = tensor
            .parts
            .iter()
            .map(|part| tensor.needed(Some(part), "weight"))
            .collect::<Result<Vec<f64>>>()?;
        let normalize = tensor.switch("normalize", true)?;
        let sum: f64 = weights.iter().sum();
        if !sum.is_finite() || (normalize && sum == 0.0) {
            return Err(SurgeryError::MergeWeights { weights, sum }.into());
        }
        let of = tensor.parts.iter().map(|part| part.expression.clone());
        let of = of.collect();
        Ok(if !normalize {
            Expression::Sum { of, weights }
        } else if weights.iter().all(|weight| *weight == weights[0]) {
            Expression::Mean { of }
        } else {
            Expression::Weighted { of, weights }
        })
    }
}
