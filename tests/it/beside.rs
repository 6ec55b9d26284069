//! What is beside the weights: tokenizers in any spelling, files that travel, leftovers of quantisation, stale shards.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Run, bam, copy_folder, edit_json, fixture, read_file, read_json};

/// Copies of the llama seed and one of its experts in `work`.
fn models(work: &Path) -> [PathBuf; 2] {
    ["seed", "code"].map(|name| copy_folder(&fixture("llama").join(name), &work.join(name)))
}

/// `upcycle` of the two models.
fn upcycle(method: &str, seed: &Path, code: &Path, out: &Path) -> Run {
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle", "--method", method, "--seed", seed, "--expert", expert, "--out", out
    )
}

#[test]
fn a_tokenizer_in_another_spelling_is_the_same() {
    let work = TempDir::new().unwrap();
    let [seed, code] = models(work.path());
    let tokenizer = code.join("tokenizer.json");
    let upcycle = |out: &str| upcycle("btx", &seed, &code, &work.path().join(out));

    edit_json(&tokenizer, |json| {
        let model = json["model"].as_object_mut().unwrap();
        let merges = model["merges"].as_array_mut().unwrap();
        for merge in merges {
            *merge = match merge.take() {
                Value::String(text) => {
                    let (left, right) = text.split_once(' ').unwrap();
                    json!([left, right])
                }
                pair => json!(format!(
                    "{} {}",
                    pair[0].as_str().unwrap(),
                    pair[1].as_str().unwrap()
                )),
            };
        }
        for option in ["dropout", "fuse_unk", "byte_fallback", "ignore_merges"] {
            model.remove(option);
        }
        for step in json["pre_tokenizer"]["pretokenizers"]
            .as_array_mut()
            .unwrap()
        {
            let step = step.as_object_mut().unwrap();
            step.remove("trim_offsets");
            if step.get("use_regex") == Some(&Value::Bool(true)) {
                step.remove("use_regex");
            }
        }
    });
    upcycle("same").ok();

    edit_json(&tokenizer, |json| {
        for step in json["pre_tokenizer"]["pretokenizers"]
            .as_array_mut()
            .unwrap()
        {
            if step["type"] == "ByteLevel" {
                step["add_prefix_space"] = true.into();
            }
        }
    });
    upcycle("prefix").refused(2, &["pre_tokenizer", "share the seed's tokenizer"]);
    fs::copy(seed.join("tokenizer.json"), &tokenizer).unwrap();
    edit_json(&tokenizer, |json| {
        json["model"]["byte_fallback"] = true.into()
    });
    upcycle("fallback").refused(2, &["byte_fallback"]);
}

#[test]
fn files_beside_the_weights_travel() {
    const FILES: [(&str, &str); 7] = [
        ("LICENSE", "You may copy this.\n"),
        ("NOTICE.md", "Made by us.\n"),
        ("preprocessor_config.json", "{}\n"),
        ("processor_config.json", "{}\n"),
        ("tokenization_mine.py", "class Mine: ...\n"),
        (
            "additional_chat_templates/tool_use.jinja",
            "{{ messages }}\n",
        ),
        ("additional_chat_templates/rag.jinja", "{{ documents }}\n"),
    ];
    let work = TempDir::new().unwrap();
    let [seed, code] = models(work.path());
    fs::create_dir(seed.join("additional_chat_templates")).unwrap();
    for (name, text) in FILES {
        fs::write(seed.join(name), text).unwrap();
    }
    fs::write(seed.join("additional_chat_templates/x.py"), "no template").unwrap();

    let to = |name: &str| work.path().join(name);
    upcycle("bam", &seed, &code, &to("bam")).ok();
    bam!("convert", seed, to("f32"), "--dtype", "f32").ok();
    bam!(
        "merge",
        "--model",
        seed,
        "--model",
        code,
        "--out",
        to("merged")
    )
    .ok();
    bam!("branch", seed, "--into", "a", "--out", to("branches")).ok();
    bam!("expert", "extract", to("bam"), "code", "--out", to("alone")).ok();
    crate::train::train(&seed, &to("trained"), &["--steps", "1"]).ok();
    let trained = to("trained");
    for folder in [
        to("bam"),
        to("f32"),
        to("merged"),
        to("branches/a"),
        to("alone"),
        trained,
    ] {
        for (name, text) in FILES {
            let found = fs::read_to_string(folder.join(name));
            assert_eq!(
                found.ok().as_deref(),
                Some(text),
                "{}: {name}",
                folder.display()
            );
        }
        assert!(!folder.join("additional_chat_templates/x.py").exists());
        bam!("validate", folder).ok();
    }

    // A changed template is found, and `--force` removes templates that the source no longer has.
    fs::write(to("bam/additional_chat_templates/rag.jinja"), "other").unwrap();
    let found = bam!("validate", to("bam"));
    assert!(
        found.stdout.contains("additional_chat_templates/rag.jinja"),
        "{found:?}"
    );
    fs::remove_dir_all(seed.join("additional_chat_templates")).unwrap();
    bam!("convert", seed, to("f32"), "--dtype", "f32", "--force").ok();
    assert!(!to("f32/additional_chat_templates").exists());
}

#[test]
fn a_leftover_of_quantisation_is_dropped() {
    let work = TempDir::new().unwrap();
    let [seed, code] = models(work.path());
    edit_json(&seed.join("config.json"), |config| {
        config["quantization_config"] =
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    });
    let to = |name: &str| work.path().join(name);
    let found = bam!("validate", seed).ok();
    assert!(
        found
            .stdout
            .contains("describes quantised weights, but the weights are plain numbers"),
        "{found:?}"
    );
    let noted = |run: crate::common::Run, folder: &str| {
        let run = run.ok();
        assert!(
            run.stderr.contains("quantization_config"),
            "{folder}: {run:?}"
        );
        let config = read_json(to(folder).join("config.json"));
        assert!(config.get("quantization_config").is_none(), "{folder}");
        bam!("validate", to(folder)).ok();
    };
    noted(bam!("convert", seed, to("f32"), "--dtype", "f32"), "f32");
    noted(
        bam!(
            "merge",
            "--model",
            seed,
            "--model",
            code,
            "--out",
            to("merged")
        ),
        "merged",
    );
    noted(
        bam!("branch", seed, "--into", "a", "--out", to("branches")),
        "branches/a",
    );
    noted(upcycle("bam", &seed, &code, &to("bam")), "bam");
    let arguments = ["--steps", "1", "--batch", "1", "--validate-every", "0"];
    let trained = crate::train::train(&seed, &to("trained"), &arguments);
    noted(trained, "trained");
    let resumable = read_json(to("trained.run/checkpoints/step-00000001/config.json"));
    assert!(resumable.get("quantization_config").is_none());
}

#[test]
fn a_companion_that_is_a_link_out_of_its_folder_is_noted() {
    let work = TempDir::new().unwrap();
    let [seed, _] = models(work.path());
    let outside = work.path().join("elsewhere.json");
    fs::rename(seed.join("tokenizer.json"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, seed.join("tokenizer.json")).unwrap();
    let run = bam!("convert", seed, work.path().join("f32"), "--dtype", "f32").ok();
    let note = format!(
        " note: {}: is a link to {}",
        seed.join("tokenizer.json").display(),
        outside.canonicalize().unwrap().display()
    );
    assert!(run.stderr.contains(&note), "{run:?}");
}

#[test]
fn an_index_chooses_among_two_sets_of_shards() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("llama_sharded/seed"), &work.path().join("seed"));
    let golden = read_file(&fixture("golden/llama.safetensors"))["logits"].values();
    for number in 1..=2 {
        fs::copy(
            fixture("llama/code/model.safetensors"),
            folder.join(format!("model-0000{number}-of-00002.safetensors")),
        )
        .unwrap();
    }
    let dump = work.path().join("logits");
    let tokens = fixture("golden/tokens.json");
    let run = bam!("logits", folder, "--tokens", tokens, "--dump", dump).ok();
    assert!(
        run.stderr.contains("does not list model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, which are not read"),
        "{run:?}"
    );
    let found = read_file(&dump)["logits"].values();
    let pairs = found.iter().zip(&golden);
    assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-4);

    // Without an index nothing chooses, and an index does not come before a file of all weights.
    let index = folder.join("model.safetensors.index.json");
    let text = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    bam!("inspect", folder).refused(
        2,
        &[
            "expected each shard once",
            "add its model.safetensors.index.json",
        ],
    );
    fs::write(&index, text).unwrap();
    fs::copy(
        fixture("llama/code/model.safetensors"),
        folder.join("model.safetensors"),
    )
    .unwrap();
    bam!("inspect", folder).refused(2, &["model.safetensors", "is not listed"]);
}
