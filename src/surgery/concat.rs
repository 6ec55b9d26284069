//! Mixtures of two experts that were trained apart, put together (FlexOlmo, Shi et al. 2025).

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::expert::{Changed, Making};
use super::fit;
use super::mixture_experts::{MixtureExperts, Routing};
use super::model::Model;
use super::recompose::{ByPlace, Composition, Part, Shared};
use crate::family::{Mixture, TensorSpec};
use crate::{Error, Result, threads};

/// Plans one mixture of several two-expert mixtures that were trained apart (FlexOlmo, Shi et al. 2025): the expert that all
/// of them share, which comes first in each, and the own expert of each, called by the mixture's name where that was chosen.
///
/// What is shared, the public expert and its row of the routers included, must be the same bytes in all of them, or is
/// averaged with `average`.
pub fn plan(mixtures: Vec<(Model, bool)>, average: bool, routing: Routing) -> Result<Changed> {
    let (models, named): (Vec<Model>, Vec<bool>) = mixtures.into_iter().unzip();
    let Some((first, others)) = models.split_first() else {
        return Err(Error::usage(
            "nothing to put together: expected mixtures of two experts each",
        ));
    };
    let experts = MixtureExperts::of(first)?;
    let mut names = vec![experts.names[0].clone()];
    for (model, named) in models.iter().zip(named) {
        let other = MixtureExperts::of(model)?;
        if other.mixture.num_experts != 2 || !matches!(other.attention(), 0 | 2) {
            let (count, attention) = (other.mixture.num_experts, other.attention());
            let problem = format!(
                "has {count} feed-forward and {attention} attention experts; expected two: the public one and its own"
            );
            return Err(Error::file(&model.config.path, problem));
        }
        let name = if named {
            &model.source.name
        } else {
            &other.names[1]
        };
        if names.contains(name) {
            let problem = format!("two experts are named `{name}`; expected each name once");
            return Err(
                Error::usage(problem).with_hint("name the own expert of each mixture: NAME=DIR")
            );
        }
        names.push(name.clone());
    }
    let mut notes = Vec::new();
    for other in others {
        notes.extend(fit::check(first, other)?);
        if let Some((key, expected, found)) =
            first_difference(experts.mixture, other.architecture.mixture.as_ref())
        {
            let problem = format!(
                "is {found}, but {} has {expected}",
                first.config.path.display()
            );
            return Err(Error::key(&other.config.path, &key, problem));
        }
        if !average {
            check_frozen(first, other)?;
        }
    }
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
    }
    .plan()
}

/// The first key in which two mixtures differ, with both values.
fn first_difference(a: &Mixture, b: Option<&Mixture>) -> Option<(String, Value, Value)> {
    let (a, b) = (json!(a), json!(b));
    let keys = a
        .as_object()
        .into_iter()
        .chain(b.as_object())
        .flat_map(Map::keys);
    keys.into_iter()
        .find(|key| a[key.as_str()] != b[key.as_str()])
        .map(|key| {
            (
                key.clone(),
                a[key.as_str()].clone(),
                b[key.as_str()].clone(),
            )
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
        let of = first.source.checkpoint.path.display();
        let what = if rows == 2 {
            "its first row differs"
        } else {
            "differs"
        };
        let problem = format!("{what} from that of {of}, but it should have been frozen");
        Err(Error::tensor(
            other.source.checkpoint.files[b.file].path(),
            &found.name,
            problem,
        )
        .with_hint("--average-shared averages what differs"))
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
