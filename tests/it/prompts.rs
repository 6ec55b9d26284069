//! `--router prompts:FILE`: rows out of a model's hidden states, kept and replayed. `tests/live/prompts.py` compares them
//! with transformers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::common::{
    Run, assert_same_folder, bam, fixture, read_file, read_folder, read_json, run, sha256,
};
use bam_convert::model::tokenizer::Tokenizer;
use tempfile::TempDir;

const ROWS: &str = "router-rows.st";
const POSITIVE: [&str; 2] = ["def mean(values):", "for (int i = 0; i < 10; i++) {"];

fn prompts(mode: &str) -> String {
    format!(
        "gate_mode: {mode}\nexperts:\n- name: law\n  positive_prompts: [\"The court finds that\"]\n\
         - name: seed\n  positive_prompts: [\"The year\", \"A mixture of experts\"]\n\
         - name: code\n  positive_prompts: [\"{}\", \"{}\"]\n  negative_prompts: [\"The court\"]\n",
        POSITIVE[0], POSITIVE[1],
    )
}

struct Bench {
    work: TempDir,
    family: &'static str,
}

impl Bench {
    fn new(family: &'static str) -> Self {
        Self {
            work: TempDir::new().unwrap(),
            family,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn upcycle(&self, text: &str, out: &str, flags: &[&str]) -> Run {
        let file = self.path("prompts.yaml");
        std::fs::write(&file, text).unwrap();
        let seed = fixture(self.family);
        let mut arguments: Vec<OsString> = ["upcycle", "--method", "bam", "--seed"]
            .map(Into::into)
            .to_vec();
        arguments.push(seed.join("seed").into());
        for expert in ["code", "law"] {
            arguments.extend([
                "--expert".into(),
                format!("{expert}={}", seed.join(expert).display()).into(),
            ]);
        }
        arguments.extend([
            "--router".into(),
            format!("prompts:{}", file.display()).into(),
        ]);
        arguments.extend(["--out".into(), self.path(out).into()]);
        arguments.extend(flags.iter().map(Into::into));
        run(arguments)
    }

    /// Rows `[expert][hidden]` of a layer's feed-forward router.
    fn rows(&self, out: &str, layer: usize) -> Vec<Vec<f64>> {
        let rows = read_file(&self.path(out).join(ROWS));
        let tensor = &rows[&format!("model.layers.{layer}.mlp.router.weight")];
        tensor
            .values()
            .chunks(tensor.shape[1])
            .map(<[f64]>::to_vec)
            .collect()
    }
}

fn unit(mut row: Vec<f64>) -> Vec<f64> {
    let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
    row.iter_mut().for_each(|value| *value /= norm);
    row
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    assert!(
        found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-6),
        "{found:?}\n{expected:?}"
    );
}

/// Embeddings of a prompt's tokens, the first of which begins a text.
fn embeddings(seed: &Path, prompt: &str) -> Vec<Vec<f64>> {
    let tokenizer = Tokenizer::load(seed, 384).unwrap();
    let bos = read_json(seed.join("tokenizer_config.json"))["bos_token"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let ids = tokenizer.encode(&(bos + prompt), false).unwrap().ids;
    let embedding = &read_folder(seed)["model.embed_tokens.weight"];
    let (values, width) = (embedding.values(), embedding.shape[1]);
    ids.iter()
        .map(|id| values[*id as usize * width..][..width].to_vec())
        .collect()
}

fn sum(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column]).sum())
        .collect()
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[test]
fn rows_are_kept_recorded_and_replayed() {
    let bench = Bench::new("qwen2");
    bench.upcycle(&prompts("hidden"), "out", &[]).ok();
    let out = bench.path("out");
    let manifest = read_json(out.join("bam-manifest.json"));
    let bytes = std::fs::read(out.join(ROWS)).unwrap();
    let listed = |files: &serde_json::Value| {
        files
            .as_array()
            .unwrap()
            .iter()
            .any(|file| file["path"] == ROWS && file["sha256"] == sha256(&bytes))
    };
    assert!(listed(&manifest["files"]), "{manifest}");
    let sources = manifest["sources"].as_array().unwrap();
    let source = sources
        .iter()
        .find(|source| source["name"] == "router file")
        .unwrap();
    assert!(
        source["path"] == ROWS && listed(&source["files"]),
        "{source}"
    );
    assert_eq!(manifest["settings"]["router"], "prompts:prompts.yaml");
    assert_eq!(
        manifest["settings"]["router_prompts"]["gate_mode"],
        "hidden"
    );
    let of_prompts = sha256(&std::fs::read(bench.path("prompts.yaml")).unwrap());
    assert_eq!(
        manifest["settings"]["router_prompts"]["sha256"],
        of_prompts.as_str()
    );

    // The routers are the rows, in the checkpoint's dtype: bfloat16 keeps 8 bits.
    let (rows, tensors) = (read_file(&out.join(ROWS)), read_folder(&out));
    let routers: Vec<&String> = tensors
        .keys()
        .filter(|name| name.ends_with("router.weight"))
        .collect();
    assert_eq!(routers.len(), 4);
    for name in routers {
        let (row, stored) = (rows[name].values(), tensors[name].values());
        assert!(
            row.iter()
                .zip(&stored)
                .all(|(a, b)| (a - b).abs() <= a.abs() / 256.0),
            "{name}"
        );
        for row in row.chunks(rows[name].shape[1]) {
            assert!((row.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-6);
        }
    }
    // The folder of prompts is not needed any more, and folders can move.
    std::fs::remove_file(bench.path("prompts.yaml")).unwrap();
    crate::common::against(&out).ok();
    // A row that was touched is found.
    let mut broken = bytes.clone();
    let last = broken.len() - 1;
    broken[last] ^= 64;
    std::fs::write(out.join(ROWS), broken).unwrap();
    let verdict = crate::common::against(&out);
    assert!(
        verdict.code == Some(1) && verdict.stdout.contains(ROWS),
        "{}",
        verdict.stdout
    );
}

#[test]
fn equal_runs_make_equal_bytes_on_any_number_of_threads() {
    let bench = Bench::new("llama");
    bench
        .upcycle(&prompts("hidden_avg"), "a", &["--threads", "1"])
        .ok();
    bench
        .upcycle(&prompts("hidden_avg"), "b", &["--threads", "2"])
        .ok();
    assert_same_folder(&bench.path("a"), &bench.path("b"));
    // The last token is the last token by either name.
    bench.upcycle(&prompts("hidden"), "c", &[]).ok();
    bench.upcycle(&prompts("hidden_last"), "d", &[]).ok();
    let bytes = |out: &str| std::fs::read(bench.path(out).join(ROWS)).unwrap();
    assert_eq!(bytes("c"), bytes("d"));
    assert_ne!(bytes("a"), bytes("c"));
}

#[test]
fn the_first_layer_reads_embeddings() {
    for family in ["llama", "cohere"] {
        let bench = Bench::new(family);
        let seed = fixture(family).join("seed");
        let [a, b, court] =
            [POSITIVE[0], POSITIVE[1], "The court"].map(|prompt| embeddings(&seed, prompt));
        let mean = |rows: &[Vec<f64>]| {
            sum(rows)
                .into_iter()
                .map(|value| value / rows.len() as f64)
                .collect::<Vec<_>>()
        };

        bench
            .upcycle(
                &prompts("hidden_avg"),
                "avg",
                &["--attention-router", "normal"],
            )
            .ok();
        let positive: Vec<f64> = sum(&[mean(&a), mean(&b)])
            .iter()
            .map(|value| value / 2.0)
            .collect();
        assert_close(
            &bench.rows("avg", 0)[1],
            &unit(minus(&positive, &mean(&court))),
        );

        bench.upcycle(&prompts("hidden"), "last", &[]).ok();
        let last = |rows: &[Vec<f64>]| rows[rows.len() - 1].clone();
        let positive: Vec<f64> = sum(&[last(&a), last(&b)])
            .iter()
            .map(|value| value / 2.0)
            .collect();
        assert_close(
            &bench.rows("last", 0)[1],
            &unit(minus(&positive, &last(&court))),
        );

        bench.upcycle(&prompts("cheap_embed"), "cheap", &[]).ok();
        let positive = unit(sum(&[a.clone(), b.clone()].concat()));
        let row = unit(minus(&positive, &unit(sum(&court))));
        for layer in 0..2 {
            assert_close(&bench.rows("cheap", layer)[1], &row);
        }
        assert_ne!(bench.rows("last", 0), bench.rows("last", 1));
    }
}

#[test]
fn btx_and_json_and_a_mixture_without_the_seed() {
    let bench = Bench::new("llama");
    let json = r#"{"gate_mode": "cheap_embed", "experts": [{"name": "code", "positive_prompts": ["x = 1"]},
                  {"name": "law", "positive_prompts": ["The court"], "negative_prompts": []}]}"#;
    bench.upcycle(json, "out", &["--no-seed-expert"]).ok();
    assert_eq!(bench.rows("out", 1).len(), 2);
    let seed = fixture("llama");
    let expert = |name: &str| format!("{name}={}", seed.join(name).display());
    let file = format!("prompts:{}", bench.path("prompts.yaml").display());
    let btx = bench.path("btx");
    let (code, law) = (expert("code"), expert("law"));
    let dense = seed.join("seed");
    bam!(
        "upcycle",
        "--method",
        "btx",
        "--seed",
        dense,
        "--expert",
        code,
        "--expert",
        law,
        "--no-seed-expert",
        "--router",
        file,
        "--out",
        btx
    )
    .ok();
    crate::common::against(&btx).ok();
}

#[test]
fn wrong_prompts_are_refused_by_name() {
    let bench = Bench::new("llama");
    let good = prompts("hidden");
    for (text, flags, parts) in [
        (
            good.replace("gate_mode", "gate_mod"),
            &[][..],
            &["prompts.yaml:1", "gate_mod", "`gate_mode`"][..],
        ),
        (
            good.replace("hidden", "hiden"),
            &[],
            &["prompts.yaml", "hidden_avg"],
        ),
        (
            good.replace("name: law", "name: lawe"),
            &[],
            &["has prompts for `lawe`", "did you mean `law`?"],
        ),
        (
            good.replace("name: law", "name: code"),
            &[],
            &["has `code` twice"],
        ),
        (
            good.replace(
                "positive_prompts: [\"The court finds that\"]",
                "positive_prompts: []",
            ),
            &[],
            &["no positive_prompts for `law`"],
        ),
        (
            good.clone(),
            &["--no-seed-expert"],
            &["has prompts for `seed`, but the experts are code, law"],
        ),
        (good.clone(), &["--seed-copies", "1"], &["--seed-copies"]),
        (
            good.replace(
                "[\"The court\"]",
                "[\"def mean(values):\", \"for (int i = 0; i < 10; i++) {\"]",
            ),
            &[],
            &["`code`", "row of length 0"],
        ),
        (
            good.clone(),
            &[
                "--router-dtype",
                "f32",
                "--attention-router",
                "prompts:Cargo.toml",
            ],
            &["two files"],
        ),
        (
            good.replace(
                "- name: law\n  positive_prompts: [\"The court finds that\"]\n",
                "",
            ),
            &[],
            &["no prompts for the expert `law`"],
        ),
        (
            good.replace(
                "[\"The court finds that\"]",
                "[\"The year\", \"A mixture of experts\"]",
            ),
            &[],
            &["the same prompts for `seed` and `law`"],
        ),
    ] {
        bench.upcycle(&text, "out", flags).refused(2, parts);
        assert!(!bench.path("out").exists());
    }
    run([
        "upcycle", "--method", "bam", "--seed", "x", "--router", "prompts:", "--out", "y",
    ]
    .map(Into::into))
    .refused(2, &["expected a path after `prompts:`"]);
}
