//! A BAM as a checkpoint of Qwen3-Next; `family/qwen3_next.rs` says which BAMs fit.

use std::path::Path;

use serde_json::{Map, json};

use super::convert::{ConvertedModel, SOURCE, add_card, converted, files_beside};
use super::execute::{OutputFile, check_plan};
use super::export_error::ExportError;
use super::fit_error::FitError;
use super::init::fresh;
use super::model::Model;
use super::plan::{Plan, PlannedTensor};
use super::side_files;
use super::wide::{WideLayer, WideModel, joined, scaled, zeros};
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::family::{
    self, AttentionGate, Mixture, QWEN3_NEXT, Qwen3Next, Role, TensorSpec, expert_names,
};

/// What makes up for a gate of a half, which a router of zeros gives.
const UNGATED: f64 = 2.0;

/// The relative change of a weight that is within float32's own rounding, and is not said.
const LEAST_SHARE: f64 = 1e-6;

/// The relative change of a weight that only an explicit `--dtype f32` accepts: as much as one step of bf16.
const MOST_SHARE: f64 = 1.0 / 128.0;

/// Plans the BAM in the folder `path` as a checkpoint of Qwen3-Next, its tensors in `dtype` or in their own.
///
/// # Errors
/// Whatever the class cannot hold, experts whose norms of queries and keys differ, and a source that is no mixture in a folder.
pub fn plan(path: &Path, dtype: Option<Dtype>) -> Result<(Plan, Vec<OutputFile>)> {
    let model = Model::open(SOURCE, path)?;
    let Some(mixture) = &model.architecture.mixture else {
        let path = model.config.path.clone();
        return Err(FitError::DenseAsMixture { path }.into());
    };
    let target = Qwen3Next::of(&model.architecture, &model.config, mixture)?;
    let writer = Writer {
        parts: WideModel::new(&model),
        target: &target,
        mixture,
        dtype,
    };
    let planned = writer.tensors()?;
    let mut notes = target.notes.clone();
    notes.extend(model.unused_note());
    let rounding = writer.rounding(&planned)?;
    let has_rounded = rounding.is_some();
    notes.extend(rounding);
    let tensors: Vec<PlannedTensor> = planned.into_iter().map(|(_, tensor)| tensor).collect();

    let mut json = target.config.clone();
    let mut settings = Map::new();
    settings.insert("to".to_owned(), json!(QWEN3_NEXT));
    if let Some(dtype) = dtype {
        family::say_dtype(&mut json, dtype);
        settings.insert("dtype".to_owned(), json!(dtype::name(dtype)));
    }
    let mut files = vec![side_files::json_file("config.json", &json)];
    files.extend(side_files::copies(model.companions()?));
    let experts = expert_names(path, &model.architecture)?;
    let described = target.described(&model.architecture);
    let has_neutral_shared_expert = mixture.shared_expert_intermediate_size.is_none();
    let remark = Some(writer.remark());
    let mut source = model.source;
    source.side_files = files_beside(path);
    add_card(
        &mut files,
        ConvertedModel {
            source: &source,
            settings: &settings,
            architecture: Some(&described),
            experts,
            has_neutral_shared_expert,
            tensors: &tensors,
            has_rounded,
            remark,
            notes: &notes,
        },
    )?;
    let plan = Plan {
        notes,
        ..converted(source, tensors, settings)
    };
    check_plan(&plan)?;
    Ok((plan, files))
}

/// The tensors in the making.
struct Writer<'a> {
    parts: WideModel<'a>,
    target: &'a Qwen3Next,
    mixture: &'a Mixture,
    dtype: Option<Dtype>,
}

impl Writer<'_> {
    fn tensors(&self) -> Result<Vec<(Role, PlannedTensor)>> {
        let planned = self.target.tensors()?.into_iter().map(|spec| {
            let of = self.expression(&spec)?;
            let dtype = match self.dtype {
                Some(dtype) => dtype,
                None => self.parts.model.common_dtype(&of)?,
            };
            let of = self.parts.model.stored_in(of, dtype)?;
            let tensor = PlannedTensor::new(spec.name, dtype, spec.shape, of);
            Ok((spec.role, tensor))
        });
        planned.collect()
    }

    fn expression(&self, spec: &TensorSpec) -> Result<Expression> {
        let shared = self.mixture.shared_expert_intermediate_size;
        match (spec.role, spec.layer) {
            (Role::Q | Role::K | Role::V | Role::O | Role::QNorm | Role::KNorm, Some(layer)) => {
                self.attention(self.parts.layer(layer), spec.role)
            }
            (Role::SharedExpertGate, _) if !self.mixture.shared_expert_gate => Ok(zeros()),
            (Role::SharedGate | Role::SharedUp, _) if shared.is_none() => {
                Ok(fresh(spec, &self.target.base, 0))
            }
            (Role::SharedDown, _) if shared.is_none() => Ok(zeros()),
            (Role::SharedDown, layer) if !self.mixture.shared_expert_gate => {
                Ok(scaled(self.parts.copy(spec.role, layer, None)?, UNGATED))
            }
            (role, layer) => {
                let copy = self.parts.copy(role, layer, spec.expert)?;
                Ok(if role.is_norm() {
                    self.less_one(copy)
                } else {
                    copy
                })
            }
        }
    }

    fn attention(&self, of: WideLayer, role: Role) -> Result<Expression> {
        let a = &self.parts.model.architecture;
        let gates = self.parts.gates(of, a.head_dim);
        match role {
            Role::Q => {
                let heads = of.wide.experts * a.num_heads;
                let rows = self.parts.rows(of, role)?;
                Ok(joined(vec![rows, gates.unwrap_or_else(zeros)], 0, heads))
            }
            Role::O => {
                let columns = self.parts.columns(of)?;
                let by = match gates {
                    None => Some(UNGATED),
                    Some(_) => self.parts.gate_scale(of),
                };
                Ok(match by {
                    Some(by) => scaled(columns, by),
                    None => columns,
                })
            }
            Role::QNorm | Role::KNorm => Ok(self.less_one(self.parts.norm(of, role)?)),
            _ => self.parts.rows(of, role),
        }
    }

    /// The weight of a norm in a class that multiplies by one plus it.
    fn less_one(&self, norm: Expression) -> Expression {
        if self.parts.model.architecture.norm_offset {
            return norm;
        }
        Expression::Sum {
            of: vec![norm, Expression::Constant { value: 1.0 }],
            weights: vec![1.0, -1.0],
        }
    }

    /// What is particular about the form, for the card.
    fn remark(&self) -> String {
        let heads = if self.parts.layer(0).has_experts() {
            "The heads of all attention experts are side by side, and the gate of an expert weights each of its heads. "
        } else {
            ""
        };
        format!(
            "{heads}transformers 4.57 computes it without a cache only (`use_cache=False`); version 5 needs nothing."
        )
    }

    /// What a user should know of values that are rounded once more.
    ///
    /// # Errors
    /// A norm that loses too much.
    fn rounding(&self, planned: &[(Role, PlannedTensor)]) -> Result<Option<String>> {
        let mut rounds = Vec::new();
        let norm = self.norm_change(planned)?;
        if let Some(change) = &norm
            && change.share > LEAST_SHARE
        {
            let is_asked = self.dtype.is_some_and(|dtype| dtype.bitsize() >= 32);
            if change.share > MOST_SHARE && !is_asked {
                return Err(ExportError::NormRounds {
                    path: self.parts.model.source.checkpoint.path.clone(),
                    tensor: change.tensor.clone(),
                    share: change.share,
                    dtype: change.dtype,
                }
                .into());
            }
            rounds.push(format!(
                "norms, which are stored less one (by {:.1e} of a weight at most, in `{}`)",
                change.share, change.tensor
            ));
        }
        let mut dtypes = planned.iter().map(|(_, tensor)| tensor.layout.dtype);
        let narrow = dtypes.find(|dtype| dtype.bitsize() < Dtype::F32.bitsize());
        if narrow.is_some() && self.parts.layer(0).has_experts() {
            if self.mixture.attention_gate == AttentionGate::Softmax
                && self.mixture.num_attention_experts > 1
            {
                rounds.push("gates, which are differences of rows of routers".to_owned());
            }
            let scale = self.mixture.attention_gate_scale;
            if scale.is_some_and(|scale| scale.log2().fract() != 0.0) {
                rounds.push("output projections times attention_gate_scale".to_owned());
            }
        }
        let keeps = narrow.map_or("", |_| "; --dtype f32 keeps more");
        Ok(
            (!rounds.is_empty())
                .then(|| format!("rounded once more: {}{keeps}", rounds.join("; "))),
        )
    }

    /// The largest relative change of a weight of a norm; none where the class has norms as they are.
    fn norm_change(&self, planned: &[(Role, PlannedTensor)]) -> Result<Option<NormChange>> {
        if self.parts.model.architecture.norm_offset {
            return Ok(None);
        }
        let checkpoint = &self.parts.model.source.checkpoint;
        let (mut values, mut scratch) = (Vec::new(), Vec::new());
        let mut worst: Option<NormChange> = None;
        for (_, tensor) in planned.iter().filter(|(role, _)| role.is_norm()) {
            let mut names = Vec::new();
            let of = &tensor.expression;
            of.for_each_copy(&mut |_, name| names.push(name));
            let dtype = tensor.layout.dtype;
            for name in names {
                let entry = checkpoint.tensor(name)?;
                values.resize(entry.elements() as usize, 0.0);
                checkpoint.read_values(entry, 0, &mut values, &mut scratch)?;
                let share = relative_change(dtype, &values);
                if worst.as_ref().is_none_or(|worst| share > worst.share) {
                    let tensor = name.to_owned();
                    worst = Some(NormChange {
                        tensor,
                        share,
                        dtype,
                    });
                }
            }
        }
        Ok(worst)
    }
}

/// What storing a norm less one changes.
struct NormChange {
    tensor: String,
    /// Of a weight.
    share: f64,
    dtype: Dtype,
}

/// The largest relative change of a weight that is stored less one; the class adds one again.
fn relative_change(dtype: Dtype, weights: &[f64]) -> f64 {
    let mut stored: Vec<f64> = weights.iter().map(|weight| weight - 1.0).collect();
    let mut bytes = vec![0; weights.len() * dtype.bitsize() / 8];
    // Dtypes of weights are floats, which can be written and read.
    let is_float =
        dtype::encode(dtype, &stored, &mut bytes) && dtype::decode(dtype, &bytes, &mut stored);
    let change = |(weight, stored): (&f64, &f64)| match stored + 1.0 - weight {
        0.0 => 0.0,
        change => (change / weight).abs(),
    };
    let changes = weights.iter().zip(&stored).map(change);
    let largest = changes.fold(0.0, f64::max);
    if is_float { largest } else { f64::INFINITY }
}
