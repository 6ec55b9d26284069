//! Queries that are scaled by their position (Ministral 3): which files say so, and what other formats make of it.

use std::path::{Path, PathBuf};

use bam_convert::checkpoint::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::common::{
    Tensor, against, bam, copy_folder, edit_json, edit_tensors, fixture, read_json,
};

const FAMILY: &str = "families/ministral3";

/// The fixture with changed keys, in a folder of that name.
fn changed(work: &TempDir, name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> PathBuf {
    let folder = copy_folder(&fixture(FAMILY), &work.path().join(name));
    edit_json(&folder.join("config.json"), |config| {
        change(config.as_object_mut().unwrap());
    });
    folder
}

/// Makes a folder a Mistral, whose class does not read the weight of the factor.
fn as_mistral(config: &mut Map<String, Value>) {
    config.insert("model_type".to_owned(), json!("mistral"));
    config.insert("architectures".to_owned(), json!(["MistralForCausalLM"]));
}

fn mixture(seed: &Path, out: &Path) {
    let same = format!("same={}", seed.display());
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", same, "--top-k", "soft", "--out",
        out
    )
    .ok();
}

#[test]
fn a_weight_of_zero_and_a_class_without_the_factor_scale_no_queries() {
    let work = TempDir::new().unwrap();
    let zero = changed(&work, "zero", |config| {
        config["rope_parameters"]["llama_4_scaling_beta"] = json!(0.0);
    });
    let plain = changed(&work, "plain", as_mistral);
    bam!("logits", zero, plain, "--tolerance", "0").ok();
    let scaled = bam!("logits", fixture(FAMILY), plain, "--tolerance", "1e-3");
    assert_eq!(scaled.code, Some(1), "{scaled}");

    // Nor do mixtures of these models.
    for seed in [&zero, &plain] {
        let out = seed.with_extension("bam");
        mixture(seed, &out);
        let config = read_json(out.join("config.json"));
        assert_eq!(config["bam_version"], 1);
        assert!(config.get("query_scale_beta").is_none());
        bam!("logits", seed, out, "--tolerance", "1e-5").ok();
    }
}

#[test]
fn what_the_class_cannot_compute_or_reads_otherwise_is_refused() {
    let work = TempDir::new().unwrap();
    let rope = |config: &mut Map<String, Value>, key: &str| {
        let rope = config["rope_parameters"].as_object_mut().unwrap();
        rope.shift_remove(key);
    };
    let absent = changed(&work, "absent", |config| {
        config.shift_remove("rope_parameters");
    });
    bam!("cost", absent).refused(2, &["`rope_parameters`", "YaRN"]);
    let beta = changed(&work, "beta", |config| rope(config, "llama_4_scaling_beta"));
    bam!("cost", beta).refused(2, &["`rope_parameters.llama_4_scaling_beta`"]);
    let original = "original_max_position_embeddings";
    let context = changed(&work, "context", |config| rope(config, original));
    bam!("cost", context).refused(2, &[original]);
    for (key, value) in [
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 2.0}),
        ),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
    ] {
        let folder = changed(&work, key, |config| {
            config.insert(key.to_owned(), value);
        });
        bam!("cost", folder).refused(2, &[key]);
    }
}

#[test]
fn a_mixture_says_the_factor_and_its_expert_is_the_model_again() {
    let work = TempDir::new().unwrap();
    let (out, expert) = (work.path().join("bam"), work.path().join("expert"));
    mixture(&fixture(FAMILY), &out);
    let config = read_json(out.join("config.json"));
    assert_eq!(config["bam_version"], 2);
    assert_eq!(config["query_scale_beta"], 0.4);
    assert_eq!(config["query_scale_context"], 6);
    let rope = config["rope_parameters"].as_object().unwrap();
    assert!(!rope.contains_key("llama_4_scaling_beta"));
    against(&out).ok();

    bam!("expert", "extract", out, "same", "--out", expert).ok();
    let [found, expected] = [&expert, &fixture(FAMILY)].map(|at| read_json(at.join("config.json")));
    for key in ["model_type", "rope_parameters", "sliding_window"] {
        assert_eq!(found[key], expected[key], "{key}");
    }
    bam!("logits", fixture(FAMILY), expert, "--tolerance", "0").ok();
}

#[test]
fn formats_without_the_factor_are_refused() {
    let work = TempDir::new().unwrap();
    let (seed, out) = (fixture(FAMILY), work.path().join("out"));
    let same = format!("same={}", seed.display());
    bam!(
        "upcycle", "--method", "btx", "--target", "mixtral", "--seed", seed, "--expert", same,
        "--out", out
    )
    .refused(
        2,
        &["cannot hold this mixture: it does not scale queries by their position\n"],
    );
    let folder = work.path().join("bam");
    mixture(&seed, &folder);
    let run = bam!("convert", folder, out.with_extension("gguf"));
    assert_eq!(
        (run.code, run.stderr.matches("scale queries").count()),
        (Some(2), 1),
        "{run}"
    );
    bam!("convert", seed, out.with_extension("gguf")).refused(
        2,
        &["cannot hold this ministral3 model: it has no sliding window"],
    );
    assert!(!out.exists() && !out.with_extension("gguf").exists());
}

/// As published: with images, and with weights in FP8.
#[test]
fn the_language_model_of_mistral_3_may_be_ministral_3() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "whole", |config| {
        let text = Value::Object(config.clone());
        *config = Map::new();
        config.insert("model_type".to_owned(), json!("mistral3"));
        config.insert(
            "architectures".to_owned(),
            json!(["Mistral3ForConditionalGeneration"]),
        );
        config.insert("text_config".to_owned(), text);
    });
    edit_tensors(&folder, |tensors| {
        let names: Vec<String> = tensors.keys().cloned().collect();
        for name in names {
            let tensor = tensors.remove(&name).unwrap();
            tensors.insert(format!("language_model.{name}"), tensor);
        }
    });
    bam!("logits", fixture(FAMILY), folder, "--tolerance", "0").ok();
    let merged = work.path().join("merged");
    bam!(
        "merge", "--model", folder, "--model", folder, "--out", merged
    )
    .ok();
    let config = read_json(merged.join("config.json"));
    assert_eq!(config["model_type"], "ministral3");
    bam!("logits", fixture(FAMILY), merged, "--tolerance", "1e-6").ok();

    edit_json(&folder.join("config.json"), |config| {
        config["quantization_config"] = json!({"quant_method": "fp8"});
    });
    edit_tensors(&folder, |tensors| {
        let name = "language_model.model.layers.0.mlp.up_proj";
        let weight = tensors.get_mut(&format!("{name}.weight")).unwrap();
        *weight = Tensor::new(Dtype::F8_E4M3, &weight.shape, &weight.values());
        let scale = Tensor::new(Dtype::F32, &[1], &[0.1]);
        tensors.insert(format!("{name}.weight_scale_inv"), scale);
    });
    bam!("logits", folder, fixture(FAMILY)).refused(2, &["FP8"]);
}
