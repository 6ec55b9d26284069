//! `BASE+ADAPTER`: LoRA adapters added as a checkpoint is read, with the bytes that `fixtures/make_adapters.py` computes.

use std::path::{Path, PathBuf};

use crate::common::{
    Tensor, Tensors, bam, contents, copy_folder, edit_json, fixture, read_file, read_folder,
    read_json, sha256, write_file,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

/// `BASE+ADAPTER…` of paths.
fn sum(parts: &[&Path]) -> String {
    let parts: Vec<_> = parts.iter().map(|part| part.to_str().unwrap()).collect();
    parts.join("+")
}

fn adapter(name: &str) -> PathBuf {
    fixture("adapters").join(name)
}

/// `fixtures/llama/seed` with an adapter of the fixtures.
fn seed_with(name: &str) -> String {
    sum(&[&fixture("llama/seed"), &adapter(name)])
}

/// Changes the tensors of an adapter.
fn edit_factors(lora: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = lora.join("adapter_model.safetensors");
    let mut tensors = read_file(&path);
    edit(&mut tensors);
    write_file(&path, &tensors);
}

/// Whether a manifest's expressions name a kind of expression anywhere.
fn has_op(manifest: &Value, op: &str) -> bool {
    manifest["tensors"]
        .to_string()
        .contains(&format!("\"op\":\"{op}\""))
}

#[test]
fn sums_are_those_of_float64_and_are_replayed() {
    let golden = read_json(adapter("golden.json"));
    for (name, case) in golden.as_object().unwrap() {
        let work = TempDir::new().unwrap();
        let out = work.path().join("out");
        let base = fixture(case["base"].as_str().unwrap());
        let mut parts = vec![base.clone()];
        let names = case["adapters"].as_array().unwrap();
        parts.extend(names.iter().map(|name| adapter(name.as_str().unwrap())));
        let parts: Vec<&Path> = parts.iter().map(PathBuf::as_path).collect();
        bam!("convert", sum(&parts), out).ok();

        let (found, stored) = (read_folder(&out), read_folder(&base));
        let changed = case["tensors"].as_object().unwrap();
        assert!(!changed.is_empty(), "{name}");
        for (tensor, value) in &found {
            match changed.get(tensor) {
                Some(hash) => assert_eq!(sha256(&value.bytes), *hash, "{name}: {tensor}"),
                None => assert!(*value == stored[tensor], "{name}: {tensor}"),
            }
        }

        let manifest = read_json(out.join("bam-manifest.json"));
        assert_eq!(manifest["sources"].as_array().unwrap().len(), parts.len());
        let text = sum(&parts);
        bam!("validate", out, "--against", text).ok();
    }
}

#[test]
fn a_replay_notices_another_adapter() {
    let work = TempDir::new().unwrap();
    let lora = copy_folder(&adapter("patterns"), &work.path().join("lora"));
    copy_folder(&fixture("llama/seed"), &work.path().join("seed"));
    let out = work.path().join("out");
    bam!("convert", sum(&[&work.path().join("seed"), &lora]), out).ok();
    bam!("validate", out, "--against").ok();
    edit_factors(&lora, |tensors| {
        let name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight";
        let factor = tensors.get_mut(name).unwrap();
        factor.bytes[3] ^= 1;
    });
    let found = bam!("validate", out, "--against", "--all");
    assert_eq!(found.code, Some(1), "{found}");
    for part in ["up_proj", "adapted(source, source+1)"] {
        assert!(found.stdout.contains(part), "{found}");
    }
}

#[test]
fn every_command_sees_the_sum_as_a_checkpoint() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let text = seed_with("patterns");
    bam!("convert", text, path("merged")).ok();
    bam!("convert", seed_with("dora"), path("dora")).ok();
    let (merged, seed) = (path("merged"), fixture("llama/seed"));

    // What the sum makes and what the merged folder makes have the same tensors.
    let pairs = [
        (
            bam!(
                "upcycle",
                "--method",
                "bam",
                "--seed",
                seed,
                "--expert",
                format!("code={text}"),
                "--expert",
                format!("law={}", seed_with("dora")),
                "--out",
                path("bam")
            ),
            bam!(
                "upcycle",
                "--method",
                "bam",
                "--seed",
                seed,
                "--expert",
                format!("code={}", merged.display()),
                "--expert",
                format!("law={}", path("dora").display()),
                "--out",
                path("bam-merged")
            ),
            ["bam", "bam-merged"],
        ),
        (
            bam!(
                "merge",
                "--model",
                format!("{text}:0.25"),
                "--model",
                seed,
                "--out",
                path("mean")
            ),
            bam!(
                "merge",
                "--model",
                format!("{}:0.25", merged.display()),
                "--model",
                seed,
                "--out",
                path("mean-merged")
            ),
            ["mean", "mean-merged"],
        ),
        (
            bam!(
                "branch",
                text,
                "--into",
                "one,two",
                "--out",
                path("branches")
            ),
            bam!(
                "branch",
                merged,
                "--into",
                "one,two",
                "--out",
                path("branches-merged")
            ),
            ["branches/two", "branches-merged/two"],
        ),
    ];
    for (of_sum, of_merged, [sums, merges]) in pairs {
        of_sum.ok();
        of_merged.ok();
        assert!(
            read_folder(&path(sums)) == read_folder(&path(merges)),
            "{sums}"
        );
        let manifest = read_json(path(sums).join("bam-manifest.json"));
        assert!(has_op(&manifest, "adapted"), "{sums}");
    }
    bam!(
        "validate",
        path("bam"),
        "--against",
        seed,
        text,
        seed_with("dora")
    )
    .ok();

    let tokens = path("tokens.json");
    std::fs::write(&tokens, "[5, 9, 200, 31, 7, 7, 90]").unwrap();
    bam!(
        "logits",
        text,
        "--tokens",
        tokens,
        "--dump",
        path("a.safetensors")
    )
    .ok();
    bam!(
        "logits",
        merged,
        "--tokens",
        tokens,
        "--dump",
        path("b.safetensors")
    )
    .ok();
    assert_eq!(
        std::fs::read(path("a.safetensors")).unwrap(),
        std::fs::read(path("b.safetensors")).unwrap()
    );
    let said = |of: &str| {
        bam!(
            "generate",
            of,
            "--prompt",
            "the",
            "--max-tokens",
            "5",
            "--temperature",
            "0"
        )
        .ok()
        .stdout
    };
    assert_eq!(said(&text), said(merged.to_str().unwrap()));
    bam!("validate", text).ok();
    bam!("diff", text, merged).ok();
    let found = bam!("inspect", text, "--json").ok().json();
    let expected = bam!("inspect", seed, "--json").ok().json();
    assert_eq!(found["parameters"], expected["parameters"]);
}

#[test]
fn training_begins_with_the_sum() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let text = seed_with("patterns");
    let seed = fixture("llama/seed");
    std::fs::write(
        path("text.txt"),
        "one two three four five six seven. ".repeat(80),
    )
    .unwrap();
    bam!(
        "tokenize",
        "--tokenizer",
        seed,
        "--validation",
        "0",
        "--out",
        path("tokens"),
        path("text.txt")
    )
    .ok();
    let data = format!("text={}", path("tokens").display());
    let train = |of: &str, out: &str| {
        bam!(
            "train",
            of,
            "--data",
            data,
            "--steps",
            "2",
            "--seq",
            "32",
            "--train",
            "norms",
            "--out",
            path(out)
        )
        .ok();
    };
    train(&text, "trained");
    bam!("convert", text, path("merged")).ok();
    train(path("merged").to_str().unwrap(), "trained-merged");
    assert!(read_folder(&path("trained")) == read_folder(&path("trained-merged")));
    let manifest = read_json(path("trained").join("bam-manifest.json"));
    assert_eq!(manifest["sources"].as_array().unwrap().len(), 2);
    assert!(has_op(&manifest, "adapted"));
    bam!("validate", path("trained"), "--against", text).ok();
}

#[test]
fn threads_and_memory_change_no_byte() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let text = seed_with("dora");
    bam!("convert", text, path("a"), "--threads", "1").ok();
    bam!(
        "convert",
        text,
        path("b"),
        "--threads",
        "3",
        "--memory",
        "1MiB"
    )
    .ok();
    let bytes = |name: &str| contents(&path(name))["model.safetensors"].clone();
    assert_eq!(bytes("a"), bytes("b"));
}

/// What a change of an adapter's configuration, or of its tensors, is refused with.
#[test]
fn adapters_that_mean_something_else_are_refused_by_name() {
    let work = TempDir::new().unwrap();
    let keys = [
        ("peft_type", json!("LOHA"), "LOHA"),
        (
            "target_parameters",
            json!(["mlp.experts.gate_up_proj"]),
            "target_parameters",
        ),
        ("layer_replication", json!([[0, 1]]), "layer_replication"),
        (
            "trainable_token_indices",
            json!([1]),
            "trainable_token_indices",
        ),
        (
            "alora_invocation_tokens",
            json!([1]),
            "alora_invocation_tokens",
        ),
        ("use_qalora", json!(true), "use_qalora"),
        ("use_dora", json!(true), "lora_magnitude_vector"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights"),
        ("a_key_of_tomorrow", json!(3), "a_key_of_tomorrow"),
        ("r", json!(0), "`r`"),
        ("r", json!(5), "rank"),
        ("lora_alpha", json!("8"), "lora_alpha"),
        ("target_modules", json!("[("), "target_modules"),
        ("rank_pattern", json!({"(": 3}), "rank_pattern"),
        ("target_modules", json!(["q_proj"]), "leaves out"),
        ("layers_to_transform", json!([1]), "layers_to_transform"),
    ];
    for (number, (key, value, part)) in keys.into_iter().enumerate() {
        let lora = copy_folder(&adapter("patterns"), &work.path().join(number.to_string()));
        edit_json(&lora.join("adapter_config.json"), |config| {
            config[key] = value
        });
        let out = work.path().join("out");
        bam!("convert", sum(&[&fixture("llama/seed"), &lora]), out).refused(2, &[part, "adapter"]);
        assert!(!out.exists());
    }
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let renamed = |to: &'static str| {
        move |tensors: &mut Tensors| {
            let tensor = tensors.remove(name).unwrap();
            tensors.insert(to.to_owned(), tensor);
        }
    };
    let edits: Vec<(Box<dyn Fn(&mut Tensors)>, &[&str])> = vec![
        (
            Box::new(renamed(
                "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
            )),
            &["lora_A"],
        ),
        (
            Box::new(renamed(
                "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
            )),
            &["lora_C"],
        ),
        (
            Box::new(|tensors| {
                tensors.remove(name);
            }),
            &["q_proj", "lora_A"],
        ),
        (
            Box::new(|tensors| {
                tensors.get_mut(name).unwrap().shape = vec![2, 16, 2];
            }),
            &["[2, 16, 2]", "[2, 32]"],
        ),
    ];
    for (number, (edit, parts)) in edits.into_iter().enumerate() {
        let lora = copy_folder(
            &adapter("patterns"),
            &work.path().join(format!("edit-{number}")),
        );
        edit_factors(&lora, edit);
        bam!(
            "convert",
            sum(&[&fixture("llama/seed"), &lora]),
            work.path().join("out")
        )
        .refused(2, parts);
    }
}

#[test]
fn a_base_that_does_not_fit_is_refused_by_name() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let lora = adapter("patterns");
    let refused = |base: &Path, parts: &[&str]| {
        bam!("convert", sum(&[base, &lora]), out).refused(2, parts);
    };
    refused(
        &fixture("families/phi3"),
        &["gate_proj", "gate_up_proj", "phi3"],
    );
    refused(&fixture("qwen3/seed"), &["expected"]);
    refused(&fixture("gguf/llama-f16.gguf"), &["Hugging Face layout"]);
    refused(&work.path().join("none"), &["none"]);
    bam!(
        "convert",
        sum(&[&fixture("llama/seed"), &fixture("llama/code")]),
        out
    )
    .refused(2, &["llama/code", "adapter_config.json"]);
    bam!("convert", adapter("patterns"), out).refused(2, &["LoRA adapter", "BASE+ADAPTER"]);
    // The head is the embedding: a sum for one of them has no place.
    bam!(
        "convert",
        sum(&[&fixture("llama/seed"), &adapter("head")]),
        out
    )
    .refused(2, &["lm_head"]);
    bam!(
        "branch",
        seed_with("patterns"),
        "--into",
        "a",
        "--out",
        out,
        "--link"
    )
    .refused(2, &["--link"]);
}

#[test]
fn magnitudes_need_a_configuration_that_says_so() {
    let work = TempDir::new().unwrap();
    let lora = copy_folder(&adapter("dora"), &work.path().join("lora"));
    edit_json(&lora.join("adapter_config.json"), |config| {
        config["use_dora"] = json!(false)
    });
    let out = work.path().join("out");
    bam!("convert", sum(&[&fixture("llama/seed"), &lora]), out)
        .refused(2, &["lora_magnitude_vector", "`use_dora`"]);
}

#[test]
fn one_matrix_for_embedding_and_head_changes_as_a_whole_or_not() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let seed = fixture("llama/seed");
    let embedding = "model.embed_tokens.weight";
    let matrix = read_folder(&seed)[embedding].clone();

    // PEFT trains a copy of a module that is stored whole; factors are added to the one matrix.
    let whole = copy_folder(&adapter("patterns"), &path("whole"));
    edit_json(&whole.join("adapter_config.json"), |config| {
        config["modules_to_save"] = json!(["embed_tokens"])
    });
    edit_factors(&whole, |tensors| {
        let name = format!("base_model.model.{embedding}");
        tensors.insert(name, matrix.clone());
    });
    bam!("convert", sum(&[&seed, &whole]), path("out"))
        .refused(2, &["embed_tokens", "one matrix", "merge_and_unload"]);
    let run = bam!("convert", seed_with("embedding"), path("noted")).ok();
    assert!(run.stderr.contains("which are one matrix"), "{run}");

    // A base may store the matrix under the name of the head, while its readers know it as the embedding.
    let base = copy_folder(&seed, &path("base"));
    let mut tensors = read_folder(&base);
    let moved = tensors.remove(embedding).unwrap();
    tensors.insert("lm_head.weight".to_owned(), moved);
    write_file(&base.join("model.safetensors"), &tensors);
    let lora = copy_folder(&adapter("patterns"), &path("lora"));
    edit_json(&lora.join("adapter_config.json"), |config| {
        config["target_modules"] = json!("(?:model.*|lm_head)")
    });
    edit_factors(&lora, |tensors| {
        let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
        for (name, shape) in [("A", [4, columns]), ("B", [rows, 4])] {
            let values = (0..shape[0] * shape[1]).map(|n| f64::from(n as u32 % 7) / 8.0 - 0.4);
            let factor = Tensor::new(Dtype::F32, &shape, &values.collect::<Vec<_>>());
            tensors.insert(
                format!("base_model.model.lm_head.lora_{name}.weight"),
                factor,
            );
        }
    });
    let text = sum(&[&base, &lora]);
    bam!(
        "merge",
        "--model",
        text,
        "--model",
        seed,
        "--out",
        path("mean")
    )
    .ok();
    let manifest = read_json(path("mean").join("bam-manifest.json"));
    let expression = manifest["tensors"][embedding].to_string();
    assert!(expression.contains("\"op\":\"adapted\""), "{expression}");
    bam!("validate", path("mean"), "--against", text, seed).ok();
}

#[test]
fn changed_tensors_that_share_bytes_are_refused() {
    let work = TempDir::new().unwrap();
    let lora = copy_folder(&adapter("layers"), &work.path().join("lora"));
    edit_json(&lora.join("adapter_config.json"), |config| {
        config["layers_to_transform"] = json!([0, 1])
    });
    edit_factors(&lora, |tensors| {
        let first = tensors
            .iter()
            .map(|(name, factor)| (name.replace("layers.1.", "layers.0."), factor.clone()));
        let first: Vec<_> = first.collect();
        tensors.extend(first);
    });
    let out = work.path().join("out");
    bam!("convert", sum(&[&fixture("pytorch/shared"), &lora]), out)
        .refused(2, &["k_proj", "shares its storage"]);
}

#[test]
fn long_names_of_base_and_adapter_are_cut() {
    let work = TempDir::new().unwrap();
    let base = copy_folder(&fixture("llama/seed"), &work.path().join("ä".repeat(90)));
    let lora = copy_folder(&adapter("layers"), &work.path().join("l".repeat(180)));
    bam!("convert", sum(&[&base, &lora]), work.path().join("out")).ok();
}

#[test]
fn a_factor_that_is_not_finite_is_refused() {
    let work = TempDir::new().unwrap();
    let lora = copy_folder(&adapter("patterns"), &work.path().join("lora"));
    edit_factors(&lora, |tensors| {
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
        tensors.get_mut(name).unwrap().bytes[..4].copy_from_slice(&3e38_f32.to_le_bytes());
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        tensors.get_mut(name).unwrap().bytes[..4].copy_from_slice(&3e38_f32.to_le_bytes());
    });
    let out = work.path().join("out");
    bam!("convert", sum(&[&fixture("llama/seed"), &lora]), out)
        .refused(2, &["q_proj", "beyond BF16"]);
}

#[test]
fn recipes_take_sums_of_variables() {
    let work = TempDir::new().unwrap();
    let recipe = work.path().join("recipe.yaml");
    let text = format!(
        "variables:\n  seed: {}\n  lora: {}\nwork: {}\nstages:\n  - name: code\n    convert: {{source: \"${{seed}}+${{lora}}\", out: code}}\n",
        fixture("llama/seed").display(),
        adapter("patterns").display(),
        work.path().join("work").display()
    );
    std::fs::write(&recipe, text).unwrap();
    bam!("run", recipe).ok();
    bam!("convert", seed_with("patterns"), work.path().join("direct")).ok();
    let made = read_folder(&work.path().join("work/code"));
    assert!(made == read_folder(&work.path().join("direct")));
}
