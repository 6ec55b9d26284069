//! The steps that sublayers are composed of.

use std::fmt::Debug;

use candle_core::{Result, Tensor};

use super::attend::{Scores, attend_in_groups};
use super::{gelu, linear, norm};
use crate::family::Activation;
use crate::model::backend::host::Residence;
use crate::model::modules::{Attention, Linear, Matrix, Norm};
use crate::model::params::Mode;
use crate::model::pass::Pass;

/// The steps of a sublayer; by default candle's operations.
pub(in crate::model::backend) trait Steps: Debug + Send + Sync {
    /// Whether gradients flow through the steps.
    fn mode(&self) -> Mode;

    /// Where the numbers are; on the host, a step may look at them.
    fn residence(&self) -> Residence {
        Residence::Host
    }

    /// The rows of `table` for a vector of token ids.
    fn select(&self, table: &Matrix, ids: &Tensor) -> Result<Tensor> {
        table.tensor()?.index_select(ids, 0)
    }

    /// `x · matrixᵀ` for `x` `[.., in]`, as `[.., out]`.
    fn matmul(&self, matrix: &Matrix, x: &Tensor) -> Result<Tensor> {
        linear::matmul(matrix, x)
    }

    /// A projection of `x` `[.., in]`, as `[.., out]`.
    fn linear(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let product = self.matmul(&linear.weight, x)?;
        match &linear.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    /// Several projections of the same `x` `[.., in]`.
    fn project(&self, linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        linears
            .iter()
            .map(|linear| self.linear(linear, x))
            .collect()
    }

    /// The sum of the matmuls of matrices with an `x` `[.., in]` each.
    fn sum_of_matmuls(&self, terms: &[(&Matrix, Tensor)]) -> Result<Tensor> {
        let mut products = terms.iter().map(|(matrix, x)| self.matmul(matrix, x));
        let first = products.next().ok_or_else(|| {
            candle_core::Error::msg("expected at least one term of a sum, found none")
        })??;
        products.try_fold(first, |sum, product| sum + product?)
    }

    /// Normalises `x` `[.., size]`.
    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        norm::forward(norm, x, self.mode())
    }

    /// Softmax attention of queries `[batch, seq, experts, heads, head_dim]` over keys and values
    /// `[batch · sets · kv heads, positions, head_dim]`, in the shape of the queries.
    fn attend(
        &self,
        attention: &Attention,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        pass: &Pass,
    ) -> Result<Tensor> {
        let scores = match self.mode() {
            Mode::Infer => Scores::Forgotten,
            Mode::Train => Scores::Recomputed(self.residence()),
        };
        attend_in_groups(attention, queries, keys, values, pass, scores)
    }

    /// `act(gate) · up`.
    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        activate(activation, gate)? * up
    }
}

/// candle's operations alone.
#[derive(Debug, Clone)]
pub(in crate::model::backend) struct CandleSteps {
    pub(in crate::model::backend) mode: Mode,
    pub(in crate::model::backend) residence: Residence,
}

impl Steps for CandleSteps {
    fn mode(&self) -> Mode {
        self.mode
    }

    fn residence(&self) -> Residence {
        self.residence
    }
}

/// The activation of `x`.
pub(in crate::model::backend) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => gelu::gelu(x),
        Activation::GeluTanh => gelu::gelu_tanh(x),
        Activation::Relu => x.relu(),
        Activation::Relu2 => x.relu()?.sqr(),
    }
}
