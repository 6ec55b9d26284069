//! Whether models can be put together: the first key, token or tensor that differs, with both values.

use super::fit_error::{FitError, KeyDifference};
use super::fit_tokenizer::check_tokenizer;
use super::model::Model;
use crate::family::{Architecture, Config, Role, TensorSpec, same_value};
use crate::{Error, Result};

/// Refuses `other` where it cannot be averaged with `reference`. Returns a note about what cannot be compared.
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

/// Refuses `other` where its feed-forward networks cannot be experts beside the networks of `reference`. Returns a note about
/// each further difference.
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

/// Refuses the dense model `other` where it cannot be an expert of `mixture`. With `feed_forward_only`, only its feed-forward
/// networks must fit, and a note tells each further difference.
pub fn check_expert(
    mixture: &Model,
    other: &Model,
    feed_forward_only: bool,
) -> Result<Vec<String>> {
    if other.architecture.mixture.is_some() {
        let path = other.config.path.clone();
        return Err(FitError::MixtureAsExpert { path }.into());
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
    for difference in differences(reference, other) {
        if OF_FEED_FORWARD.contains(&difference.key.as_str()) {
            return Err(misfit(config, other, difference));
        }
        let [expected, found] = difference.values();
        let key = difference.key;
        notes.push(format!(
            "{name}: {key} is {found}, the seed's {expected}; only its feed-forward weights are taken, trained beside its own"
        ));
    }
    Ok(notes)
}

/// Compares what two configurations say about the function that the model computes.
fn check_architecture(reference: &Architecture, config: &Config, other: &Model) -> Result<()> {
    match differences(reference, other).next() {
        Some(difference) => Err(misfit(config, other, difference)),
        None => Ok(()),
    }
}

fn misfit(config: &Config, other: &Model, difference: KeyDifference) -> Error {
    FitError::Key {
        path: other.config.path.clone(),
        reference: config.path.clone(),
        difference: Box::new(difference),
    }
    .into()
}

/// Keys of which the configurations say different things, with the reference's value and the other's.
fn differences(a: &Architecture, other: &Model) -> impl Iterator<Item = KeyDifference> {
    let b = &other.architecture;
    a.meaning()
        .into_iter()
        .zip(b.meaning())
        .filter(|((_, expected), (_, found))| !same_value(expected, found))
        .map(|((key, expected), (_, found))| KeyDifference {
            key: key.to_owned(),
            expected,
            found,
        })
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
    Err(FitError::Shape {
        path: other.source.checkpoint.files[found.file]
            .path()
            .to_path_buf(),
        tensor: of_other.name.clone(),
        found: found.shape.as_slice().into(),
        reference: reference.source.checkpoint.path.clone(),
        expected: expected.as_slice().into(),
    }
    .into())
}
