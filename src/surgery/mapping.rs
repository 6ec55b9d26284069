//! From the tensors of a mixture to the tensors of the dense models: the part that every upcycling method shares.
//!
//! The method's rule makes an expert's tensor of its models' tensors (BAM, section 4.1: a copy). Everything else is the uniform
//! average over the dense models. Routers start fresh.

use std::collections::BTreeMap;

use super::fit_error::FitError;
use super::methods::{ExpertPart, RuleContext};
use super::model::Model;
use super::names::SHARED;
use super::plan::{PlannedTensor, Source, as_dtype};
use super::router::RouterInit;
use super::settings::UpcycleSettings;
use crate::Result;
use crate::checkpoint::Dtype;
use crate::checkpoint::expression::Expression;
use crate::family::{Architecture, Role, TensorSpec};

/// The models, settings and experts of an upcycling.
pub(super) struct Work<'a> {
    pub(super) models: &'a [Model],
    /// Names of the feed-forward networks.
    pub(super) names: &'a [String],
    /// Number of the model that the shared expert is of.
    pub(super) shared: Option<usize>,
    /// Models that take part in averages.
    pub(super) averaged: &'a [usize],
    /// Where each feed-forward network comes from.
    pub(super) origins: &'a [Origin],
    /// Where each attention expert comes from.
    pub(super) attention_origins: &'a [Origin],
    pub(super) settings: &'a UpcycleSettings,
    /// Numbers of the whole mixture, for the rule.
    pub(super) context: RuleContext,
}

/// Where an expert's tensors come from.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    /// Model number, the seed being 0.
    Model(usize),
    Random,
}

impl Origin {
    pub(super) fn model(self) -> Option<usize> {
        match self {
            Self::Model(model) => Some(model),
            Self::Random => None,
        }
    }
}

type ByRole<'a> = BTreeMap<(Role, bool, Option<u64>), &'a TensorSpec>;

/// A planned tensor, but for its name and shape.
type Made = (Dtype, Expression);

/// The work with the tensors of all models looked up.
struct Mapping<'a> {
    work: &'a Work<'a>,
    /// The tensors of each model by what they are for.
    dense: Vec<ByRole<'a>>,
    /// The file that holds rows of routers.
    router_file: Option<&'a Source>,
}

impl Mapping<'_> {
    fn tensor(&self, spec: &TensorSpec) -> Result<Made> {
        let (work, settings) = (self.work, self.work.settings);
        match spec.role {
            Role::FfnRouter => {
                let each = settings.expert_rule.router_rows_each();
                return self.router(spec, &settings.router, each);
            }
            Role::AttentionRouter => return self.router(spec, &settings.attention_router, 1),
            Role::SharedExpertGate => {
                if let Some(gate) = self.gate_of_file(spec)? {
                    return Ok(gate);
                }
            }
            _ => {}
        }

        let has_shared = settings.shared_expert.is_some();
        if let Some(neutral) = neutral(spec, has_shared, &work.models[0].architecture) {
            return Ok((work.main_dtype(), neutral));
        }
        if let (Some(model), Some(role)) = (work.shared, role_of_shared(spec.role)) {
            let (dtype, copy) = self.copy_of(model, role, spec)?;
            let scales = &settings.scales;
            return Ok((dtype, scales.applied(copy, SHARED, spec, settings.rng_seed)));
        }
        if spec.role.only_in_mixtures() {
            return Ok((work.main_dtype(), work.fresh(spec)));
        }

        match (spec.expert, spec.layer) {
            (Some(expert), _) if spec.role.of_attention() => self.attention_expert(spec, expert),
            (Some(expert), Some(layer)) => self.feed_forward_expert(spec, layer, expert),
            _ => self.rest(spec),
        }
    }

    /// A router; each of its rows is repeated `each` times.
    fn router(&self, spec: &TensorSpec, init: &RouterInit, each: u64) -> Result<Made> {
        let settings = self.work.settings;
        let dtype = self.router_dtype();
        if spec.bias {
            return Ok((dtype, self.work.fresh(spec)));
        }

        let mut rows = spec.shape.clone();
        rows[0] /= each;
        let of = init.expression(
            &spec.name,
            dtype,
            &rows,
            settings.rng_seed,
            self.router_file,
        )?;
        if each == 1 {
            return Ok((dtype, of));
        }
        let repeated = Expression::Repeat {
            of: Box::new(of),
            each,
            times: 1,
        };
        Ok((dtype, repeated))
    }

    /// The gate of the shared expert, where the file of router rows has it.
    fn gate_of_file(&self, spec: &TensorSpec) -> Result<Option<Made>> {
        let Some(file) = self.router_file else {
            return Ok(None);
        };
        let Some(tensor) = file.tensor_of(&spec.name) else {
            return Ok(None);
        };
        let dtype = self.router_dtype();
        Ok(Some((dtype, as_dtype(file, tensor, dtype)?)))
    }

    fn router_dtype(&self) -> Dtype {
        let asked = self.work.settings.router_dtype;
        asked.unwrap_or_else(|| self.work.main_dtype())
    }

    fn attention_expert(&self, spec: &TensorSpec, expert: u64) -> Result<Made> {
        match self.work.attention_origins[expert as usize] {
            Origin::Model(model) => self.copy_of(model, spec.role, spec),
            Origin::Random => self.fresh_expert(spec),
        }
    }

    fn feed_forward_expert(&self, spec: &TensorSpec, layer: u64, expert: u64) -> Result<Made> {
        let (work, settings) = (self.work, self.work.settings);
        let rule = &settings.expert_rule;
        let mut dtype = settings.dtype;
        let mut of = Vec::new();
        for network in rule.networks_of(expert, work.origins.len()) {
            // A rule that needs every network refuses fresh ones.
            let Origin::Model(model) = work.origins[network] else {
                return self.fresh_expert(spec);
            };
            let (model, found, stored) = self.of_model(model, spec.role, spec)?;
            let copy = as_dtype(&model.source, &found.name, *dtype.get_or_insert(stored))?;
            let name = &work.names[network];
            of.push(settings.scales.applied(copy, name, spec, settings.rng_seed));
        }

        let part = ExpertPart {
            layer,
            expert,
            role: spec.role,
            bias: spec.bias,
        };
        let expression = rule.expression(&part, &work.context, of);
        Ok((dtype.unwrap_or_else(|| work.main_dtype()), expression))
    }

    /// A tensor of an expert that has no model.
    fn fresh_expert(&self, spec: &TensorSpec) -> Result<Made> {
        let (_, _, stored) = self.of_model(0, spec.role, spec)?;
        let dtype = self.work.settings.dtype.unwrap_or(stored);
        Ok((dtype, self.work.fresh(spec)))
    }

    /// A tensor outside experts: the seed's, or the average.
    fn rest(&self, spec: &TensorSpec) -> Result<Made> {
        let (work, settings) = (self.work, self.work.settings);
        let is_shared_kv = matches!(spec.role, Role::K | Role::V | Role::KNorm)
            && settings.method.upcycles().makes_attention_experts();
        let is_of_seed = if is_shared_kv {
            settings.shared_kv_of_seed
        } else {
            settings.rest_of_seed
        };
        if is_of_seed {
            return self.copy_of(0, spec.role, spec);
        }

        // The seed's dtype is the mixture's, also where the seed itself takes no part in the average.
        let (_, _, of_seed) = self.of_model(0, spec.role, spec)?;
        let dtype = settings.dtype.unwrap_or(of_seed);
        if let [one] = work.averaged
            && (settings.dtype.is_some() || self.of_model(*one, spec.role, spec)?.2 == dtype)
        {
            return self.copy_of(*one, spec.role, spec);
        }

        let parts = work.averaged.iter().map(|model| {
            let (model, found, _) = self.of_model(*model, spec.role, spec)?;
            model.averaged(found)
        });
        let of = parts.collect::<Result<_>>()?;
        Ok((dtype, Expression::Mean { of }))
    }

    /// The tensor of a model that has `role` where the mixture has `spec`, as it is or in the dtype asked for.
    fn copy_of(&self, model: usize, role: Role, spec: &TensorSpec) -> Result<Made> {
        let (model, found, stored) = self.of_model(model, role, spec)?;
        let dtype = self.work.settings.dtype.unwrap_or(stored);
        Ok((dtype, as_dtype(&model.source, &found.name, dtype)?))
    }

    /// The tensor of a model that has `role` where the mixture has `spec`, with the dtype that it is stored in.
    fn of_model(
        &self,
        number: usize,
        role: Role,
        spec: &TensorSpec,
    ) -> Result<(&Model, &TensorSpec, Dtype)> {
        let model = &self.work.models[number];
        let found = self.dense[number].get(&(role, spec.bias, spec.layer));
        let found = found.ok_or_else(|| FitError::NoCounterpart {
            path: model.source.checkpoint.path.clone(),
            tensor: spec.name.clone(),
        })?;
        Ok((model, found, model.dtype(found)?))
    }
}

/// The role in a dense model of a tensor of the shared expert.
fn role_of_shared(role: Role) -> Option<Role> {
    match role {
        Role::SharedGate => Some(Role::Gate),
        Role::SharedUp => Some(Role::Up),
        Role::SharedDown => Some(Role::Down),
        _ => None,
    }
}

impl Work<'_> {
    /// Every tensor of the mixture `target`, in its order.
    pub(super) fn tensors(
        &self,
        target: &Architecture,
        router_file: Option<&Source>,
    ) -> Result<Vec<PlannedTensor>> {
        let mapping = Mapping {
            work: self,
            dense: self.models.iter().map(Model::by_role).collect(),
            router_file,
        };
        let planned = target.tensors()?.into_iter().map(|spec| {
            let (dtype, expression) = mapping.tensor(&spec)?;
            Ok(PlannedTensor::new(spec.name, dtype, spec.shape, expression))
        });
        planned.collect()
    }

    /// The dtype of tensors that no model has.
    fn main_dtype(&self) -> Dtype {
        self.settings
            .dtype
            .unwrap_or_else(|| self.models[0].main_dtype())
    }

    /// A tensor that no model has, or of a freshly initialised expert: as the family's own models start.
    fn fresh(&self, spec: &TensorSpec) -> Expression {
        super::init::fresh(spec, &self.models[0].architecture, self.settings.rng_seed)
    }
}

/// A parameter that changes nothing, which the family of the output has and the sources have not; `shared` where the shared
/// expert has parameters of its own.
pub(super) fn neutral(spec: &TensorSpec, shared: bool, dense: &Architecture) -> Option<Expression> {
    let missing = match spec.role {
        Role::SharedDown | Role::SharedExpertGate => !shared,
        Role::Q | Role::K | Role::V => spec.bias && !dense.attention_bias,
        Role::O => spec.bias && !dense.attention_output_bias,
        _ => false,
    };
    missing.then_some(Expression::Constant { value: 0.0 })
}
