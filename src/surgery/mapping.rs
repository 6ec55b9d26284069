//! From the tensors of a mixture to those of the dense models: what every upcycling method shares.
//!
//! An expert's tensor is what the method makes of its models' (BAM, section 4.1: a copy), everything else is the uniform average over the dense
//! models, routers start fresh.

use std::collections::BTreeMap;

use super::methods::{Context, Part};
use super::model::Model;
use super::plan::{PlannedTensor, Source, as_dtype};
use super::scales::SHARED;
use super::upcycle::Settings;
use crate::checkpoint::Dtype;
use crate::checkpoint::expression::Expression;
use crate::family::{Architecture, Role, TensorSpec};
use crate::{Error, Result};

/// What the tensors of the mixture are made of.
pub(super) struct Work<'a> {
    pub(super) models: &'a [Model],
    /// Names of the feed-forward networks.
    pub(super) names: &'a [String],
    /// Number of the model that the shared expert is of.
    pub(super) shared: Option<usize>,
    /// Models that take part in averages.
    pub(super) averaged: &'a [usize],
    /// The feed-forward networks that there are.
    pub(super) origins: &'a [Origin],
    pub(super) attention_origins: &'a [Origin],
    pub(super) settings: &'a Settings,
    /// What the method needs to know of the whole.
    pub(super) context: Context,
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

impl Work<'_> {
    pub(super) fn tensors(
        &self,
        target: &Architecture,
        router_file: Option<&Source>,
    ) -> Result<Vec<PlannedTensor>> {
        let dense: Vec<ByRole> = self.models.iter().map(Model::by_role).collect();
        let mut tensors = Vec::new();
        for spec in target.tensors()? {
            let (dtype, expression) = self.tensor(&spec, &dense, router_file)?;
            tensors.push(PlannedTensor::new(spec.name, dtype, spec.shape, expression));
        }
        Ok(tensors)
    }

    fn tensor(
        &self,
        spec: &TensorSpec,
        dense: &[ByRole],
        router_file: Option<&Source>,
    ) -> Result<(Dtype, Expression)> {
        let settings = self.settings;
        let init = match spec.role {
            Role::FfnRouter => Some(&settings.router),
            Role::AttentionRouter => Some(&settings.attention_router),
            _ => None,
        };
        if spec.role == Role::SharedExpertGate
            && let Some((file, tensor)) =
                router_file.and_then(|file| Some((file, file.tensor_of(&spec.name)?)))
        {
            let dtype = settings.router_dtype.unwrap_or_else(|| self.main_dtype());
            return Ok((dtype, as_dtype(file, tensor, dtype)?));
        }
        if let Some(init) = init {
            let dtype = settings.router_dtype.unwrap_or_else(|| self.main_dtype());
            if spec.bias {
                return Ok((dtype, self.fresh(spec)));
            }
            let each = match spec.role {
                Role::FfnRouter => settings.expert_rule.router_rows_each(),
                _ => 1,
            };
            let mut rows = spec.shape.clone();
            rows[0] /= each;
            let of = init.expression(&spec.name, dtype, &rows, settings.rng_seed, router_file)?;
            return Ok((
                dtype,
                if each == 1 {
                    of
                } else {
                    Expression::Repeat {
                        of: Box::new(of),
                        each,
                        times: 1,
                    }
                },
            ));
        }
        let shared = self.shared.and(match spec.role {
            Role::SharedGate => Some(Role::Gate),
            Role::SharedUp => Some(Role::Up),
            Role::SharedDown => Some(Role::Down),
            _ => None,
        });
        if let Some(neutral) = neutral(
            spec,
            settings.shared_expert.is_some(),
            &self.models[0].architecture,
        ) {
            return Ok((self.main_dtype(), neutral));
        }
        if spec.role.only_in_mixtures() && shared.is_none() {
            return Ok((self.main_dtype(), self.fresh(spec)));
        }
        let of_model = |model: usize| -> Result<(&Model, &TensorSpec, Dtype)> {
            let role = shared.unwrap_or(spec.role);
            let found = dense[model]
                .get(&(role, spec.bias, spec.layer))
                .ok_or_else(|| {
                    Error::tensor(
                        &self.models[model].source.checkpoint.path,
                        &spec.name,
                        "has no counterpart in this model",
                    )
                })?;
            Ok((&self.models[model], found, self.models[model].dtype(found)?))
        };
        let copy_of = |model: usize| -> Result<(Dtype, Expression)> {
            let (model, found, stored) = of_model(model)?;
            let dtype = settings.dtype.unwrap_or(stored);
            Ok((dtype, as_dtype(&model.source, &found.name, dtype)?))
        };
        if let (Some(_), Some(model)) = (shared, self.shared) {
            let (dtype, copy) = copy_of(model)?;
            return Ok((
                dtype,
                settings
                    .scales
                    .applied(copy, SHARED, spec, settings.rng_seed),
            ));
        }
        if let (Some(expert), true) = (spec.expert, spec.role.of_attention()) {
            return match self.attention_origins[expert as usize] {
                Origin::Model(model) => copy_of(model),
                Origin::Random => Ok((settings.dtype.unwrap_or(of_model(0)?.2), self.fresh(spec))),
            };
        }
        if let (Some(expert), Some(layer)) = (spec.expert, spec.layer) {
            let networks = settings.expert_rule.networks_of(expert, self.origins.len());
            let mut dtype = settings.dtype;
            let mut of = Vec::with_capacity(networks.len());
            for network in networks {
                // A method that puts several networks together refuses fresh ones.
                let Origin::Model(model) = self.origins[network] else {
                    return Ok((settings.dtype.unwrap_or(of_model(0)?.2), self.fresh(spec)));
                };
                let (model, found, stored) = of_model(model)?;
                let copy = as_dtype(&model.source, &found.name, *dtype.get_or_insert(stored))?;
                of.push(settings.scales.applied(
                    copy,
                    &self.names[network],
                    spec,
                    settings.rng_seed,
                ));
            }
            let part = Part {
                layer,
                expert,
                role: spec.role,
                bias: spec.bias,
            };
            let expression = settings.expert_rule.expression(&part, &self.context, of);
            return Ok((dtype.unwrap_or_else(|| self.main_dtype()), expression));
        }
        let shared_kv = matches!(spec.role, Role::K | Role::V | Role::KNorm)
            && settings.method.upcycles().makes_attention_experts();
        let of_seed = if shared_kv {
            settings.shared_kv_of_seed
        } else {
            settings.rest_of_seed
        };
        if of_seed {
            return copy_of(0);
        }
        // The seed's dtype is the mixture's, also where the seed itself takes no part in the average.
        let dtype = settings.dtype.unwrap_or(of_model(0)?.2);
        if let [one] = self.averaged
            && (settings.dtype.is_some() || of_model(*one)?.2 == dtype)
        {
            return copy_of(*one);
        }
        let parts = self
            .averaged
            .iter()
            .map(|model| of_model(*model).and_then(|(model, found, _)| model.averaged(found)));
        Ok((
            dtype,
            Expression::Mean {
                of: parts.collect::<Result<_>>()?,
            },
        ))
    }

    /// The dtype of tensors that no model has.
    fn main_dtype(&self) -> Dtype {
        self.settings
            .dtype
            .unwrap_or_else(|| self.models[0].main_dtype())
    }

    /// A tensor that no model has, or of a freshly initialised expert: as the family's own models start.
    fn fresh(&self, spec: &TensorSpec) -> Expression {
        let std = self.models[0].architecture.initializer_range;
        super::init::fresh(spec, std, self.settings.rng_seed)
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
