//! One step: rows, gradients, update.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::backward::{
    BackwardOptions, BackwardPass, Batch, BatchLosses, forward_options, predicted,
};
use super::engine::Counters;
use super::error::{BadStep, TrainError};
use super::metrics::{Detail, DomainLoss, RoleDetail, Routing};
use super::parameters::Parameters;
use super::settings::{Settings, Trouble};
use crate::data::{Mixture, Row};
use crate::evaluate::routing::{Recorder, RouterKind, RouterReport};
use crate::model::{
    CausalLm, Gradients, MeasuredUpdate, OptimiserState, Readings, RouterLosses, Update, UpdateSums,
};
use crate::{Error, Result};

/// Norms that the running mean holds before one can be a spike.
const CALM: u64 = 20;
/// How much of the running mean stays at each step.
const MEMORY: f64 = 0.95;

/// A model with what its training needs.
pub(super) struct Trainer<'a> {
    pub(super) model: &'a CausalLm,
    pub(super) parameters: Parameters,
    pub(super) states: Vec<Box<dyn OptimiserState>>,
    pub(super) settings: &'a Settings,
    pub(super) checkpointing: bool,
    pub(super) counters: Counters,
}

/// What one step did.
pub(super) struct Done {
    pub(super) loss: f64,
    pub(super) nll: f64,
    pub(super) load_balance: f64,
    pub(super) z: f64,
    pub(super) tokens: u64,
    pub(super) gradient_norm: f64,
    pub(super) rates: (f64, f64),
    pub(super) domains: BTreeMap<String, DomainLoss>,
    pub(super) detail: Option<Detail>,
    /// Why the update was not made.
    pub(super) trouble: Option<(Trouble, BadStep)>,
}

/// The losses of a step, while its batches run.
struct LossSums {
    /// Of each domain, the sum of its losses and how many tokens have one.
    domains: Vec<(f64, u64)>,
    load_balance: f64,
    z: f64,
    /// Tokens that chose each expert, by layer.
    chosen: Vec<Vec<u64>>,
}

impl LossSums {
    fn new(mixture: &Mixture, layers: usize) -> Self {
        Self {
            domains: vec![(0.0, 0); mixture.names().count()],
            load_balance: 0.0,
            z: 0.0,
            chosen: vec![Vec::new(); layers],
        }
    }

    /// Adds a batch that is this share of the step, from the domain and the weight of each of its positions.
    fn add<'w>(
        &mut self,
        losses: &BatchLosses,
        positions: impl Iterator<Item = (usize, &'w f32)>,
        share: f64,
    ) {
        self.load_balance += losses.load_balance * share;
        self.z += losses.z * share;
        for (sum, part) in self.chosen.iter_mut().zip(&losses.chosen) {
            sum.resize(part.len(), 0);
            sum.iter_mut()
                .zip(part)
                .for_each(|(sum, count)| *sum += count);
        }
        for (nll, (domain, weight)) in losses.nll.iter().zip(positions) {
            let sum = &mut self.domains[domain];
            if *weight > 0.0 {
                *sum = (sum.0 + f64::from(*nll), sum.1 + 1);
            }
        }
    }

    /// What the step did before its update, in which it predicted so many tokens.
    fn done(&self, mixture: &Mixture, settings: &Settings, tokens: u64) -> Done {
        let nll = self.domains.iter().map(|(nll, _)| nll).sum::<f64>() / tokens as f64;
        let domains = mixture
            .names()
            .zip(&self.domains)
            .filter(|(_, (_, tokens))| *tokens > 0)
            .map(|(name, (nll, tokens))| {
                let (nll, tokens) = (nll / *tokens as f64, *tokens);
                (name.to_owned(), DomainLoss { nll, tokens })
            });
        Done {
            loss: nll + settings.aux_loss_coef * self.load_balance + settings.z_loss_coef * self.z,
            nll,
            load_balance: self.load_balance,
            z: self.z,
            tokens,
            gradient_norm: 0.0,
            rates: (0.0, 0.0),
            domains: domains.collect(),
            detail: None,
            trouble: None,
        }
    }
}

impl Trainer<'_> {
    /// Takes the next step on `rows`, with the details of the update where `detailed`.
    ///
    /// At a trouble, weights, moments and counters stay as they are.
    pub(super) fn step(&mut self, mixture: &Mixture, rows: &[Row], detailed: bool) -> Result<Done> {
        let step = self.counters.step + 1;
        let share = self.settings.share(step);
        let rates = (
            self.settings.learning_rate * share,
            self.settings.router_learning_rate * share,
        );
        let mut gradients = self.model.gradients();
        let mut recorder = detailed.then(Recorder::default);
        let (mut done, chosen, squares) =
            self.gradients(mixture, rows, &mut gradients, recorder.as_mut())?;
        done.rates = rates;
        done.gradient_norm = squares.iter().sum::<f64>().sqrt();
        done.trouble = self.trouble(&done);
        if done.trouble.is_some() {
            return Ok(done);
        }
        let clip = self.settings.clip;
        let scale = if clip > 0.0 && done.gradient_norm > clip {
            clip / done.gradient_norm
        } else {
            1.0
        };
        let sums = self.update(&gradients, rates, scale, &chosen, detailed)?;
        if let Some(recorder) = recorder {
            done.detail = Some(self.detail(step, &squares, &sums, recorder.finish()));
        }
        let counters = &mut self.counters;
        counters.norms += 1;
        // The mean of the first few, then one that forgets.
        let weight = (1.0 / counters.norms as f64).max(1.0 - MEMORY);
        counters.norm_mean += (done.gradient_norm - counters.norm_mean) * weight;
        counters.updates += 1;
        self.skip(&done);
        Ok(done)
    }

    /// The tokens of `rows` that are predicted and carry loss.
    pub(super) fn predicted(&self, rows: &[Row]) -> u64 {
        let (seq, documents) = (self.settings.seq, self.settings.documents);
        let of_row =
            |row: &Row| (0..seq).filter(|at| predicted(row, *at, documents)).count() as u64;
        rows.iter().map(of_row).sum()
    }

    /// Counts a step without an update.
    pub(super) fn skip(&mut self, done: &Done) {
        self.counters.step += 1;
        self.counters.tokens += done.tokens;
    }

    /// The gradients of all batches of a step, its losses, the tokens that chose each expert of each layer, and the squares of
    /// the gradients. A device is waited for once, at the end.
    fn gradients(
        &self,
        mixture: &Mixture,
        rows: &[Row],
        gradients: &mut Gradients,
        mut recorder: Option<&mut Recorder>,
    ) -> Result<(Done, Vec<Vec<u64>>, Vec<f64>)> {
        let settings = self.settings;
        let parts: Vec<&[Row]> = rows.chunks(settings.batch).collect();
        let share = 1.0 / parts.len() as f64;
        let tokens = self.predicted(rows);
        if tokens == 0 {
            return Err(TrainError::NothingToPredict.into());
        }
        let losses = RouterLosses {
            kind: settings.load_balance,
            load_balance: settings.aux_loss_coef,
            z: settings.z_loss_coef,
            share,
        };
        let mut readings = Readings::default();
        let mut waiting = Vec::with_capacity(parts.len());
        for part in parts {
            let batch = Batch::new(
                part,
                settings.documents,
                (1.0 / tokens as f64) as f32,
                share,
            )?;
            let forward = forward_options(part, settings.documents);
            let options = BackwardOptions {
                losses,
                checkpointing: self.checkpointing,
                forward,
            };
            let pass = BackwardPass {
                model: self.model,
                parameters: &self.parameters,
                options,
            };
            let losses = pass.run(&batch, gradients, &mut readings, recorder.as_deref_mut())?;
            waiting.push((part, batch.weights, losses));
        }
        let failed = |e| Error::compute("measure the gradients", e);
        let squares = gradients.squares(&mut readings).map_err(failed)?;
        let read = readings.read().map_err(failed)?;

        let mut sums = LossSums::new(mixture, self.model.layers());
        for (part, weights, losses) in waiting {
            let domains = (0..weights.len()).map(|position| part[position / settings.seq].domain);
            sums.add(&losses.values(&read), domains.zip(&weights), share);
        }
        let done = sums.done(mixture, settings, tokens);
        Ok((done, sums.chosen, squares.values(&read)))
    }

    /// What speaks against the update.
    fn trouble(&self, done: &Done) -> Option<(Trouble, BadStep)> {
        if !done.loss.is_finite() || !done.gradient_norm.is_finite() {
            let what = if done.loss.is_finite() {
                "the norm of the gradients"
            } else {
                "the loss"
            };
            return Some((self.settings.on_nan, BadStep::NotFinite { what }));
        }
        let (spike, mean) = (self.settings.on_spike?, self.counters.norm_mean);
        (self.counters.norms >= CALM && done.gradient_norm > spike.factor * mean).then(|| {
            let (norm, factor) = (done.gradient_norm, spike.factor);
            (spike.action, BadStep::Spike { norm, factor, mean })
        })
    }

    fn update(
        &mut self,
        gradients: &Gradients,
        rates: (f64, f64),
        scale: f64,
        chosen: &[Vec<u64>],
        measured: bool,
    ) -> Result<Vec<UpdateSums>> {
        let (settings, adamw) = (self.settings, self.settings.adamw());
        let number = self.counters.updates + 1;
        let mut updates = Vec::with_capacity(self.states.len());
        for (index, (parameter, state)) in
            self.parameters.all.iter().zip(&mut self.states).enumerate()
        {
            if parameter.balances(self.model.architecture()) {
                let counts = parameter
                    .spec
                    .layer
                    .map_or(&[][..], |layer| &chosen[layer as usize]);
                let shift = shift(counts, settings.bias_balancing);
                state
                    .shift(&shift)
                    .map_err(|e| Error::compute("balance the experts", e))?;
                updates.push(MeasuredUpdate::Known(UpdateSums::default()));
                continue;
            }
            let rate = if parameter.is_router() {
                rates.1
            } else {
                rates.0
            };
            let weight_decay = if parameter.decays() {
                settings.weight_decay
            } else {
                0.0
            };
            let update = Update {
                rate,
                weight_decay,
                scale,
                number,
                measured,
            };
            let updated = state.update(&adamw, &update, gradients.get(index));
            updates.push(updated.map_err(|e| Error::compute("update the parameters", e))?);
        }
        MeasuredUpdate::read_all(&updates).map_err(|e| Error::compute("measure the updates", e))
    }

    fn detail(
        &self,
        step: u64,
        squares: &[f64],
        sums: &[UpdateSums],
        reports: Vec<RouterReport>,
    ) -> Detail {
        let mut roles: BTreeMap<String, (f64, UpdateSums)> = BTreeMap::new();
        for ((parameter, square), sums) in self.parameters.all.iter().zip(squares).zip(sums) {
            let role = roles.entry(parameter.spec.role.to_string()).or_default();
            *role = (role.0 + square, UpdateSums::total(&[role.1, *sums]));
        }
        let ratio = |sums: UpdateSums| {
            if sums.weights > 0.0 {
                (sums.changes / sums.weights).sqrt()
            } else {
                0.0
            }
        };
        let roles = roles.into_iter().map(|(role, (square, sums))| {
            (
                role,
                RoleDetail {
                    gradient_norm: square.sqrt(),
                    update_ratio: ratio(sums),
                },
            )
        });
        let routing = |kind| {
            let of_kind = reports.iter().filter(|report| report.router == kind);
            let record = |report: &RouterReport| Routing {
                layer: report.layer,
                load: report.load.clone(),
                mean_gates: report.mean_gate.clone(),
                // Every token goes to all attention experts, as a rule: their load says nothing.
                entropy: if kind == RouterKind::FeedForward {
                    report.load_entropy
                } else {
                    report.token_entropy
                },
            };
            of_kind.map(record).collect()
        };
        Detail {
            step,
            roles: roles.collect(),
            ffn_routing: routing(RouterKind::FeedForward),
            attention_routing: routing(RouterKind::Attention),
        }
    }
}

/// What balances the load without a loss: `rate` for each expert that fewer tokens chose than the mean, minus `rate` for
/// each that more chose.
fn shift(chosen: &[u64], rate: f64) -> Vec<f32> {
    let total: u64 = chosen.iter().sum();
    let direction = |count: &u64| match (count * chosen.len() as u64).cmp(&total) {
        Ordering::Less => rate as f32,
        Ordering::Equal => 0.0,
        Ordering::Greater => -rate as f32,
    };
    chosen.iter().map(direction).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device};

    use super::super::native::states;
    use super::*;
    use crate::data::{Split, TokenFolder};
    use crate::model::{Computation, LoadOptions};

    fn rows(step: usize, settings: &Settings) -> Vec<Row> {
        let row = |number: usize| Row {
            domain: 0,
            ids: (0..=settings.seq)
                .map(|i| ((number * 31 + i * 37 + i * i) % 300) as u32)
                .collect(),
            documents: (0..=settings.seq).map(|i| u32::from(i > 5)).collect(),
            scored: (0..=settings.seq).map(|i| i != 3).collect(),
        };
        (0..4).map(|i| row(4 * step + i)).collect()
    }

    /// A CPU takes the steps of a GPU: sums on the device, choices of experts and masks by comparisons, attention in blocks.
    #[test]
    fn steps_as_on_a_gpu_are_those_of_the_kernels() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let tokens =
            TokenFolder::open(&fixtures.join("written-by-0.2/recipe/work/tokens")).unwrap();
        let settings = Settings::for_tests();
        let domain = ("texts".to_owned(), tokens, 1.0);
        let mixture = Mixture::new(vec![domain], 0, settings.seq, Split::Train).unwrap();
        for model in ["written-by-0.2/llama-bam", "mixtures/mixtral"] {
            let folder = fixtures.join(model);
            let run = |computation| {
                let options = LoadOptions {
                    computation,
                    ..LoadOptions::train(Device::Cpu)
                };
                let model = CausalLm::load(&folder, &options).unwrap();
                let parameters = Parameters::of(&model);
                let states = states(&folder, &model, &parameters, DType::F32).unwrap();
                let mut trainer = Trainer {
                    model: &model,
                    parameters,
                    states,
                    settings: &settings,
                    checkpointing: false,
                    counters: Counters::default(),
                };
                let mut numbers = Vec::new();
                for step in 0..3 {
                    let rows = rows(step, &settings);
                    let done = trainer.step(&mixture, &rows, true).unwrap();
                    let detail = done.detail.unwrap();
                    numbers.extend([done.loss, done.nll, done.load_balance, done.z]);
                    numbers.push(done.gradient_norm);
                    for role in detail.roles.values() {
                        numbers.extend([role.gradient_norm, role.update_ratio]);
                    }
                    for router in detail.ffn_routing.iter().chain(&detail.attention_routing) {
                        numbers.extend(&router.mean_gates);
                    }
                }
                numbers
            };
            let expected = run(Computation::Fastest);
            let found = run(Computation::AsOnGpu);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let off = (found - expected).abs() / (1e-2 + expected.abs());
                assert!(off < 1e-4, "{model}: {found} {expected}");
            }
        }
    }

    #[test]
    fn experts_with_too_few_tokens_are_lifted() {
        assert_eq!(shift(&[10, 2, 6, 6], 0.5), [-0.5, 0.5, 0.0, 0.0]);
    }
}
