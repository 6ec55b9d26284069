//! One expert of a mixture as a dense model again.

use serde_json::{Map, json};

use super::expert::Changed;
use super::fused::as_stored;
use super::mixture_experts::MixtureExperts;
use super::model::Model;
use super::plan::{Plan, PlannedTensor};
use super::recompose::ByPlace;
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard};
use crate::checkpoint::manifest::model_name;
use crate::family::{Architecture, AttentionKv, Output, Role, dense};
use crate::markdown;

/// Plans the dense model of the expert with this name or number.
///
/// It has the expert's feed-forward network, and its attention where the expert has its own. Embeddings, norms and merged
/// attention are the mixture's, which are averages after an upcycling.
pub fn plan(mixture: Model, wanted: &str) -> Result<Changed> {
    let experts = MixtureExperts::of(&mixture)?;
    let (number, name) = experts.find_one(wanted)?;
    let attention = experts.attention_of(number)?;
    let Output {
        architecture,
        config,
        notes: _,
    } = dense(&mixture.config, &mixture.architecture)?;
    let tensors = tensors(&mixture, &architecture, number as u64, attention)?;
    let notes = notes(&mixture, experts.mixture.attention_kv);
    let mut settings = Map::new();
    settings.insert("expert".to_owned(), json!(name));
    settings.insert("number".to_owned(), json!(number));
    let mut files = vec![side_files::json_file("config.json", &config)];
    files.extend(side_files::copies(mixture.companions()?));
    let mixture_name = markdown::text(&model_name(&mixture.source.checkpoint.path));
    let card = ModelCard {
        title: "Expert of a mixture",
        about: format!(
            "The expert {} of {mixture_name} as a dense model; {}.",
            markdown::text(&name),
            notes.join("; ")
        ),
        tags: &["merge"],
        relation: None,
        sources: side_files::named([&mixture.source]),
        settings: &settings,
        model: Some(CardModel {
            architecture: &architecture,
            experts: Vec::new(),
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: false,
        }),
        training: None,
        copy_of: None,
        notes: &[],
        prompts: &[],
    };
    side_files::add_card(&mut files, &card)?;
    let plan = Plan {
        method: "expert extract".to_owned(),
        settings,
        sources: vec![mixture.source],
        tensors,
        notes,
        carries_non_finite: false,
    };
    Ok(Changed {
        plan,
        architecture,
        files,
    })
}

/// The expert's own tensors, and the mixture's where it has none.
fn tensors(
    mixture: &Model,
    architecture: &Architecture,
    number: u64,
    attention: Option<u64>,
) -> Result<Vec<PlannedTensor>> {
    let tensors_of = ByPlace::new(mixture);
    let mut tensors = Vec::new();
    for spec in architecture.tensors()? {
        let own = if spec.role.of_attention() {
            attention
        } else {
            Some(number)
        };
        let own = own.filter(|_| tensors_of.find(&spec, own).is_some());
        let (dtype, expression) = tensors_of.copy(&spec, own)?;
        tensors.push(PlannedTensor::new(spec.name, dtype, spec.shape, expression));
    }
    as_stored(architecture, tensors)
}

/// What is not the expert's own.
fn notes(mixture: &Model, attention_kv: AttentionKv) -> Vec<String> {
    let of_the_mixture = match attention_kv {
        AttentionKv::Expert => "norms and embeddings are the mixture's",
        AttentionKv::Shared => "keys, values, norms and embeddings are the mixture's",
        AttentionKv::Merged => "attention, norms and embeddings are the mixture's",
    };
    let mut notes = vec![of_the_mixture.to_owned()];
    let mut specs = mixture.specs.iter();
    if specs.any(|spec| spec.role == Role::SharedDown) {
        notes.push(
            "the shared expert is left out: a dense model has one feed-forward network in a layer"
                .to_owned(),
        );
    }
    notes
}
