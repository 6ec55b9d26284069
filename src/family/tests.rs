//! Families against what transformers makes of the same configs.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;

fn config(json: Value) -> Config {
    Config::from_json("config.json", json.as_object().unwrap().clone())
}

/// A small config of a family, with `changes` on top.
pub(super) fn small(model_type: &str, changes: Value) -> Config {
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

/// The class of transformers 4 reads the rotated part of a head beside `rope_parameters` alone.
#[test]
fn both_spellings_of_the_rotated_part_are_written() {
    let parameters =
        json!({"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.75});
    let mut phi = small("phi", json!({"rope_parameters": parameters})).json;
    both_spellings(&mut phi);
    assert_eq!(phi["partial_rotary_factor"], json!(0.75));
    assert_eq!(phi["rope_theta"], json!(7.0));
    assert_eq!(phi["rope_parameters"], parameters);

    // A Nemotron with this key is refused, because the class of transformers 4 ignores it.
    let scaled = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0});
    let mut nemotron = small("nemotron", json!({ "rope_parameters": scaled })).json;
    both_spellings(&mut nemotron);
    assert!(!nemotron.contains_key("rope_scaling"));
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

/// By default `serde_json` reads one decimal in five wrong in its last digit; the feature `float_roundtrip` does not.
#[test]
fn numbers_of_the_seed_are_written_as_they_were() {
    let text = r#"{"initializer_range":0.11623713254880103,"rms_norm_eps":0.09391606273870799}"#;
    let json =
        crate::checkpoint::json::parse_object(Path::new("config.json"), text.as_bytes()).unwrap();
    assert_eq!(serde_json::to_string(&json).unwrap(), text);
}

/// Classes with further inputs compute `lm_head(h)` and nothing after it.
#[test]
fn language_models_that_change_logits_are_refused_beside_images() {
    let whole = |model_type: &str, text: &str, changes: Value| {
        let text = Value::Object(small(text, changes).json);
        config(json!({ "model_type": model_type, "text_config": text }))
    };
    for (model_type, text, changes, key) in [
        ("llava", "gemma2", json!({}), "final_logit_softcapping"),
        ("llava", "cohere", json!({}), "logit_scale"),
        (
            "mistral3",
            "granite",
            json!({"logits_scaling": 4, "attention_multiplier": 1}),
            "logits_scaling",
        ),
    ] {
        let error = Architecture::of(&whole(model_type, text, changes)).unwrap_err();
        let expected = format!("text_config.{key}");
        assert_eq!(error.place().key, Some(&expected[..]), "{error:?}");
    }
    let neutral = json!({ "final_logit_softcapping": null });
    Architecture::of(&whole("llava", "gemma2", neutral)).unwrap();
    let neutral = json!({ "logit_scale": 1.0 });
    Architecture::of(&whole("llava", "cohere", neutral)).unwrap();
}

/// transformers writes the factor that engines multiply by where a BAM has none.
#[test]
fn a_logit_scale_of_one_is_none() {
    let read = |scale: Value| {
        let config = small("bam", json!({ "logit_scale": scale, "num_experts": 2 }));
        Architecture::of(&config).unwrap().meaning()
    };
    assert_eq!(read(json!(1.0)), read(Value::Null));
    assert_ne!(read(json!(0.5)), read(Value::Null));
}

/// As the published models of 4B and more do.
#[test]
fn gemma_3_with_images_leaves_out_what_its_class_says() {
    let text = json!({
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
    });
    let read = Architecture::of(&config(
        json!({ "model_type": "gemma3", "text_config": text }),
    ));
    let read = read.unwrap();
    assert_eq!(
        (
            read.num_heads,
            read.num_kv_heads,
            read.head_dim,
            read.vocab_size
        ),
        (8, 4, 256, 262_208)
    );
}
