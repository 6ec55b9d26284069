//! Whether models can be put together: the first key, token or tensor that differs, with both values.

use serde_json::Value;

use super::fit_tokenizer::check_tokenizer;
use super::model::Model;
use crate::family::{Architecture, Config, Role, TensorSpec, same_value};
use crate::{Error, Result};

/// Refuses `other` where it cannot be averaged with, or stand beside, `reference`; what cannot be compared is said in words.
pub fn check(reference: &Model, other: &Model) -> Result<Vec<String>> {
    check_architecture(&reference.architecture, &reference.config, other)?;
    check_tensors(reference, other)?;
    check_tokenizer(reference, other)
}

/// Keys that say what a feed-forward network is.
const OF_FEED_FORWARD: [&str; 7] = [
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "mlp_bias",
    "mlp_type",
    "hidden_act",
];

/// Refuses `other` where its feed-forward networks cannot be experts beside those of `reference`; what else differs, and
/// is not taken from it, is said in words.
pub fn check_feed_forward(reference: &Model, other: &Model) -> Result<Vec<String>> {
    let name = &other.source.name;
    let mut notes = feed_forward_differences(&reference.architecture, &reference.config, other)?;
    let mine = other.by_role();
    for spec in reference
        .specs
        .iter()
        .filter(|spec| matches!(spec.role, Role::Gate | Role::Up | Role::Down))
    {
        let found = mine.get(&(spec.role, spec.bias, spec.layer));
        check_shape(reference, spec, other, found.map_or(spec, |found| found))?;
    }
    match check_tokenizer(reference, other) {
        Ok(unknown) => notes.extend(unknown),
        Err(error) => notes.push(format!(
            "{name} has another tokenizer than the seed, whose ids reach its experts: {error}"
        )),
    }
    Ok(notes)
}

/// Refuses the dense model `other` where it cannot be an expert of `mixture`: all of it, or its feed-forward networks, where
/// only these are taken from it; what else differs then is said in words.
pub fn check_expert(
    mixture: &Model,
    other: &Model,
    feed_forward_only: bool,
) -> Result<Vec<String>> {
    if other.architecture.mixture.is_some() {
        return Err(Error::file(
            &other.config.path,
            "is a mixture, expected a dense model",
        ));
    }
    // A mixture is of no dense family: what families differ in is compared by itself.
    let alone = Architecture {
        family: other.architecture.family.clone(),
        ..mixture.architecture.of_one_expert()
    };
    if feed_forward_only {
        return feed_forward_differences(&alone, &mixture.config, other);
    }
    check_architecture(&alone, &mixture.config, other)?;
    check_tokenizer(mixture, other)
}

/// What differs beside the feed-forward network, in words.
fn feed_forward_differences(
    reference: &Architecture,
    config: &Config,
    other: &Model,
) -> Result<Vec<String>> {
    let name = &other.source.name;
    let mut notes = Vec::new();
    for (key, expected, found) in differences(reference, other) {
        if OF_FEED_FORWARD.contains(&key) {
            return Err(misfit(config, other, key, &expected, &found));
        }
        notes.push(format!(
            "{name}: {key} is {found}, the seed's {expected}; only its feed-forward weights are taken, trained beside its own"
        ));
    }
    Ok(notes)
}

/// Compares what two configurations say about the function that the model computes.
fn check_architecture(reference: &Architecture, config: &Config, other: &Model) -> Result<()> {
    match differences(reference, other).next() {
        Some((key, expected, found)) => Err(misfit(config, other, key, &expected, &found)),
        None => Ok(()),
    }
}

fn misfit(config: &Config, other: &Model, key: &str, expected: &Value, found: &Value) -> Error {
    let problem = format!("is {found}, but {} has {expected}", config.path.display());
    Error::key(&other.config.path, key, problem)
        .with_hint("experts must come from one seed: same shape, positions and norms")
}

/// Keys of which the configurations say different things, with the reference's value and the other's.
fn differences(
    a: &Architecture,
    other: &Model,
) -> impl Iterator<Item = (&'static str, Value, Value)> {
    let b = &other.architecture;
    a.meaning()
        .into_iter()
        .zip(b.meaning())
        .map(|((key, expected), (_, found))| (key, expected, found))
        .filter(|(_, expected, found)| !same_value(expected, found))
}

/// The configurations agree; a tensor can still differ where a model is described by a format file.
fn check_tensors(reference: &Model, other: &Model) -> Result<()> {
    reference
        .specs
        .iter()
        .try_for_each(|spec| check_shape(reference, spec, other, spec))
}

fn check_shape(
    reference: &Model,
    spec: &TensorSpec,
    other: &Model,
    of_other: &TensorSpec,
) -> Result<()> {
    let expected = &reference.entry(spec)?.shape;
    let found = other.entry(of_other)?;
    if found.shape == *expected {
        return Ok(());
    }
    let of_reference = reference.source.checkpoint.path.display();
    let problem = format!(
        "has shape {:?}, but {of_reference} has {expected:?}",
        found.shape
    );
    Err(Error::tensor(
        other.source.checkpoint.files[found.file].path(),
        &of_other.name,
        problem,
    ))
}
