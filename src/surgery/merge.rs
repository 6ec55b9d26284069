//! Several models of one shape as one.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value, json};

use super::error::SurgeryError;
use super::execute::OutputFile;
use super::fit;
use super::fit_tokenizer::ids_beyond;
use super::fused::as_stored;
use super::merge_slices::{self, MergeSlice, SliceSource, of_slice};
use super::merging::{BaseModel, MergeMethod, MergedPart, MergedTensor, Parameters};
use super::model::Model;
use super::neutral::has_neutral_shared_expert;
use super::plan::{Plan, PlannedTensor};
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard, Relation};
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::manifest::model_name;
use crate::family::{Architecture, TensorSpec, expert_names};
use crate::markdown;
use crate::parameter::Parameter;
use crate::table;

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
    /// Seed of all random draws.
    pub rng_seed: u64,
    /// The layers of the output and what they are made of; whole models where empty.
    pub slices: Vec<MergeSlice>,
    /// What the user should know of these settings.
    pub notes: Vec<String>,
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
    let mut notes = settings.notes.clone();
    notes.extend(ids_beyond(base)?);
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
    let slices = slices(&models, base, settings);
    merge_slices::check(&slices, &base.architecture)?;
    let (config, architecture) = merge_slices::stacked(base, &slices)?;
    let tensors = merged(&architecture, &models, &slices, settings)?;
    let recorded = record(&models, base, settings);
    let (config, of_config) = side_files::recast(&config, &base.source.checkpoint, settings.dtype)?;
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
            architecture: &architecture,
            experts: expert_names(&base.source.checkpoint.path, &architecture)?,
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: has_neutral_shared_expert(
                &architecture,
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

/// The slices of the settings; if they are empty, all layers of all models.
fn slices(models: &[MergedModel], base: &Model, settings: &MergeSettings) -> Vec<MergeSlice> {
    if !settings.slices.is_empty() {
        return settings.slices.clone();
    }
    let sources = models.iter().enumerate();
    let sources = sources.map(|(model, merged)| SliceSource {
        model,
        layers: 0..base.architecture.num_layers,
        parameters: merged.parameters.clone(),
    });
    vec![MergeSlice {
        sources: sources.collect(),
        base: None,
        parameters: Parameters::new(),
    }]
}

/// Refuses models that are too few or too many for the method.
fn check_number(models: usize, settings: &MergeSettings) -> Result<()> {
    let method = settings.method;
    let least = method.least_models();
    let expected = match method.models() {
        Some(number) if number != models => number.to_string(),
        None if models < least => format!("{least} or more"),
        _ => return Ok(()),
    };
    Err(SurgeryError::NumberOfModels {
        method: method.name(),
        expected,
        found: models,
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
    if !settings.slices.is_empty() {
        put("slices", settings.slices.iter().map(slice_text).collect());
    }
    if method.draws() {
        put("rng_seed", json!(settings.rng_seed));
    }
    put("base", json!(base.source.name));
    put("dtype", json!(settings.dtype.map(dtype::name)));
    recorded
}

/// A slice as `--slice` has it, with its parameters where it has some.
fn slice_text(slice: &MergeSlice) -> Value {
    let source = |source: &SliceSource| {
        let Range { start, end } = source.layers;
        format!("{}:{start}-{}", source.model + 1, end - 1)
    };
    let layers: Vec<String> = slice.sources.iter().map(source).collect();
    let own = slice.sources.iter().map(|source| &source.parameters);
    let own: Vec<Value> = own.map(as_json).collect();
    let mut text = json!({"layers": layers.join(",")});
    if let Some(base) = slice.base {
        text["base"] = json!(base + 1);
    }
    if own.iter().any(|own| own != &json!({})) {
        text["own"] = json!(own);
    }
    if !slice.parameters.is_empty() {
        text["parameters"] = as_json(&slice.parameters);
    }
    text
}

fn as_json(parameters: &Parameters) -> Value {
    let values = parameters.iter();
    let values = values.map(|(key, parameter)| (key.clone(), parameter.to_value()));
    Value::Object(values.collect())
}

/// What the values of a parameter for each model are called.
fn of_models(key: &str) -> &str {
    match key {
        "weight" => "weights",
        "density" => "densities",
        "epsilon" => "epsilons",
        other => other,
    }
}

/// The tensors of a model that a slice is made of, under their names in the output, as files have them, and their names in the
/// model.
fn stored<'a>(
    model: &Model,
    architecture: &Architecture,
    specs: impl Iterator<Item = &'a TensorSpec>,
    of_layer: impl Fn(u64) -> u64,
) -> Result<(Vec<PlannedTensor>, Vec<String>)> {
    let by_place: BTreeMap<_, &TensorSpec> = model
        .specs
        .iter()
        .map(|spec| (spec.place(), spec))
        .collect();
    let (mut tensors, mut of_model) = (Vec::new(), Vec::new());
    for spec in specs {
        let (role, bias, layer, expert) = spec.place();
        let place = (role, bias, layer.map(&of_layer), expert);
        let own = by_place.get(&place).copied().unwrap_or(spec);
        let (dtype, part) = (model.dtype(own)?, model.averaged(own)?);
        let tensor = |name: &str, part| PlannedTensor::new(name, dtype, spec.shape.clone(), part);
        of_model.push(tensor(&own.name, part.clone()));
        tensors.push(tensor(&spec.name, part));
    }
    let of_model = as_stored(&model.architecture, of_model)?.into_iter();
    let names = of_model.map(|tensor| tensor.layout.name).collect();
    Ok((as_stored(architecture, tensors)?, names))
}

/// The tensors of the merge, as the base stores them.
fn merged(
    architecture: &Architecture,
    models: &[MergedModel],
    slices: &[MergeSlice],
    settings: &MergeSettings,
) -> Result<Vec<PlannedTensor>> {
    let specs = architecture.tensors()?;
    let mut tensors = Vec::with_capacity(specs.len());
    let mut start = 0;
    for (number, slice) in slices.iter().enumerate() {
        check_number(slice.sources.len(), settings)?;
        let base = slice
            .sources
            .iter()
            .position(|source| source.model == slice.base.unwrap_or(settings.base));
        if base.is_none() && settings.method.base() == BaseModel::Needed {
            return Err(SurgeryError::SliceWithoutBase { slice: number + 1 }.into());
        }
        let base = base.unwrap_or(0);
        let mut of_sources = Vec::with_capacity(slice.sources.len());
        for source in &slice.sources {
            let specs = of_slice(&specs, slices, number, start);
            let layer = |layer: u64| layer - start + source.layers.start;
            of_sources.push(stored(
                &models[source.model].model,
                architecture,
                specs,
                layer,
            )?);
        }
        let positions = positions(architecture, |layer| {
            slice.position(layer.saturating_sub(start))
        })?;
        for at in 0..of_sources[base].0.len() {
            let own = &of_sources[base].0[at].layout;
            let parts = of_sources.iter().zip(&slice.sources);
            let parts = parts.map(|((tensors, names), source)| MergedPart {
                expression: tensors[at].expression.clone(),
                name: &names[at],
                source: &models[source.model].model.source.name,
                parameters: &source.parameters,
            });
            let merged = MergedTensor {
                name: &own.name,
                position: positions.get(&own.name).copied().unwrap_or(0.0),
                parts: parts.collect(),
                base,
                parameters: [&slice.parameters, &settings.parameters],
                seed: settings.rng_seed,
            };
            let dtype = settings.dtype.unwrap_or(own.dtype);
            let mut expression = settings.method.expression(&merged)?;
            if dtype != own.dtype && expression == merged.parts[base].expression {
                let of = Box::new(expression);
                expression = Expression::Cast { of };
            }
            let (name, shape) = (own.name.clone(), own.shape.clone());
            tensors.push(PlannedTensor::new(name, dtype, shape, expression));
        }
        start += slice.length();
    }
    Ok(tensors)
}

/// Where each tensor is, by the name that it is stored under: as `of_layer` says for layers, and 0 outside of layers, as
/// mergekit counts.
fn positions(
    architecture: &Architecture,
    of_layer: impl Fn(u64) -> f64,
) -> Result<BTreeMap<String, f64>> {
    let specs = architecture.tensors()?;
    let fused = architecture.fused_projections(&specs)?;
    let mut positions: BTreeMap<String, f64> = BTreeMap::new();
    for spec in specs {
        let position = spec.layer.map_or(0.0, &of_layer);
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
    let is_sum = match settings.parameters.get("normalize") {
        None | Some(Parameter::Switch(true)) => Some(false),
        Some(Parameter::Switch(false)) => Some(true),
        Some(other) => other.number().map(|number| number == 0.0),
    };
    let base = &names[settings.base];
    let sliced = settings.slices.len();
    let what = match weights.as_deref() {
        _ if sliced > 0 => format!(
            "Layers of {} in {}, made with the method `{}`.",
            names.join(", "),
            table::counted(sliced as u64, "slice"),
            settings.method.name()
        ),
        Some(weights) if settings.method == MergeMethod::LINEAR && is_sum.is_some() => {
            if is_sum == Some(true) {
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
