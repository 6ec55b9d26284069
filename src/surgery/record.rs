//! What an upcycling says about itself: the settings in the manifest, the configuration, the model card, notes.

use serde_json::{Map, Value, json};

use super::card::{self, Card};
use super::execute::OutputFile;
use super::methods::{Method, RuleContext};
use super::model::Model;
use super::upcycle::UpcycleSettings;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::family::{Architecture, AttentionKv, Layers};

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

pub(super) fn files(
    models: &[Model],
    names: &[String],
    mut config: Map<String, Value>,
    architecture: &Architecture,
    settings: &Map<String, Value>,
    method: Method,
) -> Result<Vec<OutputFile>> {
    let seed = &models[0];
    config.insert("expert_names".to_owned(), json!(names));
    let mut files = vec![card::json_file("config.json", &config)];
    if architecture.is_bam() {
        files.extend(card::model_code());
    }
    files.extend(card::copies(seed.companions()?));
    let tags = ["moe", "merge", method.name()];
    let paths = models
        .iter()
        .map(|model| {
            (
                model.source.name.as_str(),
                model.source.checkpoint.path.as_path(),
            )
        })
        .collect();
    let card = Card {
        title: &format!("{} mixture", method.name().to_uppercase()),
        about: method.about(),
        tags: &tags,
        sources: paths,
        settings,
    };
    files.push(card.file());
    Ok(files)
}

/// What a user should know before the surgery runs.
pub(super) fn notes(models: &[Model], dtype: Option<Dtype>) -> Vec<String> {
    let mut notes = Vec::new();
    for model in models {
        let name = &model.source.name;
        if let Some(first) = model.unused.first() {
            let count = model.unused.len();
            notes.push(format!(
                "{name}: {count} stored tensor(s) that models compute or tie are left out, such as `{first}`"
            ));
        }
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
