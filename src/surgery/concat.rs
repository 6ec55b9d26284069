//! Mixtures of two experts that were trained apart, put together (FlexOlmo, Shi et al. 2025).

use rayon::prelude::*;
use serde_json::{Map, json};

use super::error::SurgeryError;
use super::expert::{Changed, Making};
use super::fit;
use super::fit_error::{FitError, KeyDifference};
use super::mixture_experts::{MixtureExperts, Routing};
use super::model::Model;
use super::recompose::{ByPlace, Composition, Part, Shared};
use crate::family::{Mixture, TensorSpec};
use crate::{Result, threads};

/// Plans one mixture of several two-expert mixtures that were trained apart (FlexOlmo, Shi et al. 2025): the expert that all
/// of them share, which comes first in each, and the own expert of each, called by the mixture's name where that was chosen.
///
/// What is shared, the public expert and its row of the routers included, must be the same bytes in all of them, or is
/// averaged with `average`.
pub fn plan(mixtures: Vec<(Model, bool)>, average: bool, routing: Routing) -> Result<Changed> {
    let (models, named): (Vec<Model>, Vec<bool>) = mixtures.into_iter().unzip();
    let Some((first, others)) = models.split_first() else {
        return Err(SurgeryError::NoModels {
            action: "put together",
            expected: "mixtures of two experts each",
        }
        .into());
    };
    let experts = MixtureExperts::of(first)?;
    let names = names(&models, &named, experts.names[0].clone())?;
    let notes = check_alike(&experts, first, others, average)?;
    let public = if average {
        Part::Public
    } else {
        Part::Of {
            mixture: 0,
            expert: 0,
        }
    };
    let own = (0..models.len()).map(|mixture| Part::Of { mixture, expert: 1 });
    let ffn: Vec<Part> = std::iter::once(public).chain(own).collect();
    let attention = if experts.attention() == 0 {
        Vec::new()
    } else {
        ffn.clone()
    };
    let shared = if average {
        Shared::Averaged(vec![1.0; models.len()])
    } else {
        Shared::Kept
    };
    let resized = experts.resized(ffn.len(), attention.len(), routing)?;
    let mut recorded = Map::new();
    recorded.insert("experts".to_owned(), json!(names));
    recorded.insert("average_shared".to_owned(), json!(average));
    let composition = Composition {
        ffn,
        attention,
        shared,
        rows: None,
    };
    Making {
        models,
        file: None,
        notes,
        names,
        mixture: resized,
        composition,
        recorded,
        method: "expert concat",
        prompts: Vec::new(),
    }
    .plan()
}

/// The name of the public expert, and a name for the own expert of each mixture: the mixture's where that was chosen.
///
/// # Errors
/// A mixture of other than two experts, and names that are there twice.
fn names(models: &[Model], named: &[bool], public: String) -> Result<Vec<String>> {
    let mut names = vec![public];
    for (model, named) in models.iter().zip(named) {
        let other = MixtureExperts::of(model)?;
        if other.mixture.num_experts != 2 || !matches!(other.attention(), 0 | 2) {
            return Err(FitError::NotTwoExperts {
                path: model.config.path.clone(),
                experts: other.mixture.num_experts,
                attention_experts: other.attention(),
            }
            .into());
        }
        let name = if *named {
            &model.source.name
        } else {
            &other.names[1]
        };
        if names.contains(name) {
            let name = name.clone();
            return Err(SurgeryError::SameExpertName { name }.into());
        }
        names.push(name.clone());
    }
    Ok(names)
}

/// Refuses mixtures that differ from the first in what they share, and returns notes about those that do not.
fn check_alike(
    experts: &MixtureExperts,
    first: &Model,
    others: &[Model],
    average: bool,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for other in others {
        notes.extend(fit::check(first, other)?);
        if let Some(difference) =
            first_difference(experts.mixture, other.architecture.mixture.as_ref())
        {
            return Err(FitError::MixtureKey {
                path: other.config.path.clone(),
                reference: first.config.path.clone(),
                difference: Box::new(difference),
            }
            .into());
        }
        if !average {
            check_frozen(first, other)?;
        }
    }
    Ok(notes)
}

/// The first key in which two mixtures differ, with both values.
fn first_difference(a: &Mixture, b: Option<&Mixture>) -> Option<KeyDifference> {
    let (a, b) = (json!(a), json!(b));
    let keys = a
        .as_object()
        .into_iter()
        .chain(b.as_object())
        .flat_map(Map::keys);
    keys.into_iter()
        .find(|key| a[key.as_str()] != b[key.as_str()])
        .map(|key| KeyDifference {
            key: key.clone(),
            expected: a[key.as_str()].clone(),
            found: b[key.as_str()].clone(),
        })
}

/// Refuses `other` where what it shares with `first` has other bytes: all but the own expert and its row of the routers.
fn check_frozen(first: &Model, other: &Model) -> Result<()> {
    let of_other = ByPlace::new(other);
    let check = |spec: &TensorSpec| {
        let found = of_other.find(spec, spec.expert).unwrap_or(spec);
        let (a, b) = (first.entry(spec)?, other.entry(found)?);
        let rows = if spec.role.is_router() { 2 } else { 1 };
        let same = a.encoding == b.encoding
            && a.shape == b.shape
            && first.source.checkpoint.same_beginning(
                a,
                &other.source.checkpoint,
                b,
                a.length / rows,
            )?;
        if same {
            return Ok(());
        }
        Err(FitError::NotFrozen {
            path: other.source.checkpoint.files[b.file].path().to_path_buf(),
            tensor: found.name.clone(),
            first_row: rows == 2,
            reference: first.source.checkpoint.path.clone(),
        }
        .into())
    };
    threads::start_shared(0)?;
    let frozen: Vec<&TensorSpec> = first
        .specs
        .iter()
        .filter(|spec| spec.expert != Some(1))
        .collect();
    // The first in the order of the layers, whichever thread comes first.
    frozen
        .par_iter()
        .find_map_first(|spec| check(spec).err())
        .map_or(Ok(()), Err)
}
