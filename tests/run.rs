//! `run`: recipes of stages.

#![allow(clippy::unwrap_used)]

mod common;

use common::{bam, fixture, read_json};
use std::fs;
use std::path::{Path, PathBuf};

const RECIPE: &str = r#"description: A mixture of two experts
variables:
  config: "${recipe}/config"
  seed: 1
stages:
  - name: seed
    init: {config: "${config}", out: seed}
  - name: expert-${domain}
    for_each:
      domain: [code, law]
    init: {config: "${config}", out: "experts/${domain}", rng-seed: "${seed}"}
  - name: bam
    upcycle:
      method: bam
      seed: ${stage.seed}
      expert: {code: "${stage.expert-code}", law: "${stage.expert-law}"}
      out: bam
  - name: validate
    validate: {path: bam, against: true, json: true}
    stdout: checks/validate.json
"#;

/// A recipe file in a folder of its own, and the work folder beside it.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::copy(fixture("llama/seed/config.json"), folder.path().join("config/config.json")).unwrap();
        fs::write(folder.path().join("mixture.yaml"), RECIPE).unwrap();
        Self { folder }
    }

    fn recipe(&self) -> PathBuf {
        self.folder.path().join("mixture.yaml")
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.recipe()).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.recipe(), text.replace(from, to)).unwrap();
    }

    fn run(&self) -> common::Run {
        bam!("run", self.recipe(), "--work", self.work(), "--json")
    }

    /// Which stages ran.
    fn ran(&self) -> Vec<String> {
        let report = self.run().ok().json();
        let stages = report["stages"].as_array().unwrap();
        let ran = stages.iter().filter(|stage| stage["ran"] == "done");
        ran.map(|stage| stage["stage"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_recipe_runs_what_changed_and_no_more() {
    let bench = Bench::new();
    assert_eq!(bench.ran(), ["seed", "expert-code", "expert-law", "bam", "validate"]);
    assert_eq!(read_json(bench.work().join("checks/validate.json"))["checks"][0]["status"], "ok");
    let log = fs::read_to_string(bench.work().join(".bam-run/logs/seed.log")).unwrap();
    assert!(log.starts_with("$ bam-convert init ../config --out seed\n"), "{log}");
    assert!(bench.ran().is_empty());

    // A setting, and what depends on it.
    bench.edit("  seed: 1", "  seed: 2");
    let report = bam!("run", bench.recipe(), "--work", bench.work(), "--dry-run").ok();
    assert!(report.stdout.contains("# seed: up to date"), "{report}");
    assert!(report.stdout.contains("# expert-law: runs: its settings changed\nbam-convert init"), "{report}");
    assert!(report.stdout.contains("# bam: runs: stage expert-code runs before it\n"), "{report}");
    assert_eq!(bench.ran(), ["expert-code", "expert-law", "bam", "validate"]);

    // An input with other bytes; the same bytes at another time change nothing.
    let config = bench.folder.path().join("config/config.json");
    let bytes = fs::read(&config).unwrap();
    fs::write(&config, &bytes).unwrap();
    assert!(bench.ran().is_empty());
    fs::write(&config, [&bytes[..], b"\n"].concat()).unwrap();
    assert!(bench.ran().starts_with(&["seed".to_owned(), "expert-code".to_owned()]));

    // An output that someone else touched.
    fs::write(bench.work().join("checks/validate.json"), "{}").unwrap();
    assert_eq!(bench.ran(), ["validate"]);
    fs::remove_dir_all(bench.work().join("bam")).unwrap();
    assert_eq!(bench.ran(), ["bam"]);
}

#[test]
fn set_replaces_variables_and_work_defaults_to_the_recipes_name() {
    let bench = Bench::new();
    let mut command = std::process::Command::new(common::binary());
    command.args(["run", "mixture.yaml", "--set", "seed=7", "--dry-run", "--json"]).current_dir(bench.folder.path());
    let stages = common::finish(command).ok().json();
    assert_eq!(
        stages[1]["command"],
        serde_json::json!(["init", "../config", "--out", "experts/code", "--rng-seed", "7"])
    );
    assert_eq!(stages[4]["stdout"], "checks/validate.json");
    assert!(!bench.folder.path().join("mixture").exists(), "a dry run makes nothing");
}

#[test]
fn a_failing_stage_stops_with_its_name_and_the_end_of_its_log() {
    let bench = Bench::new();
    bench.edit("seed: ${stage.seed}", "seed: nowhere");
    let run = bench.run().refused(3, &["stage `bam` ended with exit code 3", "cannot open nowhere", "logs/bam.log"]);
    assert_eq!(run.json()["failure"]["stage"], "bam");
    assert_eq!(run.json()["stages"].as_array().unwrap().len(), 3);
    // The work of the others stays.
    bench.edit("seed: nowhere", "seed: seed");
    assert_eq!(bench.ran(), ["bam", "validate"]);
}

#[test]
fn a_check_that_says_no_is_a_no() {
    let bench = Bench::new();
    bench.run().ok();
    common::edit_tensors(&bench.work().join("bam"), |tensors| {
        tensors.remove("model.norm.weight").unwrap();
    });
    // Only validate runs again, so that it meets the damage.
    let record = bench.work().join(".bam-run/stages/bam.json");
    let stamp = |path: &Path| {
        let (_, inode, modified) = common::identity(path);
        format!(r#"{{"length": {}, "modified": {modified}, "inode": {inode}}}"#, fs::metadata(path).unwrap().len())
    };
    let weights = bench.work().join("bam/model.safetensors");
    let text = fs::read_to_string(&record).unwrap();
    let start = text.find("\"bam/model.safetensors\": ").unwrap() + "\"bam/model.safetensors\": ".len();
    let end = start + text[start..].find('}').unwrap() + 1;
    fs::write(&record, format!("{}{}{}", &text[..start], stamp(&weights), &text[end..])).unwrap();
    bench.run().refused(1, &["stage `validate` ended with exit code 1"]);
}

#[test]
fn what_no_stage_made_is_not_replaced() {
    let bench = Bench::new();
    fs::create_dir_all(bench.work().join("seed")).unwrap();
    fs::write(bench.work().join("seed/config.json"), "mine").unwrap();
    bench.run().refused(2, &["work/seed: exists already, and stage `seed` did not make it"]);
    assert_eq!(fs::read_to_string(bench.work().join("seed/config.json")).unwrap(), "mine");
}

#[test]
fn faults_of_a_recipe_are_refused_where_they_stand() {
    let faults: [(&str, &str, &[&str]); 17] = [
        ("stages:", "stagse:", &["mixture.yaml:5:1: key `stagse`", "nearest known key is `stages`"]),
        ("init: {config", "inti: {config", &["mixture.yaml:7:5: key `inti`", "nearest known key is `init`"]),
        ("rng-seed", "rng-sede", &["mixture.yaml:11:59: key `rng-sede`", "nearest known key is `rng-seed`"]),
        ("rng-seed: \"${seed}\"", "rng-seed: soon", &["mixture.yaml:11:5: stage `expert-code`", "'soon'"]),
        ("method: bam", "method: bum", &["mixture.yaml:13:5: stage `bam`", "'bum'"]),
        (
            "stage.expert-law",
            "stage.expert-lwa",
            &["no stage above this one", "nearest known name is `stage.expert-law`"],
        ),
        ("${stage.seed}", "${stage.seed", &["mixture.yaml:15:13", "closing brace"]),
        ("\"${seed}\"", "[1, 2]", &["mixture.yaml:11:69: `rng-seed` takes one value, found 2"]),
        ("json: true", "json: 3", &["mixture.yaml:19:", "expected true or false, found `3`"]),
        ("expert-${domain}", "expert", &["must hold `${domain}`"]),
        ("name: bam", "name: seed", &["two stages are named `seed`"]),
        ("out: bam", "out: seed", &["stage `bam` makes seed again"]),
        ("name: bam", "name: ../bam", &["cannot be named `../bam`"]),
        ("    stdout: checks/validate.json", "    init: {}", &["mixture.yaml:20:5: a stage is one command"]),
        ("name: bam", "name: bam\n    name: bim", &["mixture.yaml:13:5: the key `name` stands twice"]),
        ("method: bam", "method: bam\n      force: true", &["key `force`: `upcycle` has no such key"]),
        ("method: bam", "method: bam\n      config: x.yaml", &["key `config`: `upcycle` has no such key"]),
    ];
    for (from, to, parts) in faults {
        let bench = Bench::new();
        bench.edit(from, to);
        bench.run().refused(2, parts);
        assert!(!bench.work().exists(), "{from}");
    }
    let bench = Bench::new();
    bam!("run", bench.recipe(), "--set", "sede=1").refused(2, &["has no variable `sede`", "the nearest is `seed`"]);
    fs::write(bench.recipe(), "stages: [").unwrap();
    bench.run().refused(2, &["mixture.yaml:1:", "not YAML that can be read"]);
    fs::write(bench.recipe(), "stages: []\n").unwrap();
    bench.run().refused(2, &["expected at least one stage"]);
}
