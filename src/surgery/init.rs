//! A checkpoint from a configuration alone: every weight drawn, norms one, biases zero.

use std::path::Path;

use serde_json::{Map, json};

use super::execute::OutputFile;
use super::fused::as_stored;
use super::model::companions;
use super::plan::{Plan, PlannedTensor};
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard};
use crate::checkpoint::Dtype;
use crate::checkpoint::expression::Expression;
use crate::family::{
    Architecture, Config, Role, TensorSpec, both_spellings, expert_names, say_dtype,
};

/// How a fresh tensor of a model starts: weights from N(0, std²) with the model's standard deviation, norms with the factor 1,
/// biases at 0, adapters as the identity.
pub fn fresh(spec: &TensorSpec, of: &Architecture, seed: u64) -> Expression {
    match (spec.bias, spec.role) {
        (true, _) => Expression::Constant { value: 0.0 },
        (false, Role::AttentionAdapter | Role::FfnAdapter) => Expression::Identity,
        (false, role) if role.is_norm() => Expression::Constant {
            value: norm_of_one(of),
        },
        (false, _) => Expression::Normal {
            std: of.initializer_range,
            seed,
        },
    }
}

/// The weight with which norms multiply by 1.
fn norm_of_one(of: &Architecture) -> f64 {
    if of.norm_offset { 0.0 } else { 1.0 }
}

/// Plans the checkpoint that the configuration at `path` (a file, or a folder with a tokenizer) describes.
///
/// The standard deviation is the configuration's `initializer_range`; the dtype is `dtype`, else the configuration's,
/// else float32.
pub fn plan(
    path: &Path,
    dtype: Option<Dtype>,
    seed: u64,
) -> Result<(Plan, Architecture, Vec<OutputFile>)> {
    let config = Config::read(path)?.language_model()?.into_owned();
    let mut architecture = Architecture::of(&config)?;
    let dtype = dtype.or(architecture.dtype).unwrap_or(Dtype::F32);
    architecture.dtype = Some(dtype);
    let std = architecture.initializer_range;
    let tensors = architecture.tensors()?.into_iter().map(|spec| {
        let expression = fresh(&spec, &architecture, seed);
        PlannedTensor::new(spec.name, dtype, spec.shape, expression)
    });
    let tensors = as_stored(&architecture, tensors.collect())?;
    let mut settings = Map::new();
    settings.insert("rng_seed".to_owned(), json!(seed));
    settings.insert(
        "dtype".to_owned(),
        json!(crate::checkpoint::dtype::name(dtype)),
    );
    settings.insert("initializer_range".to_owned(), json!(std));
    let plan = Plan {
        method: "init".to_owned(),
        settings,
        sources: Vec::new(),
        tensors,
        notes: Vec::new(),
        carries_non_finite: false,
    };
    let mut json = config.json.clone();
    say_dtype(&mut json, dtype);
    // Its default depends on the version of transformers.
    let inner = json
        .get("rope_parameters")
        .and_then(|rope| rope.get("rope_theta").or(rope.get("full_attention")));
    if inner.is_none() && json.get("rope_theta").is_none() {
        json.insert("rope_theta".to_owned(), json!(architecture.rope_theta));
    }
    both_spellings(&mut json);
    let mut files = vec![side_files::json_file("config.json", &json)];
    if architecture.is_bam() {
        files.extend(side_files::model_code());
    }
    files.extend(side_files::copies(companions(path)?));
    let card = ModelCard {
        title: "Randomly initialised model",
        about: format!(
            "Random weights, not trained: drawn from a normal distribution with a standard deviation of {std}. \
             Norms are {} and biases are 0.",
            norm_of_one(&architecture)
        ),
        tags: if architecture.mixture.is_some() {
            &["moe"]
        } else {
            &[]
        },
        relation: None,
        sources: Vec::new(),
        settings: &plan.settings,
        model: Some(CardModel {
            experts: expert_names(path, &architecture)?,
            architecture: &architecture,
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: false,
        }),
        training: None,
        copy_of: None,
        notes: &[],
        prompts: &[],
    };
    side_files::add_card(&mut files, &card)?;
    Ok((plan, architecture, files))
}
