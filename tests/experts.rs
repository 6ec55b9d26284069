//! Experts of a mixture, one by one: how far they have moved, adding, removing, replacing, extracting, putting together.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{Tensor, Tensors, bam, copy_folder, edit_tensors, fixture, read_folder};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{found}, expected {expected}"));
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found}, expected {expected}");
}

// ---------------------------------------------------------------- inspect --divergence

/// The values of the tensors of a role and layer, one behind the other.
fn values_of(tensors: &Tensors, fits: impl Fn(&str) -> bool) -> Vec<f64> {
    tensors.iter().filter(|(name, _)| fits(name)).flat_map(|(_, tensor)| tensor.values()).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / (norm(a) * norm(b))
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[test]
fn divergence_is_what_the_weights_say() {
    for (family, role, part) in [
        ("llama", "gate", "1.mlp.gate_proj."),
        ("qwen2", "q", "0.self_attn.q_proj."),
        ("cohere", "down", "1.mlp.down_proj."),
    ] {
        let [seed, code, law] = ["seed", "code", "law"].map(|name| fixture(family).join(name));
        let found = bam!("inspect", "--divergence", seed, code, law, "--json").ok().json();
        let models = [seed, code, law].map(|folder| read_folder(&folder));
        let check = |row: &Value, fits: &dyn Fn(&str) -> bool| {
            let [seed, code, law] = [0, 1, 2].map(|model| values_of(&models[model], fits));
            assert_eq!(row["values"], seed.len());
            let mean: Vec<f64> = (0..seed.len()).map(|i| (seed[i] + code[i] + law[i]) / 3.0).collect();
            for (number, (name, model)) in [("code", &code), ("law", &law)].into_iter().enumerate() {
                let moved = &row["experts"][number];
                assert_eq!(moved["expert"], name);
                close(&moved["relative"], norm(&minus(model, &seed)) / norm(&seed));
                close(&moved["cosine"], cosine(model, &seed));
                close(&moved["from_average"], norm(&minus(model, &mean)) / norm(&seed));
            }
            assert_eq!(row["pairs"][0]["experts"], json!(["code", "law"]));
            close(&row["pairs"][0]["cosine"], cosine(&minus(&code, &seed), &minus(&law, &seed)));
        };
        check(&found["total"], &|_| true);
        let layer: u64 = part[..1].parse().unwrap();
        let rows = found["layers"].as_array().unwrap();
        let row = rows.iter().find(|row| row["role"] == role && row["layer"] == layer).unwrap();
        check(row, &|name| name.contains(part));
        let rows = found["roles"].as_array().unwrap();
        check(rows.iter().find(|row| row["role"] == role).unwrap(), &|name| name.contains(&part[2..]));
    }
}

#[test]
fn divergence_is_drawn_and_named() {
    let work = TempDir::new().unwrap();
    let svg = work.path().join("divergence.svg");
    let [seed, code] = ["seed", "code"].map(|name| fixture("llama").join(name));
    let named = |name: &str, folder: &Path| format!("{name}={}", folder.display());
    let run = bam!("inspect", "--divergence", seed, named("a", &code), named("still", &seed), "--svg", svg).ok();
    for part in ["a moved", "a · still", "still, by layer", "post_attention_norm"] {
        assert!(run.stdout.contains(part), "{run}");
    }
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("a and still: cosine of their changes"), "{drawn}");
    // What did not move has no direction.
    let found = bam!("inspect", "--divergence", seed, named("a", &code), named("still", &seed), "--json").ok().json();
    assert_eq!(
        found["total"]["experts"][1],
        json!({
            "expert": "still", "relative": 0.0, "cosine": 1.0, "from_average": found["total"]["experts"][1]["from_average"],
        })
    );
    assert_eq!(found["total"]["pairs"][0]["cosine"], Value::Null);

    bam!("inspect", "--divergence", seed, code, code).refused(2, &["named `code`", "NAME=DIR"]);
    bam!("inspect", "--divergence", seed).refused(2, &["--divergence"]);
    bam!("inspect", "--divergence", seed, fixture("qwen3/seed")).refused(2, &["model_type", "llama"]);
    std::fs::write(&svg, "mine").unwrap();
    bam!("inspect", "--divergence", seed, code, "--svg", svg).refused(2, &["divergence.svg", "no SVG"]);
    let nan = copy_folder(&code, &work.path().join("nan"));
    edit_tensors(&nan, |tensors| {
        let norm = tensors.get_mut("model.norm.weight").unwrap();
        *norm = Tensor::new(Dtype::BF16, &norm.shape, &vec![f64::NAN; norm.shape[0]]);
    });
    bam!("inspect", "--divergence", seed, nan).refused(2, &["nan", "model.norm.weight", "NaN"]);
}

// ---------------------------------------------------------------- licences

/// Copies of three models of a family, to write licences beside.
fn models(work: &Path, family: &str) -> [PathBuf; 3] {
    ["seed", "code", "law"].map(|name| copy_folder(&fixture(family).join(name), &work.join(name)))
}

fn card_says(folder: &Path, licence: &str) {
    std::fs::write(
        folder.join("README.md"),
        format!("---\ntags: [x]\n{licence}\nunheard_of: {{a: 1}}\n---\n# A model\n"),
    )
    .unwrap();
}

/// Upcycles the three and gives what was said and the card's front matter and text.
fn upcycled(work: &Path, [seed, code, law]: &[PathBuf; 3]) -> (String, String, String) {
    let (a, b) = (format!("code={}", code.display()), format!("law={}", law.display()));
    let out = work.join("out");
    let run =
        bam!("upcycle", "--method", "btx", "--seed", seed, "--expert", a, "--expert", b, "--force", "--out", out).ok();
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    let front = card.split("---").nth(1).unwrap().to_owned();
    (run.stderr, front, card)
}

#[test]
fn licences_are_carried_and_conflicts_are_named() {
    let work = TempDir::new().unwrap();
    let folders = models(work.path(), "llama");
    let [seed, code, law] = &folders;
    let (said, front, card) = upcycled(work.path(), &folders);
    assert!(said.contains("no source says under which licence") && !front.contains("license"), "{said}{card}");

    card_says(seed, "license: apache-2.0");
    card_says(code, "license: apache-2.0");
    std::fs::write(law.join("LICENSE"), "  Apache License\n  Version 2.0, January 2004\n").unwrap();
    let (said, front, card) = upcycled(work.path(), &folders);
    assert!(!said.contains("licence") && front.contains("\nlicense: apache-2.0\n"), "{said}{card}");
    assert!(card.contains("| law | law | apache-2.0 |"), "{card}");

    std::fs::write(law.join("LICENSE"), "MIT License\n\nPermission is hereby granted, free of charge, to any").unwrap();
    card_says(code, "license:\n- cc-by-nc-nd-4.0\n- GPL-3.0-or-later");
    let (said, front, card) = upcycled(work.path(), &folders);
    assert!(front.contains("license:\n- apache-2.0\n- cc-by-nc-nd-4.0\n- gpl-3.0\n- mit\n"), "{front}");
    for part in [
        "licences differ: apache-2.0 (seed), cc-by-nc-nd-4.0 (code), gpl-3.0 (code), mit (law)",
        "cc-by-nc-nd-4.0 (code) forbids commercial use",
        "cc-by-nc-nd-4.0 (code) forbids derivatives",
    ] {
        assert!(said.contains(part) && card.contains(part), "{said}{card}");
    }

    // Nothing of a card's text reaches ours but plain words.
    card_says(seed, "license: other\nlicense_name: my-licence");
    card_says(code, "license: \"mit\\nlibrary_name: evil\"");
    std::fs::remove_file(law.join("LICENSE")).unwrap();
    let (said, front, card) = upcycled(work.path(), &folders);
    assert!(front.contains("license:\n- other\n- unknown\n") && !card.contains("evil"), "{card}");
    assert!(
        card.contains("| seed | seed | other (my-licence) |") && card.contains("| law | law | unknown |"),
        "{card}"
    );
    assert!(said.contains("law says nothing of one") && said.contains("other (seed, code) is none"), "{said}");
    std::fs::write(code.join("README.md"), "---\nlicense: [\n---\n").unwrap();
    upcycled(work.path(), &folders);
}

#[test]
fn a_branch_has_the_licence_of_its_seed() {
    let work = TempDir::new().unwrap();
    let [seed, ..] = models(work.path(), "llama");
    card_says(&seed, "license: mit");
    bam!("branch", seed, "--into", "code,law", "--out", work.path().join("branches")).ok();
    let folders = [seed, work.path().join("branches/code"), work.path().join("branches/law")];
    let (said, front, _) = upcycled(work.path(), &folders);
    assert!(!said.contains("licence") && front.contains("license: mit"), "{said}{front}");
}

// ---------------------------------------------------------------- upcycle --check

#[test]
fn a_check_measures_sources_and_mixture_as_eval_does() {
    let work = TempDir::new().unwrap();
    let [seed, code, law] = models(work.path(), "llama");
    let text = work.path().join("words.txt");
    std::fs::write(&text, "The parties agree, naïvely or not.\n".repeat(20)).unwrap();
    let (a, b, out) = (format!("code={}", code.display()), format!("law={}", law.display()), work.path().join("out"));
    let upcycle = |flag: &str, value: &Path, out: &Path| {
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", a, "--expert", b, "--expert", "x=random",
            "--out", out, flag, value, "--json"
        )
    };
    let found = upcycle("--check", &text, &out).ok().json();
    let data = format!("words={}", text.display());
    let eval = bam!("eval", seed, code, law, out, "--data", data, "--json").ok().json();
    assert_eq!(found["check"], eval);
    assert_eq!(found["method"], "bam");
    let run = bam!(
        "upcycle",
        "--method",
        "btx",
        "--seed",
        seed,
        "--expert",
        a,
        "--out",
        work.path().join("b"),
        "--check",
        text
    )
    .ok();
    for part in ["perplexity", "bits per byte", "words", "seed", "code"] {
        assert!(run.stdout.contains(part), "{run}");
    }
    // What cannot be read is refused before anything is written.
    let none = work.path().join("none");
    upcycle("--check", &work.path().join("missing.txt"), &none).refused(3, &["missing.txt"]);
    assert!(!none.exists());
}
