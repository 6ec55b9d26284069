//! The README's first command, with the binary at hand instead of a release build, and fewer steps.

use crate::common::{bam, read_json};
use std::fs;
use std::path::Path;

#[test]
fn the_readme_begins_with_the_quickstart() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let first = readme.split("```").nth(1).unwrap();
    assert_eq!(first, "bash\nbam-convert run recipes/quickstart.yaml\n");
}

#[test]
fn the_quickstart_ends_with_trained_mixtures_and_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("quickstart");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/quickstart.yaml");
    bam!(
        "run",
        recipe,
        "--work",
        work,
        "--set",
        "steps=2",
        "--set",
        "mixture_steps=2",
        "--set",
        "batch=1",
        "--set",
        "seq=64",
        "--set",
        "validation_rows=1",
        "--set",
        "eval_tokens=128"
    )
    .ok();
    let evaluation = read_json(work.join("evaluation.json"));
    let models = evaluation["models"].as_array().unwrap();
    let names: Vec<&str> = models
        .iter()
        .map(|model| model["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "seed",
            "code",
            "law",
            "math",
            "btx",
            "bam-expert-kv",
            "bam-shared-kv"
        ]
    );
    for model in models {
        let perplexity = model["average"]["perplexity"].as_f64().unwrap();
        assert!(
            perplexity > 1.0 && perplexity < 2048.0,
            "{perplexity}: worse than guessing among all tokens"
        );
    }
    // The recipe's own mixtures are replayed without looking for anything but the seed.
    bam!("validate", work.join("mixtures/bam-shared-kv"), "--against").ok();
    let seed = recipe.with_file_name("quickstart").join("seed");
    let upcycled = work.join("upcycled/bam-expert-kv");
    bam!("validate", upcycled, "--against", seed).ok();
    let alone = bam!("validate", upcycled, "--against");
    assert!(
        alone.code == Some(1)
            && alone
                .stdout
                .contains("name the sources yourself, in any order"),
        "{alone}"
    );
    let experts =
        read_json(work.join("mixtures/bam-shared-kv/config.json"))["expert_names"].clone();
    assert_eq!(experts, serde_json::json!(["seed", "code", "law", "math"]));
    let page = fs::read_to_string(work.join("report.html")).unwrap();
    for part in ["bam-expert-kv", "Divergence from the seed", "Perplexity"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn the_other_recipes_fit_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    let stages = [
        ("quickstart-seed", 7),
        ("smollm2", 12),
        ("btx-from-hub", 6),
        ("paper-large", 13),
    ];
    for (name, count) in stages {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("recipes")
            .join(format!("{name}.yaml"));
        let run = bam!(
            "run",
            recipe,
            "--work",
            folder.path().join(name),
            "--dry-run",
            "--json"
        )
        .ok();
        assert_eq!(
            run.json()["stages"].as_array().unwrap().len(),
            count,
            "{name}"
        );
    }
}
