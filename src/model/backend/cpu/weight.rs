//! A projection on the host, and its gradients.

use candle_core::{Device, Result, Tensor};

use super::kernels::dot;
use super::matmul::{View, matmul};
use super::rows::sum_rows;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::floats;
use crate::model::modules::Linear;

/// A projection `[out, in]`, with a bias `[out]` where it has one.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    weight: Tensor,
    bias: Option<Tensor>,
    rows: usize,
    columns: usize,
}

impl Weight {
    pub(super) fn new(linear: &Linear) -> Result<Self> {
        let weight = linear.weight.tensor()?.clone();
        let (rows, columns) = weight.dims2()?;
        Ok(Self {
            weight,
            bias: linear.bias.clone(),
            rows,
            columns,
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
        self.matmul(x, n, &mut out, add)?;
        Ok(out)
    }

    /// Writes `x · weightᵀ` to `out`, or adds it.
    pub(super) fn matmul(&self, x: &[f32], n: usize, out: &mut [f32], add: bool) -> Result<()> {
        let values = self.weight.storage_and_layout();
        let weight = View::new(floats(&values)?, self.rows, self.columns, self.columns);
        let x = View::new(x, n, self.columns, self.columns);
        let threads = rayon::current_num_threads();
        matmul(out, self.rows, add, 1.0, x, weight.t(), threads);
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

    /// Writes the gradient of `x` to `grad_x`, or adds it.
    pub(super) fn backward(
        &self,
        grad_output: &[f32],
        n: usize,
        grad_x: &mut [f32],
        add: bool,
    ) -> Result<()> {
        let values = self.weight.storage_and_layout();
        let weight = View::new(floats(&values)?, self.rows, self.columns, self.columns);
        let grad_output = View::new(grad_output, n, self.rows, self.rows);
        let threads = rayon::current_num_threads();
        matmul(grad_x, self.columns, add, 1.0, grad_output, weight, threads);
        Ok(())
    }

    /// Adds the gradient of the weight, if it is trained, to its buffer.
    pub(super) fn add_grad_weight(
        &self,
        x: &[f32],
        grad_output: &[f32],
        n: usize,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if !self.weight.is_variable() {
            return Ok(());
        }
        let mut out = vec![0f32; self.rows * self.columns];
        let x = View::new(x, n, self.columns, self.columns);
        let grad_output = View::new(grad_output, n, self.rows, self.rows);
        let threads = rayon::current_num_threads();
        matmul(
            &mut out,
            self.columns,
            false,
            1.0,
            grad_output.t(),
            x,
            threads,
        );
        let gradient = Tensor::from_vec(out, (self.rows, self.columns), &Device::Cpu)?;
        gradients.add(&self.weight, &gradient)
    }

    /// Adds to each of `out` the dot product of its row of `grad_output` with the bias, if there is one.
    ///
    /// This is the part of a gate's gradient that comes from the bias of the gated output.
    pub(super) fn add_along_bias(&self, grad_output: &[f32], out: &mut [f32]) -> Result<()> {
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        let values = bias.storage_and_layout();
        let bias = floats(&values)?;
        out.iter_mut()
            .zip(grad_output.chunks_exact(self.rows))
            .for_each(|(out, row)| *out += dot(row, bias));
        Ok(())
    }

    /// Adds the gradient of the bias, if it is trained, to its buffer: the sum of the rows of `grad_output`.
    pub(super) fn add_grad_bias(
        &self,
        grad_output: &[f32],
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.add_grad_bias_of(|| sum_rows(grad_output, self.rows), gradients)
    }

    /// Adds the gradient of the bias that `sum` computes, if it is trained, to its buffer.
    pub(super) fn add_grad_bias_of(
        &self,
        sum: impl FnOnce() -> Vec<f32>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        match &self.bias {
            Some(bias) if bias.is_variable() => {
                let gradient = Tensor::from_vec(sum(), self.rows, &Device::Cpu)?;
                gradients.add(bias, &gradient)
            }
            _ => Ok(()),
        }
    }
}
