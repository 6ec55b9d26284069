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
        let (embedded, pass) = self
            .model
            .begin(&batch.tokens, None, &self.options.forward)?;
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
                waiting.push(Waiting {
                    input: x,
                    ran: keep.then_some(ran),
                });
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
            gradient = self
                .back(layer, ran, &gradient, gradients)
                .map_err(failed)?;
        }
        if self.parameters.embedding() {
            let mut store = seeded(&embedded, &gradient)
                .and_then(|sum| sum.backward())
                .map_err(failed)?;
            self.parameters
                .take(None, &mut store, gradients)
                .map_err(failed)?;
        }
        Ok(losses)
    }

    /// The first layer that the way back leads to.
    fn first(&self) -> usize {
        if self.parameters.embedding() {
            0
        } else {
            self.parameters.first_layer()
        }
    }

    /// Runs a layer; its input is a variable where `back` is planned and something before it is trained.
    fn layer(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        back: bool,
        share: f64,
    ) -> Result<(Ran, LayerRouting)> {
        let wanted = back && (layer > self.first() || self.parameters.embedding());
        let variable = wanted
            .then(|| Var::from_tensor(x))
            .transpose()
            .map_err(failed)?;
        let input = variable.as_ref().map_or(x, |variable| variable.as_tensor());
        let (output, routing) = self.model.layer(layer, input, pass)?;
        let mut loss = self.options.losses.of(&routing).map_err(failed)?;
        if let Some(loss) = &mut loss {
            loss.weighted = (&loss.weighted * share).map_err(failed)?;
        }
        Ok((
            Ran {
                variable,
                output,
                loss,
            },
            routing,
        ))
    }

    /// The final norm, the head and the loss: likelihoods, and the gradient of `x`.
    fn tail(
        &self,
        x: &Tensor,
        batch: &Batch,
        gradients: &mut Gradients,
    ) -> Result<(Vec<f32>, Tensor)> {
        let variable = Var::from_tensor(x).map_err(failed)?;
        let normed = self.model.final_norm(&variable)?;
        let rows = normed.flatten(0, 1).map_err(failed)?;
        let Batch {
            targets, weights, ..
        } = batch;
        let next = next_token(
            self.model,
            self.parameters,
            gradients,
            &rows.detach(),
            targets,
            weights,
        )?;
        let sum = seeded(&rows, &next.hidden).map_err(failed)?;
        let mut store = sum.backward().map_err(failed)?;
        self.parameters
            .take(None, &mut store, gradients)
            .map_err(failed)?;
        let gradient = store
            .remove(&variable)
            .map_or_else(|| variable.zeros_like(), |gradient| Ok(gradient.detach()));
        Ok((next.nll, gradient.map_err(failed)?))
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
        let seq = rows
            .first()
            .map_or(0, |row| row.ids.len().saturating_sub(1));
        let ids: Vec<u32> = rows
            .iter()
            .flat_map(|row| &row.ids[..seq])
            .copied()
            .collect();
        let targets = rows.iter().flat_map(|row| &row.ids[1..]).copied().collect();
        let weigh = |row: &Row, position| {
            if predicted(row, position, documents) {
                weight
            } else {
                0.0
            }
        };
        let weights = rows
            .iter()
            .flat_map(|row| (0..seq).map(move |position| weigh(row, position)))
            .collect();
        let tokens = Tensor::from_vec(ids, (rows.len(), seq), &Device::Cpu).map_err(failed)?;
        Ok(Self {
            tokens,
            targets,
            weights,
            share,
        })
    }
}

/// What the model is asked for beside the tokens of `rows`.
pub(super) fn forward_options(rows: &[Row], documents: Documents) -> Forward {
    let inputs = |row: &Row| row.documents[..row.documents.len().saturating_sub(1)].to_vec();
    let documents = (documents == Documents::Separate).then(|| rows.iter().map(inputs).collect());
    Forward {
        documents,
        ..Forward::default()
    }
}

/// Whether the token behind `position` of a row is predicted.
pub(super) fn predicted(row: &Row, position: usize, documents: Documents) -> bool {
    documents == Documents::Joined || row.documents[position] == row.documents[position + 1]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use candle_core::DType;

    use super::*;
    use crate::family::{Architecture, AttentionKv, Config, Mixture};
    use crate::model::{LoadOptions, Params};
    use crate::surgery::random::Draws;
    use crate::train::LoadBalance;

    /// A model in float64 with random weights, dense or a mixture of three experts.
    fn model(mixture: Option<AttentionKv>) -> CausalLm {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama/seed");
        let config = Config::read(&folder).unwrap();
        let mut architecture = Architecture::of(&config).unwrap();
        if let Some(attention_kv) = mixture {
            let mixture = Mixture {
                attention_kv,
                num_experts_per_tok: 2,
                ..Mixture::new(&architecture, 3)
            };
            architecture = architecture.upcycled(mixture);
        }
        let options = LoadOptions {
            dtype: DType::F64,
            ..LoadOptions::train(Device::Cpu)
        };
        let tensor = |spec: &crate::family::TensorSpec| {
            let shape: Vec<usize> = spec.shape.iter().map(|extent| *extent as usize).collect();
            let mut values = vec![0.0; shape.iter().product()];
            Draws::new(11, &spec.name).normal(0, &mut values);
            // A seed without a token that two experts are equally good for: its choice would jump.
            let norm = spec.role.to_string().ends_with("norm");
            values.iter_mut().for_each(|value| {
                *value = if norm {
                    1.0 + 0.1 * *value
                } else {
                    0.3 * *value
                }
            });
            (
                spec.name.clone(),
                Tensor::from_vec(values, shape, &Device::Cpu).unwrap(),
            )
        };
        let tensors: BTreeMap<String, Tensor> =
            architecture.tensors().unwrap().iter().map(tensor).collect();
        let params = Params::from_tensors(&folder, &architecture, tensors, &options).unwrap();
        CausalLm::new(architecture, &config, params, &options).unwrap()
    }

    fn rows() -> Vec<Row> {
        let row = |first: u32| Row {
            domain: 0,
            ids: (0..9).map(|i| (first + i * 37) % 384).collect(),
            documents: vec![0, 0, 0, 0, 1, 1, 1, 1, 1],
        };
        vec![row(5), row(211)]
    }

    #[test]
    fn gradients_are_central_differences_of_the_loss() {
        for kind in [None, Some(AttentionKv::Expert), Some(AttentionKv::Shared)] {
            let model = model(kind);
            let parameters = Parameters::of(&model);
            let losses = RouterLosses {
                kind: LoadBalance::Hard,
                load_balance: 0.3,
                z: 0.1,
            };
            let batch = Batch::new(&rows(), Documents::Separate, 0.25, 0.5).unwrap();
            let options = |checkpointing| Options {
                losses,
                checkpointing,
                forward: forward_options(&rows(), Documents::Separate),
            };
            let run = |checkpointing: bool| {
                let mut gradients = Gradients::new(parameters.all.len());
                let trip = Trip {
                    model: &model,
                    parameters: &parameters,
                    options: options(checkpointing),
                };
                let found = trip.run(&batch, &mut gradients, None).unwrap();
                let nll: f64 = found
                    .nll
                    .iter()
                    .zip(&batch.weights)
                    .map(|(nll, weight)| f64::from(nll * weight))
                    .sum();
                (
                    nll + batch.share * (0.3 * found.load_balance + 0.1 * found.z),
                    gradients,
                )
            };
            let (_, gradients) = run(false);
            let (_, recomputed) = run(true);
            for (number, parameter) in parameters.all.iter().enumerate() {
                let name = &parameter.spec.name;
                let gradient = gradients
                    .get(number)
                    .unwrap_or_else(|| panic!("{name} has no gradient"));
                let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let again = recomputed
                    .get(number)
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap();
                assert_eq!(values, again, "{name} differs where layers run twice");
                if kind.is_some() && parameter.spec.layer == Some(1) {
                    continue;
                }
                // The largest one, where rounding of the float32 likelihoods matters least.
                let place = (0..values.len())
                    .max_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()))
                    .unwrap();
                let original = parameter
                    .var
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f64>()
                    .unwrap();
                let set = |shift: f64| {
                    let mut moved = original.clone();
                    moved[place] += shift;
                    let tensor =
                        Tensor::from_vec(moved, parameter.var.shape(), &Device::Cpu).unwrap();
                    parameter.var.set(&tensor).unwrap();
                };
                let at = |shift: f64| {
                    set(shift);
                    run(false).0
                };
                let step = 2e-4;
                let difference = (at(step) - at(-step)) / (2.0 * step);
                set(0.0);
                let found = f64::from(values[place]);
                assert!(
                    (found - difference).abs() < 5e-3 * (1.0 + found.abs()),
                    "{kind:?} {name}: {found}, {difference}"
                );
            }
        }
    }
}
