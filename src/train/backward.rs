//! Losses and gradients of one batch, layer by layer.
//!
//! In the forward pass, each layer leaves the record of what its backward pass needs. In the backward pass, a
//! layer takes the gradient of its output and returns the gradient of its input. It adds the gradients of its parameters
//! to their buffers; then its record is freed. With checkpointing, a layer keeps its input only, and runs a second time in
//! the backward pass. The same operations run on the same numbers either way, so the gradients are equal bit for bit.

use candle_core::{Device, Tensor};

use super::parameters::Parameters;
use super::settings::Documents;
use crate::data::Row;
use crate::evaluate::routing::Recorder;
use crate::model::{
    CausalLm, Forward, Gradients, InputGradient, LayerRouting, LayerRun, Pass, ReadValues, Reading,
    Readings, RouterLossReading, RouterLosses,
};
use crate::{Error, Result};

/// Rows of tokens, and the weight of each position.
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

/// How to run the backward pass of a batch.
pub(super) struct BackwardOptions {
    pub(super) losses: RouterLosses,
    /// Whether layers run a second time in the backward pass.
    pub(super) checkpointing: bool,
    pub(super) forward: Forward,
}

/// The losses of a batch.
#[derive(Debug, Default)]
pub(super) struct BatchLosses {
    /// Negative log-likelihood in nats of each position.
    pub(super) nll: Vec<f32>,
    /// Load-balancing loss, summed over layers.
    pub(super) load_balance: f64,
    /// z-loss, summed over layers.
    pub(super) z: f64,
    /// Tokens that chose each expert of a layer's feed-forward router; empty for a layer without.
    pub(super) chosen: Vec<Vec<u64>>,
}

/// The losses of a batch that wait among readings.
#[derive(Debug)]
pub(super) struct WaitingLosses {
    nll: Reading,
    /// Of each layer's feed-forward router; `None` for a layer without.
    routers: Vec<Option<RouterLossReading>>,
}

/// A layer that waits for the gradient of its output.
enum Waiting {
    /// It has run.
    Run(Box<LayerRun>),
    /// Its input, with which it runs again.
    Input(Tensor),
}

/// The forward and backward pass of one batch through a model.
pub(super) struct BackwardPass<'a> {
    pub(super) model: &'a CausalLm,
    pub(super) parameters: &'a Parameters,
    pub(super) options: BackwardOptions,
}

fn failed(problem: candle_core::Error) -> Error {
    Error::compute("take the gradients", problem)
}

impl BackwardPass<'_> {
    /// Adds the gradients of `batch` to `gradients`, and tells `recorder` how its tokens were routed.
    ///
    /// The host waits for a device only where there is a recorder, at the end.
    pub(super) fn run(
        &self,
        batch: &Batch,
        gradients: &mut Gradients,
        readings: &mut Readings,
        recorder: Option<&mut Recorder>,
    ) -> Result<WaitingLosses> {
        let forward = &self.options.forward;
        let (mut x, pass) = self.model.begin(&batch.tokens, None, forward)?;
        let (layers, first) = (self.model.layers(), self.first());
        let mut router_losses = Vec::with_capacity(layers);
        let mut routings: Vec<LayerRouting> = Vec::new();
        let mut waiting = Vec::with_capacity(layers - first);
        for layer in 0..layers {
            let run = self.layer(layer, &x, &pass, batch.share)?;
            router_losses.push(run.loss.clone());
            if recorder.is_some() {
                routings.push(run.routing.clone());
            }
            let input = std::mem::replace(&mut x, run.output.clone());
            if layer >= first {
                waiting.push(if self.options.checkpointing {
                    Waiting::Input(input)
                } else {
                    Waiting::Run(Box::new(run))
                });
            }
        }

        let Batch {
            targets, weights, ..
        } = batch;
        let (nll, grad_x) = self.model.loss(&x, targets, weights, gradients)?;
        let mut gradient = Some(grad_x);
        for (layer, waiting) in (first..layers).zip(waiting).rev() {
            let Some(grad_output) = gradient else { break };
            let run = match waiting {
                Waiting::Run(run) => *run,
                Waiting::Input(input) => self.layer(layer, &input, &pass, batch.share)?,
            };
            let input_gradient = if layer > first || self.parameters.embedding() {
                InputGradient::Needed
            } else {
                InputGradient::NotNeeded
            };
            gradient =
                self.model
                    .layer_backward(run.record, &grad_output, input_gradient, gradients)?;
        }
        if let Some(grad_embedded) = gradient.filter(|_| self.parameters.embedding()) {
            self.model
                .embed_backward(&pass, &grad_embedded, gradients)?;
        }

        let mut waiting = || -> candle_core::Result<WaitingLosses> {
            Ok(WaitingLosses {
                nll: readings.want(&nll)?,
                routers: router_losses
                    .iter()
                    .map(|loss| loss.as_ref().map(|loss| loss.want(readings)).transpose())
                    .collect::<candle_core::Result<_>>()?,
            })
        };
        let losses = waiting().map_err(failed)?;
        if let Some(recorder) = recorder {
            for (layer, routing) in routings.iter().enumerate() {
                recorder.add(layer, routing)?;
            }
        }
        Ok(losses)
    }

    /// The first layer of the backward pass.
    fn first(&self) -> usize {
        if self.parameters.embedding() {
            0
        } else {
            self.parameters.first_layer()
        }
    }

    fn layer(&self, layer: usize, x: &Tensor, pass: &Pass, share: f64) -> Result<LayerRun> {
        let losses = RouterLosses {
            share,
            ..self.options.losses
        };
        self.model.layer_recorded(layer, x, pass, Some(&losses))
    }
}

impl WaitingLosses {
    /// The losses, out of the values that were read.
    pub(super) fn values(&self, read: &ReadValues) -> BatchLosses {
        let nll = read.of(&self.nll).iter().map(|nll| *nll as f32);
        let mut losses = BatchLosses {
            nll: nll.collect(),
            ..BatchLosses::default()
        };
        for router in &self.routers {
            let Some(router) = router else {
                losses.chosen.push(Vec::new());
                continue;
            };
            let values = router.values(read);
            losses.load_balance += values.load_balance;
            losses.z += values.z;
            losses.chosen.push(values.chosen);
        }
        losses
    }
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

/// The forward options for `rows`.
pub(super) fn forward_options(rows: &[Row], documents: Documents) -> Forward {
    let inputs = |row: &Row| row.documents[..row.documents.len().saturating_sub(1)].to_vec();
    let documents = (documents == Documents::Separate).then(|| rows.iter().map(inputs).collect());
    Forward {
        documents,
        ..Forward::default()
    }
}

/// Whether the token after `position` of a row is predicted, and carries loss.
pub(super) fn predicted(row: &Row, position: usize, documents: Documents) -> bool {
    let follows =
        documents == Documents::Joined || row.documents[position] == row.documents[position + 1];
    follows && row.scored[position + 1]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use candle_core::DType;

    use super::*;
    use crate::family::{Architecture, AttentionKv, Config, Mixture};
    use crate::model::{LoadBalance, LoadOptions, Params};
    use crate::surgery::random::Draws;

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
            scored: vec![true; 9],
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
                share: 1.0,
            };
            let batch = Batch::new(&rows(), Documents::Separate, 0.25, 0.5).unwrap();
            let options = |checkpointing| BackwardOptions {
                losses,
                checkpointing,
                forward: forward_options(&rows(), Documents::Separate),
            };
            let run = |checkpointing: bool| {
                let mut gradients = model.gradients();
                let pass = BackwardPass {
                    model: &model,
                    parameters: &parameters,
                    options: options(checkpointing),
                };
                let mut readings = Readings::default();
                let found = pass
                    .run(&batch, &mut gradients, &mut readings, None)
                    .unwrap();
                let found = found.values(&readings.read().unwrap());
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
