//! `convert`: dtype casts with one rounding, other shards, GGUF to a folder that equals gguf-py's reading of it.

use std::path::{Path, PathBuf};

use crate::common::{
    Noise, Tensor, Tensors, assert_same_folder, assert_same_tensor, bam, contents, copy_folder,
    decode, edit_json, fixture, read_file, read_folder, read_json, round, sha256, write_file,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;

/// `fixtures/fp8/dtypes.safetensors` without its NaN and infinities, each tensor in one row.
fn every_dtype(folder: &Path) -> (PathBuf, Tensors) {
    let mut tensors = read_file(&fixture("fp8/dtypes.safetensors"));
    for tensor in tensors.values_mut() {
        let size = tensor.dtype.bitsize() / 8;
        let values = tensor.values();
        let pairs = tensor.bytes.chunks(size).zip(&values);
        let bytes: Vec<u8> = pairs
            .filter(|(_, value)| value.is_finite())
            .flat_map(|(bytes, _)| bytes.to_vec())
            .collect();
        if bytes.len() < tensor.bytes.len() {
            (tensor.shape, tensor.bytes) = (vec![bytes.len() / size], bytes);
        }
    }
    let path = folder.join("dtypes.safetensors");
    write_file(&path, &tensors);
    (path, tensors)
}

/// The finite values that PyTorch reads from a tensor of `fixtures/fp8/dtypes.safetensors`.
///
/// Read by hand, because `serde_json` may round the last digit of a decimal.
fn golden(name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(fixture("fp8/golden.json")).unwrap();
    let list = text
        .split(&format!("\"{name}\": ["))
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    list.split(',')
        .filter_map(|number| number.trim().parse().ok())
        .filter(|number: &f64| number.is_finite())
        .collect()
}

fn is_float(dtype: Dtype) -> bool {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
    [F64, F32, F16, BF16, F8_E4M3, F8_E5M2].contains(&dtype)
}

// ---------------------------------------------------------------- dtypes

#[test]
fn every_dtype_is_carried_through_untouched() {
    let work = TempDir::new().unwrap();
    let (path, tensors) = every_dtype(work.path());
    let out = work.path().join("out");
    bam!("convert", path, out).ok();
    assert!(read_folder(&out) == tensors);
    // Wider dtypes come first, so that each tensor begins at a multiple of its element.
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, tensor) in &tensors {
        let begin = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        assert_eq!(begin % (tensor.dtype.bitsize() / 8), 0, "{name}");
    }
}

#[test]
fn every_dtype_holds_what_pytorch_reads() {
    let work = TempDir::new().unwrap();
    let (path, tensors) = every_dtype(work.path());
    let out = work.path().join("out");
    bam!("convert", path, out, "--dtype", "f64").ok();
    for (name, tensor) in read_folder(&out) {
        if is_float(tensors[&name].dtype) {
            assert_eq!(tensor.dtype, Dtype::F64, "{name}");
            let (found, expected) = (tensor.values(), golden(&name));
            assert_eq!(found.len(), expected.len(), "{name}");
            let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
            assert!(
                found.iter().zip(&expected).all(same),
                "{name}: {found:?} {expected:?}"
            );
        } else {
            assert_same_tensor(&name, &tensor, &tensors[&name]);
        }
    }
}

#[test]
fn casts_round_once_to_nearest_even() {
    let work = TempDir::new().unwrap();
    let mut noise = Noise(99);
    for (source, targets) in [
        (
            Dtype::F32,
            &[
                ("bf16", Dtype::BF16),
                ("f16", Dtype::F16),
                ("f8_e4m3", Dtype::F8_E4M3),
                ("f8_e5m2", Dtype::F8_E5M2),
                ("f64", Dtype::F64),
            ][..],
        ),
        (
            Dtype::F64,
            &[
                ("bf16", Dtype::BF16),
                ("float16", Dtype::F16),
                ("fp32", Dtype::F32),
            ],
        ),
        (
            Dtype::BF16,
            &[("f16", Dtype::F16), ("f8_e5m2", Dtype::F8_E5M2)],
        ),
    ] {
        // Magnitudes from below every subnormal to 256, ties of each target, and numbers a hair beside a tie.
        let mut values: Vec<f64> = (0..6000)
            .map(|i| noise.value() * 2f64.powi(8 - i % 40))
            .collect();
        for bits in [2, 3, 7, 10, 23] {
            for step in 0..16 {
                let tie = 1.0 + (f64::from(step) + 0.5) * 2f64.powi(-bits);
                values.extend([
                    tie,
                    -tie,
                    tie * (1.0 + 2f64.powi(-20)),
                    tie * (1.0 + 2f64.powi(-45)),
                    tie * (1.0 - 2f64.powi(-45)),
                ]);
            }
        }
        let tensor = Tensor::new(source, &[values.len()], &values);
        let path = work.path().join("in.safetensors");
        write_file(&path, &Tensors::from([("w".to_owned(), tensor.clone())]));
        for (flag, dtype) in targets {
            let out = work.path().join(format!("{source}-{flag}"));
            bam!("convert", path, out, "--dtype", *flag).ok();
            assert_same_tensor(
                flag,
                &read_folder(&out)["w"],
                &Tensor::new(*dtype, &tensor.shape, &tensor.values()),
            );
        }
    }
}

#[test]
fn a_value_beyond_the_dtype_is_refused_by_name() {
    let work = TempDir::new().unwrap();
    let path = work.path().join("in.safetensors");
    write_file(
        &path,
        &Tensors::from([(
            "wide".to_owned(),
            Tensor::new(Dtype::F32, &[3], &[1.0, 65520.0, 2.0]),
        )]),
    );
    bam!("convert", path, work.path().join("out"), "--dtype", "f16")
        .refused(2, &["`wide`", "element 1", "65520", "F16"]);
    bam!("convert", path, work.path().join("out"), "--dtype", "bf16").ok();
}

#[test]
fn to_f32_and_back_is_the_same() {
    let work = TempDir::new().unwrap();
    for family in ["mistral", "cohere"] {
        let seed = fixture(family).join("seed");
        let (wide, back) = (
            work.path().join(format!("{family}-wide")),
            work.path().join(format!("{family}-back")),
        );
        bam!("convert", seed, wide, "--dtype", "f32").ok();
        bam!("convert", wide, back, "--dtype", "bf16").ok();
        assert!(read_folder(&back) == read_folder(&seed));
        assert!(
            read_folder(&wide)
                .values()
                .all(|tensor| tensor.dtype == Dtype::F32)
        );
        for (out, name) in [(&wide, "float32"), (&back, "bfloat16")] {
            let config = read_json(out.join("config.json"));
            assert_eq!(
                (&config["dtype"], &config["torch_dtype"]),
                (&json!(name), &json!(name))
            );
            for (key, value) in read_json(seed.join("config.json")).as_object().unwrap() {
                if !key.ends_with("dtype") {
                    assert_eq!(&config[key], value, "{key}");
                }
            }
        }
        for (name, bytes) in contents(&seed) {
            if !["config.json", "model.safetensors"].contains(&name.as_str()) {
                assert!(contents(&wide)[&name] == bytes, "{name}");
            }
        }
    }
}

#[test]
fn scaled_eight_bit_weights_are_not_cast_without_their_scales() {
    let work = TempDir::new().unwrap();
    let path = work.path().join("in.safetensors");
    let mut tensors = Tensors::from([(
        "a.weight".to_owned(),
        Tensor::new(Dtype::F8_E4M3, &[4], &[1.0, 2.0, 3.0, 4.0]),
    )]);
    tensors.insert(
        "a.weight_scale_inv".to_owned(),
        Tensor::new(Dtype::F32, &[1], &[0.5]),
    );
    write_file(&path, &tensors);
    bam!("convert", path, work.path().join("out"), "--dtype", "bf16")
        .refused(2, &["`a.weight`", "`a.weight_scale_inv`"]);
    bam!("convert", path, work.path().join("out")).ok();
    assert!(read_folder(&work.path().join("out")) == tensors);
}

// ---------------------------------------------------------------- shards

#[test]
fn shards_to_one_file_and_back() {
    let work = TempDir::new().unwrap();
    let (one, many) = (work.path().join("one"), work.path().join("many"));
    bam!("convert", fixture("llama_sharded/seed"), one).ok();
    assert!(read_folder(&one) == read_folder(&fixture("llama/seed")));
    assert!(!one.join("model.safetensors.index.json").exists());
    bam!("convert", one, many, "--max-shard-size", "14KB").ok();
    assert!(read_folder(&many) == read_folder(&fixture("llama/seed")));
    assert!(!many.join("model.safetensors").exists());
    let manifest = read_json(many.join("bam-manifest.json"));
    let hashed: Vec<&str> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert!(
        hashed.contains(&"model.safetensors.index.json"),
        "{hashed:?}"
    );
}

#[test]
fn shards_without_an_index() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("llama_sharded/seed"), &work.path().join("in"));
    std::fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    bam!("convert", folder, work.path().join("out")).ok();
    assert!(read_folder(&work.path().join("out")) == read_folder(&fixture("llama/seed")));
    std::fs::remove_file(folder.join("model-00002-of-00004.safetensors")).unwrap();
    bam!("convert", folder, work.path().join("again"))
        .refused(2, &["shard 2 of 4", "model-00001-of-00004.safetensors"]);
}

#[test]
fn a_single_file_of_any_name() {
    let work = TempDir::new().unwrap();
    let (file, out) = (
        work.path().join("weights.safetensors"),
        work.path().join("out"),
    );
    std::fs::copy(fixture("qwen3/seed/model.safetensors"), &file).unwrap();
    bam!("convert", file, out).ok();
    assert!(read_folder(&out) == read_folder(&fixture("qwen3/seed")));
    assert_eq!(
        contents(&out).into_keys().collect::<Vec<_>>(),
        ["README.md", "bam-manifest.json", "model.safetensors"]
    );
}

#[test]
fn a_family_that_is_not_known_keeps_all_it_has() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("llama/seed"), &work.path().join("in"));
    edit_json(&folder.join("config.json"), |config| {
        config["model_type"] = json!("unheard_of");
        config["architectures"] = json!(["UnheardOfForCausalLM"]);
    });
    std::fs::write(folder.join("modeling_unheard_of.py"), "# its own code\n").unwrap();
    std::fs::write(folder.join("README.md"), "# Its card\n").unwrap();
    let out = work.path().join("out");
    bam!("convert", folder, out, "--dtype", "f32").ok();
    let (found, given) = (contents(&out), contents(&folder));
    for name in [
        "modeling_unheard_of.py",
        "tokenizer.json",
        "chat_template.jinja",
    ] {
        assert!(found[name] == given[name], "{name}");
    }
    let card = String::from_utf8(found["README.md"].clone()).unwrap();
    assert!(card.contains("# Its card\n"), "{card}");
    let name = "model.layers.0.mlp.up_proj.weight";
    let expected = Tensor::new(Dtype::F32, &[48, 32], &read_folder(&folder)[name].values());
    assert_same_tensor(name, &read_folder(&out)[name], &expected);
}

// ---------------------------------------------------------------- GGUF

/// Gemma 3 has a rotary embedding for each kind of layer: with one for all in `rope_parameters`, transformers 5 cannot read it.
/// The versions of transformers have other defaults, so that the same file means two models.
#[test]
fn a_base_that_versions_of_transformers_assume_differently_is_written() {
    let work = TempDir::new().unwrap();
    let seed = copy_folder(&fixture("cohere/seed"), &work.path().join("seed"));
    for (version, base) in [("4.57.1", 10000.0), ("5.24.0", 500_000.0)] {
        edit_json(&seed.join("config.json"), |config| {
            let config = config.as_object_mut().unwrap();
            config.retain(|key, _| !key.starts_with("rope_"));
            config.insert("transformers_version".to_owned(), json!(version));
        });
        let at = |name: &str| work.path().join(format!("{name}-{version}"));
        let runs = [
            bam!("convert", &seed, at("convert"), "--dtype", "f32"),
            bam!("merge", "--model", &seed, "--out", at("merge")),
        ];
        for (run, name) in runs.into_iter().zip(["convert", "merge"]) {
            let run = run.ok();
            assert!(run.stderr.contains("`rope_theta` is not said"), "{run}");
            let config = read_json(at(name).join("config.json"));
            assert_eq!(config["rope_theta"], base, "{name}");
            assert_eq!(config["rope_parameters"]["rope_theta"], base, "{name}");
        }
    }
}

#[test]
fn a_rotary_embedding_for_each_kind_of_layer_stays_as_it_is() {
    let work = TempDir::new().unwrap();
    let kinds = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
    for (number, rope) in [
        json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        json!({"rope_theta": 1e6, "rope_parameters": kinds}),
    ]
    .into_iter()
    .enumerate()
    {
        let source = copy_folder(&fixture("llama/seed"), &work.path().join(format!("{number}")));
        edit_json(&source.join("config.json"), |config| {
            let config = config.as_object_mut().unwrap();
            for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
                config.remove(key);
            }
            config.insert("model_type".to_owned(), json!("gemma3n_text"));
            config.extend(rope.as_object().unwrap().clone());
        });
        let out = work.path().join(format!("{number}-out"));
        bam!("convert", &source, &out).ok();
        let (before, after) = (
            read_json(source.join("config.json")),
            read_json(out.join("config.json")),
        );
        for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
            assert_eq!(after.get(key), before.get(key), "{key} of {rope}");
        }
    }
}

#[test]
fn gguf_tensors_are_those_that_gguf_py_computes() {
    let work = TempDir::new().unwrap();
    let golden = read_json(fixture("gguf/golden.json"));
    for (file, tensors) in golden.as_object().unwrap() {
        let (usual, wide) = (
            work.path().join(format!("{file}-usual")),
            work.path().join(format!("{file}-f32")),
        );
        bam!("convert", fixture("gguf").join(file), usual).ok();
        bam!(
            "convert",
            fixture("gguf").join(file),
            wide,
            "--dtype",
            "f32"
        )
        .ok();
        let (usual, wide) = (read_folder(&usual), read_folder(&wide));
        let tensors = tensors.as_object().unwrap();
        assert_eq!(usual.len(), tensors.len(), "{file}");
        // Plain numbers keep their dtype, quantised ones become bf16.
        let dtype = match file.as_str() {
            "llama-f32.gguf" => Dtype::F32,
            "llama-f16.gguf" => Dtype::F16,
            _ => Dtype::BF16,
        };
        for tensor in tensors.values() {
            let name = tensor["hf_name"].as_str().unwrap();
            assert_eq!(wide[name].dtype, Dtype::F32);
            assert_eq!(json!(wide[name].shape), tensor["shape"], "{file} {name}");
            assert_eq!(
                sha256(&wide[name].bytes),
                tensor["hf_f32_sha256"],
                "{file} {name}"
            );
            assert_eq!(usual[name].dtype, dtype, "{file} {name}");
            if dtype == Dtype::BF16 {
                assert_eq!(
                    sha256(&usual[name].bytes),
                    tensor["hf_bf16_sha256"],
                    "{file} {name}"
                );
            } else {
                let bytes: Vec<u8> = wide[name]
                    .values()
                    .into_iter()
                    .flat_map(|value| round(dtype, value))
                    .collect();
                assert!(usual[name].bytes == bytes, "{file} {name}");
            }
        }
    }
}

#[test]
fn gguf_metadata_becomes_a_configuration() {
    let work = TempDir::new().unwrap();
    for (file, (hidden, ffn, heads, kv_heads)) in [
        ("llama-q8_0.gguf", (32, 64, 4, 2)),
        ("llama-k.gguf", (256, 256, 8, 1)),
    ] {
        let out = work.path().join(format!("{file}-folder"));
        bam!("convert", fixture("gguf").join(file), out).ok();
        let config = read_json(out.join("config.json"));
        let expected = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": ffn,
            "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden / heads,
            "vocab_size": 384, "max_position_embeddings": 512, "rope_theta": 100000.0, "tie_word_embeddings": true,
            "bos_token_id": 0, "eos_token_id": 2, "dtype": "bfloat16", "torch_dtype": "bfloat16", "hidden_act": "silu",
        });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&config[key], value, "{file}: {key}");
        }
        assert_eq!(config["rope_parameters"]["rope_theta"], 100000.0);
        assert!((config["rms_norm_eps"].as_f64().unwrap() - 1e-5).abs() < 1e-12);
        let template = std::fs::read_to_string(out.join("chat_template.jinja")).unwrap();
        assert_eq!(
            template,
            std::fs::read_to_string(fixture("llama/seed/chat_template.jinja")).unwrap()
        );
        // It is a model like any other now.
        let expert = format!("same={}", out.display());
        bam!(
            "upcycle",
            "--method",
            "bam",
            "--seed",
            out,
            "--expert",
            expert,
            "--out",
            work.path().join("mixture"),
            "--force"
        )
        .ok();
    }
}

const SAMPLES: [&str; 9] = [
    "A mixture of experts keeps several feed-forward networks side by side.",
    "def mean(values):\n    total = 0.0\n\tfor value in values:\n        total += value\n    return total / len(values)\n",
    "for (int i = 0; i < 10; i++) { sum += table[i] * 2; }  // x86_64, 0xDEADBEEF",
    "今天的天气很好，我们去公园散步。专家混合模型由多个前馈网络组成。",
    "The year 2024 had 366 days; 3.14159 is close to pi, and 65536.",
    "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
    "  leading, trailing and   repeated spaces  \n\n\n\r\n\t",
    "naïve café — “quotes”, emoji 🦀🔥, Привет, नमस्ते, 한국어",
    "I'm they're we've can't CAN'T don'ts",
];

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn the_rebuilt_tokenizer_gives_the_sources_ids() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    bam!("convert", fixture("gguf/llama-q4_0.gguf"), out).ok();
    let source = Tokenizer::from_file(fixture("llama/seed/tokenizer.json")).unwrap();
    let rebuilt = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    for text in SAMPLES {
        let expected = ids(&source, text);
        assert_eq!(ids(&rebuilt, text), expected, "{text:?}");
        assert_eq!(
            rebuilt.decode(&expected, false).unwrap(),
            source.decode(&expected, false).unwrap(),
            "{text:?}"
        );
    }
    assert_eq!(rebuilt.get_vocab_size(true), 384);
}

#[test]
fn a_sentencepiece_tokenizer_loses_no_text() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    bam!("convert", fixture("gguf/llama-spm-q4_0.gguf"), out).ok();
    let rebuilt = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    for text in SAMPLES {
        let found = ids(&rebuilt, text);
        assert!(!found.contains(&0), "{text:?} has unknown tokens");
        assert_eq!(rebuilt.decode(&found, false).unwrap(), text);
    }
    let marked = rebuilt.encode("The court", true).unwrap();
    assert_eq!(
        marked.get_ids()[0],
        1,
        "add_bos_token: {:?}",
        marked.get_tokens()
    );
}

#[test]
fn a_gguf_inside_a_folder_and_twice_the_same() {
    let work = TempDir::new().unwrap();
    let folder = work.path().join("download");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(
        fixture("gguf/llama-q5_1.gguf"),
        folder.join("model-q5_1.gguf"),
    )
    .unwrap();
    let (a, b) = (work.path().join("a"), work.path().join("b"));
    bam!("convert", folder, a).ok();
    bam!("convert", folder, b, "--threads", "1").ok();
    assert_same_folder(&a, &b);
    assert_eq!(
        decode(Dtype::BF16, &read_folder(&a)["model.norm.weight"].bytes).len(),
        32
    );
}

// ---------------------------------------------------------------- FP8 with scales

#[test]
fn fp8_weights_become_plain_numbers_where_a_dtype_is_named() {
    for kind in ["block", "tensor", "channel", "compressed"] {
        let work = TempDir::new().unwrap();
        let out = work.path().join("out");
        let path = fixture("fp8").join(kind);
        bam!("convert", path, out, "--dtype", "bf16").ok();
        let golden = read_file(&fixture(format!("fp8/{kind}.safetensors")));
        assert!(read_folder(&out) == golden, "{kind}");
        let config = read_json(out.join("config.json"));
        assert!(config.get("quantization_config").is_none(), "{kind}");
        assert_eq!(config["torch_dtype"], "bfloat16", "{kind}");
        bam!("validate", out, "--against", path).ok();

        // Without a dtype, nothing is computed; 8 bits hold no product.
        let copy = work.path().join("copy");
        bam!("convert", path, copy).ok();
        let stored = read_folder(&path);
        assert!(read_folder(&copy) == stored, "{kind}");
        let narrow = work.path().join("narrow");
        bam!("convert", path, narrow, "--dtype", "f8_e5m2").refused(2, &["layer.weight"]);
    }
}

#[test]
fn scales_are_floats_and_those_of_activations_are_left_out() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let folder = |name: &str, dtype: Dtype| {
        let folder = copy_folder(&fixture("fp8/block"), &path(name));
        let file = folder.join("model.safetensors");
        let mut tensors = read_file(&file);
        // As exponents these are the factor 1.
        let scale = tensors.get_mut("layer.weight_scale_inv").unwrap();
        (scale.dtype, scale.bytes) = (dtype, vec![127; 4]);
        for name in ["kv_scale", "input_scale_inv", "k_scale"] {
            let other = Tensor::new(Dtype::F32, &[1], &[0.5]);
            tensors.insert(format!("layer.{name}"), other);
        }
        write_file(&file, &tensors);
        edit_json(&folder.join("config.json"), |config| {
            let said = config["quantization_config"].take();
            config
                .as_object_mut()
                .unwrap()
                .remove("quantization_config");
            config["text_config"] = json!({"quantization_config": said});
        });
        folder
    };
    let out = path("out");
    let whole = folder("whole", Dtype::U8);
    bam!("convert", whole, out, "--dtype", "bf16").refused(2, &["layer.weight"]);
    let exponents = folder("exponents", Dtype::F8_E8M0);
    bam!("convert", exponents, out, "--dtype", "bf16").ok();
    let found = read_folder(&out);
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        ["layer.weight", "norm.weight"]
    );
    let config = read_json(out.join("config.json"));
    assert_eq!(config["text_config"].get("quantization_config"), None);

    let mut stored = read_folder(&exponents);
    stored.retain(|name, _| found.contains_key(name));
    write_file(&path("plain.safetensors"), &stored);
    let plain = path("plain");
    bam!(
        "convert",
        path("plain.safetensors"),
        plain,
        "--dtype",
        "bf16"
    )
    .ok();
    assert!(found == read_folder(&plain));
}

#[test]
fn scales_that_fit_no_block_are_refused() {
    let work = TempDir::new().unwrap();
    let refused = |name: &str, edit: &dyn Fn(&mut Value)| {
        let path = copy_folder(&fixture("fp8/block"), &work.path().join(name));
        edit_json(&path.join("config.json"), |config| edit(config));
        let out = work.path().join("out");
        bam!("convert", path, out, "--dtype", "bf16").refused(
            2,
            &["`layer.weight_scale_inv`", "[2, 2]", "weight_block_size"],
        );
        assert!(!out.exists());
    };
    refused("unsaid", &|config| {
        config["quantization_config"] = json!({"quant_method": "fp8"});
    });
    for (name, size) in [
        ("small", json!([64, 64])),
        ("none", json!([0, 128])),
        ("odd", json!([128])),
    ] {
        refused(name, &|config| {
            config["quantization_config"]["weight_block_size"] = size.clone()
        });
    }
}
