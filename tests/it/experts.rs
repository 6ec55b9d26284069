//! Experts of a mixture, one by one: how far they have moved, adding, removing, replacing, extracting, putting together.

use std::path::{Path, PathBuf};

use crate::common::{
    Tensor, Tensors, bam, copy_folder, edit_tensors, fixture, read_folder, read_json,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

fn close(found: &Value, expected: f64) {
    let found = found
        .as_f64()
        .unwrap_or_else(|| panic!("{found}, expected {expected}"));
    assert!(
        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
        "{found}, expected {expected}"
    );
}

// ---------------------------------------------------------------- inspect --divergence

/// The values of the tensors of a role and layer, concatenated.
fn values_of(tensors: &Tensors, fits: impl Fn(&str) -> bool) -> Vec<f64> {
    tensors
        .iter()
        .filter(|(name, _)| fits(name))
        .flat_map(|(_, tensor)| tensor.values())
        .collect()
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
        let found = bam!("inspect", "--divergence", seed, code, law, "--json")
            .ok()
            .json();
        let models = [seed, code, law].map(|folder| read_folder(&folder));
        let check = |row: &Value, fits: &dyn Fn(&str) -> bool| {
            let [seed, code, law] = [0, 1, 2].map(|model| values_of(&models[model], fits));
            assert_eq!(row["values"], seed.len());
            let mean: Vec<f64> = (0..seed.len())
                .map(|i| (seed[i] + code[i] + law[i]) / 3.0)
                .collect();
            for (number, (name, model)) in [("code", &code), ("law", &law)].into_iter().enumerate()
            {
                let moved = &row["experts"][number];
                assert_eq!(moved["expert"], name);
                close(&moved["relative"], norm(&minus(model, &seed)) / norm(&seed));
                close(&moved["cosine"], cosine(model, &seed));
                close(
                    &moved["from_average"],
                    norm(&minus(model, &mean)) / norm(&seed),
                );
            }
            assert_eq!(row["pairs"][0]["experts"], json!(["code", "law"]));
            close(
                &row["pairs"][0]["cosine"],
                cosine(&minus(&code, &seed), &minus(&law, &seed)),
            );
        };
        check(&found["total"], &|_| true);
        let layer: u64 = part[..1].parse().unwrap();
        let rows = found["layers"].as_array().unwrap();
        let row = rows
            .iter()
            .find(|row| row["role"] == role && row["layer"] == layer)
            .unwrap();
        check(row, &|name| name.contains(part));
        let rows = found["roles"].as_array().unwrap();
        check(
            rows.iter().find(|row| row["role"] == role).unwrap(),
            &|name| name.contains(&part[2..]),
        );
    }
}

#[test]
fn divergence_is_drawn_and_named() {
    let work = TempDir::new().unwrap();
    let svg = work.path().join("divergence.svg");
    let [seed, code] = ["seed", "code"].map(|name| fixture("llama").join(name));
    let named = |name: &str, folder: &Path| format!("{name}={}", folder.display());
    let run = bam!(
        "inspect",
        "--divergence",
        seed,
        named("a", &code),
        named("still", &seed),
        "--svg",
        svg
    )
    .ok();
    for part in [
        "a moved",
        "a · still",
        "still, by layer",
        "post_attention_norm",
    ] {
        assert!(run.stdout.contains(part), "{run}");
    }
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(
        drawn.starts_with("<svg") && drawn.contains("a and still: cosine of their changes"),
        "{drawn}"
    );
    // What did not move has no direction.
    let found = bam!(
        "inspect",
        "--divergence",
        seed,
        named("a", &code),
        named("still", &seed),
        "--json"
    )
    .ok()
    .json();
    assert_eq!(
        found["total"]["experts"][1],
        json!({
            "expert": "still", "relative": 0.0, "cosine": 1.0, "from_average": found["total"]["experts"][1]["from_average"],
        })
    );
    assert_eq!(found["total"]["pairs"][0]["cosine"], Value::Null);

    bam!("inspect", "--divergence", seed, code, code).refused(2, &["named `code`", "NAME=DIR"]);
    bam!("inspect", "--divergence", seed).refused(2, &["--divergence"]);
    bam!("inspect", "--divergence", seed, fixture("qwen3/seed"))
        .refused(2, &["model_type", "llama"]);
    std::fs::write(&svg, "mine").unwrap();
    bam!("inspect", "--divergence", seed, code, "--svg", svg)
        .refused(2, &["divergence.svg", "no SVG"]);
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
    let (a, b) = (
        format!("code={}", code.display()),
        format!("law={}", law.display()),
    );
    let out = work.join("out");
    let run = bam!(
        "upcycle", "--method", "btx", "--seed", seed, "--expert", a, "--expert", b, "--force",
        "--out", out
    )
    .ok();
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
    assert!(
        said.contains("no source names one") && !front.contains("license"),
        "{said}{card}"
    );

    card_says(seed, "license: apache-2.0");
    card_says(code, "license: apache-2.0");
    std::fs::write(
        law.join("LICENSE"),
        "  Apache License\n  Version 2.0, January 2004\n",
    )
    .unwrap();
    let (said, front, card) = upcycled(work.path(), &folders);
    assert!(
        !said.contains("licence") && front.contains("\nlicense: apache-2.0\n"),
        "{said}{card}"
    );
    assert!(card.contains("| law | law | apache-2.0 |"), "{card}");

    std::fs::write(law.join("LICENSE"), "MIT License\n\nCopyright (c) 2024 A").unwrap();
    card_says(code, "license:\n- cc-by-nc-nd-4.0\n- GPL-3.0-or-later");
    let (said, front, card) = upcycled(work.path(), &folders);
    assert!(
        front.contains("license:\n- apache-2.0\n- cc-by-nc-nd-4.0\n- gpl-3.0\n- mit\n"),
        "{front}"
    );
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
    assert!(
        front.contains("license:\n- other\n- unknown\n") && !card.contains("evil"),
        "{card}"
    );
    assert!(
        card.contains("| seed | seed | other (my-licence) |")
            && card.contains("| law | law | unknown |"),
        "{card}"
    );
    assert!(
        said.contains("law names none") && said.contains("does not know other (seed, code)"),
        "{said}"
    );
    std::fs::write(code.join("README.md"), "---\nlicense: [\n---\n").unwrap();
    upcycled(work.path(), &folders);
}

#[test]
fn a_branch_has_the_licence_of_its_seed() {
    let work = TempDir::new().unwrap();
    let [seed, ..] = models(work.path(), "llama");
    card_says(&seed, "license: mit");
    bam!(
        "branch",
        seed,
        "--into",
        "code,law",
        "--out",
        work.path().join("branches")
    )
    .ok();
    let folders = [
        seed,
        work.path().join("branches/code"),
        work.path().join("branches/law"),
    ];
    let (said, front, _) = upcycled(work.path(), &folders);
    assert!(
        !said.contains("licence") && front.contains("license: mit"),
        "{said}{front}"
    );
}

// ---------------------------------------------------------------- upcycle --check

#[test]
fn a_check_measures_sources_and_mixture_as_eval_does() {
    let work = TempDir::new().unwrap();
    let [seed, code, law] = models(work.path(), "llama");
    let text = work.path().join("words.txt");
    std::fs::write(&text, "The parties agree, naïvely or not.\n".repeat(20)).unwrap();
    let (a, b, out) = (
        format!("code={}", code.display()),
        format!("law={}", law.display()),
        work.path().join("out"),
    );
    let upcycle = |flag: &str, value: &Path, out: &Path| {
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", a, "--expert", b, "--expert",
            "x=random", "--out", out, flag, value, "--json"
        )
    };
    let found = upcycle("--check", &text, &out).ok().json();
    let data = format!("words={}", text.display());
    let eval = bam!("eval", seed, code, law, out, "--data", data, "--json")
        .ok()
        .json();
    assert_eq!(found["check"], eval);
    assert_eq!(found["method"], "bam");
    // Both kinds of gates sum to one, and the text says so too.
    for (router, per_token) in [("feed_forward", 2), ("attention", 4)] {
        let gates = &found["gates"][router];
        let said = (
            &gates["experts"],
            &gates["experts_per_token"],
            &gates["sum"],
        );
        assert_eq!(said, (&json!(4), &json!(per_token), &json!(1.0)), "{gates}");
        assert!(
            (gates["measured"].as_f64().unwrap() - 1.0).abs() < 1e-6,
            "{gates}"
        );
    }
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
    assert!(
        run.stderr
            .contains("gates on this text: feed-forward sum 1.00"),
        "{run}"
    );
    // What cannot be read is refused before anything is written.
    let none = work.path().join("none");
    upcycle("--check", &work.path().join("missing.txt"), &none).refused(2, &["missing.txt"]);
    assert!(!none.exists());
}

#[test]
fn upcycle_says_what_the_gates_sum_to_and_warns_where_that_is_not_one() {
    let work = TempDir::new().unwrap();
    let [seed, code, law] = models(work.path(), "llama");
    let text = work.path().join("words.txt");
    std::fs::write(&text, "The parties agree, naïvely or not.\n".repeat(20)).unwrap();
    let [code, law] = [("code", code), ("law", law)]
        .map(|(name, path)| format!("--expert={name}={}", path.display()));
    let upcycle = |flags: &[&str]| {
        let seed = format!("--seed={}", seed.display());
        let given = ["upcycle", &seed, &code, &law, "--force", "--out"];
        let mut words: Vec<std::ffi::OsString> = given.iter().map(Into::into).collect();
        words.push(work.path().join("out").into());
        words.extend(flags.iter().map(Into::into));
        crate::common::run(words).ok()
    };
    let whole =
        "gates at step 0: feed-forward sum 1 (2 of 3 experts); attention sum 1 (3 of 3 experts)";
    let run = upcycle(&["--method=bam"]);
    assert!(
        run.stderr.contains(whole) && !run.stderr.contains("not to 1"),
        "{run}"
    );
    let planned = upcycle(&["--method=bam", "--dry-run"]);
    assert!(
        planned
            .stdout
            .contains("feed-forward sum 1 (2 of 3 experts)"),
        "{planned}"
    );

    // Raw gates: what is said before is what a text then shows.
    let check = text.to_str().unwrap();
    let raw = upcycle(&["--method=bam", "--preset=paper", "--check", check, "--json"]);
    let warned = "--top-k 2 --norm-topk-prob true makes the sum 1";
    assert!(raw.stderr.contains(warned), "{raw}");
    let gates = raw.json()["gates"]["feed_forward"].clone();
    let number = |key: &str| gates[key].as_f64().unwrap();
    assert!((number("at_least") - 1.0 / 3.0).abs() < 1e-12, "{gates}");
    assert!(
        (number("sum") / number("measured") - 1.0).abs() < 0.1,
        "{gates}"
    );
    assert!(!gates["exact"].as_bool().unwrap(), "{gates}");

    // Two raw gates want no other number of experts; attention has its own flag.
    let two = upcycle(&[
        "--method=bam",
        "--norm-topk-prob=false",
        "--attention-top-k=1",
        "--dry-run",
    ]);
    for part in [
        ". --norm-topk-prob true makes the sum 1",
        "--attention-top-k soft makes",
    ] {
        assert!(two.stderr.contains(part.trim_start_matches(". ")), "{two}");
    }
    assert!(!two.stderr.contains("--top-k 2 --norm"), "{two}");

    // Weights that make up for raw gates need no warning.
    let granular = [
        "--method=granular",
        "--experts=2",
        "--granularity=4",
        "--norm-topk-prob=false",
        "--dry-run",
    ];
    let seed = format!("--seed={}", seed.display());
    let out = work.path().join("granular");
    let mut words = vec![
        "upcycle".into(),
        seed.into(),
        "--out".into(),
        out.into_os_string(),
    ];
    words.extend(granular.iter().map(Into::into));
    let run = crate::common::run(words).ok();
    assert!(run.stdout.contains("the weights make up for it"), "{run}");
    assert!(!run.stderr.contains("not to 1"), "{run}");
}

// ---------------------------------------------------------------- expert add, remove, replace

/// A mixture of the seed and `experts` of a family.
fn mixture(work: &Path, family: &str, experts: &[&str], flags: &[&str]) -> PathBuf {
    let out = work.join("base");
    let mut arguments: Vec<std::ffi::OsString> = vec![
        "upcycle".into(),
        "--seed".into(),
        fixture(family).join("seed").into(),
    ];
    for expert in experts {
        let folder = fixture(family).join(expert);
        arguments.extend([
            "--expert".into(),
            format!("{expert}={}", folder.display()).into(),
        ]);
    }
    arguments.extend(["--out".into(), out.clone().into()]);
    arguments.extend(flags.iter().map(Into::into));
    crate::common::run(arguments).ok();
    out
}

fn named(name: &str, folder: &Path) -> String {
    format!("{name}={}", folder.display())
}

#[track_caller]
fn replays(folder: &Path) {
    crate::common::against(folder).ok();
}

fn rows(tensor: &Tensor) -> Vec<&[u8]> {
    let width = tensor.bytes.len() / tensor.shape[0];
    tensor.bytes.chunks(width).collect()
}

#[test]
fn an_added_expert_is_its_model_and_the_others_stay() {
    for (family, flags) in [
        ("llama", &["--method", "bam"][..]),
        (
            "qwen3",
            &[
                "--method",
                "bam",
                "--kv",
                "shared",
                "--router-bias",
                "logits",
                "--adapters",
            ],
        ),
        ("cohere", &["--method", "btx"]),
        (
            "qwen2",
            &[
                "--method",
                "btx",
                "--target",
                "qwen2_moe",
                "--norm-topk-prob",
                "true",
            ],
        ),
    ] {
        let work = TempDir::new().unwrap();
        let law = fixture(family).join("law");
        let base = mixture(work.path(), family, &["code"], flags);
        let (out, back) = (work.path().join("out"), work.path().join("back"));
        bam!(
            "expert",
            "add",
            base,
            "--expert",
            named("law", &law),
            "--out",
            out
        )
        .ok();
        replays(&out);
        let (before, after, dense) = (read_folder(&base), read_folder(&out), read_folder(&law));
        let mut routers = 0;
        for (name, tensor) in &before {
            if name.contains("router") || name.ends_with("mlp.gate.weight") {
                assert_eq!(after[name].shape[0], 3, "{name}");
                assert_eq!(rows(&after[name])[..2], rows(tensor)[..], "{name}");
                assert!(
                    name.ends_with("bias")
                        || after[name].values()[2 * 32..]
                            .iter()
                            .any(|value| *value != 0.0)
                );
                assert!(
                    name.ends_with("bias") || rows(&after[name])[2] != rows(tensor)[0],
                    "the same draw again: {name}"
                );
                routers += 1;
            } else {
                assert_eq!(&after[name], tensor, "{name}");
            }
        }
        assert!(routers >= 2);
        let mut new = 0;
        for (name, tensor) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
            assert!(name.contains("experts.2."), "{name}");
            if name.contains("adapter") {
                continue;
            }
            let of_dense = name
                .replace("attention_experts.2.", "")
                .replace("experts.2.", "");
            assert_eq!(tensor, &dense[&of_dense], "{name}");
            new += 1;
        }
        assert!(new > 5, "{new}");
        bam!(
            "logits",
            out,
            "--tokens",
            fixture("golden/tokens.json"),
            "--dump",
            work.path().join("dump")
        )
        .ok();

        bam!("expert", "remove", out, "law", "--out", back).ok();
        replays(&back);
        assert!(
            std::fs::read(base.join("model.safetensors")).unwrap()
                == std::fs::read(back.join("model.safetensors")).unwrap()
        );
        assert_eq!(
            read_json(base.join("config.json")),
            read_json(back.join("config.json"))
        );
    }
}

#[test]
fn shared_tensors_move_as_in_nexus() {
    let work = TempDir::new().unwrap();
    let base = mixture(
        work.path(),
        "llama",
        &["code"],
        &["--method", "bam", "--kv", "shared"],
    );
    let (law, again, out) = (
        fixture("llama/law"),
        fixture("llama/code"),
        work.path().join("out"),
    );
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        named("law", &law),
        "--expert",
        named("more", &again),
        "--shared",
        "mean",
        "--out",
        out
    )
    .ok();
    replays(&out);
    let [before, law, more, after] = [&base, &law, &again, &out].map(|folder| read_folder(folder));
    for name in [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.k_proj.weight",
    ] {
        let [m, a, b] = [&before[name], &law[name], &more[name]].map(Tensor::values);
        let expected: Vec<f64> = (0..m.len())
            .map(|i| (2.0 * m[i] + a[i] + b[i]) / 4.0)
            .collect();
        assert_eq!(
            after[name],
            Tensor::new(Dtype::BF16, &before[name].shape, &expected),
            "{name}"
        );
    }
    let config = read_json(out.join("config.json"));
    assert_eq!(
        config["expert_names"],
        json!(["seed", "code", "law", "more"])
    );
    assert_eq!(
        (
            &config["num_attention_experts_per_tok"],
            &config["num_experts_per_tok"]
        ),
        (&json!(4), &json!(2))
    );
}

#[test]
fn copies_of_the_seed_stay_behind_those_with_attention() {
    let work = TempDir::new().unwrap();
    let base = mixture(
        work.path(),
        "llama",
        &["code"],
        &["--method", "bam", "--seed-copies", "2", "--top-k", "soft"],
    );
    let (law, out, less) = (
        fixture("llama/law"),
        work.path().join("out"),
        work.path().join("less"),
    );
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        named("law", &law),
        "--out",
        out
    )
    .ok();
    replays(&out);
    let config = read_json(out.join("config.json"));
    assert_eq!(
        config["expert_names"],
        json!(["seed", "code", "law", "seed", "seed"])
    );
    assert_eq!(
        (&config["num_experts"], &config["num_experts_per_tok"]),
        (&json!(5), &json!(5))
    );
    let (before, after, dense) = (read_folder(&base), read_folder(&out), read_folder(&law));
    let expert = |kind: &str, number: usize, rest: &str| {
        format!("model.layers.1.{kind}.{number}.{rest}.weight")
    };
    assert_eq!(
        after[&expert("mlp.experts", 2, "up_proj")],
        dense["model.layers.1.mlp.up_proj.weight"]
    );
    assert_eq!(
        after[&expert("mlp.experts", 4, "up_proj")],
        before[&expert("mlp.experts", 3, "up_proj")]
    );
    assert_eq!(
        after[&expert("self_attn.attention_experts", 2, "q_proj")],
        dense["model.layers.1.self_attn.q_proj.weight"]
    );
    let router = "model.layers.0.mlp.router.weight";
    let (old, new) = (rows(&before[router]), rows(&after[router]));
    assert_eq!((&new[..2], &new[3..]), (&old[..2], &old[2..]));
    // One copy by its number, with no attention to lose; then all that are called so.
    bam!("expert", "remove", out, "3", "--out", less).ok();
    replays(&less);
    let config = read_json(less.join("config.json"));
    assert_eq!(
        config["expert_names"],
        json!(["seed", "code", "law", "seed"])
    );
    assert_eq!(
        (
            &config["num_attention_experts"],
            &config["num_experts_per_tok"]
        ),
        (&json!(3), &json!(4))
    );
    bam!(
        "expert",
        "remove",
        less,
        "seed",
        "--out",
        work.path().join("none")
    )
    .ok();
    let config = read_json(work.path().join("none/config.json"));
    assert_eq!(
        (&config["num_attention_experts"], &config["expert_names"]),
        (&json!(2), &json!(["code", "law"]))
    );
}

#[test]
fn a_replaced_expert_keeps_its_rows() {
    let work = TempDir::new().unwrap();
    let base = mixture(
        work.path(),
        "mistral",
        &["code", "law"],
        &["--method", "bam"],
    );
    let (law, out) = (fixture("mistral/law"), work.path().join("out"));
    bam!("expert", "replace", base, named("code", &law), "--out", out).ok();
    replays(&out);
    let (before, after) = (read_folder(&base), read_folder(&out));
    for (name, tensor) in &after {
        let of_law = name.replace("experts.1.", "experts.2.");
        assert_eq!(tensor, &before[&of_law], "{name}");
    }
    assert_eq!(
        read_json(base.join("config.json")),
        read_json(out.join("config.json"))
    );
}

#[test]
fn what_would_break_a_mixture_is_refused() {
    let work = TempDir::new().unwrap();
    let base = mixture(
        work.path(),
        "llama",
        &["code"],
        &[
            "--method",
            "bam",
            "--top-k",
            "2",
            "--norm-topk-prob",
            "true",
        ],
    );
    let (law, out) = (fixture("llama/law"), work.path().join("out"));
    let refused = |arguments: &[&str], parts: &[&str]| {
        let mut all: Vec<std::ffi::OsString> =
            vec!["expert".into(), arguments[0].into(), base.clone().into()];
        all.extend(arguments[1..].iter().map(Into::into));
        all.extend(["--out".into(), out.clone().into()]);
        crate::common::run(all).refused(2, parts);
        assert!(!out.exists());
    };
    let expert = |name: &str, folder: &str| named(name, &fixture(folder));
    refused(
        &["remove", "seed", "code"],
        &["no feed-forward expert left", "extract"],
    );
    refused(
        &["remove", "cod"],
        &["no expert `cod`", "seed, code", "did you mean `code`"],
    );
    refused(&["remove", "2"], &["no expert `2`"]);
    refused(&["extract", "law"], &["no expert `law`"]);
    refused(
        &["add", "--expert", &expert("code", "llama/law")],
        &["`code`", "taken"],
    );
    refused(
        &["add", "--expert", &expert("mixture", "llama/law")],
        &["`mixture`", "reserved"],
    );
    refused(
        &["add", "--expert", &expert("law", "qwen3/law")],
        &["qwen3/law/config.json", "head_dim", "base/config.json has"],
    );
    refused(
        &[
            "add",
            "--expert",
            &expert("law", "llama/law"),
            "--top-k",
            "4",
        ],
        &["--top-k 4", "3 experts"],
    );
    refused(
        &[
            "add",
            "--expert",
            &expert("law", "llama/law"),
            "--top-k",
            "1",
        ],
        &["--top-k 1", "no gradient"],
    );
    refused(
        &["replace", &named("code", &base)],
        &["is a mixture, expected a dense model"],
    );
    bam!("expert", "remove", law, "code", "--out", out)
        .refused(2, &["is a dense model, expected a mixture"]);
    // Soft stays soft until few are left; chosen ones do not.
    let three = work.path().join("three");
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        named("law", &law),
        "--top-k",
        "3",
        "--out",
        three
    )
    .ok();
    let two = work.path().join("two");
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        named("law", &law),
        "--top-k",
        "2",
        "--out",
        two
    )
    .ok();
    assert_eq!(read_json(two.join("config.json"))["num_experts_per_tok"], 2);
    bam!("expert", "remove", two, "code", "law", "--out", out)
        .refused(2, &["goes to 2 experts, but 1", "--top-k 1"]);
    bam!(
        "expert", "remove", two, "code", "law", "--top-k", "1", "--out", out
    )
    .ok();
    bam!(
        "logits",
        out,
        "--tokens",
        fixture("golden/tokens.json"),
        "--dump",
        work.path().join("dump")
    )
    .ok();
}

#[test]
fn rows_of_a_new_expert_start_as_asked() {
    let work = TempDir::new().unwrap();
    let base = mixture(work.path(), "llama", &["code"], &["--method", "bam"]);
    let law = named("law", &fixture("llama/law"));
    let out = |name: &str| work.path().join(name);
    let new_row =
        |folder: &Path| rows(&read_folder(folder)["model.layers.1.mlp.router.weight"])[2].to_vec();
    let file = out("rows.safetensors");
    let values: Vec<f64> = (0..32).map(|i| f64::from(i) / 8.0).collect();
    crate::common::write_file(
        &file,
        &Tensors::from([(
            "router".to_owned(),
            Tensor::new(Dtype::F32, &[1, 32], &values),
        )]),
    );
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        law,
        "--router",
        format!("file:{}", file.display()),
        "--out",
        out("a")
    )
    .ok();
    replays(&out("a"));
    assert_eq!(
        new_row(&out("a")),
        Tensor::new(Dtype::BF16, &[1, 32], &values).bytes
    );
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        law,
        "--router",
        "orthogonal:2",
        "--attention-router",
        "zeros",
        "--out",
        out("b")
    )
    .ok();
    replays(&out("b"));
    let drawn = Tensor {
        dtype: Dtype::BF16,
        shape: vec![1, 32],
        bytes: new_row(&out("b")),
    };
    assert!((norm(&drawn.values()) - 2.0).abs() < 0.02);
    let attention = &read_folder(&out("b"))["model.layers.1.self_attn.router.weight"];
    assert!(rows(attention)[2].iter().all(|byte| *byte == 0));
    // The mixture reads the prompts itself.
    let prompts = out("prompts.yaml");
    std::fs::write(
        &prompts,
        "gate_mode: hidden_avg\nexperts:\n- name: law\n  positive_prompts: [the law]\n",
    )
    .unwrap();
    bam!(
        "expert",
        "add",
        base,
        "--expert",
        law,
        "--router",
        format!("prompts:{}", prompts.display()),
        "--out",
        out("c")
    )
    .ok();
    replays(&out("c"));
    let drawn = Tensor {
        dtype: Dtype::BF16,
        shape: vec![1, 32],
        bytes: new_row(&out("c")),
    };
    assert!((norm(&drawn.values()) - 1.0).abs() < 0.01);
}

// ---------------------------------------------------------------- expert extract

#[test]
fn an_expert_of_equal_models_is_that_model_again() {
    for (family, flags) in [
        ("llama", &["--method", "bam"][..]),
        ("llama_bias", &["--method", "bam", "--kv", "shared"]),
        (
            "mistral",
            &[
                "--method",
                "btx",
                "--target",
                "mixtral",
                "--norm-topk-prob",
                "true",
                "--top-k",
                "2",
            ],
        ),
        ("qwen2", &["--method", "btx"]),
        ("qwen3", &["--method", "bam", "--kv", "shared"]),
        ("cohere", &["--method", "bam"]),
    ] {
        let work = TempDir::new().unwrap();
        let (seed, out) = (fixture(family).join("seed"), work.path().join("out"));
        let base = mixture(
            work.path(),
            family,
            &["seed"; 0],
            &[flags, &["--expert", &named("same", &seed)]].concat(),
        );
        bam!("expert", "extract", base, "same", "--out", out).ok();
        replays(&out);
        assert_eq!(read_folder(&out), read_folder(&seed), "{family}");
        let (found, expected) = (
            read_json(out.join("config.json")),
            read_json(seed.join("config.json")),
        );
        // A Mixtral's configuration does not keep which of the families that are alike its experts came from.
        let family_of = if family == "mistral" {
            &read_json(fixture("llama/seed/config.json"))
        } else {
            &expected
        };
        assert_eq!(found["architectures"], family_of["architectures"]);
        assert_eq!(found["model_type"], family_of["model_type"]);
        for key in [
            "num_experts",
            "bam_version",
            "auto_map",
            "expert_names",
            "block",
            "num_experts_per_tok",
        ] {
            assert!(found.get(key).is_none(), "{family}: {key}");
        }
        bam!("logits", seed, out, "--tolerance", "0").ok();
    }
}

#[test]
fn an_extracted_expert_has_its_own_weights_and_the_shared_ones() {
    let work = TempDir::new().unwrap();
    let base = mixture(
        work.path(),
        "llama",
        &["code", "law"],
        &["--method", "bam", "--kv", "shared", "--seed-copies", "1"],
    );
    let out = work.path().join("out");
    let run = bam!("expert", "extract", base, "law", "--out", out).ok();
    assert!(
        run.stderr
            .contains("keys, values, norms and embeddings are the mixture's"),
        "{run}"
    );
    replays(&out);
    let [mixed, law, found] =
        [base.clone(), fixture("llama/law"), out].map(|folder| read_folder(&folder));
    for (name, tensor) in &found {
        let own = ["mlp.", "q_proj", "o_proj"]
            .iter()
            .any(|part| name.contains(part));
        assert_eq!(
            tensor,
            if own { &law[name] } else { &mixed[name] },
            "{name}"
        );
    }
    // A further copy of the seed has the seed's attention.
    bam!(
        "expert",
        "extract",
        base,
        "seed",
        "--out",
        work.path().join("x")
    )
    .refused(2, &["2 experts called `seed`: 0, 3"]);
    bam!(
        "expert",
        "extract",
        base,
        "3",
        "--out",
        work.path().join("3")
    )
    .ok();
    bam!(
        "expert",
        "extract",
        base,
        "0",
        "--out",
        work.path().join("0")
    )
    .ok();
    assert_eq!(
        read_folder(&work.path().join("3")),
        read_folder(&work.path().join("0"))
    );
}

// ---------------------------------------------------------------- expert concat

/// A model that differs from the seed in its own expert's weights alone.
fn specialist(work: &Path, name: &str, attention: bool) -> PathBuf {
    let folder = copy_folder(&fixture("llama/seed"), &work.join(name));
    let own = read_folder(&fixture("llama").join(name));
    edit_tensors(&folder, |tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if name.contains("mlp") || (attention && name.contains("self_attn")) {
                *tensor = own[name].clone();
            }
        }
    });
    folder
}

/// Two-expert mixtures of the seed and each of `experts`, with rows of their own out of files; then what upcycling makes of
/// all of them with these rows.
fn apart(work: &Path, method: &str, experts: &[(&str, PathBuf)]) -> (Vec<PathBuf>, PathBuf) {
    let seed = fixture("llama/seed");
    let row = |number: usize| {
        (0..32)
            .map(|i| ((i * 7 + number * 5) % 11) as f64 / 8.0 - 0.5)
            .collect::<Vec<f64>>()
    };
    let upcycle = |name: &str, chosen: &[usize]| {
        let (rows, out) = (work.join(format!("{name}.rows")), work.join(name));
        let values: Vec<f64> = std::iter::once(0)
            .chain(chosen.iter().map(|e| e + 1))
            .flat_map(row)
            .collect();
        let router = Tensor::new(Dtype::F32, &[chosen.len() + 1, 32], &values);
        crate::common::write_file(&rows, &Tensors::from([("router".to_owned(), router)]));
        let mut arguments: Vec<std::ffi::OsString> =
            ["upcycle", "--method", method, "--router-bias", "logits"]
                .map(Into::into)
                .to_vec();
        arguments.extend([
            "--seed".into(),
            seed.clone().into(),
            "--router".into(),
            format!("file:{}", rows.display()).into(),
        ]);
        for expert in chosen {
            arguments.extend([
                "--expert".into(),
                named(experts[*expert].0, &experts[*expert].1).into(),
            ]);
        }
        arguments.extend(["--out".into(), out.clone().into()]);
        crate::common::run(arguments).ok();
        out
    };
    let all: Vec<usize> = (0..experts.len()).collect();
    let mixtures = all
        .iter()
        .map(|expert| upcycle(&format!("with-{}", experts[*expert].0), &[*expert]))
        .collect();
    (mixtures, upcycle("all", &all))
}

#[test]
fn mixtures_put_together_are_what_upcycling_all_would_be() {
    for method in ["bam", "btx"] {
        let work = TempDir::new().unwrap();
        let experts =
            ["code", "law"].map(|name| (name, specialist(work.path(), name, method == "bam")));
        let (mixtures, all) = apart(work.path(), method, &experts);
        let out = work.path().join("out");
        bam!("expert", "concat", mixtures[0], mixtures[1], "--out", out).ok();
        replays(&out);
        assert_eq!(read_folder(&out), read_folder(&all), "{method}");
        assert_eq!(
            read_json(out.join("config.json")),
            read_json(all.join("config.json"))
        );
        bam!("logits", out, all, "--tolerance", "0").ok();
        // A bias that was learnt goes along with its expert.
        let bias = "model.layers.0.mlp.router.bias";
        edit_tensors(&mixtures[1], |tensors| {
            let values = [0.0, -2.0];
            tensors.insert(bias.to_owned(), Tensor::new(Dtype::BF16, &[2], &values));
        });
        let calls = [named("a", &mixtures[0]), named("b", &mixtures[1])];
        bam!(
            "expert", "concat", calls[0], calls[1], "--force", "--out", out
        )
        .ok();
        assert_eq!(read_folder(&out)[bias].values(), [0.0, 0.0, -2.0]);
        assert_eq!(
            read_json(out.join("config.json"))["expert_names"],
            json!(["seed", "a", "b"])
        );
    }
}

#[test]
fn what_was_not_frozen_is_refused_or_averaged() {
    let work = TempDir::new().unwrap();
    let experts = ["code", "law"].map(|name| (name, specialist(work.path(), name, false)));
    let (mixtures, _) = apart(work.path(), "btx", &experts);
    let out = work.path().join("out");
    let change = |name: &str, element: usize| {
        let folder = copy_folder(&mixtures[1], &work.path().join("changed"));
        edit_tensors(&folder, |tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            let mut values = tensor.values();
            values[element] += 1.0;
            *tensor = Tensor::new(tensor.dtype, &tensor.shape, &values);
        });
        folder
    };
    let router = "model.layers.1.mlp.router.weight";
    for name in [
        "model.norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        router,
    ] {
        let changed = change(name, 3);
        bam!("expert", "concat", mixtures[0], changed, "--out", out)
            .refused(2, &["changed", name, "frozen", "--average-shared"]);
        assert!(!out.exists());
    }
    // The own row of a router is no shared one.
    bam!(
        "expert",
        "concat",
        mixtures[0],
        change(router, 32 + 3),
        "--out",
        out
    )
    .ok();
    let changed = change(router, 3);
    bam!(
        "expert",
        "concat",
        mixtures[0],
        changed,
        "--average-shared",
        "--force",
        "--out",
        out
    )
    .ok();
    replays(&out);
    let [a, b, found] =
        [&mixtures[0], &changed, &out].map(|folder| read_folder(folder)[router].values());
    let expected: Vec<f64> = (0..32)
        .map(|i| (a[i] + b[i]) / 2.0)
        .chain(a[32..].iter().copied())
        .chain(b[32..].iter().copied())
        .collect();
    assert_eq!(
        found,
        Tensor::new(Dtype::BF16, &[3, 32], &expected).values()
    );
    bam!("expert", "concat", mixtures[0], mixtures[0], "--out", out)
        .refused(2, &["two mixtures", "NAME=DIR"]);
    bam!(
        "expert",
        "concat",
        mixtures[0],
        out,
        "--out",
        work.path().join("o")
    )
    .refused(2, &["has 3 feed-forward"]);
}
