//! The tensors of a mixture put together anew from the experts of other mixtures and of dense models.

use std::collections::BTreeMap;

use super::fit_error::FitError;
use super::init;
use super::model::Model;
use super::plan::{PlannedTensor, Source};
use super::plan_error::PlanError;
use super::router::RouterInit;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::family::{Architecture, Place, Role, TensorSpec};

/// Where one expert comes from; models are numbered as they are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// An expert of a mixture, with its row of the router.
    Of { mixture: usize, expert: u64 },
    /// An expert of the first mixture, whose row stays, with the weights of a dense model.
    Replaced { expert: u64, model: usize },
    /// A dense model, with a new row.
    New { model: usize },
    /// The average of the first experts of all mixtures, and of their rows.
    Public,
}

/// What is not an expert's.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shared {
    /// The first model's.
    Kept,
    /// The average over all models that have it, each with its weight.
    Averaged(Vec<f64>),
}

/// How rows of new experts start.
#[derive(Clone, Debug)]
pub(super) struct NewRows {
    /// Feed-forward routers.
    pub ffn: RouterInit,
    /// Attention routers.
    pub attention: RouterInit,
    /// Seed of what is drawn.
    pub seed: u64,
}

/// The experts of a new mixture and the tensors around them.
#[derive(Debug)]
pub(super) struct Composition {
    /// Feed-forward experts in order.
    pub ffn: Vec<Part>,
    /// Attention experts in order.
    pub attention: Vec<Part>,
    pub shared: Shared,
    /// Needed where a part is new.
    pub rows: Option<NewRows>,
}

/// What the parts of a composition are taken from.
struct Taken<'a> {
    composition: &'a Composition,
    /// The first is a mixture.
    models: &'a [Model],
    by_place: Vec<ByPlace<'a>>,
    /// The opened file of rows for new experts, where one is needed.
    file: Option<&'a Source>,
}

/// The tensors of a model by what they are for.
pub(super) struct ByPlace<'a> {
    model: &'a Model,
    specs: BTreeMap<Place, &'a TensorSpec>,
}

impl<'a> ByPlace<'a> {
    pub(super) fn new(model: &'a Model) -> Self {
        Self {
            model,
            specs: model
                .specs
                .iter()
                .map(|spec| (spec.place(), spec))
                .collect(),
        }
    }

    /// The tensor in the place of `spec`, of this expert or shared by all; `None` where the model has none.
    pub(super) fn find(&self, spec: &TensorSpec, expert: Option<u64>) -> Option<&'a TensorSpec> {
        self.specs
            .get(&(spec.role, spec.bias, spec.layer, expert))
            .copied()
    }

    /// Its dtype, and the expression that copies it.
    pub(super) fn copy(
        &self,
        spec: &TensorSpec,
        expert: Option<u64>,
    ) -> Result<(Dtype, Expression)> {
        let path = &self.model.source.checkpoint.path;
        let found = self
            .find(spec, expert)
            .ok_or_else(|| FitError::NoCounterpart {
                path: path.clone(),
                tensor: spec.name.clone(),
            })?;
        Ok((
            self.model.dtype(found)?,
            self.model.source.copy(&found.name),
        ))
    }
}

impl Composition {
    /// Plans every tensor of `target`, out of `models`, of which the first is a mixture; `file` holds rows for new experts.
    pub(super) fn tensors(
        &self,
        target: &Architecture,
        models: &[Model],
        file: Option<&Source>,
    ) -> Result<Vec<PlannedTensor>> {
        let by_place = models.iter().map(ByPlace::new).collect();
        let taken = Taken {
            composition: self,
            models,
            by_place,
            file,
        };
        let tensors = target.tensors()?.into_iter().map(|spec| {
            let (dtype, expression) = match (spec.role, spec.expert) {
                (role, _) if role.is_router() => taken.router(&spec)?,
                (_, Some(expert)) => taken.expert(&spec, taken.parts(&spec)[expert as usize])?,
                _ => taken.shared(&spec)?,
            };
            Ok(PlannedTensor::new(spec.name, dtype, spec.shape, expression))
        });
        tensors.collect()
    }
}

impl Taken<'_> {
    /// The experts that a tensor is of, or a router sends to.
    fn parts(&self, spec: &TensorSpec) -> &[Part] {
        let of_attention = spec.role.of_attention() || spec.role == Role::AttentionRouter;
        if of_attention {
            &self.composition.attention
        } else {
            &self.composition.ffn
        }
    }

    fn expert(&self, spec: &TensorSpec, part: Part) -> Result<(Dtype, Expression)> {
        let models = &self.by_place;
        match part {
            Part::Of { mixture, expert } => models[mixture].copy(spec, Some(expert)),
            Part::New { .. } | Part::Replaced { .. } if spec.role.only_in_mixtures() => Ok((
                self.models[0].main_dtype(),
                init::fresh(spec, &self.models[0].architecture, 0),
            )),
            Part::New { model } | Part::Replaced { model, .. } => models[model].copy(spec, None),
            Part::Public => {
                let copies = models.iter().map(|mixture| mixture.copy(spec, Some(0)));
                average(spec, self.models, copies.collect::<Result<_>>()?, None)
            }
        }
    }

    fn shared(&self, spec: &TensorSpec) -> Result<(Dtype, Expression)> {
        let models = &self.by_place;
        let Shared::Averaged(weights) = &self.composition.shared else {
            return models[0].copy(spec, None);
        };
        let having = models
            .iter()
            .zip(weights)
            .filter(|(model, _)| model.find(spec, None).is_some());
        let (copies, weights): (Vec<_>, Vec<f64>) = having
            .map(|(model, weight)| (model.copy(spec, None), *weight))
            .unzip();
        average(
            spec,
            self.models,
            copies.into_iter().collect::<Result<_>>()?,
            Some(weights),
        )
    }

    /// The rows of kept experts cut out of their routers, in runs as long as they come, and new rows between.
    fn router(&self, spec: &TensorSpec) -> Result<(Dtype, Expression)> {
        let models = &self.by_place;
        let (dtype, whole) = models[0].copy(spec, None)?;
        let rows_of = |mixture: usize, start: u64, length: u64| -> Result<Expression> {
            let (stored, of) = models[mixture].copy(spec, None)?;
            let all = models[mixture]
                .find(spec, None)
                .map_or(0, |found| found.shape[0]);
            let rows = if length == all {
                of
            } else {
                Expression::Slice {
                    of: Box::new(of),
                    axis: 0,
                    start,
                    length,
                    blocks: 1,
                }
            };
            Ok(if stored == dtype {
                rows
            } else {
                Expression::Cast { of: Box::new(rows) }
            })
        };
        let parts = self.parts(spec);
        let mut joined = Vec::new();
        let mut number = 0;
        while number < parts.len() {
            let run = |follows: &dyn Fn(u64, &Part) -> bool| {
                let others = parts[number..]
                    .iter()
                    .zip(0..)
                    .take_while(|(part, at)| follows(*at, part));
                others.count()
            };
            let (count, expression) = match parts[number] {
                Part::Of { mixture, expert } => {
                    let count = run(&|at, part| match part {
                        Part::Of {
                            mixture: m,
                            expert: e,
                        } => (*m, *e) == (mixture, expert + at),
                        Part::Replaced { expert: e, .. } => (0, *e) == (mixture, expert + at),
                        Part::New { .. } | Part::Public => false,
                    });
                    (count, rows_of(mixture, expert, count as u64)?)
                }
                Part::Replaced { expert, .. } => (1, rows_of(0, expert, 1)?),
                Part::New { .. } => {
                    let count = run(&|_, part| matches!(part, Part::New { .. }));
                    (count, self.new_rows(spec, dtype, count as u64)?)
                }
                Part::Public => {
                    let first = |mixture| Ok((dtype, rows_of(mixture, 0, 1)?));
                    let copies = (0..models.len()).map(first).collect::<Result<_>>()?;
                    (1, average(spec, self.models, copies, None)?.1)
                }
            };
            joined.push(expression);
            number += count;
        }
        let expression = match joined.len() {
            1 => joined.pop().unwrap_or(whole),
            _ => Expression::Concat {
                of: joined,
                axis: 0,
                blocks: 1,
            },
        };
        Ok((dtype, expression))
    }

    fn new_rows(&self, spec: &TensorSpec, dtype: Dtype, count: u64) -> Result<Expression> {
        if spec.bias {
            return Ok(Expression::Constant { value: 0.0 });
        }
        let rows = self.composition.rows.as_ref().ok_or(PlanError::NoNewRows)?;
        let init = if spec.role == Role::AttentionRouter {
            &rows.attention
        } else {
            &rows.ffn
        };
        init.expression(
            &spec.name,
            dtype,
            &[&[count], &spec.shape[1..]].concat(),
            rows.seed,
            self.file,
        )
    }
}

/// The average of copies in the dtype of the first.
fn average(
    spec: &TensorSpec,
    models: &[Model],
    copies: Vec<(Dtype, Expression)>,
    weights: Option<Vec<f64>>,
) -> Result<(Dtype, Expression)> {
    let path = models[0].source.checkpoint.path.clone();
    let tensor = spec.name.clone();
    let Some((first, _)) = copies.first() else {
        return Err(FitError::NoCounterpart { path, tensor }.into());
    };
    if let (Some((stored, _)), true) = (
        copies.iter().find(|(stored, _)| !dtype::is_float(*stored)),
        copies.len() > 1,
    ) {
        let stored = *stored;
        return Err(FitError::NotAveraged {
            path,
            tensor,
            stored,
        }
        .into());
    }
    let first = *first;
    let mut of: Vec<Expression> = copies.into_iter().map(|(_, copy)| copy).collect();
    let expression = match (of.len(), weights) {
        (1, _) => of.remove(0),
        (_, Some(weights)) if weights.iter().any(|weight| *weight != weights[0]) => {
            Expression::Weighted { of, weights }
        }
        _ => Expression::Mean { of },
    };
    Ok((first, expression))
}
