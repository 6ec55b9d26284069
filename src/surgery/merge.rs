//! Several models of one shape as one.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::SurgeryError;
use super::execute::OutputFile;
use super::fit;
use super::fit_tokenizer::ids_beyond;
use super::fused::as_stored;
use super::merging::{BaseModel, MergeMethod, MergedPart, MergedTensor, Parameters};
use super::model::Model;
use super::neutral::has_neutral_shared_expert;
use super::plan::{Plan, PlannedTensor};
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard, Relation};
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::manifest::model_name;
use crate::family::{Architecture, expert_names};
use crate::markdown;
use crate::parameter::Parameter;

/// Settings of a merge.
#[derive(Clone, Debug)]
pub struct MergeSettings {
    /// How the models become one.
    pub method: MergeMethod,
    /// Number of the model whose configuration, tokenizer and dtypes the output has, and from which task vectors start.
    pub base: usize,
    /// Parameters of the merge as a whole.
    pub parameters: Parameters,
    /// Dtype of the output; the base's where absent.
    pub dtype: Option<Dtype>,
}

/// A model of a merge.
#[derive(Debug)]
pub struct MergedModel {
    /// The model.
    pub model: Model,
    /// Its own parameters.
    pub parameters: Parameters,
}

/// Plans the merge of `models`.
///
/// # Errors
/// Models that do not fit together or are too few or too many for the method, and parameters that it cannot use.
pub fn plan(
    models: Vec<MergedModel>,
    settings: &MergeSettings,
) -> Result<(Plan, Architecture, Vec<OutputFile>)> {
    let Some(MergedModel { model: base, .. }) = models.get(settings.base) else {
        return Err(SurgeryError::NoModels {
            action: "merge",
            expected: "at least one --model DIR[:WEIGHT]",
        }
        .into());
    };
    check_number(&models, settings)?;
    let mut notes: Vec<String> = ids_beyond(base)?.into_iter().collect();
    notes.extend(
        models
            .iter()
            .filter_map(|merged| merged.model.unused_note()),
    );
    for MergedModel { model: other, .. } in models
        .iter()
        .filter(|merged| !std::ptr::eq(&merged.model, base))
    {
        notes.extend(fit::check(base, other)?);
    }
    let tensors = merged(base, &models, settings)?;
    let recorded = record(&models, base, settings);
    let (config, of_config) =
        side_files::recast(&base.config, &base.source.checkpoint, settings.dtype)?;
    notes.extend(of_config);
    let mut files = vec![side_files::json_file("config.json", &config)];
    files.extend(side_files::copies(base.companions()?));
    let sources = || models.iter().map(|merged| &merged.model.source);
    let card = ModelCard {
        title: "Merged model",
        about: about(&models, settings),
        tags: &["merge"],
        relation: Some(Relation::Merge),
        sources: side_files::named(sources()),
        settings: &recorded,
        model: Some(CardModel {
            architecture: &base.architecture,
            experts: expert_names(&base.source.checkpoint.path, &base.architecture)?,
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: has_neutral_shared_expert(
                &base.architecture,
                &tensors,
                sources(),
            )?,
        }),
        training: None,
        copy_of: None,
        notes: &notes,
        prompts: &[],
    };
    side_files::add_card(&mut files, &card)?;
    let architecture = base.architecture.clone();
    let sources = models.into_iter().map(|merged| merged.model.source);
    Ok((
        Plan {
            method: "merge".to_owned(),
            settings: recorded,
            sources: sources.collect(),
            tensors,
            notes,
            carries_non_finite: false,
        },
        architecture,
        files,
    ))
}

/// Refuses models that are too few or too many for the method.
fn check_number(models: &[MergedModel], settings: &MergeSettings) -> Result<()> {
    let method = settings.method;
    let expected = match (method.models(), method.base()) {
        (Some(number), _) if number != models.len() => number.to_string(),
        (None, BaseModel::Needed) if models.len() < 2 => "2 or more".to_owned(),
        _ => return Ok(()),
    };
    Err(SurgeryError::NumberOfModels {
        method: method.name(),
        expected,
        found: models.len(),
    }
    .into())
}

/// The settings that the manifest and the card have.
fn record(models: &[MergedModel], base: &Model, settings: &MergeSettings) -> Map<String, Value> {
    let mut recorded = Map::new();
    let mut put = |key: &str, value: Value| recorded.insert(key.to_owned(), value);
    let method = settings.method;
    put("method", json!(method.name()));
    for key in method.of_model() {
        let own = models.iter().map(|merged| merged.parameters.get(*key));
        if own.clone().any(|own| own.is_some()) {
            let values = own.map(|own| own.map(Parameter::to_value));
            put(of_models(key), values.collect());
        }
    }
    for key in [method.of_model(), method.of_all()].concat() {
        if let Some(parameter) = settings.parameters.get(key) {
            put(key, parameter.to_value());
        }
    }
    put("base", json!(base.source.name));
    put("dtype", json!(settings.dtype.map(dtype::name)));
    recorded
}

/// What the values of a parameter for each model are called.
fn of_models(key: &str) -> &str {
    match key {
        "weight" => "weights",
        "density" => "densities",
        other => other,
    }
}

/// The tensors of a model as its files have them.
fn stored(model: &Model, dtype: Option<Dtype>) -> Result<Vec<PlannedTensor>> {
    let tensors = model.specs.iter().map(|spec| {
        let dtype = dtype.map_or_else(|| model.dtype(spec), Ok)?;
        let (shape, part) = (spec.shape.clone(), model.averaged(spec)?);
        Ok(PlannedTensor::new(&spec.name, dtype, shape, part))
    });
    as_stored(&model.architecture, tensors.collect::<Result<_>>()?)
}

/// The tensors of the merge, as the base stores them.
fn merged(
    base: &Model,
    models: &[MergedModel],
    settings: &MergeSettings,
) -> Result<Vec<PlannedTensor>> {
    let of_models = models
        .iter()
        .map(|merged| stored(&merged.model, settings.dtype));
    let of_models: Vec<Vec<PlannedTensor>> = of_models.collect::<Result<_>>()?;
    let positions = positions(&base.architecture)?;
    let mut tensors = of_models[settings.base].clone();
    for (number, tensor) in tensors.iter_mut().enumerate() {
        let parts = of_models.iter().zip(models);
        let parts = parts.map(|(tensors, merged)| MergedPart {
            expression: tensors[number].expression.clone(),
            parameters: &merged.parameters,
        });
        let merged = MergedTensor {
            name: &tensor.layout.name,
            position: positions.get(&tensor.layout.name).copied().unwrap_or(0.0),
            parts: parts.collect(),
            base: settings.base,
            parameters: &settings.parameters,
        };
        tensor.expression = settings.method.expression(&merged)?;
    }
    Ok(tensors)
}

/// Where each tensor is, by the name that it is stored under: 0 in the first layer, 1 in the last, and 0 outside of layers, as
/// mergekit counts.
fn positions(architecture: &Architecture) -> Result<BTreeMap<String, f64>> {
    let last = architecture.num_layers.saturating_sub(1).max(1) as f64;
    let specs = architecture.tensors()?;
    let fused = architecture.fused_projections(&specs)?;
    let mut positions: BTreeMap<String, f64> = BTreeMap::new();
    for spec in specs {
        let position = spec.layer.map_or(0.0, |layer| layer as f64 / last);
        positions.insert(spec.name, position);
    }
    for whole in fused {
        let part = whole
            .parts
            .first()
            .and_then(|(name, _)| positions.get(name));
        if let Some(position) = part.copied() {
            positions.insert(whole.name, position);
        }
    }
    Ok(positions)
}

/// What the merge computes, with the numbers of these settings.
fn about(models: &[MergedModel], settings: &MergeSettings) -> String {
    let names: Vec<String> = models
        .iter()
        .map(|merged| markdown::text(&model_name(&merged.model.source.checkpoint.path)))
        .collect();
    let number = |key: &str, of: &Parameters| {
        let parameter = of.get(key).or_else(|| settings.parameters.get(key));
        parameter.and_then(Parameter::number)
    };
    let weights = models
        .iter()
        .map(|merged| number("weight", &merged.parameters));
    let weights: Option<Vec<f64>> = weights.collect();
    let weighted = |weights: &[f64]| {
        let weighted = names.iter().zip(weights);
        let weighted = weighted.map(|(name, weight)| format!("{name} (weight {weight})"));
        weighted.collect::<Vec<_>>().join(", ")
    };
    let sums = settings.parameters.get("normalize") == Some(&Parameter::Switch(false));
    let base = &names[settings.base];
    let what = match weights.as_deref() {
        Some(weights) if settings.method == MergeMethod::LINEAR => {
            if sums {
                format!("The weighted sum of {}.", weighted(weights))
            } else if weights.iter().all(|weight| *weight == weights[0]) {
                format!("The mean of {}.", names.join(", "))
            } else {
                format!("The weighted mean of {}.", weighted(weights))
            }
        }
        _ => {
            let (method, about) = (settings.method.name(), settings.method.about());
            let others = names.iter().enumerate();
            let others =
                others.filter_map(|(at, name)| (at != settings.base).then_some(name.as_str()));
            let others: Vec<&str> = others.collect();
            format!(
                "A merge of {base} and {} with the method `{method}`: {about}.",
                others.join(", ")
            )
        }
    };
    format!("{what} Configuration and tokenizer come from {base}.")
}
