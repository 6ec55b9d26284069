//! The backward pass of a model, layer by layer, for a trainer.

use candle_core::{Tensor, Var};

use super::backend::{Gradients, OperationRecord, OptimiserState, TokenLosses};
use super::block::{BlockRecord, InputGradient};
use super::causal_lm::CausalLm;
use super::error::ModelError;
use super::pass::Pass;
use super::router::{LayerRouting, RouterLoss, RouterLosses};
use crate::{Error, Result};

/// A layer that has run, and waits for the gradient of its output.
pub struct LayerRun {
    /// `[batch, seq, hidden]`.
    pub output: Tensor,
    /// How its tokens were routed.
    pub routing: LayerRouting,
    /// The losses of its feed-forward router, where they were asked for and there is one.
    pub loss: Option<RouterLoss>,
    /// What its backward pass needs.
    pub record: LayerRecord,
}

/// What the backward pass of a layer needs.
pub struct LayerRecord {
    layer: usize,
    record: BlockRecord<Box<dyn OperationRecord>>,
}

impl CausalLm {
    /// Empty gradients of the trainable parameters, in the order of [`Params::vars`](super::Params::vars).
    pub fn gradients(&self) -> Gradients {
        self.backend
            .gradients(self.params.vars().map(|(_, var)| var))
    }

    /// The optimiser's state of a parameter before the first update; `master` holds the float32 weights of a variable of
    /// another dtype.
    pub fn optimiser_state(
        &self,
        var: &Var,
        master: Option<Vec<f32>>,
    ) -> Result<Box<dyn OptimiserState>> {
        self.backend
            .optimiser_state(var, master)
            .map_err(|e| Error::compute("hold the state of the optimiser", e))
    }

    /// [`layer`](Self::layer) with the record that [`layer_backward`](Self::layer_backward) needs, and the losses of its
    /// feed-forward router.
    ///
    /// Refused is a model that was loaded for inference.
    pub fn layer_recorded(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        losses: Option<&RouterLosses>,
    ) -> Result<LayerRun> {
        let output = self.run(layer, x, pass, None, losses)?;
        let Some(record) = output.record else {
            return Err(no_backward_pass());
        };
        Ok(LayerRun {
            output: output.x,
            routing: output.routing,
            loss: output.loss,
            record: LayerRecord { layer, record },
        })
    }

    /// The gradient of a layer's input from the gradient of its output, with the losses of its router. The gradients of its
    /// parameters are added to `gradients`.
    ///
    /// The result may be `None` only where the input's gradient is not needed.
    pub fn layer_backward(
        &self,
        record: LayerRecord,
        grad_output: &Tensor,
        input_gradient: InputGradient,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let LayerRecord { layer, record } = record;
        self.blocks[layer]
            .backward(
                self.operations(),
                record,
                grad_output,
                input_gradient,
                gradients,
            )
            .map_err(|e| self.failed(e))
    }

    /// Adds the gradient of the embedding to `gradients`, from the gradient of the output of [`begin`](Self::begin).
    pub fn embed_backward(
        &self,
        pass: &Pass,
        grad_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.operations()
            .multiply(grad_output, self.embedding_factor())
            .and_then(|grad_rows| {
                self.operations().embed_backward(
                    &self.embedding,
                    &pass.tokens,
                    &grad_rows,
                    gradients,
                )
            })
            .map_err(|e| self.failed(e))
    }

    /// The negative log-likelihoods in nats of the next tokens `targets` `[batch · seq]`, and the gradient of `x`.
    ///
    /// `x` `[batch, seq, hidden]` is the output of the last layer. The gradient is of the sum of the losses times their
    /// `weights`.
    ///
    /// The gradients of the final norm and the head are added to `gradients`. Logits of all tokens never exist at once.
    /// Refused are targets outside the vocabulary, and a model that was loaded for inference.
    pub fn loss(
        &self,
        x: &Tensor,
        targets: &[u32],
        weights: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        self.check_in_vocabulary(targets)?;
        let failed = |e| self.failed(e);
        let operations = self.operations();
        let normed = operations.norm(&self.norm, x).map_err(failed)?;
        let Some(record) = normed.record else {
            return Err(no_backward_pass());
        };
        let loss = || -> candle_core::Result<(Tensor, Tensor)> {
            let rows = normed.output.flatten(0, 1)?;
            let TokenLosses { nll, grad_x } =
                operations.loss(&self.head, &rows, targets, weights, gradients)?;
            let grad_normed = grad_x.reshape(x.shape())?;
            let grad_x = operations.backward(record, &grad_normed, None, gradients)?;
            Ok((nll, grad_x))
        };
        loss().map_err(failed)
    }
}

fn no_backward_pass() -> Error {
    ModelError::NoBackwardPass.into()
}
