//! The steps of sublayers that the reference composes: with this backend's kernels where there is one.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::kernels::silu_multiply;
use super::{attend_cached, norm, product};
use crate::family::Activation;
use crate::model::backend::host::{Residence, floats};
use crate::model::backend::reference::{CandleSteps, Scores, Steps, attend_in_groups};
use crate::model::modules::{Attention, Linear, Matrix, Norm};
use crate::model::params::Mode;
use crate::model::pass::Pass;

/// Values that one thread activates at a time.
const PIECE: usize = 1 << 13;

/// The steps of sublayers that have no kernels for training.
#[derive(Debug, Clone)]
pub(in crate::model::backend) struct TrainSteps;

impl Steps for TrainSteps {
    fn mode(&self) -> Mode {
        Mode::Train
    }

    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        norm::in_graph(norm, x)
    }

    /// All scores at once are faster here, and few families come this way.
    fn attend(
        &self,
        attention: &Attention,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        pass: &Pass,
    ) -> Result<Tensor> {
        attend_in_groups(attention, queries, keys, values, pass, Scores::Kept)
    }
}

/// The steps of inference. Matrices may stay in the pages of their files.
#[derive(Debug, Clone)]
pub(in crate::model::backend) struct InferSteps;

/// Steps without kernels.
const CANDLE: CandleSteps = CandleSteps {
    mode: Mode::Infer,
    residence: Residence::Host,
};

impl Steps for InferSteps {
    fn mode(&self) -> Mode {
        Mode::Infer
    }

    fn select(&self, table: &Matrix, ids: &Tensor) -> Result<Tensor> {
        match table.stored() {
            Some(stored) => stored.select(&ids.to_vec1::<u32>()?),
            None => CANDLE.select(table, ids),
        }
    }

    fn matmul(&self, matrix: &Matrix, x: &Tensor) -> Result<Tensor> {
        let Some(stored) = matrix.stored() else {
            return CANDLE.matmul(matrix, x);
        };
        let mut products = product::multiply_together(&[stored], x)?;
        products
            .pop()
            .ok_or_else(|| candle_core::Error::msg("expected one product, found none"))
    }

    fn project(&self, linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        let stored = linears
            .iter()
            .map(|linear| linear.weight.stored())
            .collect::<Option<Vec<_>>>();
        let products = match stored {
            Some(stored) => product::multiply_together(&stored, x)?,
            None => linears
                .iter()
                .map(|linear| self.matmul(&linear.weight, x))
                .collect::<Result<_>>()?,
        };
        products
            .into_iter()
            .zip(linears)
            .map(|(product, linear)| match &linear.bias {
                Some(bias) => product.broadcast_add(bias),
                None => Ok(product),
            })
            .collect()
    }

    fn sum_of_matmuls(&self, terms: &[(&Matrix, Tensor)]) -> Result<Tensor> {
        let stored = terms
            .iter()
            .map(|(matrix, x)| Some((matrix.stored()?, x.clone())))
            .collect::<Option<Vec<_>>>();
        match stored {
            Some(stored) => product::sum_of_products(&stored),
            None => CANDLE.sum_of_matmuls(terms),
        }
    }

    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        norm::infer(norm, x)
    }

    fn attend(
        &self,
        attention: &Attention,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        pass: &Pass,
    ) -> Result<Tensor> {
        attend_cached::attend(attention, queries, keys, values, pass)
    }

    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if activation != Activation::Silu {
            return CANDLE.gated(activation, gate, up);
        }
        let (gate, up) = (gate.contiguous()?, up.contiguous()?);
        let (gate_values, up_values) = (gate.storage_and_layout(), up.storage_and_layout());
        let mut out = floats(&gate_values)?.to_vec();
        let up_values = floats(&up_values)?;
        if out.len() <= PIECE {
            silu_multiply(&mut out, up_values);
        } else {
            out.par_chunks_mut(PIECE)
                .zip(up_values.par_chunks(PIECE))
                .for_each(|(out, up)| silu_multiply(out, up));
        }
        Tensor::from_vec(out, gate.shape(), gate.device())
    }
}
