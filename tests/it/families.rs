//! What can be done with each built-in family: the table in `docs/reference/families.md` is what the binary does.

use std::path::{Path, PathBuf};

use bam_convert::family::families;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{bam, copy_folder, fixture, read_file, read_json, run, stock_mixtures};
use crate::model::families::vary;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/families.md");
const BEGIN: &str = "<!-- support matrix: begin -->\n";
const END: &str = "<!-- support matrix: end -->\n";

/// The checkpoint of a family, and whether its golden logits are there.
fn checkpoint(family: &str, work: &Path) -> (PathBuf, bool) {
    for folder in [
        format!("families/{family}"),
        format!("mixtures/{family}"),
        format!("{family}/seed"),
    ] {
        let folder = fixture(folder);
        if folder.exists() {
            return (folder, true);
        }
    }
    assert_eq!(family, "bam", "a family needs a fixture");
    let out = work.join("bam");
    let seed = fixture("llama/seed");
    let expert = format!("code={}", fixture("llama/code").display());
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", out
    )
    .ok();
    (out, false)
}

/// Whether a command succeeds.
fn does(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> bool {
    let arguments = arguments
        .iter()
        .map(|argument| argument.as_ref().to_owned());
    run(arguments).code == Some(0)
}

/// Whether the logits of a checkpoint are those that transformers computed, or can be computed where it has none.
fn runs(folder: &Path, golden: Option<PathBuf>, work: &Path) -> bool {
    let (tokens, dump) = (
        fixture("golden/tokens.json"),
        work.join("logits.safetensors"),
    );
    if !does(&[&"logits", &folder, &"--tokens", &tokens, &"--dump", &dump]) {
        return false;
    }
    let Some(golden) = golden else { return true };
    let (found, golden) = (read_file(&dump), read_file(&golden));
    let pairs = found["logits"]
        .values()
        .into_iter()
        .zip(golden["logits"].values());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-4
}

/// Makes a mixture of the checkpoint and a variation of it; none where the family cannot be upcycled.
fn upcycled(folder: &Path, method: &str, work: &Path) -> Option<PathBuf> {
    let (expert, out) = (work.join("expert"), work.join(method));
    if !expert.exists() {
        vary(&copy_folder(folder, &expert), 1.0);
    }
    let expert = format!("expert={}", expert.display());
    let made = does(&[
        &"upcycle",
        &"--method",
        &method,
        &"--seed",
        &folder,
        &"--expert",
        &expert,
        &"--out",
        &out,
        &"--top-k",
        &"2",
        &"--norm-topk-prob",
        &"true",
    ]);
    made.then_some(out)
}

/// The stock formats that hold a mixture of the checkpoint exactly.
fn targets(folder: &Path, work: &Path) -> Vec<&'static str> {
    let Some(own) = upcycled(folder, "btx", work) else {
        return Vec::new();
    };
    let exact = |target: &&str| {
        let stock = work.join(target);
        if !does(&[&"convert", &own, &stock, &"--to", target]) {
            return false;
        }
        let tokens = fixture("golden/tokens.json");
        let compared = bam!("logits", own, stock, "--tokens", tokens, "--json")
            .ok()
            .json();
        let largest = compared["max"].as_f64().unwrap();
        assert!(largest < 1e-4, "{}: {largest}", stock.display());
        true
    };
    stock_mixtures().filter(exact).collect()
}

/// One row of the table.
fn row(family: &str, is_mixture: bool) -> String {
    let work = TempDir::new().unwrap();
    let (folder, has_golden) = checkpoint(family, work.path());
    let golden = has_golden.then(|| fixture(format!("golden/{family}.safetensors")));
    let yes = |does: bool| if does { "yes" } else { "no" };
    let read = does(&[&"validate", &folder]);
    let runs = runs(&folder, golden, work.path());
    let trained = work.path().join("trained");
    let trains = crate::train::train(&folder, &trained, &["--steps", "1"]).code == Some(0);
    let (bam, targets) = if is_mixture {
        ("is a mixture", Vec::new())
    } else {
        let bam = upcycled(&folder, "bam", work.path());
        let sound = bam.is_some_and(|bam| crate::common::against(&bam).code == Some(0));
        (yes(sound), targets(&folder, work.path()))
    };
    let targets = if targets.is_empty() {
        "none".to_owned()
    } else {
        targets
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    format!(
        "| `{family}` | {} | {} | {} | {bam} | {targets} |\n",
        yes(read),
        yes(runs),
        yes(trains)
    )
}

#[test]
fn the_table_of_families_is_what_the_binary_does() {
    let mut table = "| family | read | run | train | source of a `bam` | stock targets |\n|---|---|---|---|---|---|\n".to_owned();
    for family in families().unwrap() {
        table.push_str(&row(&family.name, family.is_mixture()));
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has a table");
    let (written, after) = rest.split_once(END).expect("the table ends");
    if std::env::var_os("UPDATE_FAMILIES").is_some() {
        std::fs::write(PAGE, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(
            written, table,
            "run `UPDATE_FAMILIES=1 cargo test --test it families::`"
        );
    }
}

/// Phi, StableLM and Nemotron rotate a part of each head, whether a key says it or not.
#[test]
fn an_absent_part_of_a_head_is_the_default_of_the_class() {
    let work = TempDir::new().unwrap();
    for (family, part) in [("phi", 0.5), ("stablelm", 0.25), ("nemotron", 0.5)] {
        let with = |name: &str, part: Option<f64>| {
            let out = work.path().join(format!("{family}-{name}"));
            let folder = copy_folder(&fixture("families").join(family), &out);
            crate::common::edit_json(&folder.join("config.json"), |config| {
                let config = config.as_object_mut().unwrap();
                config.remove("rope_parameters");
                if let Some(part) = part {
                    config.insert("partial_rotary_factor".to_owned(), part.into());
                }
            });
            folder
        };
        let compare = |a: &Path, b: &Path| {
            let tokens = fixture("golden/tokens.json");
            let compared = bam!("logits", a, b, "--tokens", tokens, "--json").ok();
            compared.json()["max"].as_f64().unwrap()
        };
        let absent = with("absent", None);
        assert_eq!(compare(&absent, &with("said", Some(part))), 0.0);
        assert!(compare(&absent, &with("whole", Some(1.0))) > 1e-3);
    }
}

#[test]
fn norms_that_cannot_be_computed_are_refused_by_their_key() {
    let work = TempDir::new().unwrap();
    for (family, key, value, expected) in [
        ("phi", "qk_layernorm", Value::from(true), "with biases"),
        ("stablelm", "qk_layernorm", Value::from(true), "of its own"),
        ("stablelm", "head_dim", Value::from(4), "head_dim"),
        (
            "stablelm",
            "use_parallel_residual",
            Value::from(false),
            "post_attention_layernorm",
        ),
        (
            "nemotron",
            "rope_scaling",
            serde_json::json!({"type": "linear", "factor": 2.0}),
            "transformers 4 ignores it",
        ),
    ] {
        let out = work.path().join(format!("{family}-{key}"));
        let folder = copy_folder(&fixture("families").join(family), &out);
        crate::common::edit_json(&folder.join("config.json"), |config| {
            config[key] = value.clone();
        });
        let (tokens, dump) = (fixture("golden/tokens.json"), work.path().join("logits"));
        bam!("logits", folder, "--tokens", tokens, "--dump", dump).refused(2, &[expected]);
    }
}

/// llama.cpp has no place for biases of the feed-forward network of these two.
#[test]
fn biases_that_a_gguf_architecture_lacks_are_refused() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("x.gguf");
    let ernie = fixture("families/ernie4_5");
    bam!("convert", ernie, out, "--to", "gguf").refused(2, &["ernie4_5", "fewer biases"]);
    assert!(!out.exists());
    let exaone = fixture("families/exaone");
    bam!("convert", exaone, out, "--to", "gguf").ok();
    bam!("convert", out, work.path().join("back"), "--dtype", "f32").ok();
    let back = read_json(work.path().join("back/config.json"));
    assert_eq!(back["model_type"], "exaone");
}

/// Layers that a description cannot express are refused, and so is what a class takes for absent keys.
#[test]
fn absent_keys_with_a_meaning_are_refused() {
    let work = TempDir::new().unwrap();
    for (family, key, expected) in [
        ("cwm", "layer_types", "every fourth layer"),
        ("cwm", "rope_parameters", "a scaling of rotary positions"),
        (
            "granitemoehybrid",
            "layer_types",
            "every layer is a state-space model",
        ),
        ("granitemoehybrid", "num_local_experts", "8 experts"),
        (
            "granitemoehybrid",
            "position_embedding_type",
            "do not rotate",
        ),
    ] {
        let name = format!("{family}-{key}");
        let folder = copy_folder(&fixture("families").join(family), &work.path().join(name));
        crate::common::edit_json(&folder.join("config.json"), |config| {
            config.as_object_mut().unwrap().remove(key);
        });
        bam!("cost", folder).refused(2, &[key, "is not there", expected]);
    }
    let folder = copy_folder(&fixture("families/phi3"), &work.path().join("phi3"));
    crate::common::edit_json(&folder.join("config.json"), |config| {
        config
            .as_object_mut()
            .unwrap()
            .remove("original_max_position_embeddings");
    });
    bam!("cost", folder).refused(2, &["original_max_position_embeddings"]);
    let folder = copy_folder(&fixture("families/cohere2"), &work.path().join("window"));
    crate::common::edit_json(&folder.join("config.json"), |config| {
        config["sliding_window"] = Value::Null;
    });
    bam!("cost", folder).refused(2, &["sliding_window", "need a window"]);
}

/// The mixture says what is not neutral in keys of its own; its expert has the family's keys again.
#[test]
fn an_expert_of_a_family_with_multipliers_is_its_model_again() {
    // The fixture's factors, and factors of which two change nothing.
    let usual = |config: &mut Value| {
        config["attention_multiplier"] = Value::from(8f64.powf(-0.5));
        config["residual_multiplier"] = Value::from(1);
    };
    for (name, family, change) in [
        ("granite", "granite", None),
        ("usual", "granite", Some(usual)),
        ("granitemoehybrid", "granitemoehybrid", None),
        ("hyperclovax", "hyperclovax", None),
    ] {
        let work = TempDir::new().unwrap();
        let at = |name: &str| work.path().join(name);
        let seed = copy_folder(&fixture("families").join(family), &at("seed"));
        if let Some(change) = change {
            crate::common::edit_json(&seed.join("config.json"), change);
        }
        let same = format!("same={}", seed.display());
        let (mixture, expert) = (at("mixture"), at("expert"));
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", same, "--out", mixture
        )
        .ok();
        let says = read_json(mixture.join("config.json"));
        let is_said = says.get("attention_multiplier").is_some();
        assert_eq!(is_said, change.is_none(), "{name}");
        bam!("expert", "extract", mixture, "same", "--out", expert).ok();
        let (found, expected) = (
            read_json(expert.join("config.json")),
            read_json(seed.join("config.json")),
        );
        for key in expected.as_object().unwrap().keys() {
            if key.ends_with("multiplier") || key == "logits_scaling" || key == "model_type" {
                assert_eq!(found[key].as_f64(), expected[key].as_f64(), "{name}: {key}");
                assert_eq!(found[key].as_str(), expected[key].as_str(), "{name}: {key}");
            }
        }
        bam!("logits", seed, expert, "--tolerance", "0").ok();
    }
}

/// No stock mixture has these factors.
#[test]
fn multipliers_are_no_part_of_stock_targets() {
    let work = TempDir::new().unwrap();
    let granite = fixture("families/granite");
    let expert = format!("same={}", granite.display());
    let out = work.path().join("out");
    bam!(
        "upcycle", "--method", "btx", "--target", "mixtral", "--seed", granite, "--expert", expert,
        "--out", out
    )
    .refused(
        2,
        &[
            "does not multiply embeddings",
            "does not multiply the outputs",
            "does not scale attention scores",
            "does not divide logits",
        ],
    );
    assert!(!out.exists());
}

/// Granite 4 with state-space layers, with experts, and without rotation.
#[test]
fn values_that_are_no_exception_are_refused() {
    let work = TempDir::new().unwrap();
    for (key, value, expected) in [
        (
            "layer_types",
            serde_json::json!(["mamba", "attention"]),
            "state-space models",
        ),
        ("num_local_experts", Value::from(8), "its experts are in"),
        (
            "position_embedding_type",
            Value::from("nope"),
            "do not rotate",
        ),
    ] {
        let granite = fixture("families/granitemoehybrid");
        let folder = copy_folder(&granite, &work.path().join(key));
        crate::common::edit_json(&folder.join("config.json"), |config| {
            config[key] = value.clone();
        });
        bam!("cost", folder).refused(2, &[key, expected]);
    }
}

/// As published: the keys of transformers 4, and no list of layers.
#[test]
fn gemma_3_in_the_keys_of_transformers_4_is_the_same_model() {
    let work = TempDir::new().unwrap();
    let gemma = fixture("families/gemma3_text");
    let folder = copy_folder(&gemma, &work.path().join("gemma"));
    crate::common::edit_json(&folder.join("config.json"), |config| {
        let config = config.as_object_mut().unwrap();
        for key in ["layer_types", "rope_parameters", "_sliding_window_pattern"] {
            config.remove(key);
        }
        config.extend(
            serde_json::json!({
                "rope_theta": 60000.0, "rope_local_base_freq": 20000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 3.0}, "transformers_version": "4.57.1",
            })
            .as_object()
            .unwrap()
            .clone(),
        );
    });
    bam!("logits", gemma, folder, "--tolerance", "0").ok();
}

#[test]
fn keys_that_gemma_reads_in_another_way_are_refused() {
    let work = TempDir::new().unwrap();
    for (family, key, value, expected) in [
        ("gemma2", "sliding_window", Value::Null, "need a window"),
        (
            "gemma3_text",
            "use_bidirectional_attention",
            Value::from(true),
            "looks back only",
        ),
        (
            "gemma3_text",
            "attn_logit_softcapping",
            Value::from(50.0),
            "transformers ignores it",
        ),
    ] {
        let folder = fixture("families").join(family);
        let folder = copy_folder(&folder, &work.path().join(format!("{family}-{key}")));
        crate::common::edit_json(&folder.join("config.json"), |config| {
            config[key] = value.clone();
        });
        bam!("cost", folder).refused(2, &[key, expected]);
    }
}
