//! What an upcycling says about itself: the settings in the manifest, the configuration, the model card, notes.

use serde_json::{Map, Value, json};

use super::execute::OutputFile;
use super::methods::{Method, RuleContext};
use super::model::Model;
use super::neutral::has_neutral_shared_expert;
use super::origins;
use super::plan::PlannedTensor;
use super::settings::UpcycleSettings;
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard, PromptsOfExpert, Relation};
use crate::checkpoint::dtype::{self, Dtype};
use crate::family::{Architecture, AttentionGate, AttentionKv, Layers};

/// The settings as the manifest, the card and the configuration record them.
pub(super) fn settings(
    settings: &UpcycleSettings,
    names: &[String],
    architecture: &Architecture,
    context: &RuleContext,
) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("method", json!(settings.method.name()));
    put("target", json!(settings.target));
    put("experts", json!(names));
    if let Some(mixture) = &architecture.mixture {
        if settings.method.upcycles().makes_attention_experts() {
            put("kv", json!(mixture.attention_kv));
            if mixture.attention_kv == AttentionKv::Shared {
                put(
                    "shared_kv",
                    json!(if settings.shared_kv_of_seed {
                        "seed"
                    } else {
                        "mean"
                    }),
                );
            }
            let soft = mixture.num_attention_experts_per_tok == mixture.num_attention_experts;
            let top_k = mixture.num_attention_experts_per_tok;
            put(
                "attention_top_k",
                if soft { json!("soft") } else { json!(top_k) },
            );
            if mixture.attention_gate == AttentionGate::Sigmoid {
                put("attention_gate", json!(mixture.attention_gate));
            }
            put(
                "attention_router",
                json!(settings.attention_router.to_string()),
            );
        }
        put("top_k", json!(mixture.num_experts_per_tok));
        put("norm_topk_prob", json!(mixture.norm_topk_prob));
    }
    for (key, value) in settings.expert_rule.record(context) {
        put(key, value);
    }
    if let Layers::List(layers) = &settings.layers {
        put("layers", json!(layers));
    }
    if let Some(shared) = &settings.shared_expert {
        put(
            "shared_expert",
            json!(format!(
                "{}{}",
                shared.of,
                if shared.gated { ":gated" } else { "" }
            )),
        );
    }
    for (key, value) in settings.scales.record() {
        put(key, value);
    }
    put(
        "rest",
        json!(if settings.rest_of_seed {
            "seed"
        } else {
            "mean"
        }),
    );
    put("no_seed_expert", json!(!settings.seed_expert));
    put("seed_copies", json!(settings.seed_copies));
    put("router", json!(settings.router.to_string()));
    if let Some(rows) = &settings.prompt_rows {
        put(
            "router_prompts",
            json!({"gate_mode": rows.mode, "sha256": rows.prompts_sha256}),
        );
    }
    put("router_bias", json!(settings.router_bias));
    put("adapters", json!(settings.adapters));
    put("dtype", json!(settings.dtype.map(dtype::name)));
    put(
        "router_dtype",
        json!(settings.router_dtype.map(dtype::name)),
    );
    put("rng_seed", json!(settings.rng_seed));
    map
}

/// Everything that the card of an upcycling tells of.
pub(super) struct Described<'a> {
    pub(super) models: &'a [Model],
    /// Names of the feed-forward experts.
    pub(super) names: &'a [String],
    /// What the mixture is.
    pub(super) architecture: &'a Architecture,
    /// Its tensors, in the order of [`Architecture::tensors`].
    pub(super) tensors: &'a [PlannedTensor],
    pub(super) settings: &'a Map<String, Value>,
    pub(super) method: Method,
    /// What a user should know.
    pub(super) notes: &'a [String],
    /// The prompts that rows of routers were computed from.
    pub(super) prompts: &'a [PromptsOfExpert],
}

/// The files beside the weights; the card comes last.
pub(super) fn files(
    described: &Described,
    mut config: Map<String, Value>,
) -> Result<Vec<OutputFile>> {
    let Described {
        models,
        names,
        architecture,
        method,
        ..
    } = *described;
    let seed = &models[0];
    config.insert("expert_names".to_owned(), json!(names));
    let mut files = vec![side_files::json_file("config.json", &config)];
    if architecture.is_bam() {
        files.extend(side_files::model_code());
    }
    files.extend(side_files::copies(seed.companions()?));

    let origins = origins::sentences(architecture, described.tensors, names)?;
    let is_merge = models.len() > 1;
    let mut tags = vec!["moe", method.name()];
    if is_merge {
        tags.insert(1, "merge");
    }
    let card = ModelCard {
        title: &format!("{} mixture", method.name().to_uppercase()),
        about: format!("{} {origins}", method.about()),
        tags: &tags,
        relation: is_merge.then_some(Relation::Merge),
        sources: side_files::named(models.iter().map(|model| &model.source)),
        settings: described.settings,
        model: Some(CardModel {
            architecture,
            experts: names.to_vec(),
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: has_neutral_shared_expert(
                architecture,
                described.tensors,
                models.iter().map(|model| &model.source),
            )?,
        }),
        training: None,
        copy_of: None,
        notes: described.notes,
        prompts: described.prompts,
    };
    side_files::add_card(&mut files, &card)?;
    Ok(files)
}

/// What a user should know before the surgery runs.
pub(super) fn notes(models: &[Model], dtype: Option<Dtype>) -> Vec<String> {
    let mut notes = Vec::new();
    for model in models {
        let name = &model.source.name;
        notes.extend(model.unused_note());
        let differing = model
            .specs
            .iter()
            .zip(&models[0].specs)
            .find_map(|(spec, of_seed)| {
                let (found, expected) = (model.dtype(spec).ok()?, models[0].dtype(of_seed).ok()?);
                (found != expected).then_some((spec, found, expected))
            });
        if let Some((spec, found, expected)) = differing.filter(|_| dtype.is_none()) {
            notes.push(format!(
                "{name}: stored in another dtype than the seed (`{}` is {found}, the seed's {expected}); experts keep their bytes, averages take the seed's dtype",
                spec.name
            ));
        }
    }
    notes
}
