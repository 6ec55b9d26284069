//! What a run of torch leaves: the log, checkpoints and manifest of our own trainer, and the plan that its processes read.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Model, READY, STEPS, Stage};
use crate::common::{finish, fixture, read_folder, read_json, sha256};
use crate::train::{Shared, command, metrics, of_kind, run_folder, seed};

/// The log without times and speeds, and without what only one engine says.
fn comparable(out: &Path) -> Vec<Value> {
    let mut records = metrics(out);
    for record in &mut records {
        let record = record.as_object_mut().unwrap();
        for key in [
            "time",
            "seconds",
            "tokens_per_second",
            "tokens_per_second_per_rank",
            "flops_per_second",
            "peak_share",
            "ranks",
            "memory_bytes",
            "peak_memory_bytes",
        ] {
            record.remove(key);
        }
    }
    records
}

#[test]
fn a_run_of_torch_leaves_what_our_own_leaves() {
    let model = Model::get();
    let stage = Stage::new(&format!(
        "{}event '{{\"event\":\"end\",\"step\":4}}'",
        model.script(1, 4)
    ));
    let run = stage.train(&[&STEPS[..], &["--json"]].concat()).ok();
    assert_eq!(run.json()["engine"], "torch");
    assert_eq!(run.json()["backend"], Value::Null);
    assert_eq!(run.json()["peak_memory_bytes"], 2000);
    assert!(
        run.stderr
            .contains("engine: torch 2.9.1, 2 ranks on cpu, attention sdpa"),
        "{run}"
    );
    assert!(run.stderr.contains("note: a note of torch"), "{run}");

    // The log and the weights equal our own trainer's.
    assert_eq!(comparable(&model.out()), comparable(&stage.out()));
    let step = &of_kind(&metrics(&stage.out()), "step")[0];
    assert_eq!(
        (&step["ranks"], &step["memory_bytes"]),
        (&json!(2), &json!(2000))
    );
    assert!(read_folder(&model.out()) == read_folder(&stage.out()));
    let checkpoint = run_folder(&stage.out()).join("checkpoints/step-00000002");
    assert!(read_folder(&model.checkpoint(2)) == read_folder(&checkpoint));
    for part in model.parts(2) {
        let moved = checkpoint.join(part.file_name().unwrap());
        assert!(fs::read(part).unwrap() == fs::read(moved).unwrap());
    }

    // The manifest says who took the steps, and with which programs.
    let code = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/train/torch/train_bam.py"))
        .unwrap();
    for folder in [&stage.out(), &checkpoint] {
        let engines = &read_json(folder.join("bam-manifest.json"))["lineage"]["engines"];
        assert_eq!(engines[0]["engine"], "torch");
        assert_eq!(engines[0]["ranks"], 2);
        assert_eq!(engines[0]["first_step"], 1);
        assert_eq!(engines[0]["code"]["train_bam.py"], sha256(&code));
        assert_eq!(fs::read(stage.engine().join("train_bam.py")).unwrap(), code);
    }
    assert_eq!(
        fs::read_dir(stage.engine().join("state")).unwrap().count(),
        0
    );
    let arguments = fs::read_to_string(stage.engine().join("arguments")).unwrap();
    let arguments: Vec<&str> = arguments.lines().collect();
    assert_eq!(
        arguments[..5],
        [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "--max-restarts=0"
        ]
    );
}

#[test]
fn the_engine_changes_at_a_checkpoint() {
    let model = Model::get();
    // Torch takes two steps, and dies.
    let stage = Stage::new(&format!("{}exit 7", model.script(1, 2)));
    stage
        .train(&STEPS)
        .refused(3, &["ended after step 2 (exit status: 7)"]);
    // Our own trainer takes the others from two files of state.
    let native = finish({
        let mut command = command(&seed(), &stage.out(), &STEPS);
        command.arg("--resume");
        command
    });
    native.ok();
    assert_eq!(
        comparable(&model.out()),
        without_resume(comparable(&stage.out()))
    );
    assert!(read_folder(&model.out()) == read_folder(&stage.out()));
    let engines = read_json(stage.out().join("bam-manifest.json"))["lineage"]["engines"].clone();
    let spans: Vec<_> = engines
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["engine"].as_str().unwrap().to_owned(),
                one["first_step"].clone(),
                one["last_step"].clone(),
            )
        })
        .collect();
    assert_eq!(
        spans,
        [
            ("torch".to_owned(), json!(1), json!(2)),
            ("native".to_owned(), json!(3), json!(4))
        ]
    );

    // The other way, torch resumes from one file of our own.
    let stage = Stage::new(&format!(
        "{}event '{{\"event\":\"end\",\"step\":4}}'",
        model.script(3, 4)
    ));
    let out = stage.out();
    copy_run(&model.out(), &out, 2);
    stage.train(&[&STEPS[..], &["--resume"]].concat()).ok();
    assert!(read_folder(&model.out()) == read_folder(&out));
    let resume = &stage.plan()["resume"];
    assert_eq!(
        (&resume["step"], &resume["validated"]),
        (&json!(2), &json!(true))
    );
    assert!(
        Path::new(resume["folder"].as_str().unwrap())
            .join("training-state.safetensors")
            .exists()
    );
}

fn without_resume(mut records: Vec<Value>) -> Vec<Value> {
    records.retain(|record| record["kind"] != "resume");
    records
}

/// The folder of a run as it was after `step`.
fn copy_run(from: &Path, to: &Path, step: u64) {
    let (from, to) = (run_folder(from), run_folder(to));
    fs::create_dir_all(to.join("checkpoints")).unwrap();
    for name in ["settings.json", "metrics.jsonl"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let name = format!("checkpoints/step-{step:08}");
    fs::create_dir(to.join(&name)).unwrap();
    for file in fs::read_dir(from.join(&name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(&name).join(file.file_name())).unwrap();
    }
}

#[test]
fn without_checkpoints_the_last_state_becomes_the_output_alone() {
    let model = Model::get();
    let mut script = format!("event '{READY}'\n");
    for step in 1..=4 {
        script += &model.step(step);
    }
    script += &model.state(4);
    let stage = Stage::new(&format!("{script}event '{{\"event\":\"end\",\"step\":4}}'"));
    stage
        .train(&["--steps", "4", "--save-every", "0", "--validate-every", "0"])
        .ok();
    assert!(read_folder(&model.out()) == read_folder(&stage.out()));
    assert_eq!(
        fs::read_dir(run_folder(&stage.out()).join("checkpoints"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(stage.engine().join("state")).unwrap().count(),
        0
    );
}

#[test]
fn the_plan_says_where_each_parameter_is() {
    let model = |name: &str| Shared::get().path(name);
    for (checkpoint, layers) in [
        (seed(), json!([])),
        (fixture("families/phi3"), json!([])),
        (fixture("mixtures/mixtral"), json!("all")),
        (model("bam"), json!("all")),
    ] {
        let stage = Stage::new("exit 1");
        let run = finish(stage.command(&checkpoint, &["--steps", "1", "--batch", "2"]));
        run.refused(3, &["exit status: 1"]);
        let plan = stage.plan();
        let config = &plan["model"]["config"];
        assert_eq!(
            (&config["model_type"], &config["moe_layers"]),
            (&json!("bam"), &layers)
        );
        let stored = read_folder(&checkpoint);
        let mut bytes = 0;
        for parameter in plan["parameters"].as_array().unwrap() {
            let name = parameter["name"].as_str().unwrap();
            let file = parameter["source"]["file"].as_u64().unwrap() as usize;
            let file = fs::read(plan["files"][file].as_str().unwrap()).unwrap();
            let mut found: Vec<u8> = Vec::new();
            for range in parameter["source"]["ranges"].as_array().unwrap() {
                let [offset, length] = [0, 1].map(|at| range[at].as_u64().unwrap() as usize);
                found.extend(&file[offset..offset + length]);
            }
            bytes += found.len();
            // Parts of fused tensors have no tensor of their own in the file.
            if let Some(tensor) = stored.get(name) {
                assert!(tensor.bytes == found, "{name}");
            }
            let is_matrix = parameter["shape"].as_array().unwrap().len() > 1;
            assert_eq!(
                parameter["decay"],
                is_matrix && !name.contains("norm"),
                "{name}"
            );
        }
        let all: usize = stored.values().map(|tensor| tensor.bytes.len()).sum();
        assert_eq!(bytes, all, "{}", checkpoint.display());
    }
}
