//! Losses and gradients of one batch, layer by layer.
//!
//! Each layer's input is cut from the graph of the layer before it. Going back, a layer gets the gradient of its output,
//! gives those of its parameters, which are added up at once, and that of its input, and is let go. So the gradients
//! that candle makes for every value it met are those of one layer at a time; with checkpointing, the same is true of
//! activations: only inputs of layers are kept, and a layer runs a second time on its way back. The same operations run
//! on the same numbers either way, so the gradients are equal bit for bit.

use candle_core::{Device, Tensor, Var};

use super::gradients::Gradients;
use super::losses::{RouterLoss, RouterLosses, next_token};
use super::parameters::Parameters;
use super::settings::Documents;
use crate::data::Row;
use crate::evaluate::routing::Recorder;
use crate::model::{CausalLm, Forward, LayerRouting, Pass};
use crate::{Error, Result};

/// Rows of tokens, and what each position is worth.
#[derive(Debug)]
pub(super) struct Batch {
    /// Ids `[rows, seq]`, u32 on the CPU.
    pub(super) tokens: Tensor,
    /// The next token of each position, row by row.
    pub(super) targets: Vec<u32>,
    /// The weight of each position's loss; zero where the next token is not to be predicted.
    pub(super) weights: Vec<f32>,
    /// The weight of the routers' losses: the share of this batch in the tokens of its step.
    pub(super) share: f64,
}

/// What a batch is asked for beside gradients.
pub(super) struct Options {
    pub(super) losses: RouterLosses,
    /// Whether layers run a second time on the way back.
    pub(super) checkpointing: bool,
    pub(super) forward: Forward,
}

/// The losses of a batch.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Negative log-likelihood in nats of each position.
    pub(super) nll: Vec<f32>,
    /// Load-balancing loss, summed over layers.
    pub(super) load_balance: f64,
    /// z-loss, summed over layers.
    pub(super) z: f64,
    /// Tokens that chose each expert of a layer's feed-forward router; empty for a layer without.
    pub(super) chosen: Vec<Vec<u64>>,
}

/// A layer that has run, and waits for the gradient of its output.
struct Waiting {
    input: Tensor,
    /// What it computed; absent where it runs again.
    ran: Option<Ran>,
}

struct Ran {
    /// The input as a variable, where its gradient is wanted.
    variable: Option<Var>,
    output: Tensor,
    loss: Option<RouterLoss>,
}

/// The way of one batch through a model and back.
pub(super) struct Trip<'a> {
    pub(super) model: &'a CausalLm,
    pub(super) parameters: &'a Parameters,
    pub(super) options: Options,
}

fn failed(problem: candle_core::Error) -> Error {
    Error::compute("take the gradients", problem)
}

impl Trip<'_> {
    /// Adds the gradients of `batch` to `gradients`, and tells `recorder` how its tokens were routed.
    pub(super) fn run(
        &self,
        batch: &Batch,
        gradients: &mut Gradients,
        mut recorder: Option<&mut Recorder>,
    ) -> Result<Losses> {
        let (embedded, pass) = self.model.begin(&batch.tokens, None, &self.options.forward)?;
        let (layers, first) = (self.model.layers(), self.first());
        let mut losses = Losses::default();
        let mut waiting = Vec::with_capacity(layers - first);
        let mut x = embedded.detach();
        for layer in 0..layers {
            let keep = layer >= first && !self.options.checkpointing;
            let (ran, routing) = self.layer(layer, &x, &pass, keep, batch.share)?;
            losses.chosen.push(Vec::new());
            if let Some(loss) = &ran.loss {
                losses.load_balance += loss.load_balance;
                losses.z += loss.z;
                losses.chosen[layer].clone_from(&loss.chosen);
            }
            if let Some(recorder) = recorder.as_deref_mut() {
                recorder.add(layer, &routing)?;
            }
            let output = ran.output.detach();
            if layer >= first {
                waiting.push(Waiting { input: x, ran: keep.then_some(ran) });
            }
            x = output;
        }
        let (nll, mut gradient) = self.tail(&x, batch, gradients)?;
        losses.nll = nll;
        for (layer, Waiting { input, ran }) in (first..layers).zip(waiting).rev() {
            let ran = match ran {
                Some(ran) => ran,
                None => self.layer(layer, &input, &pass, true, batch.share)?.0,
            };
            gradient = self.back(layer, ran, &gradient, gradients).map_err(failed)?;
        }
        if self.parameters.embedding() {
            let mut store = seeded(&embedded, &gradient).and_then(|sum| sum.backward()).map_err(failed)?;
            self.parameters.take(None, &mut store, gradients).map_err(failed)?;
        }
        Ok(losses)
    }

    /// The first layer that the way back leads to.
    fn first(&self) -> usize {
        if self.parameters.embedding() { 0 } else { self.parameters.first_layer() }
    }

    /// Runs a layer; its input is a variable where `back` is planned and something before it is trained.
    fn layer(&self, layer: usize, x: &Tensor, pass: &Pass, back: bool, share: f64) -> Result<(Ran, LayerRouting)> {
        let wanted = back && (layer > self.first() || self.parameters.embedding());
        let variable = wanted.then(|| Var::from_tensor(x)).transpose().map_err(failed)?;
        let input = variable.as_ref().map_or(x, |variable| variable.as_tensor());
        let (output, routing) = self.model.layer(layer, input, pass)?;
        let mut loss = self.options.losses.of(&routing).map_err(failed)?;
        if let Some(loss) = &mut loss {
            loss.weighted = (&loss.weighted * share).map_err(failed)?;
        }
        Ok((Ran { variable, output, loss }, routing))
    }

    /// The final norm, the head and the loss: likelihoods, and the gradient of `x`.
    fn tail(&self, x: &Tensor, batch: &Batch, gradients: &mut Gradients) -> Result<(Vec<f32>, Tensor)> {
        let variable = Var::from_tensor(x).map_err(failed)?;
        let normed = self.model.final_norm(&variable)?;
        let rows = normed.flatten(0, 1).map_err(failed)?;
        let (nll, sum) = match self.model.next_token_loss(&rows, &batch.targets, &batch.weights)? {
            Some(fused) => fused,
            None => {
                let Batch { targets, weights, .. } = batch;
                let next = next_token(self.model, self.parameters, gradients, &rows.detach(), targets, weights)?;
                (next.nll, seeded(&rows, &next.hidden).map_err(failed)?)
            }
        };
        let mut store = sum.backward().map_err(failed)?;
        self.parameters.take(None, &mut store, gradients).map_err(failed)?;
        let gradient = store.remove(&variable).map_or_else(|| variable.zeros_like(), |gradient| Ok(gradient.detach()));
        Ok((nll, gradient.map_err(failed)?))
    }

    /// The gradients of a layer's parameters, added up, and of its input.
    fn back(
        &self,
        layer: usize,
        ran: Ran,
        gradient: &Tensor,
        gradients: &mut Gradients,
    ) -> candle_core::Result<Tensor> {
        let mut sum = seeded(&ran.output, gradient)?;
        if let Some(loss) = &ran.loss {
            sum = (sum + loss.weighted.to_dtype(gradient.dtype())?)?;
        }
        let mut store = sum.backward()?;
        self.parameters.take(Some(layer), &mut store, gradients)?;
        match ran.variable.and_then(|variable| store.remove(&variable)) {
            Some(input) => Ok(input.detach()),
            None => Ok(gradient.clone()),
        }
    }
}

/// A scalar whose gradient with respect to `x` is `gradient`.
fn seeded(x: &Tensor, gradient: &Tensor) -> candle_core::Result<Tensor> {
    (x * gradient)?.sum_all()
}

impl Batch {
    /// A batch of rows, in which each prediction weighs `weight`.
    pub(super) fn new(rows: &[Row], documents: Documents, weight: f32, share: f64) -> Result<Self> {
        let seq = rows.first().map_or(0, |row| row.ids.len().saturating_sub(1));
        let ids: Vec<u32> = rows.iter().flat_map(|row| &row.ids[..seq]).copied().collect();
        let targets = rows.iter().flat_map(|row| &row.ids[1..]).copied().collect();
        let weigh = |row: &Row, position| if predicted(row, position, documents) { weight } else { 0.0 };
        let weights = rows.iter().flat_map(|row| (0..seq).map(move |position| weigh(row, position))).collect();
        let tokens = Tensor::from_vec(ids, (rows.len(), seq), &Device::Cpu).map_err(failed)?;
        Ok(Self { tokens, targets, weights, share })
    }
}

/// What the model is asked for beside the tokens of `rows`.
pub(super) fn forward_options(rows: &[Row], documents: Documents) -> Forward {
    let inputs = |row: &Row| row.documents[..row.documents.len().saturating_sub(1)].to_vec();
    let documents = (documents == Documents::Separate).then(|| rows.iter().map(inputs).collect());
    Forward { documents, ..Forward::default() }
}

/// Whether the token behind `position` of a row is predicted.
pub(super) fn predicted(row: &Row, position: usize, documents: Documents) -> bool {
    documents == Documents::Joined || row.documents[position] == row.documents[position + 1]
}
