//! `logits`: dumps are what transformers computes; comparisons say what is equal.

use std::path::{Path, PathBuf};

use crate::common::{bam, copy_folder, edit_json, edit_tensors, fixture, read_file};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

const FAMILIES: [&str; 6] = ["llama", "llama_bias", "mistral", "qwen2", "qwen3", "cohere"];

fn dump(folder: &Path, to: &Path) -> crate::common::Tensor {
    bam!(
        "logits",
        folder,
        "--tokens",
        fixture("golden/tokens.json"),
        "--dump",
        to
    )
    .ok();
    let tensors = read_file(to);
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["logits"]);
    tensors["logits"].clone()
}

/// A mixture of `--seed-copies` and experts that are the seed itself.
fn copies(work: &Path, flags: &[&str]) -> PathBuf {
    let (seed, out) = (fixture("llama/seed"), work.join("copies"));
    let expert = |name: &str| format!("{name}={}", seed.display());
    let mut arguments: Vec<std::ffi::OsString> = ["upcycle", "--method", "bam", "--seed"]
        .map(Into::into)
        .to_vec();
    arguments.push(seed.clone().into());
    for name in ["code", "law"] {
        arguments.extend(["--expert".into(), expert(name).into()]);
    }
    arguments.extend(["--out".into(), out.clone().into()]);
    arguments.extend(flags.iter().map(Into::into));
    crate::common::run(arguments).ok();
    out
}

/// Golden: transformers, by `fixtures/make.py`.
#[test]
fn dumps_are_what_transformers_computes() {
    let work = TempDir::new().unwrap();
    for family in FAMILIES {
        let to = work.path().join(family);
        let ours = dump(&fixture(family).join("seed"), &to);
        let golden = fixture("golden").join(format!("{family}.safetensors"));
        let theirs = &read_file(&golden)["logits"];
        assert_eq!((ours.dtype, &ours.shape), (Dtype::F32, &theirs.shape));
        let difference = ours
            .values()
            .iter()
            .zip(theirs.values())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(difference < 2e-4, "{family}: {difference}");
        let json = bam!("logits", to, golden, "--json", "--tolerance", "2e-4")
            .ok()
            .json();
        assert_eq!(json["max"], difference);
        assert_eq!(
            (&json["positions"], &json["vocab"]),
            (&json!(16), &json!(384))
        );
    }
}

#[test]
fn copies_of_the_seed_equal_it() {
    // Gates sum to one, whether all experts are chosen or, by default, two.
    for routing in [
        &["--kv", "expert", "--top-k", "soft"][..],
        &["--kv", "shared", "--top-k", "soft"],
        &[],
    ] {
        let work = TempDir::new().unwrap();
        let mixture = copies(work.path(), routing);
        bam!(
            "logits",
            fixture("llama/seed"),
            mixture,
            "--tolerance",
            "1e-5"
        )
        .ok();
    }
    // One expert a token, its gate below 1: another function.
    let work = TempDir::new().unwrap();
    let mixture = copies(work.path(), &["--preset", "paper"]);
    let run = bam!(
        "logits",
        fixture("llama/seed"),
        mixture,
        "--tolerance",
        "1e-5",
        "--json"
    );
    assert_eq!(run.code, Some(1), "{run}");
    assert!(run.json()["max"].as_f64().unwrap() > 1e-2);
}

#[test]
fn differences_are_those_of_the_dumps() {
    let work = TempDir::new().unwrap();
    let tokens = fixture("golden/tokens.json");
    let (seed, code) = (fixture("qwen2/seed"), fixture("qwen2/code"));
    let a = dump(&seed, &work.path().join("a")).values();
    let b = dump(&code, &work.path().join("b")).values();
    let json = bam!("logits", seed, code, "--tokens", tokens, "--json")
        .ok()
        .json();
    let number = |key: &str| json[key].as_f64().unwrap();
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).collect();
    assert_eq!(
        number("max"),
        differences.iter().copied().fold(0.0, f64::max)
    );
    assert!(
        (number("mean") - differences.iter().sum::<f64>() / differences.len() as f64).abs() < 1e-12
    );
    let softmax = |row: &[f64]| {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / sum).collect::<Vec<f64>>()
    };
    let kl = a.chunks(384).zip(b.chunks(384)).map(|(a, b)| {
        softmax(a)
            .iter()
            .zip(softmax(b))
            .map(|(p, q)| p * (p / q).ln())
            .sum::<f64>()
    });
    assert!((number("kl") - kl.sum::<f64>() / 16.0).abs() < 1e-9);
    // Dumps, in any mix with folders.
    let mixed = bam!(
        "logits",
        work.path().join("a"),
        code,
        "--tokens",
        tokens,
        "--json"
    )
    .ok()
    .json();
    assert_eq!(mixed["max"], json["max"]);
    let dumps = bam!(
        "logits",
        work.path().join("a"),
        work.path().join("b"),
        "--json"
    )
    .ok()
    .json();
    assert_eq!(dumps, json);
    let text = bam!("logits", work.path().join("a"), work.path().join("b"))
        .ok()
        .stdout;
    assert!(
        text.contains("largest difference") && text.contains("nats"),
        "{text}"
    );
}

#[test]
fn the_default_tokens_are_fixed() {
    let (seed, code) = (fixture("llama/seed"), fixture("llama/code"));
    let run = || bam!("logits", seed, code, "--json").ok().stdout;
    assert_eq!(run(), run());
    let json = bam!("logits", seed, seed, "--json", "--tolerance", "0")
        .ok()
        .json();
    assert_eq!(
        (&json["max"], &json["same_token"], &json["positions"]),
        (&json!(0.0), &json!(1.0), &json!(64))
    );
}

#[test]
fn only_a_dump_is_replaced() {
    let work = TempDir::new().unwrap();
    let to = work.path().join("dump.safetensors");
    dump(&fixture("llama/seed"), &to);
    dump(&fixture("llama/code"), &to);
    let weights =
        copy_folder(&fixture("llama/seed"), &work.path().join("m")).join("model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    bam!(
        "logits",
        fixture("llama/seed"),
        "--tokens",
        fixture("golden/tokens.json"),
        "--dump",
        weights
    )
    .refused(2, &["model.safetensors", "exists already"]);
    assert_eq!(std::fs::read(&weights).unwrap(), before);
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 2);
}

#[test]
fn bad_input_is_refused_by_name() {
    let work = TempDir::new().unwrap();
    let seed = fixture("llama/seed");
    let out = work.path().join("out");
    let tokens = |text: &str| {
        let path = work.path().join("tokens.json");
        std::fs::write(&path, text).unwrap();
        path
    };
    let refused = |text: &str, parts: &[&str]| {
        bam!("logits", seed, "--tokens", tokens(text), "--dump", out).refused(2, parts);
        assert!(!out.exists());
    };
    refused("[1, 384]", &["token id 384", "vocabulary of 384"]);
    refused("[]", &["tokens.json", "at least one token"]);
    refused("[1, -2]", &["tokens.json", "array of token ids"]);
    refused("{}", &["tokens.json", "array of token ids"]);
    refused(
        &format!("{:?}", vec![1; 513]),
        &["513 positions", "context of 512"],
    );
    bam!("logits", seed).refused(2, &["--dump"]);
    dump(&seed, &out);
    bam!("logits", out, seed).refused(2, &["expected --tokens"]);
    bam!("logits", out, seed, "--tokens", tokens("[1, 2]")).refused(2, &["[2, 384]", "[16, 384]"]);
    let none = fixture("llama/seed/model.safetensors");
    bam!("logits", out, none).refused(2, &["logits"]);

    let nan = copy_folder(&seed, &work.path().join("nan"));
    edit_tensors(&nan, |tensors| {
        let norm = tensors.get_mut("model.norm.weight").unwrap();
        *norm =
            crate::common::Tensor::new(Dtype::BF16, &norm.shape, &vec![f64::NAN; norm.shape[0]]);
    });
    bam!("logits", seed, nan).refused(2, &["nan", "not finite"]);
    edit_json(&nan.join("config.json"), |config| {
        config["hidden_size"] = json!(64)
    });
    bam!("logits", seed, nan).refused(2, &["nan", "has shape", "config.json makes it"]);
}
