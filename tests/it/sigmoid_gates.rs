//! Mixtures whose attention experts have sigmoid gates: what `upcycle` writes, what other commands make of them, and what
//! is refused. `golden.rs` and `model/` compare what they compute.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bam_convert::checkpoint::Dtype;
use serde_json::{Value, json};

use crate::common::{
    Run, Tensor, Tensors, against, bam, copy_folder, edit_json, fixture, read_json, run, write_file,
};

/// Runs `upcycle` on the models of a family, with three experts.
fn upcycle(out: &Path, options: &str) -> Run {
    let source = fixture("llama");
    let mut words: Vec<OsString> = ["upcycle", "--seed"].map(OsString::from).to_vec();
    words.push(source.join("seed").into());
    for name in ["code", "law"] {
        words.push("--expert".into());
        words.push(format!("{name}={}", source.join(name).display()).into());
    }
    words.extend(options.split(' ').map(OsString::from));
    words.push("--out".into());
    words.push(out.into());
    run(words)
}

fn sigmoid(work: &Path) -> PathBuf {
    let out = work.join("bam");
    upcycle(&out, "--method bam --attention-gate sigmoid").ok();
    out
}

fn config(folder: &Path) -> Value {
    read_json(folder.join("config.json"))
}

#[test]
fn the_configuration_and_the_manifest_say_the_gate() {
    let work = tempfile::tempdir().unwrap();
    let out = sigmoid(work.path());
    let found = config(&out);
    assert_eq!(found["attention_gate"], "sigmoid");
    assert_eq!(found["attention_gate_scale"], 2.0 / 3.0);
    assert_eq!(found["bam_version"], 2);
    let manifest = read_json(out.join("bam-manifest.json"));
    assert_eq!(manifest["settings"]["attention_gate"], "sigmoid");
    against(&out).ok();
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("by a sigmoid gate of its own"), "{card}");
    assert!(card.contains("llama-server -m ../model.gguf"), "{card}");

    // A softmax is what older readers know.
    let softmax = work.path().join("softmax");
    upcycle(&softmax, "--method bam --attention-gate softmax").ok();
    let found = config(&softmax);
    assert_eq!(found["bam_version"], 1);
    assert!(found.get("attention_gate").is_none() && found.get("attention_gate_scale").is_none());
    let manifest = read_json(softmax.join("bam-manifest.json"));
    assert!(manifest["settings"].get("attention_gate").is_none());
    let card = std::fs::read_to_string(softmax.join("README.md")).unwrap();
    assert!(!card.contains("llama.cpp"), "{card}");
}

#[test]
fn the_factor_follows_the_number_of_experts() {
    let work = tempfile::tempdir().unwrap();
    let out = sigmoid(work.path());
    let (two, four) = (work.path().join("two"), work.path().join("four"));
    bam!("expert", "remove", out, "law", "--out", two).ok();
    let found = config(&two);
    assert_eq!(found["attention_gate"], "sigmoid");
    assert!(found.get("attention_gate_scale").is_none(), "{found}");
    let expert = format!("more={}", fixture("llama/law").display());
    bam!("expert", "add", out, "--expert", expert, "--out", four).ok();
    assert_eq!(config(&four)["attention_gate_scale"], 0.5);

    edit_json(&out.join("config.json"), |config| {
        config["attention_gate_scale"] = json!(1.5)
    });
    let two = work.path().join("two-of-others");
    bam!("expert", "remove", out, "law", "--out", two).ok();
    assert_eq!(config(&two)["attention_gate_scale"], 2.25);
    bam!(
        "expert",
        "remove",
        out,
        "law",
        "--attention-top-k",
        "1",
        "--out",
        work.path().join("no")
    )
    .refused(2, &["--attention-top-k 1", "--attention-top-k soft"]);
}

#[test]
fn top_k_routing_of_attention_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    upcycle(
        &out,
        "--method bam --attention-gate sigmoid --attention-top-k 1",
    )
    .refused(
        2,
        &[
            "--attention-top-k 1 chooses among 3 experts",
            "--attention-top-k soft",
        ],
    );
    upcycle(&out, "--method btx --attention-gate sigmoid").refused(2, &["--attention-gate"]);
    assert!(!out.exists());

    let hint = "hint: leave --attention-top-k out, or pass soft";
    let out = sigmoid(work.path());
    let data = format!("words={}", fixture("llama/seed/config.json").display());
    bam!("eval", out, "--data", data, "--attention-top-k", "1")
        .refused(2, &["attention_gate is sigmoid", hint]);
    // `cost` reads the keys of a mixture in the configuration of a dense model, too.
    let seed = copy_folder(&fixture("llama/seed"), &work.path().join("seed"));
    edit_json(&seed.join("config.json"), |config| {
        config["num_experts"] = json!(3);
        config["attention_gate"] = json!("sigmoid");
    });
    bam!("cost", seed, "--attention-top-k", "1")
        .refused(2, &["num_attention_experts_per_tok: expected all 3", hint]);
}

#[test]
fn rows_from_a_file_may_not_sum_to_one() {
    let work = tempfile::tempdir().unwrap();
    let rows = work.path().join("rows.safetensors");
    let values: Vec<f64> = (0..96).map(|i| f64::from(i % 7) / 8.0).collect();
    let router = Tensor::new(Dtype::F32, &[3, 32], &values);
    write_file(&rows, &Tensors::from([("router".to_owned(), router)]));
    let options = "--method bam --attention-gate sigmoid --dry-run --attention-router";
    let out = work.path().join("out");
    let run = upcycle(&out, &format!("{options} file:{}", rows.display())).ok();
    let warning = "sigmoid gates of a token's attention experts sum to 0 to 2 at step 0";
    assert!(run.stderr.contains(warning), "{run}");
    let run = upcycle(&out, &format!("{options} normal")).ok();
    assert!(!run.stderr.contains(warning), "{run}");
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let out = sigmoid(work.path());
    let original = config(&out);
    for (key, value, words) in [
        (
            "attention_gate",
            json!("softplus"),
            "one of `softmax`, `sigmoid`",
        ),
        ("attention_gate", json!("softmax"), "is for sigmoid gates"),
        (
            "attention_gate_scale",
            json!(0.0),
            "a finite number above 0",
        ),
        (
            "norm_topk_prob_attention",
            json!(true),
            "expected false, because attention_gate is sigmoid",
        ),
        (
            "num_attention_experts_per_tok",
            json!(1),
            "expected all 3, because attention_gate is sigmoid",
        ),
    ] {
        edit_json(&out.join("config.json"), |config| {
            *config = original.clone();
            config[key] = value.clone();
        });
        bam!("generate", out, "--prompt", "a").refused(2, &["config.json", words]);
    }
}
