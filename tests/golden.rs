//! Mixtures made by the binary compute, in our model, what the exported `modeling_bam.py` computes in transformers and what a
//! naive float64 sum over experts gives. The golden files come from `fixtures/make_golden_bam.py`.

#![allow(clippy::unwrap_used)]

mod common;

use bam_convert::model::logits;
use candle_core::Device;
use common::{bam, fixture, read_file, run};
use safetensors::SafeTensors;
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
    let mut arguments: Vec<std::ffi::OsString> = vec!["upcycle".into(), "--seed".into(), family.join("seed").into()];
    arguments.extend(["--expert".into(), expert("code").into(), "--expert".into(), expert("law").into()]);
    arguments.extend(["--out".into(), out.clone().into()]);
    arguments.extend(options.iter().map(Into::into));
    run(arguments).ok();
    let weights = std::fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(
        common::sha256(&weights),
        facts["weights_sha256"],
        "{name}: the mixture is another one than the golden file's"
    );
    bam!("validate", out, "--against").ok();

    let golden = read_file(&path);
    let tokens: Vec<u32> = golden["tokens"].values().iter().map(|id| *id as u32).collect();
    let found: Vec<f32> = logits(&out, &tokens, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for oracle in ["modeling", "reference"] {
        let expected = golden[oracle].values();
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-4, "{name}: logits differ from {oracle} by {worst}");
    }
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
