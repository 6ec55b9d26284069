//! What an upcycling says about itself: the settings in the manifest, the configuration, the model card, notes.

use serde_json::{Map, Value, json};

use super::card::{self, Card};
use super::execute::OutputFile;
use super::methods::Context;
use super::model::Model;
use super::upcycle::Settings;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::family::{Architecture, AttentionKv, Layers, Method};

/// The settings as the manifest, the card and the configuration record them.
pub(super) fn settings(
    settings: &Settings,
    names: &[String],
    architecture: &Architecture,
    context: &Context,
) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("method", json!(settings.method.name()));
    put("target", json!(settings.target));
    put("experts", json!(names));
    if let Some(mixture) = &architecture.mixture {
        if settings.method == Method::Bam {
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
    for (key, value) in settings.feed_forward.record(context) {
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
    let about = about(method);
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
        about,
        tags: &tags,
        sources: paths,
        settings,
    };
    files.push(card.file());
    Ok(files)
}

/// A method in one sentence, with its paper.
fn about(method: Method) -> &'static str {
    match method {
        Method::Bam => {
            "A BAM mixture (Branch-Attend-Mix, Zhang et al. 2024, arXiv 2408.08274): attention and feed-forward experts upcycled from dense models."
        }
        Method::Btx => {
            "A BTX mixture (Branch-Train-MiX, Sukhbaatar et al. 2024, arXiv 2403.07816): feed-forward experts upcycled from dense models, everything else averaged."
        }
        Method::Sparse => {
            "A sparsely upcycled mixture (Komatsuzaki et al. 2022, arXiv 2212.05055): every expert is a copy of a dense model's feed-forward network."
        }
        Method::Noise => {
            "A mixture by noise upcycling: every expert is a copy of a dense model's feed-forward network, with noise added."
        }
        Method::Drop => {
            "A mixture by Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261): every expert is a copy of a dense model's feed-forward network, some of whose neurons are drawn again."
        }
        Method::Granular => {
            "A fine-grained mixture with virtual groups (He et al. 2024, arXiv 2410.07524): every expert is a shard of a dense model's feed-forward network."
        }
        Method::Shuffle => {
            "A fine-grained mixture as in Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671): experts are cut out of shuffled copies of a dense model's feed-forward network, and part of each is drawn again."
        }
        Method::Split => {
            "A mixture whose experts share out the neurons of a dense model's feed-forward network (LLaMA-MoE, Zhu et al. 2024, arXiv 2406.16554)."
        }
    }
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
