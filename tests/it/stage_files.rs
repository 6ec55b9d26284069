//! Files that a setting of a recipe names inside a longer value, or that a stage writes beside its result:
//! `router: "file:PATH"`, `router: "prompts:PATH"`, `dump-rows: PATH`.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::common::{Run, Tensor, Tensors, bam, copy_folder, fixture, read_json, write_file};

/// Width of the models of the fixture.
const HIDDEN: usize = 32;

/// A recipe, and beside it two models, rows of a router and prompts.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for model in ["seed", "code"] {
            copy_folder(
                &fixture("llama").join(model),
                &bench.path("models").join(model),
            );
        }
        bench.write_rows(0.5);
        bench.write_prompts("def mean(values):");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One row for each of two experts, for every router.
    fn write_rows(&self, scale: f64) {
        let values: Vec<f64> = (0..2 * HIDDEN).map(|i| scale * (i as f64).sin()).collect();
        let rows = Tensor::new(Dtype::F32, &[2, HIDDEN], &values);
        let path = self.path("rows.safetensors");
        write_file(&path, &Tensors::from([("router".to_owned(), rows)]));
    }

    fn write_prompts(&self, code: &str) {
        let text = format!(
            "gate_mode: hidden\nexperts:\n- name: seed\n  positive_prompts: [\"The year\"]\n\
             - name: code\n  positive_prompts: [\"{code}\"]\n"
        );
        fs::write(self.path("prompts.yaml"), text).unwrap();
    }

    fn write_recipe(&self, stages: &Value) {
        let recipe = json!({ "stages": stages });
        fs::write(self.path("recipe.yaml"), recipe.to_string()).unwrap();
    }

    fn run(&self, flags: &[&str]) -> Run {
        let fixed = [
            "run".into(),
            self.path("recipe.yaml").into_os_string(),
            "--work".into(),
            self.path("work").into_os_string(),
            "--json".into(),
        ];
        let flags = flags.iter().map(std::ffi::OsString::from);
        crate::common::run(fixed.into_iter().chain(flags))
    }

    /// The stages that ran, and did not only turn out to be up to date.
    fn ran(&self) -> Vec<String> {
        let report = self.run(&["--jobs", "4"]).ok().json();
        let stages = report["stages"].as_array().unwrap().iter();
        stages
            .filter(|stage| stage["ran"] == "done")
            .map(|stage| stage["stage"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// The settings of an upcycle of the two models, with this router.
fn upcycle(router: &str, out: &str) -> Value {
    json!({
        "method": "bam", "seed": "${recipe}/models/seed", "expert": {"code": "${recipe}/models/code"},
        "router": router, "out": out,
    })
}

#[test]
fn a_stage_is_stale_after_the_file_of_its_router_changed() {
    let bench = Bench::new();
    bench.write_recipe(&json!([
        {"name": "rows", "upcycle": upcycle("file:${recipe}/rows.safetensors", "rows")},
        {"name": "prompts", "upcycle": upcycle("prompts:${recipe}/prompts.yaml", "prompts")},
    ]));
    assert_eq!(bench.ran(), ["rows", "prompts"]);
    assert_eq!(bench.ran(), [""; 0]);

    bench.write_rows(0.25);
    let status = bench.run(&["--status"]).ok().json();
    let reason = status[0]["runs_because"].as_str().unwrap();
    assert!(reason.contains("rows.safetensors changed"), "{status}");
    assert_eq!(bench.ran(), ["rows"]);

    bench.write_prompts("fn main() {}");
    assert_eq!(bench.ran(), ["prompts"]);
    assert_eq!(bench.ran(), [""; 0]);
}

#[test]
fn a_stage_waits_for_the_stage_that_makes_the_file_of_its_router() {
    let bench = Bench::new();
    let make = |file: &str| {
        json!({
            "command": format!("sleep 0.5; cp ${{recipe}}/{file} {file}"),
            "inputs": format!("${{recipe}}/{file}"), "outputs": file,
        })
    };
    bench.write_recipe(&json!([
        {"name": "make-rows", "shell": make("rows.safetensors")},
        {"name": "make-prompts", "shell": make("prompts.yaml")},
        {"name": "rows", "upcycle": upcycle("file:rows.safetensors", "rows")},
        {"name": "prompts", "upcycle": upcycle("prompts:prompts.yaml", "prompts")},
    ]));
    let stages = &bench.run(&["--dry-run"]).ok().json()["stages"];
    assert_eq!(stages[2]["needs"], json!(["make-rows"]));
    assert_eq!(stages[3]["needs"], json!(["make-prompts"]));
    assert_eq!(bench.ran().len(), 4);
    assert_eq!(bench.ran(), [""; 0]);
}

#[test]
fn a_checkpoint_whose_router_came_from_a_file_is_made_again_elsewhere() {
    let bench = Bench::new();
    bench.write_recipe(&json!([
        {"name": "rows", "upcycle": upcycle("file:${recipe}/rows.safetensors", "rows")},
        {"name": "prompts", "upcycle": upcycle("prompts:${recipe}/prompts.yaml", "prompts")},
    ]));
    assert_eq!(bench.ran().len(), 2);
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = |name: &str| elsewhere.path().join(name);
    for name in ["models", "work/rows", "work/prompts"] {
        let target = moved(name.trim_start_matches("work/"));
        copy_tree(&bench.path(name), &target);
    }
    for name in ["rows.safetensors", "prompts.yaml"] {
        fs::copy(bench.path(name), moved(&format!("moved-{name}"))).unwrap();
    }
    drop(bench);

    let rebuild = |out: &str, file: &str| {
        let source = |name: &str, path: &str| format!("{name}={}", moved(path).display());
        let stem = Path::new(file).file_stem().unwrap().to_str().unwrap();
        bam!(
            "run",
            "--from-manifest",
            moved(out),
            "--work",
            moved("again").join(out),
            "--source",
            source("seed", "models/seed"),
            "--source",
            source("code", "models/code"),
            "--source",
            source(stem, &format!("moved-{file}")),
            "--json"
        )
    };
    for (out, file) in [("rows", "rows.safetensors"), ("prompts", "prompts.yaml")] {
        let recipe = read_json(moved(out).join("bam-manifest.json"))["recipe"].clone();
        let router = recipe["stages"][0]["settings"]["router"][0]
            .as_str()
            .unwrap();
        assert!(router.ends_with(&format!(":${{{out}}}")), "{router}");
        let compared = rebuild(out, file).ok().json()["compared"].clone();
        let compared = compared.as_array().unwrap();
        let is_equal = |file: &Value| file["expected"] == file["found"];
        assert!(
            compared.len() > 5 && compared.iter().all(is_equal),
            "{compared:?}"
        );
        // What has other bytes is not the source that the manifest records.
        fs::write(moved(&format!("moved-{file}")), "changed").unwrap();
        fs::remove_dir_all(moved("again")).unwrap();
        let problem = format!("source `{out}` is missing or has changed");
        rebuild(out, file).refused(2, &[&problem]);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A stage that tokenises the prompts, and the settings of a training run on them.
fn training() -> (Value, Value) {
    let tokens = json!({
        "tokenizer": "${recipe}/models/seed", "paths": "${recipe}/texts.txt", "validation": 0, "out": "tokens",
    });
    let train = json!({
        "checkpoint": "${recipe}/models/seed", "data": {"code": "tokens"}, "steps": 1, "batch": 1, "seq": 24,
        "threads": 1, "dump-rows": "rows.jsonl", "out": "trained",
    });
    (tokens, train)
}

#[test]
fn a_training_stage_that_dumps_its_rows_is_up_to_date_afterwards() {
    let bench = Bench::new();
    let text = "All that is made once can be made again. ".repeat(20);
    fs::write(bench.path("texts.txt"), text).unwrap();
    let (tokens, train) = training();
    bench.write_recipe(&json!([
        {"name": "tokens", "tokenize": tokens},
        {"name": "train", "train": train},
    ]));
    assert_eq!(bench.ran(), ["tokens", "train"]);
    assert_eq!(bench.ran(), [""; 0]);
    // The rows are an output like any other.
    fs::remove_file(bench.path("work/rows.jsonl")).unwrap();
    assert_eq!(bench.ran(), ["train"]);
    assert!(bench.path("work/rows.jsonl").exists());
}

#[test]
fn stages_that_run_a_model_are_known_by_their_arguments() {
    let bench = Bench::new();
    fs::write(bench.path("texts.txt"), "The year").unwrap();
    let (tokens, train) = training();
    let with = |settings: Value, more: Value| {
        let (Value::Object(mut settings), Value::Object(more)) = (settings, more) else {
            panic!("expected maps")
        };
        settings.extend(more);
        Value::Object(settings)
    };
    let add = |router: &str, out: &str| json!({"mixture": "zeros", "expert": {"law": "${recipe}/models/code"}, "router": router, "out": out});
    let check = json!({"check": "${recipe}/texts.txt"});
    let attention = json!({"attention-router": "prompts:${recipe}/prompts.yaml"});
    let stages = [
        (
            false,
            json!({"upcycle": upcycle("file:${recipe}/rows.safetensors", "rows")}),
        ),
        (
            true,
            json!({"upcycle": upcycle("prompts:${recipe}/prompts.yaml", "prompts")}),
        ),
        (
            true,
            json!({"upcycle": with(upcycle("normal", "attention"), attention)}),
        ),
        (
            true,
            json!({"upcycle": with(upcycle("normal", "checked"), check)}),
        ),
        (false, json!({"expert add": add("normal", "plain")})),
        (
            true,
            json!({"expert add": add("prompts:${recipe}/prompts.yaml", "added")}),
        ),
        (
            false,
            json!({"expert remove": {"mixture": "rows", "experts": "code", "out": "fewer"}}),
        ),
        (false, json!({"tokenize": tokens})),
        (true, json!({"train": train})),
        (
            true,
            json!({"eval": {"checkpoints": "rows", "data": {"year": "${recipe}/texts.txt"}}}),
        ),
        (
            true,
            json!({"generate": {"checkpoint": "rows", "prompt": "The year"}}),
        ),
        (true, json!({"logits": {"a": "rows", "b": "prompts"}})),
        (false, json!({"validate": {"path": "rows"}})),
        (false, json!({"shell": {"command": "true"}})),
    ];
    let numbered = stages.iter().enumerate();
    let numbered = numbered
        .map(|(number, (_, stage))| with(stage.clone(), json!({"name": format!("s{number}")})));
    bench.write_recipe(&numbered.collect());
    let found = bench.run(&["--dry-run"]).ok().json();
    for (number, (computes, stage)) in stages.iter().enumerate() {
        assert_eq!(found["stages"][number]["computes"], *computes, "{stage}");
    }
}
