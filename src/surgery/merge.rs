//! One model as the weighted average of several of the same shape.

use serde_json::{Map, json};

use super::card::{self, Card};
use super::execute::{Content, OutputFile};
use super::fit;
use super::model::Model;
use super::plan::{Plan, PlannedTensor};
use crate::checkpoint::dtype;
use crate::checkpoint::expression::Expression;
use crate::family::{Architecture, both_spellings};
use crate::{Error, Result};

/// Plans the average of `models`, each with its weight; weights are divided by their sum.
pub fn plan(models: Vec<(Model, f64)>) -> Result<(Plan, Architecture, Vec<OutputFile>)> {
    let Some(((first, _), others)) = models.split_first() else {
        return Err(Error::usage("nothing to merge: expected at least one --model DIR[:WEIGHT]"));
    };
    for (other, _) in others {
        fit::check(first, other)?;
    }
    let weights: Vec<f64> = models.iter().map(|(_, weight)| *weight).collect();
    let sum: f64 = weights.iter().sum();
    if weights.iter().any(|weight| !weight.is_finite()) || !sum.is_finite() || sum == 0.0 {
        return Err(Error::usage(format!("the weights {weights:?} cannot be divided by their sum {sum}"))
            .with_hint("give finite weights that do not add up to 0"));
    }
    let mut tensors = Vec::with_capacity(first.specs.len());
    for (number, spec) in first.specs.iter().enumerate() {
        let dtype = first.dtype(spec)?;
        let mut parts = Vec::with_capacity(models.len());
        for (model, _) in &models {
            let of_model = &model.specs[number];
            let stored = model.dtype(of_model)?;
            if !dtype::is_float(stored) {
                let path = &model.source.checkpoint.path;
                return Err(Error::tensor(
                    path,
                    &of_model.name,
                    format!("cannot be averaged: it is stored as {stored}"),
                ));
            }
            parts.push(Expression::copy(&model.source.name, &of_model.name));
        }
        let expression = if weights.iter().all(|weight| *weight == weights[0]) {
            Expression::Mean { of: parts }
        } else {
            Expression::Weighted { of: parts, weights: weights.clone() }
        };
        tensors.push(PlannedTensor::new(&spec.name, dtype, spec.shape.clone(), expression));
    }
    let mut settings = Map::new();
    settings.insert("weights".to_owned(), json!(weights));
    let mut config = first.config.json.clone();
    both_spellings(&mut config);
    let mut files = vec![card::json_file("config.json", &config)];
    files.extend(card::copies(first.companions()));
    let sources =
        models.iter().map(|(model, _)| (model.source.name.as_str(), model.source.checkpoint.path.as_path())).collect();
    let about = "A weighted average of models of one shape.";
    let text = Card { title: "Merged model", about, tags: &["merge"], sources, settings: &settings }.text();
    files.push(OutputFile { name: "README.md".to_owned(), content: Content::Editable(text.into_bytes()) });
    let architecture = first.architecture.clone();
    let sources = models.into_iter().map(|(model, _)| model.source).collect();
    Ok((
        Plan { method: "merge".to_owned(), settings, sources, tensors, notes: Vec::new(), carries_non_finite: false },
        architecture,
        files,
    ))
}
