//! Refusals of configurations that are wrong.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::cost::{Report, Request};
use super::tests::small;
use super::*;
use crate::Error;

fn refused(config: &Config) -> String {
    let error = Architecture::of(config).unwrap_err();
    format!("{error} ({})", error.hint().unwrap_or("no hint".into()))
}

#[test]
fn wrong_values_are_refused_by_name() {
    let layout = refused(&small("bam", json!({"num_experts": 2, "block": "paralel"})));
    let expected = "key `block`: expected one of `sequential`, `parallel`, `parallel_two_norms`, found the string \"paralel\"";
    assert!(layout.contains(expected), "{layout}");
    for (changes, expected) in [
        (
            json!({"num_hidden_layers": "two"}),
            "key `num_hidden_layers`: expected a positive integer, found the string \"two\"",
        ),
        (
            json!({"num_hidden_layers": 0}),
            "key `num_hidden_layers`: expected a positive integer, found the number 0",
        ),
        (json!({"num_hidden_layers": -2}), "found the number -2"),
        (json!({"num_hidden_layers": 2.5}), "found the number 2.5"),
        (
            json!({"num_hidden_layers": 100_001}),
            "key `num_hidden_layers`: expected 1 to 100000, found 100001",
        ),
        (
            json!({"num_hidden_layers": 90_000}),
            "key `num_hidden_layers`: expected layers and experts that make at most",
        ),
        (
            json!({"hidden_size": u64::MAX}),
            "key `hidden_size`: expected at most 2147483648",
        ),
        (
            json!({"hidden_size": 1u64 << 31, "intermediate_size": 1u64 << 31}),
            "at most 2^57 parameters",
        ),
        (
            json!({"head_dim": 1u64 << 31}),
            "key `num_attention_heads x head_dim`: expected 1 to",
        ),
        (
            json!({"hidden_size": 25}),
            "key `num_attention_heads`: expected a divisor of the hidden size 25, found 4",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "key `num_key_value_heads`: expected a divisor of the 4 heads, found 3",
        ),
        (
            json!({"num_key_value_heads": 8}),
            "key `num_key_value_heads`: expected 1 to 4, found 8",
        ),
        (
            json!({"vocab_size": null}),
            "key `vocab_size`: is missing, expected a positive integer",
        ),
        (
            json!({"rms_norm_eps": "1e-6"}),
            "key `rms_norm_eps`: expected a number of at least 0",
        ),
        (
            json!({"rope_theta": 0}),
            "key `rope_theta`: expected a number above 0",
        ),
        (
            json!({"tie_word_embeddings": "no"}),
            "key `tie_word_embeddings`: expected true or false",
        ),
        (
            json!({"torch_dtype": "bf16"}),
            "key `torch_dtype`: expected a floating-point dtype",
        ),
        (
            json!({"rope_scaling": 3}),
            "key `rope_scaling`: expected an object, found the number 3",
        ),
        (
            json!({"torch_dtype": "float16", "dtype": "bfloat16"}),
            "key `dtype`: is the string \"bfloat16\", but `torch_dtype`",
        ),
        (
            json!({"rope_theta": 1, "rope_parameters": {"rope_theta": 2}}),
            "but `rope_parameters.rope_theta`, its other spelling",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}),
            "key `rope_scaling`: is {\"rope_type\":\"linear\",\"factor\":2}, but `rope_parameters`",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}),
            "key `rope_scaling.rope_type`",
        ),
    ] {
        let error = refused(&small("llama", changes.clone()));
        assert!(
            error.starts_with("config.json: key `") && error.contains(expected),
            "{changes}: {error}"
        );
    }
}

#[test]
fn unknown_families_are_refused_with_the_nearest() {
    let error = Architecture::of(&small("lama", json!({}))).unwrap_err();
    assert!(
        matches!(&error, Error::Config(ConfigError::UnknownFamily { found, known, .. })
            if found == "lama" && known[..2] == ["llama", "mistral"]),
        "{error}"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("nearest known one is `llama`") && hint.contains("--format"),
        "{hint}"
    );
    let mut config = small("x", json!({"architectures": ["Qwen2ForCausalLM"]}));
    config.json.shift_remove("model_type");
    assert_eq!(Architecture::of(&config).unwrap().family, "qwen2");
    config.json.shift_remove("architectures");
    assert!(
        refused(&config).contains("key `model_type`: is missing, expected the name of a family")
    );
}

#[test]
fn wrong_mixtures_are_refused_by_name() {
    for (changes, expected) in [
        (
            json!({}),
            "key `num_experts`: is missing, expected a positive integer",
        ),
        (
            json!({"num_experts": 2, "num_experts_per_tok": 3}),
            "key `num_experts_per_tok`: expected 1 to 2, found 3",
        ),
        (json!({"num_experts": 1u64 << 31}), "tensors"),
        (
            json!({"num_experts": 2, "moe_layers": [0, 2]}),
            "key `moe_layers`: expected \"all\" or a list of layers from 0 to 1",
        ),
        (
            json!({"num_experts": 2, "moe_layers": [1, 1]}),
            "key `moe_layers`: expected distinct layers, found 1 twice",
        ),
        (
            json!({"num_experts": 2, "attention_kv": "both"}),
            "key `attention_kv`: expected one of `expert`, `shared`, `merged`",
        ),
        (
            json!({"num_experts": 2, "num_attention_experts": 0}),
            "key `num_attention_experts`: expected a positive integer",
        ),
        (
            json!({"num_experts": 2, "router_bias": "logits"}),
            "key `router_bias`: expected true, false or \"choice\", found the string \"logits\"",
        ),
        (
            json!({"num_experts": 2, "shared_expert_gate": true}),
            "key `shared_expert_gate`: is true, but there is no shared expert",
        ),
    ] {
        let error = refused(&small("bam", changes.clone()));
        assert!(error.contains(expected), "{changes}: {error}");
    }
}

/// Values that a hostile or broken config may have under any key.
fn odd_values() -> Vec<Value> {
    let text = r#"[0, 1, 2, 3, 4, -1, 2147483648, 2147483649, 18446744073709551615, 1e300, 1.5, "", "all", "x", null, true,
        [], [0], [-1], [1, "x"], {}, {"rope_theta": 1e300}, {"rope_type": 1}, "expert", "shared", "merged", "parallel"]"#;
    serde_json::from_str(text).unwrap()
}

const KEYS: [&str; 26] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "torch_dtype",
    "dtype",
    "sliding_window",
    "block",
    "mlp_type",
    "qk_norm",
    "num_experts",
    "num_attention_experts",
    "num_experts_per_tok",
    "moe_layers",
    "attention_moe_layers",
    "attention_kv",
    "moe_intermediate_size",
];

proptest! {
    /// Whatever a config says, it is read or refused; what is read can be listed, counted and written.
    #[test]
    fn no_config_makes_a_panic(
        changes in proptest::collection::vec((0..KEYS.len(), proptest::sample::select(odd_values())), 1..4),
        model_type in proptest::sample::select(vec!["bam", "bam", "llama", "qwen2", "qwen3", "cohere", "mistral"]),
    ) {
        let mut config = small(model_type, json!({"num_experts": 3}));
        config.json.extend(changes.into_iter().map(|(key, value)| (KEYS[key].to_owned(), value)));
        if let Ok(architecture) = Architecture::of(&config) {
            let total = Report::new(&architecture, 256).unwrap().total_parameters;
            let tensors = architecture.tensors();
            if let Ok(tensors) = &tensors {
                prop_assert_eq!(tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum::<u64>(), total);
            }
            let written =
                bam_config(&config, &architecture, &architecture.upcycled(Mixture::new(&architecture, 2))).unwrap();
            prop_assert!(Architecture::of(&Config::from_json("written.json", written)).is_ok());
        }
        let _ = Request { experts: Some(2), ..Request::default() }.architecture(&config);
    }
}
