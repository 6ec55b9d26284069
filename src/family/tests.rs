//! Families against what transformers makes of the same configs, and refusals of configs that are wrong.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::cost::{Report, Request};
use super::*;

fn config(json: Value) -> Config {
    Config::from_json("config.json", json.as_object().unwrap().clone())
}

/// A small config of a family, with `changes` on top.
fn small(model_type: &str, changes: Value) -> Config {
    let mut json = json!({
        "model_type": model_type, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
    });
    json.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    config(json)
}

fn shapes(architecture: &Architecture) -> BTreeMap<String, Vec<u64>> {
    architecture
        .tensors()
        .unwrap()
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect()
}

fn names(architecture: &Architecture) -> Vec<String> {
    architecture
        .tensors()
        .unwrap()
        .into_iter()
        .map(|tensor| tensor.name)
        .collect()
}

/// Every case of `fixtures/family_tensors_{4,5}.json`, which `family_tensors.py` wrote.
fn cases() -> Vec<(Config, BTreeMap<String, Vec<u64>>)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let read = |version: &str| {
        std::fs::read(fixtures.join(format!("family_tensors_{version}.json"))).unwrap()
    };
    let cases =
        ["4", "5"].map(|version| serde_json::from_slice::<Vec<Value>>(&read(version)).unwrap());
    let case = |case: &Value| {
        (
            config(case["config"].clone()),
            serde_json::from_value(case["tensors"].clone()).unwrap(),
        )
    };
    cases.iter().flatten().map(case).collect()
}

#[test]
fn names_and_shapes_are_those_of_transformers() {
    for (config, tensors) in cases() {
        assert_eq!(
            shapes(&Architecture::of(&config).unwrap()),
            tensors,
            "{:?}",
            config.json
        );
    }
}

/// What the mixture's config says, in either spelling, is what the seed's said.
#[test]
fn the_config_of_a_mixture_reads_back() {
    for (seed, _) in cases() {
        for kv in [
            AttentionKv::Expert,
            AttentionKv::Shared,
            AttentionKv::Merged,
        ] {
            let dense = Architecture::of(&seed).unwrap();
            let layers = Layers::List(vec![1]);
            let mixture = Mixture {
                attention_kv: kv,
                attention_moe_layers: layers,
                ..Mixture::new(&dense, 3)
            };
            let target = dense.upcycled(mixture);
            let written = bam_config(&seed, &dense, &target).unwrap();
            assert_eq!(
                Architecture::of(&config(json!(written))).unwrap(),
                target,
                "{written:?}"
            );
            // Scaled positions stand in rope_parameters alone: see `bam_config`.
            assert!(written.get("rope_scaling").is_none_or(Value::is_null));
            let scaled = target.rope_scaling.is_some();
            let spellings = [["dtype", "rope_parameters"], ["torch_dtype", "rope_theta"]];
            for spelling in spellings.iter().skip(usize::from(scaled)) {
                let mut one = written.clone();
                spelling
                    .iter()
                    .for_each(|key| _ = one.remove(*key).unwrap());
                assert_eq!(Architecture::of(&config(json!(one))).unwrap(), target);
            }
            let order: Vec<_> = written
                .keys()
                .filter(|key| seed.json.contains_key(*key))
                .collect();
            let kept = seed
                .json
                .keys()
                .filter(|key| *key != "rope_scaling" || written.contains_key("rope_scaling"));
            assert_eq!(order, kept.collect::<Vec<_>>());
        }
    }
}

#[test]
fn defaults_are_those_of_the_configuration_classes() {
    let of = |model_type: &str| {
        let mut config = small(model_type, json!({}));
        config.json.shift_remove("num_key_value_heads");
        config
            .json
            .insert("num_attention_heads".to_owned(), json!(64));
        config.json.insert("hidden_size".to_owned(), json!(640));
        config
            .json
            .insert("transformers_version".to_owned(), json!("4.57.1"));
        Architecture::of(&config).unwrap()
    };
    let facts = |a: Architecture| {
        (
            a.num_kv_heads,
            a.head_dim,
            a.norm_eps,
            a.sliding_window,
            a.tie_word_embeddings,
            a.max_position_embeddings,
        )
    };
    assert_eq!(facts(of("llama")), (64, 10, 1e-6, None, false, Some(2048)));
    assert_eq!(
        facts(of("mistral")),
        (8, 10, 1e-6, Some(4096), false, Some(131_072))
    );
    assert_eq!(
        facts(of("qwen2")),
        (32, 10, 1e-6, None, false, Some(32_768))
    );
    assert_eq!(
        facts(of("qwen3")),
        (32, 128, 1e-6, None, false, Some(32_768))
    );
    assert_eq!(facts(of("cohere")), (64, 10, 1e-5, None, true, Some(8192)));
    assert_eq!(of("cohere").logit_scale, Some(0.0625));
    assert_eq!(of("llama").rope_theta, 10_000.0);
    let windowed = |first: Value| {
        let mut config = small(
            "qwen2",
            json!({"use_sliding_window": true, "sliding_window": 100}),
        );
        config.json.extend(first.as_object().unwrap().clone());
        let architecture = Architecture::of(&config).unwrap();
        (architecture.sliding_window, architecture.window_layers)
    };
    // Its window begins at layer 28 where the file does not say another.
    assert_eq!(windowed(json!({})), (None, Layers::All));
    assert_eq!(
        windowed(json!({"max_window_layers": 0})),
        (Some(100), Layers::All)
    );
    assert_eq!(
        windowed(json!({"max_window_layers": 1})),
        (Some(100), Layers::List(vec![1]))
    );
    let open = small(
        "mistral",
        json!({"sliding_window": null, "num_key_value_heads": null}),
    );
    let open = Architecture::of(&open).unwrap();
    assert_eq!((open.sliding_window, open.num_kv_heads), (None, 4));
}

#[test]
fn tensors_of_a_mixture() {
    let dense = Architecture::of(&small("qwen3", json!({}))).unwrap();
    let mixture = Mixture {
        moe_layers: Layers::List(vec![1]),
        ..Mixture::new(&dense, 2)
    };
    let shared = Mixture {
        attention_kv: AttentionKv::Shared,
        ..mixture.clone()
    };
    insta::assert_snapshot!(names(&dense.upcycled(mixture)).join("\n"));
    let names = names(&dense.upcycled(shared));
    for name in [
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.k_norm",
        "self_attn.attention_experts.1.q_norm",
    ] {
        assert!(
            names.contains(&format!("model.layers.0.{name}.weight")),
            "{name}"
        );
    }
    assert!(
        !names
            .iter()
            .any(|name| name.contains("experts") && (name.contains(".k_") || name.contains(".v_")))
    );
}

#[test]
fn parts_that_only_some_mixtures_have() {
    let dense = Architecture::of(&small("llama", json!({}))).unwrap();
    let all = Mixture {
        moe_layers: Layers::List(vec![1]),
        shared_expert_intermediate_size: Some(7),
        shared_expert_gate: true,
        expert_adapters: true,
        router_bias: RouterBias::Logits,
        ..Mixture::new(&dense, 2)
    };
    let d = dense.hidden_size;
    let shapes_of = |mixture: &Mixture| shapes(&dense.upcycled(mixture.clone()));
    let found = shapes_of(&all);
    for (name, shape) in [
        (
            "model.layers.1.mlp.shared_expert.gate_proj.weight",
            vec![7, d],
        ),
        (
            "model.layers.1.mlp.shared_expert.up_proj.weight",
            vec![7, d],
        ),
        (
            "model.layers.1.mlp.shared_expert.down_proj.weight",
            vec![d, 7],
        ),
        ("model.layers.1.mlp.shared_expert_gate.weight", vec![1, d]),
        ("model.layers.1.mlp.experts.1.adapter.weight", vec![d, d]),
        (
            "model.layers.0.self_attn.attention_experts.1.adapter.weight",
            vec![d, d],
        ),
        ("model.layers.1.mlp.router.bias", vec![2]),
        ("model.layers.0.self_attn.router.bias", vec![2]),
    ] {
        assert_eq!(found.get(name), Some(&shape), "{name}");
    }
    assert!(
        !found
            .keys()
            .any(|name| name.starts_with("model.layers.0.mlp.shared")
                || name.contains("0.mlp.router"))
    );
    let choice = shapes_of(&Mixture {
        router_bias: RouterBias::Choice,
        ..all.clone()
    });
    assert!(choice.contains_key("model.layers.1.mlp.router.bias"));
    assert!(
        !choice.contains_key("model.layers.0.self_attn.router.bias"),
        "attention routers have no bias of choice"
    );
    let plain = Architecture {
        mlp_type: MlpType::Plain,
        ..dense.clone()
    };
    let plain = shapes(&plain.upcycled(all.clone()));
    assert!(!plain.contains_key("model.layers.1.mlp.shared_expert.gate_proj.weight"));
    assert!(
        plain.contains_key("model.layers.1.mlp.shared_expert_gate.weight"),
        "its own gate stays"
    );

    // Through config.json and back, each key said only where there is something to say.
    let seed = small("llama", json!({"router_bias": "of no meaning to llama"}));
    for mixture in [
        all.clone(),
        Mixture {
            router_bias: RouterBias::Choice,
            ..all
        },
        Mixture::new(&dense, 2),
    ] {
        let written = bam_config(&seed, &dense, &dense.upcycled(mixture.clone())).unwrap();
        let read = Architecture::of(&config(Value::Object(written.clone()))).unwrap();
        assert_eq!(read.mixture, Some(mixture.clone()));
        assert_eq!(
            written.contains_key("router_bias"),
            mixture.router_bias != RouterBias::None
        );
        assert_eq!(
            written.contains_key("shared_expert_gate"),
            mixture.shared_expert_gate
        );
    }
}

#[test]
fn biases_stand_beside_their_weights() {
    let dense = Architecture::of(&small("qwen2", json!({}))).unwrap();
    let names = names(&dense.upcycled(Mixture::new(&dense, 2)));
    let at = names
        .iter()
        .position(|name| name.ends_with("0.self_attn.attention_experts.1.q_proj.weight"))
        .unwrap();
    assert_eq!(
        names[at + 1],
        "model.layers.0.self_attn.attention_experts.1.q_proj.bias"
    );
    assert!(!names.iter().any(|name| name.ends_with("o_proj.bias")));
}

#[test]
fn large_mixtures_are_listed_at_once() {
    let json = json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256,
    });
    let dense = Architecture::of(&config(json)).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(
        dense
            .upcycled(Mixture::new(&dense, 8))
            .tensors()
            .unwrap()
            .len(),
        80 * (2 + 2 + 8 * 7) + 3
    );
    assert!(start.elapsed().as_millis() < 500);
}

#[test]
fn both_spellings_add_and_change_nothing() {
    let both = |json: Value| {
        let mut map = json.as_object().unwrap().clone();
        both_spellings(&mut map);
        json!(map)
    };
    assert_eq!(both(json!({})), json!({}));
    assert_eq!(
        both(json!({"torch_dtype": "bfloat16", "rope_theta": 1e6, "rope_scaling": null})),
        json!({"torch_dtype": "bfloat16", "rope_theta": 1e6, "rope_scaling": null, "dtype": "bfloat16",
               "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})
    );
    assert_eq!(
        both(
            json!({"dtype": "float16", "rope_parameters": {"rope_theta": 7, "rope_type": "linear", "factor": 2.0}})
        ),
        json!({"dtype": "float16", "rope_parameters": {"rope_theta": 7, "rope_type": "linear", "factor": 2.0},
               "torch_dtype": "float16", "rope_theta": 7, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    );
    assert_eq!(
        both(json!({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}}))["rope_parameters"],
        json!({"rope_theta": 7.0, "rope_type": "default"})
    );
    assert_eq!(
        both(
            json!({"rope_theta": 7.0, "rope_parameters": {}, "rope_scaling": {"type": "linear", "factor": 2.0}})
        )["rope_parameters"],
        json!({"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0})
    );
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let scaled = |json: Value| {
        let architecture = Architecture::of(&small("llama", json)).unwrap();
        (architecture.rope_theta, architecture.rope_scaling)
    };
    let linear = (7.0, Some(json!({"rope_type": "linear", "factor": 2.0})));
    assert_eq!(
        scaled(json!({"rope_theta": 7, "rope_scaling": {"factor": 2.0, "type": "linear"}})),
        linear
    );
    assert_eq!(
        scaled(
            json!({"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}})
        ),
        linear
    );
    assert_eq!(
        scaled(json!({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}})),
        (7.0, None)
    );
    assert_eq!(
        scaled(json!({"rope_scaling": {"type": "default"}})),
        (10_000.0, None)
    );
}

fn refused(config: &Config) -> String {
    let error = Architecture::of(config).unwrap_err();
    format!("{error} ({})", error.hint().unwrap_or("no hint".into()))
}

#[test]
fn wrong_values_are_refused_by_name() {
    let layout = refused(&small("bam", json!({"num_experts": 2, "block": "paralel"})));
    let expected =
        "key `block`: expected one of `sequential`, `parallel`, found the string \"paralel\"";
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
            "key `vocab_size`: expected a positive integer, found no such key",
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
            "key `rope_scaling`: says {\"rope_type\":\"linear\",\"factor\":2}, but `rope_parameters`",
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
    let error = refused(&small("lama", json!({})));
    assert!(
        error.contains("key `model_type`: expected a known family: one of `llama`, `mistral`"),
        "{error}"
    );
    assert!(
        error.contains("nearest known one is `llama`") && error.contains("--format"),
        "{error}"
    );
    let mut config = small("x", json!({"architectures": ["Qwen2ForCausalLM"]}));
    config.json.shift_remove("model_type");
    assert_eq!(Architecture::of(&config).unwrap().family, "qwen2");
    config.json.shift_remove("architectures");
    assert!(refused(&config).contains("key `model_type`: expected the name of a family"));
}

#[test]
fn wrong_mixtures_are_refused_by_name() {
    for (changes, expected) in [
        (
            json!({}),
            "key `num_experts`: expected a positive integer, found no such key",
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

/// A family of other names is a new file and nothing else.
#[test]
fn a_user_brings_a_family() {
    let text = include_str!("../../formats/llama.yaml")
        .replace("name: llama", "name: house")
        .replace("mlp_type: gated", "mlp_type: plain")
        .replace("names: [hidden_size]", "names: [n_embd]")
        .replace("names: [rms_norm_eps]", "names: [norm_epsilon]")
        .replace("model.layers.{l}.mlp.up_proj", "transformer.h.{l}.ffn.fc1")
        .replace(
            "model.layers.{l}.mlp.down_proj",
            "transformer.h.{l}.ffn.fc2",
        );
    let family = Family::from_yaml(Path::new("house.yaml"), &text).unwrap();
    let mut seed = small("house", json!({"n_embd": 24, "norm_epsilon": 1e-3}));
    seed.json.shift_remove("hidden_size");
    let dense = Architecture::of_format(&seed, family.clone()).unwrap();
    assert!(names(&dense).contains(&"transformer.h.1.ffn.fc2.weight".to_owned()));
    let target = dense.upcycled(Mixture::new(&dense, 2));
    assert!(names(&target).contains(&"model.layers.1.mlp.experts.0.up_proj.weight".to_owned()));
    assert!(!names(&target).iter().any(|name| name.contains("gate_proj")));
    let read: Map<String, Value> = bam_config(&seed, &dense, &target).unwrap();
    assert_eq!(Architecture::of(&config(json!(read))).unwrap(), target);
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

/// By default `serde_json` reads one decimal in five wrong in its last digit; the feature `float_roundtrip` does not.
#[test]
fn numbers_of_the_seed_are_written_as_they_were() {
    let text = r#"{"initializer_range":0.11623713254880103,"rms_norm_eps":0.09391606273870799}"#;
    let json =
        crate::checkpoint::json::parse_object(Path::new("config.json"), text.as_bytes()).unwrap();
    assert_eq!(serde_json::to_string(&json).unwrap(), text);
}
