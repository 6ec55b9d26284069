//! One model as the weighted average of several of the same shape.

use serde_json::{Map, Value, json};

use super::error::SurgeryError;
use super::execute::OutputFile;
use super::fit;
use super::fit_tokenizer::ids_beyond;
use super::fused::as_stored;
use super::model::Model;
use super::neutral::has_neutral_shared_expert;
use super::plan::{Plan, PlannedTensor};
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard, Relation};
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::manifest::model_name;
use crate::family::{Architecture, expert_names};
use crate::markdown;

/// Settings of a merge.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Number of the model whose configuration, tokenizer and dtypes the output has.
    pub base: usize,
    /// Whether the weighted sum is divided by the sum of the weights.
    pub normalize: bool,
    /// Dtype of the output; the base's where absent.
    pub dtype: Option<Dtype>,
}

/// Plans the weighted average, or sum, of `models`.
pub fn plan(
    models: Vec<(Model, f64)>,
    settings: &Settings,
) -> Result<(Plan, Architecture, Vec<OutputFile>)> {
    let Some((base, _)) = models.get(settings.base) else {
        return Err(SurgeryError::NoModels {
            action: "merge",
            expected: "at least one --model DIR[:WEIGHT]",
        }
        .into());
    };
    let mut notes: Vec<String> = ids_beyond(base)?.into_iter().collect();
    notes.extend(models.iter().filter_map(|(model, _)| model.unused_note()));
    for (other, _) in models
        .iter()
        .filter(|(other, _)| !std::ptr::eq(other, base))
    {
        notes.extend(fit::check(base, other)?);
    }
    let weights = weights(&models, settings)?;
    let tensors = averages(base, &models, &weights, settings)?;
    let mut recorded = Map::new();
    let mut put = |key: &str, value: Value| recorded.insert(key.to_owned(), value);
    put("weights", json!(weights));
    put("base", json!(base.source.name));
    put("normalize", json!(settings.normalize));
    put("dtype", json!(settings.dtype.map(dtype::name)));
    let (config, of_config) =
        side_files::recast(&base.config, &base.source.checkpoint, settings.dtype)?;
    notes.extend(of_config);
    let mut files = vec![side_files::json_file("config.json", &config)];
    files.extend(side_files::copies(base.companions()?));
    let card = ModelCard {
        title: "Merged model",
        about: about(&models, settings),
        tags: &["merge"],
        relation: Some(Relation::Merge),
        sources: side_files::named(models.iter().map(|(model, _)| &model.source)),
        settings: &recorded,
        model: Some(CardModel {
            architecture: &base.architecture,
            experts: expert_names(&base.source.checkpoint.path, &base.architecture)?,
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: has_neutral_shared_expert(
                &base.architecture,
                &tensors,
                models.iter().map(|(model, _)| &model.source),
            )?,
        }),
        training: None,
        copy_of: None,
        notes: &notes,
        prompts: &[],
    };
    side_files::add_card(&mut files, &card)?;
    let architecture = base.architecture.clone();
    let sources = models.into_iter().map(|(model, _)| model.source).collect();
    Ok((
        Plan {
            method: "merge".to_owned(),
            settings: recorded,
            sources,
            tensors,
            notes,
            carries_non_finite: false,
        },
        architecture,
        files,
    ))
}

/// The weights of the models.
///
/// # Errors
/// Numbers that are not finite, and a sum of zero to divide by.
fn weights(models: &[(Model, f64)], settings: &Settings) -> Result<Vec<f64>> {
    let weights: Vec<f64> = models.iter().map(|(_, weight)| *weight).collect();
    let sum: f64 = weights.iter().sum();
    if weights.iter().any(|weight| !weight.is_finite())
        || !sum.is_finite()
        || (settings.normalize && sum == 0.0)
    {
        return Err(SurgeryError::MergeWeights { weights, sum }.into());
    }
    Ok(weights)
}

/// The tensors of the merge, as the base stores them.
fn averages(
    base: &Model,
    models: &[(Model, f64)],
    weights: &[f64],
    settings: &Settings,
) -> Result<Vec<PlannedTensor>> {
    let are_equal = weights.iter().all(|weight| *weight == weights[0]);
    let average = |of: Vec<Expression>| {
        let weights = weights.to_vec();
        if !settings.normalize {
            Expression::Sum { of, weights }
        } else if are_equal {
            Expression::Mean { of }
        } else {
            Expression::Weighted { of, weights }
        }
    };
    let mut tensors = Vec::with_capacity(base.specs.len());
    for (number, spec) in base.specs.iter().enumerate() {
        let dtype = settings.dtype.map_or_else(|| base.dtype(spec), Ok)?;
        let parts = models
            .iter()
            .map(|(model, _)| model.averaged(&model.specs[number]))
            .collect::<Result<_>>()?;
        let shape = spec.shape.clone();
        tensors.push(PlannedTensor::new(&spec.name, dtype, shape, average(parts)));
    }
    as_stored(&base.architecture, tensors)
}

/// What the merge computes, with the numbers of these settings.
fn about(models: &[(Model, f64)], settings: &Settings) -> String {
    let names: Vec<String> = models
        .iter()
        .map(|(model, _)| markdown::text(&model_name(&model.source.checkpoint.path)))
        .collect();
    let weighted: Vec<String> = names
        .iter()
        .zip(models)
        .map(|(name, (_, weight))| format!("{name} (weight {weight})"))
        .collect();
    let are_equal = models.iter().all(|(_, weight)| *weight == models[0].1);
    let what = if !settings.normalize {
        format!("The weighted sum of {}.", weighted.join(", "))
    } else if are_equal {
        format!("The mean of {}.", names.join(", "))
    } else {
        format!("The weighted mean of {}.", weighted.join(", "))
    };
    let base = &names[settings.base];
    format!("{what} Configuration and tokenizer come from {base}.")
}
