//! The tables of keys and types against the configuration classes of transformers, and refusals of descriptions that say too little.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::key_meanings::KeyMeaning;
use super::known::families;
use super::model_types::TypeFact;
use super::multipliers::Multipliers;
use super::tests::small;
use super::*;
use crate::Error;

/// Keys of every class with a causal language model in two versions of transformers (`fixtures/config_keys.py`).
fn classes() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config_keys.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn built_in(model_type: &str) -> Option<std::sync::Arc<Family>> {
    let named = |family: &&std::sync::Arc<Family>| family.is_named(Some(model_type), None);
    families().unwrap().iter().find(named).cloned()
}

#[test]
fn every_type_of_transformers_is_built_in_or_in_the_table() {
    for model_type in classes().keys() {
        let is_listed = TypeFact::of(model_type).is_some();
        assert_eq!(is_listed, built_in(model_type).is_none(), "{model_type}");
    }
}

#[test]
fn built_in_families_say_every_key_of_their_class_that_has_a_meaning() {
    for (model_type, keys) in classes() {
        let Some(family) = built_in(&model_type) else {
            continue;
        };
        for key in keys.iter().filter(|key| KeyMeaning::of(key).is_some()) {
            assert!(family.says(key), "{model_type} does not say {key}");
        }
    }
}

/// A key that is missing here is one that a description must say.
#[test]
fn keys_that_change_nothing() {
    let keys: BTreeSet<String> = classes().into_values().flatten().collect();
    let harmless: Vec<String> = keys
        .into_iter()
        .filter(|key| KeyMeaning::of(key).is_none())
        .collect();
    insta::assert_snapshot!(harmless.join("\n"));
}

/// A description that takes everything from Llama.
fn llama_like(more: &str) -> Family {
    let text =
        format!("extends: llama\nname: mine\nmodel_types: [mine]\narchitectures: []\n{more}");
    Family::from_yaml(Path::new("mine.yaml"), &text).unwrap()
}

fn read(config: &Config, more: &str) -> crate::Result<Architecture> {
    Architecture::of_format(config, llama_like(more))
}

#[test]
fn keys_with_a_meaning_must_be_said_unless_neutral() {
    for (key, neutral, other, because) in [
        (
            "no_rope_layers",
            json!([1, 1]),
            json!([1, 0]),
            "some layers do not rotate",
        ),
        (
            "embedding_multiplier",
            json!(1),
            json!(12.0),
            "multiplies activations",
        ),
        (
            "attention_multiplier",
            json!(0.408_248_290_4),
            json!(1.0),
            "scale of attention scores",
        ),
        (
            "query_pre_attn_scalar",
            json!(6),
            json!(256),
            "scale of attention scores",
        ),
        (
            "final_logit_softcapping",
            json!(null),
            json!(30.0),
            "bounds scores or logits",
        ),
        (
            "layer_types",
            json!(["full_attention", "full_attention"]),
            json!(["full_attention", "sliding_attention"]),
            "other positions",
        ),
        (
            "sliding_window",
            json!(null),
            json!(4096),
            "how far attention looks back",
        ),
        ("sliding_window_pattern", json!(4), json!({"a": 1}), ""),
        ("use_bias", json!(false), json!(true), "biases"),
        (
            "hidden_activation",
            json!("swish"),
            json!("gelu"),
            "activation",
        ),
        ("layer_norm_eps", json!(1e-6), json!(1e-5), "epsilon"),
        (
            "rotary_emb_base",
            json!(10_000),
            json!(500_000),
            "base of rotary positions",
        ),
        (
            "use_parallel_residual",
            json!(false),
            json!(true),
            "joins attention",
        ),
        ("tie_embeddings", json!(false), json!(true), "ties the head"),
        (
            "zero_centered_gamma",
            json!(false),
            json!(true),
            "one plus their weight",
        ),
        ("n_layer", json!(2), json!(3), "number of layers"),
        ("num_local_experts", json!(0), json!(8), "adds experts"),
        (
            "kv_lora_rank",
            json!(null),
            json!(512),
            "compressed keys and values",
        ),
        ("mamba_d_conv", json!(null), json!(4), "by its name"),
        (
            "my_attention_gate_scale",
            json!(false),
            json!(0.5),
            "by its name",
        ),
        (
            "text_config",
            json!({}),
            json!({"hidden_size": 8}),
            "an object in the configuration",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default"}),
            json!({"rope_type": "default", "alpha": 1000.0}),
            "rotary positions",
        ),
        ("no_rope_layer_ids", json!(null), json!([3]), "by its name"),
        ("residual_coef", json!(null), json!(0.5), "by its name"),
        ("softmaxScaleInit", json!(false), json!(0.5), "by its name"),
        ("rmsnorm_offset", json!(false), json!(1.0), "does not know"),
        ("tanh_limit", json!(null), json!(30), "does not know"),
        ("sandwich", json!(false), json!(true), "does not know"),
        (
            "trained_by",
            json!("us"),
            json!({"depth": 2}),
            "does not know",
        ),
        ("attn_scale", json!(0.1), json!(0.1), ""),
        ("pad_token_id", json!(0), json!([0, 1]), ""),
    ] {
        let with = |value: &Value| read(&small("mine", json!({ key: value })), "");
        with(&neutral).unwrap_or_else(|error| panic!("{key}: {error}"));
        if because.is_empty() {
            with(&other).unwrap_or_else(|error| panic!("{key}: {error}"));
            continue;
        }
        let error = with(&other).unwrap_err();
        let Error::Config(ConfigError::Unsaid {
            key: found,
            because: reason,
            ..
        }) = &error
        else {
            panic!("{key}: {error:?}");
        };
        assert!(
            found.starts_with(key) && reason.contains(because),
            "{key}: {error:?}"
        );
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("other_keys"), "{key}: {hint}");
    }
    let granite = small("mine", json!({"embedding_multiplier": 12.0}));
    let ignored = read(&granite, "other_keys: [embedding_multiplier]").unwrap();
    assert_eq!(ignored.multipliers, Multipliers::default());
    let said = read(
        &granite,
        "keys:\n  embedding_multiplier: embedding_multiplier",
    )
    .unwrap();
    assert_eq!(said.multipliers.embedding_multiplier, Some(12.0));
}

#[test]
fn multipliers_that_change_nothing_are_none() {
    let all = "keys:
  embedding_multiplier: { names: [embedding_multiplier], default: sqrt_hidden_size }
  residual_multiplier: residual_multiplier
  attention_multiplier: attention_multiplier
  query_pre_attn_scalar: query_pre_attn_scalar
  logits_divisor: logits_scaling
  attn_logit_softcapping: { names: [attn_logit_softcapping], default: 50.0 }
  final_logit_softcapping: { names: [final_logit_softcapping] }";
    let read = |keys| read(&small("mine", keys), all).map(|read| read.multipliers);
    // The hidden size is 24, and the width of a head 6.
    let defaults = Multipliers {
        embedding_multiplier: Some(24f64.sqrt()),
        attn_logit_softcapping: Some(50.0),
        ..Multipliers::default()
    };
    assert_eq!(read(json!({})).unwrap(), defaults);
    let neutral = json!({
        "embedding_multiplier": 1, "residual_multiplier": 1.0, "query_pre_attn_scalar": 6, "logits_scaling": 1.0,
        "attn_logit_softcapping": null, "attention_multiplier": 0.408_248_290_463_863,
    });
    assert_eq!(read(neutral).unwrap(), Multipliers::default());
    let other =
        json!({"query_pre_attn_scalar": 16, "logits_scaling": 8, "final_logit_softcapping": 30});
    let expected = Multipliers {
        attention_multiplier: Some(0.25),
        logits_divisor: Some(8.0),
        final_logit_softcapping: Some(30.0),
        ..defaults
    };
    assert_eq!(read(other).unwrap(), expected);
    for (key, value) in [
        ("attention_multiplier", json!(-0.1)),
        ("query_pre_attn_scalar", json!(0)),
        ("logits_scaling", json!(0.0)),
        ("final_logit_softcapping", json!(0.0)),
        ("residual_multiplier", json!("0.2")),
        ("embedding_multiplier", json!("sqrt_hidden_size")),
        ("embedding_multiplier", json!(null)),
    ] {
        let error = read(json!({ key: value })).unwrap_err();
        assert_eq!(error.place().key, Some(key), "{error:?}");
    }
}

/// The reason why no description can say what a type means.
fn never(error: &Error) -> &str {
    match error {
        Error::Config(ConfigError::NotComputed { because, .. }) => because,
        other => panic!("{other:?}"),
    }
}

/// Each was read as a Llama before, and computed something else.
#[test]
fn types_with_a_meaning_of_their_own_are_refused() {
    let refused = |model_type: &str| read(&small(model_type, json!({})), "").unwrap_err();
    for (model_type, expected) in [
        ("gemma3", "`text_config`"),
        ("nanochat", "norms have no weights"),
        ("exaone_moe", "do not rotate"),
        ("falcon", "several projections"),
        ("deepseek_v3", "(MLA)"),
        ("mamba", "state-space"),
        ("lfm2", "convolutions"),
        ("qwen3_next", "linear attention"),
    ] {
        let error = refused(model_type);
        assert!(never(&error).contains(expected), "{model_type}: {error:?}");
    }
    let error = refused("ministral");
    assert!(
        matches!(&error, Error::Config(ConfigError::AbsentKey { key, .. }) if key == "sliding_window"),
        "{error:?}"
    );
    let error = refused("hunyuan");
    let layout = "qk_norm_after_rope";
    assert!(
        matches!(&error, Error::Config(ConfigError::UnsaidLayout { layout: found, .. }) if *found == layout),
        "{error:?}"
    );
    let hunyuan = small("hunyuan", json!({}));
    read(&hunyuan, &format!("{layout}: true")).unwrap();
}

/// A description that says which layers rotate, and how kinds of layers do, is read as it says.
#[test]
fn descriptions_say_how_layers_rotate() {
    let some = small("mine", json!({"no_rope_layers": [1, 0]}));
    let said = "keys:\n  no_rope_layers: { names: [no_rope_layers] }";
    assert_eq!(
        read(&some, said).unwrap().rope_layers,
        Layers::List(vec![0])
    );

    let kinds =
        json!({"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 5.0}});
    let kinds = json!({"sliding_window": 9, "rope_parameters": kinds});
    let window = "rotation: sliding_only\nkeys:\n  sliding_window: { names: [sliding_window] }\n  \
                  sliding_window_pattern: { names: [], default: 2 }\n";
    let local = "  rope_local_theta: { names: [my_base], default: 3.0 }";
    let read_kinds = read(&small("mine", kinds.clone()), &format!("{window}{local}")).unwrap();
    assert_eq!(read_kinds.rope_layers, Layers::List(vec![0]));
    assert_eq!(read_kinds.window_rope.unwrap().theta, 5.0);
    let error = read(&small("mine", kinds), window).unwrap_err();
    assert_eq!(never(&error), "all layers rotate in one way");
}

#[test]
fn classes_of_such_types_are_refused_too() {
    for class in [
        "MambaForCausalLM",
        "Gemma3nForCausalLM",
        "JambaForSequenceClassification",
        "GPT2LMHeadModel",
        "DeepseekV3ForCausalLM",
        "BloomForCausalLM",
    ] {
        let mut config = small("mine", json!({ "architectures": [class] }));
        config.json.remove("model_type");
        let error = read(&config, "").unwrap_err();
        let Error::Config(ConfigError::NotComputed { key, found, .. }) = &error else {
            panic!("{class}: {error:?}");
        };
        assert!(key == "architectures" && found.contains(class), "{error:?}");
    }
}

#[test]
fn types_without_a_description_are_refused_with_the_reason() {
    let error = Architecture::of(&small("deepseek_v3", json!({}))).unwrap_err();
    assert!(never(&error).contains("(MLA)"), "{error:?}");
    assert_eq!(error.hint(), None);
}

/// A description may name a built-in type, but not give it another meaning.
#[test]
fn built_in_types_keep_their_meaning() {
    let llama = small("llama", json!({}));
    read(&llama, "").unwrap();
    // Its key, and the family that reads another value.
    let differs = |error: crate::Result<Architecture>| match error.unwrap_err() {
        Error::Config(ConfigError::OtherThanBuiltIn { key, built_in, .. }) => (key, built_in),
        other => panic!("{other:?}"),
    };
    let interleaved: (Box<str>, Box<str>) = ("rope_interleaved".into(), "llama".into());
    assert_eq!(differs(read(&llama, "rope_interleaved: true")), interleaved);
    let window: (Box<str>, Box<str>) = ("sliding_window".into(), "mistral".into());
    assert_eq!(differs(read(&small("mistral", json!({})), "")), window);

    // A configuration may name its family by the class alone.
    let mut by_class = llama;
    by_class.json.remove("model_type");
    let classes = json!(["LlamaForCausalLM"]);
    by_class.json.insert("architectures".to_owned(), classes);
    let by_class = read(&by_class, "rope_interleaved: true");
    assert_eq!(differs(by_class), interleaved);
}
