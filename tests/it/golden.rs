//! Mixtures made by the binary compute, in our model, what the exported `modeling_bam.py` computes in transformers and what a
//! naive float64 sum over experts gives. The golden files come from `fixtures/make_golden_bam.py`.

use std::collections::HashMap;
use std::path::Path;

use crate::common::{bam, fixture, read_file, run};
use ::safetensors::SafeTensors;
use bam_convert::model::logits;
use candle_core::{Device, Tensor, safetensors};
use serde_json::{Map, Value};
use tempfile::TempDir;

fn golden(name: &str) {
    let path = fixture(format!("golden/bam-{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let facts = metadata.metadata().clone().unwrap();
    let family = fixture(&facts["family"]);
    let options: Vec<String> = serde_json::from_str(&facts["options"]).unwrap();
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let expert = |name: &str| format!("{name}={}", family.join(name).display());
    let mut arguments: Vec<std::ffi::OsString> = vec![
        "upcycle".into(),
        "--seed".into(),
        family.join("seed").into(),
    ];
    arguments.extend([
        "--expert".into(),
        expert("code").into(),
        "--expert".into(),
        expert("law").into(),
    ]);
    arguments.extend(["--out".into(), out.clone().into()]);
    arguments.extend(options.iter().map(Into::into));
    // The golden files have the paper's routing, in the families that can hold it.
    if !options.iter().any(|option| option == "--target") {
        arguments.extend(["--preset".into(), "paper".into()]);
    }
    run(arguments).ok();
    let weights = std::fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(
        crate::common::sha256(&weights),
        facts["weights_sha256"],
        "{name}: the mixture is another one than the golden file's"
    );
    crate::common::against(&out).ok();

    if let Some(config) = facts.get("config") {
        put(&out, &path, config);
    }
    let golden = read_file(&path);
    let tokens: Vec<u32> = golden["tokens"]
        .values()
        .iter()
        .map(|id| *id as u32)
        .collect();
    let found: Vec<f32> = logits(&out, &tokens, &Device::Cpu)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    for oracle in ["modeling", "reference"] {
        // `reference` is for BAMs.
        let Some(expected) = golden.get(oracle).map(|tensor| tensor.values()) else {
            continue;
        };
        assert_eq!(found.len(), expected.len());
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .fold(0.0, f64::max);
        assert!(
            worst <= 1e-4,
            "{name}: logits differ from {oracle} by {worst}"
        );
    }
}

/// Gives the mixture in `folder` the keys `config` and the tensors `put.NAME` of the golden file.
fn put(folder: &Path, golden: &Path, config: &str) {
    let cpu = Device::Cpu;
    let drawn: HashMap<String, Tensor> = safetensors::load(golden, &cpu)
        .unwrap()
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("put.")?.to_owned(), tensor)))
        .collect();
    assert!(!drawn.is_empty());
    let path = folder.join("config.json");
    let mut json: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json.extend(serde_json::from_str::<Map<String, Value>>(config).unwrap());
    std::fs::write(&path, Value::Object(json).to_string()).unwrap();
    let weights = folder.join("model.safetensors");
    let mut tensors = safetensors::load(&weights, &cpu).unwrap();
    tensors.extend(drawn);
    safetensors::save(&tensors, weights).unwrap();
    std::fs::remove_file(folder.join("bam-manifest.json")).unwrap();
    bam!("validate", folder).ok();
}

#[test]
fn llama_with_keys_and_values_per_expert() {
    golden("llama-expert");
}

#[test]
fn cohere_with_keys_and_values_per_expert() {
    golden("cohere-expert");
}

#[test]
fn qwen3_with_shared_keys_and_values() {
    golden("qwen3-shared");
}

#[test]
fn llama_with_sigmoid_gates() {
    golden("llama-sigmoid");
}

#[test]
fn qwen3_with_shared_keys_and_values_and_sigmoid_gates() {
    golden("qwen3-shared-sigmoid");
}

#[test]
fn qwen2_with_shared_keys_and_values() {
    golden("qwen2-shared");
}

#[test]
fn qwen2_by_btx() {
    golden("qwen2-btx");
}

#[test]
fn llama_with_one_attention_expert_a_token() {
    golden("llama-attention-top-1");
}

#[test]
fn mistral_with_two_of_each_and_renormalised_gates() {
    golden("mistral-shared-top-2");
}

#[test]
fn qwen2_with_adapters_and_biases_of_routers() {
    golden("qwen2-adapters");
}

#[test]
fn llama_with_adapters_and_soft_routing() {
    golden("llama-adapters-soft");
}

#[test]
fn llama_with_a_gated_shared_expert_and_a_bias_of_the_choice() {
    golden("llama-shared-expert");
}

#[test]
fn cohere_by_btx_with_a_shared_expert() {
    golden("cohere-btx-shared-expert");
}

#[test]
fn llama_as_mixtral() {
    golden("llama-to-mixtral");
}

#[test]
fn mistral_as_mixtral_with_soft_routing() {
    golden("mistral-to-mixtral");
}

#[test]
fn llama_as_qwen2_moe_with_neutral_biases_and_shared_expert() {
    golden("llama-to-qwen2_moe");
}

#[test]
fn qwen2_as_qwen2_moe_with_gates_as_they_are() {
    golden("qwen2-to-qwen2_moe");
}

#[test]
fn qwen3_as_qwen3_moe() {
    golden("qwen3-to-qwen3_moe");
}
