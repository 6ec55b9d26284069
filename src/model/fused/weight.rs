//! A projection of a fused operation, and its gradients.

use candle_core::{Device, Result, Tensor};

use super::rows::sum_rows;
use crate::model::kernels::dot;
use crate::model::matrix::{View, multiply};
use crate::model::stored::floats;

/// A projection `[out, in]`, with a bias `[out]` where it has one.
#[derive(Debug, Clone)]
pub(in crate::model) struct Weight {
    weight: Tensor,
    bias: Option<Tensor>,
    rows: usize,
    columns: usize,
    trained: bool,
    bias_trained: bool,
}

impl Weight {
    /// Its numbers, out of the graph.
    pub(in crate::model) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (rows, columns) = weight.dims2()?;
        Ok(Self {
            weight: weight.detach(),
            bias: bias.map(Tensor::detach),
            rows,
            columns,
            trained: weight.track_op(),
            bias_trained: bias.is_some_and(Tensor::track_op),
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x · weightᵀ` plus the bias, for `n` rows of `x`.
    pub(super) fn forward(&self, x: &[f32], n: usize) -> Result<Vec<f32>> {
        let mut out = vec![0f32; n * self.rows];
        let add = self.fill_with_bias(&mut out)?;
        self.product(x, n, &mut out, add)?;
        Ok(out)
    }

    /// Adds `x · weightᵀ`, or puts it in the place of what is there.
    pub(super) fn product(&self, x: &[f32], n: usize, out: &mut [f32], add: bool) -> Result<()> {
        let values = self.weight.storage_and_layout();
        let weight = View::new(floats(&values)?, self.rows, self.columns, self.columns);
        let x = View::new(x, n, self.columns, self.columns);
        multiply(
            out,
            self.rows,
            add,
            1.0,
            x,
            weight.t(),
            rayon::current_num_threads(),
        );
        Ok(())
    }

    fn fill_with_bias(&self, out: &mut [f32]) -> Result<bool> {
        let Some(bias) = &self.bias else {
            return Ok(false);
        };
        let values = bias.storage_and_layout();
        let bias = floats(&values)?;
        out.chunks_exact_mut(self.rows)
            .for_each(|row| row.copy_from_slice(bias));
        Ok(true)
    }

    /// Adds the gradient of `x` to `of_x`, or puts it in the place of what is there.
    pub(super) fn backward(
        &self,
        gradient: &[f32],
        n: usize,
        of_x: &mut [f32],
        add: bool,
    ) -> Result<()> {
        let values = self.weight.storage_and_layout();
        let weight = View::new(floats(&values)?, self.rows, self.columns, self.columns);
        let gradient = View::new(gradient, n, self.rows, self.rows);
        multiply(
            of_x,
            self.columns,
            add,
            1.0,
            gradient,
            weight,
            rayon::current_num_threads(),
        );
        Ok(())
    }

    /// The gradient of the weight, where it gets one.
    pub(super) fn of_weight(
        &self,
        x: &[f32],
        gradient: &[f32],
        n: usize,
    ) -> Result<Option<Tensor>> {
        if !self.trained {
            return Ok(None);
        }
        let mut out = vec![0f32; self.rows * self.columns];
        let (x, gradient) = (
            View::new(x, n, self.columns, self.columns),
            View::new(gradient, n, self.rows, self.rows),
        );
        multiply(
            &mut out,
            self.columns,
            false,
            1.0,
            gradient.t(),
            x,
            rayon::current_num_threads(),
        );
        Tensor::from_vec(out, (self.rows, self.columns), &Device::Cpu).map(Some)
    }

    /// Adds to each of `out` the product of its row of `gradient` with the bias, where there is one: what a gate of the biased output
    /// is owed beyond that of the product.
    pub(super) fn add_along_bias(&self, gradient: &[f32], out: &mut [f32]) -> Result<()> {
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        let values = bias.storage_and_layout();
        let bias = floats(&values)?;
        out.iter_mut()
            .zip(gradient.chunks_exact(self.rows))
            .for_each(|(out, row)| *out += dot(row, bias));
        Ok(())
    }

    /// The gradient of the bias, where it gets one: the sum of the rows of `gradient`.
    pub(super) fn sum_of_bias(&self, gradient: &[f32]) -> Result<Option<Tensor>> {
        self.of_bias(|| sum_rows(gradient, self.rows))
    }

    /// The gradient of the bias out of `sum`, where it gets one.
    pub(super) fn of_bias(&self, sum: impl FnOnce() -> Vec<f32>) -> Result<Option<Tensor>> {
        self.bias_trained
            .then(|| Tensor::from_vec(sum(), self.rows, &Device::Cpu))
            .transpose()
    }
}
