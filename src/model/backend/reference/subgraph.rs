//! The record of an operation in candle's graph.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use super::outside::with_gradient;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::operations::OperationRecord;

/// The graph of one operation from its input, cut as a variable, to its output.
#[derive(Debug)]
pub(in crate::model::backend) struct Subgraph {
    input: Var,
    output: Tensor,
    /// A scalar that is minimised beside the loss that the output leads to.
    loss: Option<Tensor>,
}

impl Subgraph {
    pub(in crate::model::backend) fn new(input: Var, output: Tensor) -> Self {
        Self {
            input,
            output,
            loss: None,
        }
    }

    pub(in crate::model::backend) fn with_loss(self, loss: Option<Tensor>) -> Self {
        Self { loss, ..self }
    }
}

impl Subgraph {
    /// [`OperationRecord::backward`] of a graph with another variable: the gradients of the input and of the variable.
    pub(in crate::model::backend) fn backward_to(
        &self,
        other: &Var,
        grad_output: &Tensor,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let mut store = self.store(grad_output, grad_input)?;
        gradients.add_all(&store)?;
        Ok((taken(&mut store, &self.input)?, taken(&mut store, other)?))
    }

    fn store(&self, grad_output: &Tensor, grad_input: Option<Tensor>) -> Result<GradStore> {
        let mut sum = seeded(&self.output, grad_output)?;
        if let Some(loss) = &self.loss {
            sum = (sum + loss.to_dtype(grad_output.dtype())?)?;
        }
        // candle visits the last term first, so the gradients of the operation are added to `grad_input` one by one, as in
        // the graph of a whole layer. Adding them up first would round differently.
        if let Some(grad_input) = &grad_input {
            sum = (sum + seeded(&self.input, grad_input)?)?;
        }
        sum.backward()
    }
}

impl OperationRecord for Subgraph {
    fn backward(
        self: Box<Self>,
        grad_output: &Tensor,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let mut store = self.store(grad_output, grad_input)?;
        gradients.add_all(&store)?;
        taken(&mut store, &self.input)
    }
}

/// The gradient of a variable out of the store; zero where nothing depends on it.
pub(super) fn taken(store: &mut GradStore, var: &Var) -> Result<Tensor> {
    match store.remove(var) {
        Some(gradient) => Ok(gradient.detach()),
        None => var.zeros_like(),
    }
}

/// A scalar whose gradient with respect to `x` is `gradient`, as a term of a sum that is differentiated. Nothing reads the
/// scalar itself, so it is zero.
pub(super) fn seeded(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let zero = Tensor::zeros((), x.dtype(), x.device())?;
    let gradient = gradient.clone();
    with_gradient(x, &zero, move |_, _| Ok(gradient.clone()))
}
