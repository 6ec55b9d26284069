//! The `config.json` of a mixture: the seed's keys, and what the checkpoint format adds.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::Config;
use super::dense::SEED_MODEL_TYPE;
use super::layout::NormType;
use super::mixture::Mixture;
use super::spelling::{both_spellings, same_value};
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

/// The `config.json` of `target`, an upcycled architecture: the keys of `seed` in their order, changed only where
/// the mixture differs, then the keys that a reader of a BAM checkpoint needs, each said explicitly.
pub fn bam_config(seed: &Config, target: &Architecture) -> Map<String, Value> {
    let mut config = seed.json.clone();
    // A reader of the mixture would take them for the mixture's, which says them where it has them.
    for stray in Mixture::OPTIONAL_KEYS
        .into_iter()
        .chain(["num_local_experts"])
    {
        config.shift_remove(stray);
    }
    let mut put = |key: &str, value: Value| {
        if !config
            .get(key)
            .is_some_and(|present| same_value(present, &value))
        {
            config.insert(key.to_owned(), value);
        }
    };
    put("bam_version", json!(1));
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
    // A reader of the mixture sees a key that the seed's family would have passed over.
    match (target.sliding_window, seed.json.get("sliding_window")) {
        (Some(window), _) => put("sliding_window", json!(window)),
        (None, Some(stray)) if !stray.is_null() => put("use_sliding_window", json!(false)),
        (None, _) => {}
    }
    for (key, value) in [
        ("logit_scale", target.logit_scale),
        ("clip_qkv", target.clip_qkv),
    ] {
        match (value, seed.json.get(key)) {
            (Some(value), _) => put(key, json!(value)),
            (None, Some(_)) => put(key, Value::Null),
            (None, None) => {}
        }
    }
    if seed
        .json
        .get("rope_parameters")
        .and_then(|parameters| parameters.get("rope_theta"))
        .is_none()
    {
        put("rope_theta", json!(target.rope_theta));
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
    both_spellings(&mut config);
    // All that it says stands in rope_parameters, and with it transformers 5 cannot read the tokenizer of a model type
    // that it does not know.
    if config
        .get("rope_scaling")
        .is_some_and(|scaling| !scaling.is_null())
    {
        config.shift_remove("rope_scaling");
    }
    config
}
