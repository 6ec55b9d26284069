//! Root-mean-square and layer norm with their gradient.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::record::record;
use super::rows::{PIECE, add_up};
use crate::model::kernels::{normalise, normalise_backward};
use crate::model::stored::floats;

/// A norm with its weight `[size]`, or `[heads, size]` where each head has its own.
#[derive(Debug, Clone)]
pub(in crate::model) struct Norm {
    weight: Tensor,
    eps: f64,
    centred: bool,
    size: usize,
    trained: bool,
}

impl Norm {
    /// Its numbers, out of the graph; `centred` where the mean is taken away (layer norm).
    pub(in crate::model) fn new(weight: &Tensor, eps: f64, centred: bool) -> Result<Self> {
        let (size, trained) = (weight.dim(D::Minus1)?, weight.track_op());
        Ok(Self {
            weight: weight.detach(),
            eps,
            centred,
            size,
            trained,
        })
    }

    /// Rows of `size` values.
    pub(super) fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let weight = self.weight.storage_and_layout();
        let weight = floats(&weight)?;
        let heads = weight.len() / self.size;
        let mut out = vec![0f32; x.len()];
        // Pieces begin with the first head.
        let piece = PIECE * heads * self.size;
        x.par_chunks(piece)
            .zip(out.par_chunks_mut(piece))
            .for_each(|(x, out)| {
                for (row, (x, out)) in x
                    .chunks(self.size)
                    .zip(out.chunks_mut(self.size))
                    .enumerate()
                {
                    normalise(
                        x,
                        &weight[row % heads * self.size..][..self.size],
                        self.eps,
                        self.centred,
                        out,
                    );
                }
            });
        Ok(out)
    }

    /// The gradient of `x`, and of the weight where it gets one.
    pub(super) fn backward(
        &self,
        x: &[f32],
        gradient: &[f32],
    ) -> Result<(Vec<f32>, Option<Tensor>)> {
        let weight = self.weight.storage_and_layout();
        let weight = floats(&weight)?;
        let heads = weight.len() / self.size;
        let mut of_x = vec![0f32; x.len()];
        let piece = PIECE * heads * self.size;
        let pieces = of_x
            .par_chunks_mut(piece)
            .zip(x.par_chunks(piece))
            .zip(gradient.par_chunks(piece));
        let of_weight = pieces.map(|((of_x, x), gradient)| {
            let mut of_weight = vec![0f32; weight.len()];
            let rows = of_x
                .chunks_mut(self.size)
                .zip(x.chunks(self.size))
                .zip(gradient.chunks(self.size));
            for (row, ((of_x, x), gradient)) in rows.enumerate() {
                let place = row % heads * self.size..(row % heads + 1) * self.size;
                let (weight, of_weight) = (&weight[place.clone()], &mut of_weight[place]);
                normalise_backward(x, weight, self.eps, self.centred, gradient, of_x, of_weight);
            }
            of_weight
        });
        let of_weight = add_up(of_weight.collect(), weight.len());
        let of_weight = self
            .trained
            .then(|| Tensor::from_vec(of_weight, self.weight.shape(), &Device::Cpu));
        Ok((of_x, of_weight.transpose()?))
    }
}

/// The norm of `x` `[.., size]` (`[.., heads, size]`) as an operation of the graph; `weight` is the one in the graph.
pub(in crate::model) fn norm(x: &Tensor, weight: &Tensor, norm: Norm) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let out = {
        let values = input.storage_and_layout();
        norm.forward(floats(&values)?)?
    };
    record(&[x, weight], out, x.shape(), move |gradient| {
        let (values, gradient) = (input.storage_and_layout(), gradient.storage_and_layout());
        let (of_x, of_weight) = norm.backward(floats(&values)?, floats(&gradient)?)?;
        Ok(vec![
            Some(Tensor::from_vec(of_x, input.shape(), &Device::Cpu)?),
            of_weight,
        ])
    })
}
