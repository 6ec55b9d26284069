use std::path::Path;

use super::*;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf_build::Build;

/// A llama of one layer: 2 query heads of 4, 1 key head, biases beside q and k where asked.
fn llama() -> Build {
    like_llama("llama")
}

/// The same of an architecture with Llama's tensors.
fn like_llama(architecture: &str) -> Build {
    let mut build = Build::new();
    build.text("general.architecture", architecture);
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 8),
        ("feed_forward_length", 6),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 4),
        ("vocab_size", 5),
    ] {
        build.u32(&format!("{architecture}.{key}"), value);
    }
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", 1e-5),
        ("rope.freq_base", 500_000.0),
    ] {
        build.f32(&format!("{architecture}.{key}"), value);
    }
    build
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    build
        .zeros("token_embd.weight", &[5, 8])
        .zeros("output_norm.weight", &[8]);
    for (name, shape) in [
        ("attn_norm", &[8][..]),
        ("attn_q", &[8, 8]),
        ("attn_k", &[4, 8]),
        ("attn_v", &[4, 8]),
        ("attn_output", &[8, 8]),
        ("ffn_norm", &[8]),
        ("ffn_gate", &[6, 8]),
        ("ffn_up", &[6, 8]),
        ("ffn_down", &[8, 6]),
    ] {
        build.zeros(&format!("blk.0.{name}.weight"), shape);
    }
    build
}

fn open(build: &Build) -> Gguf {
    let bytes = build.bytes();
    Gguf::read(Path::new("m.gguf"), &bytes[..], bytes.len() as u64).unwrap()
}

fn refused(build: &Build) -> Error {
    config(&open(build)).unwrap_err()
}

/// That an error is about a key with this value, where another was expected.
pub(in crate::family) fn wrong_value(error: &Error, (name, values, value): (&str, &str, &str)) {
    assert!(
        matches!(error, Error::Input(InputError::WrongValue { key, expected, found, .. })
            if (&**key, &**expected, &**found) == (name, values, value)),
        "{error}"
    );
}

#[test]
fn every_tensor_has_its_hugging_face_name_in_layer_order() {
    let tensors = tensors(&open(llama().zeros("output.weight", &[5, 8]))).unwrap();
    let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.norm.weight",
            "lm_head.weight",
        ]
    );
    let permuted: Vec<_> = tensors
        .iter()
        .filter_map(|tensor| Some((&*tensor.source, tensor.unpermute_heads?)))
        .collect();
    assert_eq!(
        permuted,
        [("blk.0.attn_q.weight", 2), ("blk.0.attn_k.weight", 1)]
    );
}

#[test]
fn rows_of_a_head_are_interleaved_halves() {
    // Two heads of six rows: llama.cpp's converter writes rows 0 3 1 4 2 5 of each head.
    let rows: Vec<_> = (0..12).map(|row| source_row(row, 12, 2)).collect();
    assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    let written = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11];
    assert!(
        rows.iter()
            .enumerate()
            .all(|(row, source)| written[*source as usize] == row)
    );
}

#[test]
fn the_configuration_says_what_the_metadata_says() {
    let config = config(&open(&llama())).unwrap();
    assert_eq!(
        Value::Object(config),
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 6,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
            "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "vocab_size": 5, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
            "attention_dropout": 0.0, "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": true,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "torch_dtype": "float32", "dtype": "float32",
        })
    );
}

#[test]
fn biases_are_permuted_with_their_weights_and_must_be_complete() {
    let mut build = llama();
    for (name, rows) in [("q", 8), ("k", 4), ("v", 4)] {
        build.zeros(&format!("blk.0.attn_{name}.bias"), &[rows]);
    }
    let error = refused(&build);
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::NoBias { tensor, present, .. })
            if tensor == "blk.0.attn_output.bias" && present.as_deref() == Some("blk.0.attn_q.bias")),
        "{error}"
    );
    build.zeros("blk.0.attn_output.bias", &[8]);
    let gguf = open(&build);
    assert_eq!(config(&gguf).unwrap()["attention_bias"], json!(true));
    let tensors = tensors(&gguf).unwrap();
    let bias = tensors
        .iter()
        .find(|tensor| tensor.name == "model.layers.0.self_attn.k_proj.bias")
        .unwrap();
    assert_eq!((bias.unpermute_heads, &bias.shape[..]), (Some(1), &[4][..]));
}

#[test]
fn scalings_of_the_rotary_embedding_are_in_both_spellings() {
    let mut build = llama();
    build
        .text("llama.rope.scaling.type", "linear")
        .f32("llama.rope.scaling.factor", 2.5);
    let linear = config(&open(&build)).unwrap();
    assert_eq!(
        linear["rope_scaling"],
        json!({"rope_type": "linear", "factor": 2.5})
    );
    assert_eq!(
        linear["rope_parameters"],
        json!({"rope_type": "linear", "factor": 2.5, "rope_theta": 500000.0})
    );
    build
        .drop_key("llama.rope.scaling.type")
        .text("llama.rope.scaling.type", "yarn");
    build.u32("llama.rope.scaling.original_context_length", 16);
    let yarn = config(&open(&build)).unwrap();
    let expected =
        json!({"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 16});
    assert_eq!(yarn["rope_scaling"], expected);
    build.f32("llama.rope.scaling.yarn_log_multiplier", 0.1);
    let error = refused(&build);
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::UnknownYarn { key, .. })
            if key == "llama.rope.scaling.yarn_log_multiplier"),
        "{error}"
    );
    build
        .drop_key("llama.rope.scaling.type")
        .text("llama.rope.scaling.type", "longrope");
    wrong_value(
        &refused(&build),
        (
            "llama.rope.scaling.type",
            "`none`, `linear` or `yarn`",
            "`longrope`",
        ),
    );
}

#[test]
fn frequency_factors_become_llama3_scaling() {
    // Heads of 4 have two frequencies, of wavelengths 6.3 and 4443 tokens. In a context of 8192 tokens the first makes
    // more than four turns. The second makes 1.84, which is 0.281 of the way from one turn to four.
    let smooth = (8192.0 / (std::f64::consts::TAU * 500_000_f64.sqrt()) - 1.0) / 3.0;
    let second = (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32;
    let data = |factors: [f32; 2]| {
        factors
            .iter()
            .flat_map(|factor| factor.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let read = |factors| {
        let (_folder, path) = llama()
            .tensor("rope_freqs.weight", &[2], 0, data(factors))
            .file();
        config(&Gguf::open(&path).unwrap())
    };
    let published = read([1.0, second]).unwrap();
    let expected = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(published["rope_scaling"], expected);
    assert_eq!(published["rope_parameters"]["rope_theta"], json!(500000.0));
    assert_eq!(read([1.0, 1.0]).unwrap()["rope_scaling"], Value::Null);
    let refused = |mut build: Build| {
        let (_folder, path) = build
            .tensor("rope_freqs.weight", &[2], 0, data([1.0, second]))
            .file();
        config(&Gguf::open(&path).unwrap()).unwrap_err()
    };
    let mut scaled = llama();
    scaled.text("llama.rope.scaling.type", "yarn");
    let error = refused(scaled);
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::TwoScalings { kind, .. }) if kind == "yarn"),
        "{error}"
    );
    let error = refused(like_llama("smollm3"));
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::UnknownTensor { tensor, .. })
            if tensor == "rope_freqs.weight"),
        "{error}"
    );
    let error = read([3.0, 1.0]).unwrap_err();
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::UnknownFactors { tensor, .. })
            if tensor == "rope_freqs.weight"),
        "{error}"
    );
    let (_folder, path) = llama()
        .tensor("rope_freqs.weight", &[3], 0, vec![0; 12])
        .file();
    let error = super::config(&Gguf::open(&path).unwrap()).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::GgufModel(GgufModelError::FactorsShape {
                expected: 2,
                found: 3,
                ..
            })
        ),
        "{error}"
    );
}

#[test]
fn other_architectures_and_mixtures_are_refused_by_name() {
    let mut build = llama();
    build
        .drop_key("general.architecture")
        .text("general.architecture", "bloom");
    let error = refused(&build);
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::OtherArchitecture { known, found, .. })
            if known.contains(&"llama") && found == "bloom"),
        "{error}"
    );
    let error = refused(llama().drop_key("general.architecture"));
    assert!(
        matches!(&error, Error::Input(InputError::MissingKey { key, .. }) if key == "general.architecture"),
        "{error}"
    );
    wrong_value(
        &refused(llama().u32("llama.expert_count", 8)),
        (
            "llama.expert_used_count",
            "1 to llama.expert_count = 8",
            "0",
        ),
    );
    let error = refused(llama().u32("llama.attention.sliding_window", 9));
    assert_eq!(error.place().key, Some("llama.attention.sliding_window"));
    for key in [
        "llama.rope.freq_base_swa",
        "llama.attention.sliding_window_pattern",
        "llama.rope.dimension_sections",
        "llama.attention.temperature_scale",
    ] {
        let error = refused(llama().f32(key, 2.0));
        assert_eq!(error.place().key, Some(key));
    }
    wrong_value(
        &refused(llama().bool("llama.attention.causal", false)),
        (
            "llama.attention.causal",
            "true, as in the llama architecture",
            "false",
        ),
    );
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused_by_key() {
    let with = |architecture: &str, set: fn(&mut Build)| {
        let mut build = like_llama(architecture);
        set(&mut build);
        build
    };
    for (key, build) in [
        (
            "granite.rope.scaling.finetuned",
            with("granite", |build| {
                build.bool("granite.rope.scaling.finetuned", false);
            }),
        ),
        (
            "granite.logit_scale",
            with("granite", |build| {
                build.f32("granite.logit_scale", -4.0);
            }),
        ),
        (
            "granite.attention.scale",
            with("granite", |build| {
                build.f32("granite.attention.scale", -0.5);
            }),
        ),
        (
            "exaone4.block_count",
            with("exaone4", |build| {
                let key = "exaone4.block_count";
                build.drop_key(key).u32(key, 64);
            }),
        ),
        (
            "command-r.logit_scale",
            with("command-r", |build| {
                build.f32("command-r.attention.layer_norm_epsilon", 1e-5);
            }),
        ),
        (
            "gemma2.rope.freq_base_swa",
            with("gemma2", |build| {
                build.f32("gemma2.rope.freq_base_swa", 10_000.0);
            }),
        ),
        (
            "gemma2.attention.sliding_window_pattern",
            with("gemma2", |build| {
                build.u32("gemma2.attention.sliding_window_pattern", 3);
            }),
        ),
        (
            "gemma2.attn_logit_softcapping",
            with("gemma2", |build| {
                build.f32("gemma2.attn_logit_softcapping", -50.0);
            }),
        ),
        (
            "gemma3.rope.freq_base_swa",
            with("gemma3", |build| {
                build
                    .u32("gemma3.attention.sliding_window", 4)
                    .f32("gemma3.rope.freq_base_swa", 0.0);
            }),
        ),
        (
            "llama.rope.scaling.attn_factor",
            with("llama", |build| {
                build
                    .f32("llama.rope.scaling.factor", 2.0)
                    .f32("llama.rope.scaling.attn_factor", 1.5);
            }),
        ),
    ] {
        let error = refused(&build);
        assert_eq!(error.place().key, Some(key), "{error}");
    }
}

#[test]
fn a_factor_of_one_on_logits_is_said_by_its_key() {
    for divisor in [1.0, 4.0] {
        let mut build = like_llama("granite");
        let config = config(&open(build.f32("granite.logit_scale", divisor))).unwrap();
        assert_eq!(config["logits_scaling"], json!(divisor));
    }
}

#[test]
fn metadata_that_contradict_the_tensors_are_refused_by_key() {
    let heads = "llama.attention.head_count";
    let kv_heads = "llama.attention.head_count_kv";
    let (above_0, layers) = ("a whole number above 0", "at least one tensor per layer");
    for (key, value, expected, found) in [
        (kv_heads, 3, "a divisor of the 2 query heads", "3"),
        (heads, 0, above_0, "0"),
        (
            "llama.block_count",
            u32::MAX,
            layers,
            "4294967295 layers, 11 tensors",
        ),
        (
            "llama.vocab_size",
            6,
            "5, the rows of `token_embd.weight`",
            "6",
        ),
        (
            "llama.rope.dimension_count",
            0,
            "an even head dimension",
            "0",
        ),
        (
            "tokenizer.ggml.bos_token_id",
            5,
            "an id below the 5 tokens",
            "5",
        ),
    ] {
        let mut build = llama();
        build.texts("tokenizer.ggml.tokens", &["a", "b", "c", "d", "e"]);
        let error = refused(build.drop_key(key).u32(key, value));
        wrong_value(&error, (key, expected, found));
    }
}

#[test]
fn tensors_that_contradict_the_metadata_are_refused_by_name() {
    for (key, value, name, shape) in [
        ("embedding_length", 16, "token_embd.weight", [5, 16]),
        ("attention.head_count", 4, "blk.0.attn_q.weight", [16, 8]),
        ("attention.head_count_kv", 2, "blk.0.attn_k.weight", [8, 8]),
        (
            "attention.head_count",
            u32::MAX,
            "blk.0.attn_q.weight",
            [4 * u64::from(u32::MAX), 8],
        ),
        ("rope.dimension_count", 2, "blk.0.attn_q.weight", [4, 8]),
    ] {
        let key = format!("llama.{key}");
        let error = refused(llama().drop_key(&key).u32(&key, value));
        assert!(
            matches!(&error, Error::GgufModel(GgufModelError::WrongShape { tensor, expected, .. })
                if tensor == name && expected[..] == shape),
            "{error}"
        );
    }
    for (build, name) in [
        (
            llama()
                .drop_key("llama.block_count")
                .u32("llama.block_count", 2),
            "blk.1.attn_norm.weight",
        ),
        (
            llama().drop_tensor("blk.0.ffn_up.weight"),
            "blk.0.ffn_up.weight",
        ),
    ] {
        let error = refused(build);
        assert!(
            matches!(&error, Error::Checkpoint(CheckpointError::NoTensor { tensor, .. }) if tensor == name),
            "{error}"
        );
    }
    for (name, shape) in [
        ("blk.0.attn_q_norm.weight", &[4][..]),
        ("blk.1.attn_q.weight", &[8, 8]),
    ] {
        let error = refused(llama().zeros(name, shape));
        assert!(
            matches!(&error, Error::GgufModel(GgufModelError::UnknownTensor { tensor, .. }) if tensor == name),
            "{error}"
        );
    }
}
