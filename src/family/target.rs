//! The `config.json` of a mixture: the seed's keys, and what the checkpoint format adds.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::{BAM_VERSION, Config};
use super::dense::SEED_MODEL_TYPE;
use super::layout::NormType;
use super::mixture::Mixture;
use super::rope::ORIGINAL;
use super::spelling::{both_spellings, same_value};
use crate::Result;
use crate::checkpoint::dtype::torch_name;

/// Keys by which the `config.json` of a BAM says which layouts it uses; other families have one each.
pub(super) const DESCRIBED: [&str; 6] = [
    "block",
    "norm_type",
    "norm_position",
    "mlp_type",
    "rope_interleaved",
    "attention_output_bias",
];

/// The `config.json` of `target`, an upcycled architecture: the keys of the source `dense` in their order, changed only where
/// the mixture differs, then the keys that a reader of a BAM checkpoint needs, each said explicitly.
///
/// # Errors
/// A family that is not known.
pub fn bam_config(
    seed: &Config,
    dense: &Architecture,
    target: &Architecture,
) -> Result<Map<String, Value>> {
    let mut config = carried(seed, dense)?;
    // A reader of the mixture would take them for the mixture's, which says them where it has them.
    for stray in Mixture::OPTIONAL_KEYS.into_iter().chain([
        "num_local_experts",
        ORIGINAL,
        "partial_rotary_factor",
    ]) {
        config.shift_remove(stray);
    }
    let mut put = |key: &str, value: Value| put(&mut config, key, value);
    put(BAM_VERSION, json!(1));
    // What an expert is on its own: there is no telling from the mixture's own keys.
    if let Some(family) = seed
        .json
        .get("model_type")
        .filter(|family| **family != "bam")
    {
        put(SEED_MODEL_TYPE, family.clone());
    }
    put("model_type", json!("bam"));
    put("architectures", json!(["BamForCausalLM"]));
    put(
        "auto_map",
        json!({
            "AutoConfig": "configuration_bam.BamConfig",
            "AutoModel": "modeling_bam.BamModel",
            "AutoModelForCausalLM": "modeling_bam.BamForCausalLM",
        }),
    );
    put("hidden_size", json!(target.hidden_size));
    put("intermediate_size", json!(target.intermediate_size));
    put("num_hidden_layers", json!(target.num_layers));
    put("num_attention_heads", json!(target.num_heads));
    put("num_key_value_heads", json!(target.num_kv_heads));
    put("head_dim", json!(target.head_dim));
    put("vocab_size", json!(target.vocab_size));
    put("tie_word_embeddings", json!(target.tie_word_embeddings));
    put("hidden_act", json!(target.hidden_act));
    put("initializer_range", json!(target.initializer_range));
    let eps = match target.norm_type {
        NormType::Rms => "rms_norm_eps",
        NormType::Layer => "layer_norm_eps",
    };
    put(eps, json!(target.norm_eps));
    if let Some(positions) = target.max_position_embeddings {
        put("max_position_embeddings", json!(positions));
    }
    for (key, value) in [
        ("logit_scale", target.logit_scale),
        ("clip_qkv", target.clip_qkv),
    ] {
        if let Some(value) = value {
            put(key, json!(value));
        }
    }
    if let Some(name) = target.dtype.and_then(torch_name) {
        put("dtype", json!(name));
        if seed.json.contains_key("torch_dtype") {
            put("torch_dtype", json!(name));
        }
    }
    put("block", json!(target.block));
    put("norm_type", json!(target.norm_type));
    put("norm_position", json!(target.norm_position));
    put("mlp_type", json!(target.mlp_type));
    put("rope_interleaved", json!(target.rope_interleaved));
    put("attention_bias", json!(target.attention_bias));
    put("attention_output_bias", json!(target.attention_output_bias));
    put("mlp_bias", json!(target.mlp_bias));
    put("qk_norm", json!(target.qk_norm));
    if let Some(Value::Object(mixture)) = target.mixture.as_ref().map(|mixture| json!(mixture)) {
        for (key, value) in mixture {
            put(&key, value);
        }
    }
    put_windows(&mut config, target);
    put_rope(&mut config, target);
    both_spellings(&mut config);
    // All that it says stands in rope_parameters, and with it transformers 5 cannot read the tokenizer of a model type
    // that it does not know.
    if config
        .get("rope_scaling")
        .is_some_and(|scaling| !scaling.is_null())
    {
        config.shift_remove("rope_scaling");
    }
    Ok(config)
}

/// The keys of `source` that the family of `architecture` knows, in their order. Other programs could obey the others, and
/// make another model of the same weights.
pub(super) fn carried(source: &Config, architecture: &Architecture) -> Result<Map<String, Value>> {
    let family = architecture.names()?;
    let mut config = source.json.clone();
    config.retain(|key, _| family.knows(key));
    Ok(config)
}

/// What a user should know of `source`: keys that its family does not have, and a default that depends on the version.
pub(super) fn notes(source: &Config, architecture: &Architecture) -> Result<Vec<String>> {
    let family = architecture.names()?;
    let unknown: Vec<&str> = source
        .json
        .iter()
        .filter(|(key, value)| !value.is_null() && !family.knows(key))
        .map(|(key, _)| key.as_str())
        .collect();
    let left_out = (!unknown.is_empty()).then(|| {
        format!(
            "{}: models of the family {} have no such keys, and they are left out: {}",
            source.path.display(),
            family.name,
            unknown.join(", ")
        )
    });
    let assumed = source.assumed(&family.keys.rope_theta)?;
    Ok(left_out.into_iter().chain(assumed).collect())
}

fn put(config: &mut Map<String, Value>, key: &str, value: Value) {
    if !config
        .get(key)
        .is_some_and(|present| same_value(present, &value))
    {
        config.insert(key.to_owned(), value);
    }
}

/// The window, and a list of its layers where the seed has one or not all have it.
fn put_windows(config: &mut Map<String, Value>, target: &Architecture) {
    let unused = ["sliding_window", "use_sliding_window"]
        .into_iter()
        .any(|key| config.get(key).is_some_and(|value| !value.is_null()));
    match target.sliding_window {
        Some(window) => {
            put(config, "sliding_window", json!(window));
            if config.contains_key("use_sliding_window") {
                put(config, "use_sliding_window", json!(true));
            }
        }
        None if unused => put(config, "use_sliding_window", json!(false)),
        None => {}
    }
    let listed = ["layer_types", "max_window_layers"]
        .into_iter()
        .any(|key| config.contains_key(key));
    if listed || !target.window_layers.is_all() {
        let kinds: Vec<&str> = (0..target.num_layers)
            .map(|layer| {
                if target.sliding_window.is_some() && target.window_layers.contains(layer) {
                    "sliding_attention"
                } else {
                    "full_attention"
                }
            })
            .collect();
        put(config, "layer_types", json!(kinds));
    }
}

/// The rotary positions with every value that a reader would infer otherwise, as `rope_parameters` and `rope_theta`.
pub(super) fn put_rope(config: &mut Map<String, Value>, target: &Architecture) {
    let said = config.get("rope_parameters").and_then(Value::as_object);
    let mut parameters = Map::new();
    match &target.rope_scaling {
        Some(Value::Object(scaling)) => parameters.extend(scaling.clone()),
        _ => _ = parameters.insert("rope_type".to_owned(), json!("default")),
    }
    if let Some(factor) = target.partial_rotary_factor {
        parameters.insert("partial_rotary_factor".to_owned(), json!(factor));
    }
    // Numbers are written as the seed writes them.
    let theta = said
        .and_then(|said| said.get("rope_theta"))
        .or(config.get("rope_theta"))
        .filter(|theta| same_value(theta, &json!(target.rope_theta)));
    let theta = theta.cloned().unwrap_or(json!(target.rope_theta));
    parameters.insert("rope_theta".to_owned(), theta.clone());
    if let Some(said) = said {
        let order: Vec<String> = said.keys().cloned().collect();
        let place = |key: &String| {
            order
                .iter()
                .position(|name| name == key)
                .unwrap_or(order.len())
        };
        let mut sorted: Vec<_> = parameters.into_iter().collect();
        sorted.sort_by_key(|(key, _)| place(key));
        parameters = sorted.into_iter().collect();
    }
    put(config, "rope_theta", theta);
    put(config, "rope_parameters", Value::Object(parameters));
}
