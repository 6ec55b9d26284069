//! Projections and embeddings: a weight `[out, in]`, with a bias where the family has one.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};

use super::fused;
use super::params::{Mode, Value};
use super::stored::{self, StoredMatrix};

/// A matrix `[out, in]`.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// A variable: both factors of its products get gradients.
    Variable(Tensor),
    /// A tensor without gradient.
    Frozen(Tensor, Mode),
    /// bfloat16 in the pages of a file.
    Stored(Arc<StoredMatrix>),
}

impl Matrix {
    pub(super) fn new(value: &Value, mode: Mode) -> Self {
        match value {
            Value::Variable(var) => Self::Variable(var.as_tensor().clone()),
            Value::Frozen(tensor) => Self::Frozen(tensor.clone(), mode),
            Value::Stored(stored) => Self::Stored(Arc::clone(stored)),
        }
    }

    pub(super) fn rows(&self) -> Result<usize> {
        match self {
            Self::Variable(weight) | Self::Frozen(weight, _) => weight.dim(0),
            Self::Stored(stored) => Ok(stored.rows()),
        }
    }

    /// The tensor, where it is one.
    pub(super) fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Variable(weight) | Self::Frozen(weight, _) => Some(weight),
            Self::Stored(_) => None,
        }
    }

    fn stored(&self) -> Option<&StoredMatrix> {
        match self {
            Self::Stored(stored) => Some(stored),
            Self::Variable(_) | Self::Frozen(..) => None,
        }
    }

    /// `x · selfᵀ` for `x` `[.., in]`, as `[.., out]`.
    pub(super) fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, frozen) = match self {
            Self::Variable(weight) => (weight, false),
            Self::Frozen(weight, mode) => (weight, *mode == Mode::Train),
            Self::Stored(stored) => return stored.multiply(x),
        };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.rows()?;
        }
        let x = x.reshape(((), x.dim(D::Minus1)?))?;
        let product = if frozen && x.track_op() {
            let value = x.detach().matmul(&weight.t()?)?;
            x.apply_op2(&value, FrozenProduct(weight.clone()))?
        } else {
            x.matmul(&weight.t()?)?
        };
        product.reshape(shape)
    }

    /// The rows of the token ids `[batch, seq]`, as `[batch, seq, in]`.
    pub(super) fn select(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let ids = ids.flatten_all()?;
        let rows = match self {
            Self::Variable(weight) | Self::Frozen(weight, _) => weight.index_select(&ids, 0)?,
            Self::Stored(stored) => stored.select(&ids.to_vec1::<u32>()?)?,
        };
        rows.reshape((batch, seq, ()))
    }
}

/// A projection.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// `[.., in]` to `[.., out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = self.weight.multiply(x)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

impl Linear {
    /// For a fused operation, which takes tensors alone.
    pub(super) fn fused(&self) -> Result<fused::Weight> {
        match self.weight.tensor() {
            Some(weight) => fused::Weight::new(weight, self.bias.as_ref()),
            None => candle_core::bail!("a stored matrix in training"),
        }
    }

    /// Weight and bias in the graph.
    pub(super) fn tensors(&self) -> [Option<&Tensor>; 2] {
        [self.weight.tensor(), self.bias.as_ref()]
    }
}

/// Several projections of the same `x` `[.., in]`.
pub(super) fn forward_together(linears: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
    let stored = linears
        .iter()
        .map(|linear| linear.weight.stored())
        .collect::<Option<Vec<_>>>();
    let Some(stored) = stored else {
        return linears.iter().map(|linear| linear.forward(x)).collect();
    };
    let products = stored::multiply_together(&stored, x)?
        .into_iter()
        .zip(linears);
    products
        .map(|(product, linear)| match &linear.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        })
        .collect()
}

/// The sum of the products of matrices with an `x` `[.., in]` each.
pub(super) fn sum_of_products(terms: &[(&Matrix, Tensor)]) -> Result<Tensor> {
    let stored = terms
        .iter()
        .map(|(matrix, x)| Some((matrix.stored()?, x.clone())))
        .collect::<Option<Vec<_>>>();
    if let Some(stored) = stored {
        return stored::sum_of_products(&stored);
    }
    let mut products = terms.iter().map(|(matrix, x)| matrix.multiply(x));
    let first = products
        .next()
        .ok_or_else(|| candle_core::Error::msg("a sum of nothing"))??;
    products.try_fold(first, |sum, product| sum + product?)
}

/// `value`, which is `x · weightᵀ` computed outside the graph, as an operation whose gradient goes to `x` alone.
///
/// candle's own product makes a gradient for both factors and keeps the weight's until the end of the backward pass.
struct FrozenProduct(Tensor);

impl CustomOp2 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-matmul"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        value: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        value: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.matmul(&self.0)?), None))
    }
}
