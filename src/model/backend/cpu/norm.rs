//! Root-mean-square and layer norm with their gradient.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernels::{add_scaled, normalise, normalise_backward};
use super::rows::{PIECE, add_up, sum_scaled_rows};
use crate::family::NormType;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::{add_to, floats};
use crate::model::backend::operations::OperationRecord;
use crate::model::modules::Norm;

/// Values below which waking a second thread takes longer than the norm.
const SERIAL: usize = 1 << 14;

/// The sizes of a norm's weight `[heads, size]`, with one head where all share a weight.
fn sizes(norm: &Norm) -> Result<(usize, usize)> {
    let size = norm.weight.dim(D::Minus1)?;
    Ok((norm.weight.elem_count() / size, size))
}

fn centred(norm: &Norm) -> bool {
    norm.kind == NormType::Layer
}

/// The factors of a norm with this weight.
fn factors<'a>(norm: &Norm, weight: &'a [f32]) -> Cow<'a, [f32]> {
    if norm.offset {
        weight.iter().map(|weight| 1.0 + weight).collect()
    } else {
        weight.into()
    }
}

/// Normalises row number `row` of `x`.
fn normalise_row(
    norm: &Norm,
    factors: &[f32],
    bias: Option<&[f32]>,
    row: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let first = row * x.len() % factors.len();
    let place = first..first + x.len();
    normalise(x, &factors[place.clone()], norm.eps, centred(norm), out);
    if let Some(bias) = bias {
        add_scaled(out, &bias[place], 1.0);
    }
}

/// Normalises rows of `size` values.
pub(super) fn forward(norm: &Norm, x: &[f32]) -> Result<Vec<f32>> {
    let (heads, size) = sizes(norm)?;
    let weight = norm.weight.storage_and_layout();
    let factors = factors(norm, floats(&weight)?);
    let bias = norm.bias.as_ref().map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(floats).transpose()?;
    let mut out = vec![0f32; x.len()];
    // Pieces begin with the first head.
    let piece = PIECE * heads * size;
    x.par_chunks(piece)
        .zip(out.par_chunks_mut(piece))
        .for_each(|(x, out)| {
            for (row, (x, out)) in x.chunks(size).zip(out.chunks_mut(size)).enumerate() {
                normalise_row(norm, &factors, bias, row, x, out);
            }
        });
    Ok(out)
}

/// The gradient of `x`. The gradients of the weight and the bias are added to their buffers.
pub(super) fn backward(
    norm: &Norm,
    x: &[f32],
    grad_output: &[f32],
    gradients: &mut Gradients,
) -> Result<Vec<f32>> {
    let (grad_x, grad_weight) = both_gradients(norm, x, grad_output)?;
    if norm.weight.is_variable() {
        let grad_weight = Tensor::from_vec(grad_weight, norm.weight.shape(), &Device::Cpu)?;
        gradients.add(&norm.weight, &grad_weight)?;
    }
    if let Some(bias) = norm.bias.as_ref().filter(|bias| bias.is_variable()) {
        let size = bias.elem_count();
        let grad_bias = sum_scaled_rows(grad_output, size, |_| 1.0);
        gradients.add(
            bias,
            &Tensor::from_vec(grad_bias, bias.shape(), &Device::Cpu)?,
        )?;
    }
    Ok(grad_x)
}

fn both_gradients(norm: &Norm, x: &[f32], grad_output: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (heads, size) = sizes(norm)?;
    let weight = norm.weight.storage_and_layout();
    let weight = factors(norm, floats(&weight)?);
    let mut grad_x = vec![0f32; x.len()];
    let piece = PIECE * heads * size;
    let pieces = grad_x
        .par_chunks_mut(piece)
        .zip(x.par_chunks(piece))
        .zip(grad_output.par_chunks(piece));
    let grad_weights = pieces.map(|((grad_x, x), grad_output)| {
        let mut grad_weight = vec![0f32; weight.len()];
        let rows = grad_x
            .chunks_mut(size)
            .zip(x.chunks(size))
            .zip(grad_output.chunks(size));
        for (row, ((grad_x, x), grad_output)) in rows.enumerate() {
            let place = row % heads * size..(row % heads + 1) * size;
            normalise_backward(
                x,
                &weight[place.clone()],
                norm.eps,
                centred(norm),
                grad_output,
                grad_x,
                &mut grad_weight[place],
            );
        }
        grad_weight
    });
    let grad_weight = add_up(grad_weights.collect(), weight.len());
    Ok((grad_x, grad_weight))
}

/// The record of a norm: its input.
pub(super) struct NormRecord {
    norm: Norm,
    x: Tensor,
}

/// Normalises `x` `[.., size]` (`[.., heads, size]`).
pub(super) fn recorded(norm: &Norm, x: &Tensor) -> Result<(Tensor, NormRecord)> {
    let x = x.contiguous()?;
    let out = {
        let values = x.storage_and_layout();
        forward(norm, floats(&values)?)?
    };
    let out = Tensor::from_vec(out, x.shape(), &Device::Cpu)?;
    let norm = norm.clone();
    Ok((out, NormRecord { norm, x }))
}

impl OperationRecord for NormRecord {
    fn backward(
        self: Box<Self>,
        grad_output: &Tensor,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let grad_output = grad_output.contiguous()?;
        let (x, grad_output) = (
            self.x.storage_and_layout(),
            grad_output.storage_and_layout(),
        );
        let grad_x = backward(&self.norm, floats(&x)?, floats(&grad_output)?, gradients)?;
        add_to(grad_input, grad_x, self.x.shape())
    }
}

/// The norm for inference, in one pass over memory.
pub(super) fn infer(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (_, size) = sizes(norm)?;
    let (values, weight) = (x.storage_and_layout(), norm.weight.storage_and_layout());
    let (values, factors) = (floats(&values)?, factors(norm, floats(&weight)?));
    let bias = norm.bias.as_ref().map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(floats).transpose()?;
    let mut out = vec![0f32; values.len()];
    let row = |(number, (x, out)): (usize, (&[f32], &mut [f32]))| {
        normalise_row(norm, &factors, bias, number, x, out);
    };
    if values.len() < SERIAL {
        values
            .chunks(size)
            .zip(out.chunks_mut(size))
            .enumerate()
            .for_each(row);
    } else {
        values
            .par_chunks(size)
            .zip(out.par_chunks_mut(size))
            .enumerate()
            .with_min_len(16)
            .for_each(row);
    }
    Tensor::from_vec(out, x.shape(), x.device())
}

/// The norm as one node of candle's graph, for a sublayer that the reference composes.
pub(super) fn in_graph(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let without_bias = Norm {
        bias: None,
        ..norm.clone()
    };
    let out = x.apply_op2(&norm.weight, GraphNorm(without_bias))?;
    match &norm.bias {
        Some(bias) => out.broadcast_add(bias),
        None => Ok(out),
    }
}

/// A norm without its bias, which the graph adds.
struct GraphNorm(Norm);

impl CustomOp2 for GraphNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(values), Some((start, end))) = (x, layout.contiguous_offsets()) else {
            candle_core::bail!("expected contiguous float32 on the CPU");
        };
        let out = forward(&self.0, &values[start..end])?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad_output = grad_output.contiguous()?;
        let (values, grad_values) = (x.storage_and_layout(), grad_output.storage_and_layout());
        let (grad_x, grad_weight) =
            both_gradients(&self.0, floats(&values)?, floats(&grad_values)?)?;
        Ok((
            Some(Tensor::from_vec(grad_x, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(grad_weight, weight.shape(), &Device::Cpu)?),
        ))
    }
}
