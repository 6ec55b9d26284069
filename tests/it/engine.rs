//! `train --engine torch`: a script plays the part of Python, torch and `train_bam.py`. It prints events, and hands in states
//! that this program's own trainer has written. `tests/live/engine.py` runs the real ones.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    Run, Tensors, finish, fixture, read_file, read_folder, read_json, sha256, write_file,
};
use crate::train::{Shared, command, metrics, of_kind, run_folder, seed, train};

/// What the stand-in answers when it is asked what it has.
const PROBE: &str =
    r#"{"event":"probe","python":"3.12.1","torch":"2.9.1","transformers":"4.57.6","cuda":[]}"#;
const READY: &str = r#"{"event":"ready","torch":"2.9.1","ranks":2,"device_names":["cpu"],"matmul_peak":1e11,"attention":"sdpa","compiled":false,"notes":["a note of torch"]}"#;

/// A folder with a stand-in for Python, whose path has a space.
struct Stage {
    folder: TempDir,
}

impl Stage {
    /// A stand-in that runs `script` where torchrun would run; `$engine` is the folder of the engine, and `event` prints one.
    fn new(script: &str) -> Self {
        Self::answering(PROBE, script)
    }

    fn answering(probe: &str, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stage = Self { folder };
        let text = format!(
            r#"#!/bin/sh
event() {{ printf '\036%s\n' "$1"; }}
case "$*" in
*--probe*) event '{probe}'; exit 0 ;;
esac
for plan in "$@"; do :; done
engine=$(dirname "$plan")
printf '%s\n' "$@" > "$engine/arguments"
{script}
"#
        );
        fs::create_dir(stage.path("my env")).unwrap();
        fs::write(stage.python(), text).unwrap();
        fs::set_permissions(stage.python(), fs::Permissions::from_mode(0o755)).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn python(&self) -> PathBuf {
        self.path("my env").join("python")
    }

    fn out(&self) -> PathBuf {
        self.path("a model")
    }

    fn engine(&self) -> PathBuf {
        run_folder(&self.out()).join("engine")
    }

    fn command(&self, checkpoint: &Path, arguments: &[&str]) -> Command {
        let mut command = command(checkpoint, &self.out(), arguments);
        command.args(["--engine", "torch", "--nproc-per-node", "2", "--python"]);
        command.arg(self.python());
        command
    }

    fn train(&self, arguments: &[&str]) -> Run {
        finish(self.command(&seed(), arguments))
    }

    fn plan(&self) -> Value {
        read_json(self.engine().join("plan.json"))
    }
}

/// A run of our own trainer with a checkpoint after each step, whose records and states a stand-in repeats.
struct Model {
    folder: TempDir,
}

const STEPS: [&str; 8] = [
    "--steps",
    "4",
    "--save-every",
    "1",
    "--keep",
    "9",
    "--validate-every",
    "2",
];

impl Model {
    fn get() -> &'static Self {
        static MODEL: OnceLock<Model> = OnceLock::new();
        MODEL.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let model = Model { folder };
            train(&seed(), &model.out(), &STEPS).ok();
            for step in 1..=4 {
                model.split(step);
            }
            model
        })
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("native")
    }

    fn checkpoint(&self, step: u64) -> PathBuf {
        run_folder(&self.out()).join(format!("checkpoints/step-{step:08}"))
    }

    /// The state of a step in the two files that two ranks would write.
    fn parts(&self, step: u64) -> [PathBuf; 2] {
        [1, 2].map(|part| {
            let name = format!("training-state-0000{part}-of-00002.safetensors");
            self.folder.path().join(format!("{step}")).join(name)
        })
    }

    fn split(&self, step: u64) {
        let state = read_file(&self.checkpoint(step).join("training-state.safetensors"));
        fs::create_dir(self.folder.path().join(format!("{step}"))).unwrap();
        for (number, path) in self.parts(step).iter().enumerate() {
            let own = |name: &str| name.split_once('.').unwrap().1.len() % 2 == number;
            let tensors = state.iter().filter(|(name, _)| own(name));
            let tensors: Tensors = tensors
                .map(|(name, one)| (name.clone(), one.clone()))
                .collect();
            write_file(path, &tensors);
        }
    }

    fn position(&self, step: u64) -> Value {
        let mut position = read_json(self.checkpoint(step).join("training-state.json"));
        let object = position.as_object_mut().unwrap();
        object.retain(|key, _| {
            ["step", "row", "updates", "tokens", "norm_mean", "norms"].contains(&key.as_str())
        });
        position
    }

    /// Lines of the script for the steps `first..=last`, each with its records and its state, as our trainer has them.
    fn script(&self, first: u64, last: u64) -> String {
        let mut script = format!("event '{READY}'\n");
        if first == 1 {
            script += &self.validation(0);
        }
        for step in first..=last {
            script += &self.step(step);
            script += &self.validation(step);
            script += &self.state(step);
        }
        script
    }

    fn validation(&self, step: u64) -> String {
        let records = of_kind(&metrics(&self.out()), "validation");
        let found = records.iter().find(|record| record["step"] == step);
        let line = |record: &Value| {
            let mut event = record.clone();
            event["event"] = json!("validation");
            format!("event '{event}'\n")
        };
        found.map_or_else(String::new, line)
    }

    fn step(&self, step: u64) -> String {
        let mut lines = String::new();
        for kind in ["step", "detail"] {
            let records = of_kind(&metrics(&self.out()), kind);
            let Some(record) = records.iter().find(|record| record["step"] == step) else {
                continue;
            };
            let mut event = record.clone();
            event["event"] = json!(kind);
            if kind == "step" {
                let before = if step == 1 {
                    0
                } else {
                    self.position(step - 1)["tokens"].as_u64().unwrap()
                };
                event["step_tokens"] = json!(record["tokens"].as_u64().unwrap() - before);
                event["memory"] = json!([1000, 2000]);
                for (key, value) in self.position(step).as_object().unwrap() {
                    event[key] = value.clone();
                }
            }
            writeln!(lines, "event '{event}'").unwrap();
        }
        lines
    }

    fn state(&self, step: u64) -> String {
        let mut event = self.position(step);
        event["event"] = json!("state");
        let parts = self.parts(step);
        event["files"] = parts
            .iter()
            .map(|path| path.file_name().unwrap().to_str())
            .collect();
        // A rank writes the next state only where the last one is gone.
        let mut lines =
            "until [ -z \"$(ls \"$engine/state\")\" ]; do sleep 0.01; done\n".to_owned();
        for part in parts {
            writeln!(lines, "cp '{}' \"$engine/state/\"", part.display()).unwrap();
        }
        lines + &format!("event '{event}'\n")
    }
}

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

#[test]
fn processes_that_die_are_named_with_what_they_said_and_how_to_continue() {
    let model = Model::get();
    let script = format!(
        "{}echo 'Traceback: out of luck' >&2; printf 'half a line'; kill -9 $$",
        model.script(1, 2)
    );
    let stage = Stage::new(&script);
    let run = stage.train(&STEPS).refused(
        3,
        &[
            "engine/output.log: torch's processes ended after step 2 (signal: 9 (SIGKILL))",
            "Traceback: out of luck",
            "half a line",
            "hint: continue with: ",
            " --resume",
        ],
    );
    assert!(!stage.out().exists(), "{run}");
    let checkpoints = fs::read_dir(run_folder(&stage.out()).join("checkpoints")).unwrap();
    assert_eq!(checkpoints.count(), 2);
}

#[test]
fn talk_of_libraries_goes_to_a_file() {
    let model = Model::get();
    let talk = r"head -c 300000 /dev/zero | tr '\0' 'x'; printf '\n\377\376 no text \000\n'; printf 'later\036{not ours}\n'";
    let script = format!(
        "{talk}\n{}\n{talk}\nevent '{{\"event\":\"end\",\"step\":4}}'",
        model.script(1, 4)
    );
    let stage = Stage::new(&script);
    stage.train(&STEPS).ok();
    let log = fs::read(stage.engine().join("output.log")).unwrap();
    assert!(log.len() > 600_000 && log.windows(5).any(|part| part == b"later"));
}

#[test]
fn events_that_cannot_be_are_refused() {
    let model = Model::get();
    let ready = format!("event '{READY}'\n");
    let second = model.step(2);
    let wrong_state = model.state(1).replace("\"step\":1", "\"step\":3");
    for (script, problem) in [
        (
            format!("{ready}event '{{\"event\":\"step\"'"),
            "printed an event that cannot be read",
        ),
        (
            format!("{ready}event '{{\"event\":\"dance\"}}'"),
            "unknown variant `dance`",
        ),
        (format!("{ready}{second}"), "reported step 2 after step 0"),
        (
            format!("{ready}{}{wrong_state}", model.step(1)),
            "reported a state of step 3 after step 1",
        ),
        (
            format!("{ready}event '{{\"event\":\"end\",\"step\":4}}'"),
            "reported the end of step 4 after step 0",
        ),
        (
            "event '{\"event\":\"end\",\"step\":0}'".to_owned(),
            "reported `end` after step 0",
        ),
        (
            format!(
                "{ready}{}",
                model
                    .state(1)
                    .replace("cp '", ": '")
                    .replace("\"step\":1", "\"step\":0")
            ),
            "reported a state of step 0 after step 0",
        ),
    ] {
        let stage = Stage::new(&script);
        let run = stage.train(&STEPS).refused(3, &[problem]);
        assert!(!stage.out().exists(), "{run}");
    }
    // A state that lacks a parameter is no checkpoint, nor is one with files that its event does not name, or without some.
    let second = "training-state-00002-of-00002.safetensors";
    let removed = model
        .state(1)
        .replace("event ", &format!("rm \"$engine/state/{second}\"; event "));
    let unnamed = |script: &str| script.replace(&format!(",\"{second}\""), "");
    let files = "reported a state with other files than those in its folder after step 1";
    for (state, code, problem) in [
        (
            unnamed(&removed),
            2,
            "is missing from the optimiser's state",
        ),
        (removed, 3, files),
        (unnamed(&model.state(1)), 3, files),
    ] {
        let stage = Stage::new(&format!("{ready}{}{state}", model.step(1)));
        stage.train(&STEPS).refused(code, &[problem]);
        let checkpoints = fs::read_dir(run_folder(&stage.out()).join("checkpoints"));
        assert_eq!(checkpoints.unwrap().count(), 0);
    }
}

#[test]
fn a_signal_reaches_the_processes_as_a_file_and_the_run_resumes() {
    let model = Model::get();
    let script = format!(
        "{}touch '{{ready}}'; until [ -e \"$engine/stop\" ]; do sleep 0.01; done\n{}{}event '{{\"event\":\"stopped\",\"step\":3}}'",
        model.script(1, 2),
        model.step(3),
        model.state(3),
    );
    let stage = Stage::new("");
    let ready = stage.path("ready");
    let text = fs::read_to_string(stage.python()).unwrap();
    fs::write(
        stage.python(),
        text + &script.replace("{ready}", ready.to_str().unwrap()),
    )
    .unwrap();
    let mut command = stage.command(&seed(), &STEPS);
    let child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    assert!(
        Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("stopped by a signal after step 3, saved in ") && said.contains(" --resume"),
        "{said}"
    );
    assert!(
        read_folder(&model.checkpoint(3))
            == read_folder(&run_folder(&stage.out()).join("checkpoints/step-00000003"))
    );
}

#[test]
fn a_signal_to_another_node_outlasts_the_start_of_the_first() {
    // The first node removes the file when it starts.
    let wait = "until [ -e \"$engine/stop\" ]; do sleep 0.01; done";
    let stage = Stage::new("");
    let ready = stage.path("ready");
    let script = format!(
        "touch '{}'; {wait}; rm \"$engine/stop\"; {wait}",
        ready.display()
    );
    let text = fs::read_to_string(stage.python()).unwrap();
    fs::write(stage.python(), text + &script).unwrap();
    let node = [
        "--steps",
        "1",
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--rdzv-endpoint",
        "first:29500",
    ];
    let mut command = stage.command(&seed(), &node);
    let mut child = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the processes do not hear of the signal");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_signal_ends_all_processes() {
    let stage = Stage::new("");
    let (ready, pid) = (stage.path("ready"), stage.path("pid"));
    let text = fs::read_to_string(stage.python()).unwrap();
    let script = format!(
        "event '{READY}'\n(trap '' TERM; echo $$ > '{}'; touch '{}'; sleep 600) & sleep 600",
        pid.display(),
        ready.display()
    );
    fs::write(stage.python(), text + &script).unwrap();
    let mut command = stage.command(&seed(), &STEPS);
    let mut child = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    let own = fs::read_to_string(&pid).unwrap();
    for _ in 0..2 {
        let sent = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let begun = Instant::now();
    while Path::new("/proc").join(own.trim()).exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "process {own} lives"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{} does not come",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn bad_steps_and_failures_are_named() {
    let model = Model::get();
    let begin = model.script(1, 2);
    for (event, problem) in [
        (
            r#"{"event":"failed","kind":"nan","what":"the loss","step":3}"#,
            "step 3: the loss is not finite; its batch is rows 16 to 23",
        ),
        (
            r#"{"event":"failed","kind":"spike","norm":50.0,"factor":10.0,"mean":1.0,"step":3}"#,
            "step 3: the norm of the gradients is 5.000e1, more than 10 times the mean 1.000e0",
        ),
    ] {
        let stage = Stage::new(&format!("{begin}event '{event}'"));
        stage.train(&STEPS).refused(2, &[problem]);
    }
    let stage = Stage::new(&format!(
        "{begin}event '{}'",
        r#"{"event":"failed","kind":"memory","message":"the card ran out of memory"}"#
    ));
    stage.train(&STEPS).refused(
        3,
        &[
            "torch ran out of memory after step 2",
            "--gradient-checkpointing",
        ],
    );
    let stage = Stage::new(&format!(
        "{begin}event '{}'",
        r#"{"event":"failed","kind":"disk","message":"/x/state.part: No space left on device","path":"/x","errno":28}"#
    ));
    stage
        .train(&STEPS)
        .refused(3, &["/x/state.part: No space left", " --resume"]);

    // Numbers that are not finite are null in events, and in the log.
    let nulls =
        r#"event '{"event":"validation","step":2,"domains":{"code":{"nll":null,"tokens":5}}}'"#;
    let stage = Stage::new(&format!("{begin}{nulls}\nexit 1"));
    stage.train(&STEPS).refused(3, &["ended after step 2"]);
    let found = of_kind(&metrics(&stage.out()), "validation").pop().unwrap();
    assert_eq!(found["domains"]["code"]["nll"], Value::Null);
    // Our own trainer reads this log, and continues.
    let mut native = command(&seed(), &stage.out(), &STEPS);
    native.arg("--resume");
    let run = finish(native).ok();
    assert!(!run.stderr.contains("metrics.jsonl: "), "{run}");

    // What a rank says that lost another is less than what the other says.
    let lost = r#"{"event":"failed","kind":"rank-lost","message":"lost a rank"}"#;
    for (then, problem) in [
        ("exit 1".to_owned(), "lost a rank"),
        (
            r#"event '{"event":"failed","kind":"error","message":"the true cause"}'"#.to_owned(),
            "the true cause",
        ),
    ] {
        let stage = Stage::new(&format!("{begin}event '{lost}'\n{then}"));
        stage
            .train(&STEPS)
            .refused(3, &["torch failed after step 2", problem]);
    }

    // A step that is skipped is logged, and the run continues.
    let mut skip = model.position(3);
    let before = model.position(2);
    for key in ["updates", "norms", "norm_mean"] {
        skip[key] = before[key].clone();
    }
    skip["event"] = json!("skip");
    skip["kind"] = json!("nan");
    skip["what"] = json!("the norm of the gradients");
    let stage = Stage::new(&format!("{begin}event '{skip}'\nexit 1"));
    let run = stage.train(&STEPS).refused(
        3,
        &[
            "step 3 skipped: the norm of the gradients is not finite",
            "after step 3",
        ],
    );
    let skipped = &of_kind(&metrics(&stage.out()), "skip")[0];
    assert_eq!(
        skipped["rows"], "rows 16 to 23 (4 of code, 4 of law)",
        "{run}"
    );
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
fn a_python_that_does_not_fit_is_refused_with_what_to_install() {
    let steps = ["--steps", "2"];
    let missing = r#"{"event":"failed","kind":"torch-missing","message":"has no package torch, expected 2.6 or newer","install":["/a b/python","-m","pip","install","torch>=2.6"]}"#;
    let stage = Stage::answering(missing, "");
    let hint = "hint: install it with: '/a b/python' -m pip install 'torch>=2.6'";
    stage
        .train(&steps)
        .refused(3, &["has no package torch, expected 2.6 or newer", hint]);
    // A dry run checks it, too.
    stage
        .train(&["--steps", "2", "--dry-run"])
        .refused(3, &[hint]);
    assert!(!run_folder(&stage.out()).exists());

    let stage = Stage::answering("not JSON", "");
    stage
        .train(&steps)
        .refused(3, &["does not say which torch it has"]);
    let mut command = command(&seed(), &stage.out(), &steps);
    command.args(["--engine", "torch", "--python", "/no/such/python"]);
    finish(command).refused(
        3,
        &["cannot run Python as /no/such/python", "pass --python PATH"],
    );

    // `auto` says why it does not take torch.
    let auto = |probe: &str, flags: &[&str]| {
        let stage = Stage::answering(probe, "exit 1");
        let mut command =
            crate::train::command(&seed(), &stage.out(), &["--steps", "1", "--batch", "1"]);
        command
            .args(["--engine", "auto", "--python"])
            .arg(stage.python())
            .args(flags);
        finish(command)
    };
    let run = auto(missing, &[]).ok();
    assert!(
        run.stderr.contains("--engine auto: this program trains: ")
            && run.stderr.contains("has no package torch"),
        "{run}"
    );
    let run = auto(PROBE, &[]).ok();
    assert!(
        run.stderr
            .contains("--engine auto: this program trains: torch 2.9.1 finds no GPU"),
        "{run}"
    );
    // Our own trainer would start once on each of several nodes.
    let nodes = [
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--rdzv-endpoint",
        "first:29500",
    ];
    auto(missing, &nodes).refused(3, &["has no package torch"]);
    auto(PROBE, &nodes).refused(3, &["torch 2.9.1 of ", " finds no GPU"]);
    auto(PROBE, &nodes[..2]).refused(3, &["finds no GPU"]);
    let on_cpu = [&nodes[..], &["--device", "cpu"]].concat();
    auto(PROBE, &on_cpu).refused(3, &["exit status: 1"]);
    let gpu = PROBE.replace("[]", r#"["Some GPU"],"cuda_memory":[1000000]"#);
    let run = auto(&gpu, &[]).refused(3, &["ended after step 0 (exit status: 1)"]);
    for part in [
        "--engine auto: torch 2.9.1 trains, on 1 x Some GPU",
        "with 1.00 MB on the smallest GPU",
    ] {
        assert!(run.stderr.contains(part), "{run}");
    }
}

#[test]
fn python_sees_no_modules_of_others() {
    let stage = Stage::new("exit 1");
    fs::create_dir_all(stage.engine()).unwrap();
    for name in ["torch.py", "__pycache__"] {
        let path = stage.engine().join(name);
        fs::create_dir(&path).unwrap();
        let problem = format!("engine/{name}: is no file of this program");
        stage
            .train(&["--steps", "1"])
            .refused(2, &[&problem, "move it"]);
        fs::remove_dir(&path).unwrap();
    }
    let path = stage.engine().join("torch");
    std::os::unix::fs::symlink("/tmp", &path).unwrap();
    stage
        .train(&["--steps", "1"])
        .refused(2, &["engine/torch: is no file of this program"]);
    fs::remove_file(&path).unwrap();
    // What is no code stays where it is.
    for name in [".plan.json.partial", "core", ".nfs0001"] {
        fs::write(stage.engine().join(name), "").unwrap();
    }
    stage
        .train(&["--steps", "1"])
        .refused(3, &["exit status: 1"]);
    let stage = Stage::new("pwd > \"$engine/output-pwd.log\"; exit 1");
    stage
        .train(&["--steps", "1"])
        .refused(3, &["exit status: 1"]);
    let folder = fs::read_to_string(stage.engine().join("output-pwd.log")).unwrap();
    assert_eq!(
        Path::new(folder.trim()),
        stage.engine().canonicalize().unwrap()
    );
}

#[test]
fn flags_of_the_engine_are_checked() {
    let stage = Stage::new("exit 1");
    let native =
        |flags: &[&str]| train(&seed(), &stage.out(), &[&["--steps", "1"], flags].concat());
    native(&["--nproc-per-node", "2"])
        .refused(2, &["--nproc-per-node has no effect with --engine native"]);
    native(&["--compile"]).refused(2, &["--compile has no effect with --engine native"]);
    native(&["--node-rank", "1"]).refused(2, &["--rdzv-endpoint"]);
    stage.train(&["--steps", "1", "--batch", "1"]).refused(
        2,
        &[
            "--batch: expected a row for each of 2 ranks, found 1",
            "a larger --batch",
        ],
    );
    stage.train(&["--steps", "1", "--device", "cuda"]).refused(
        3,
        &[
            "--device cuda: torch 2.9.1 of ",
            " finds no GPU",
            "--device cpu",
        ],
    );
    stage
        .train(&["--steps", "1", "--nnodes", "2"])
        .refused(2, &["--nnodes 2: expected --node-rank and --rdzv-endpoint"]);
    let far = [
        "--steps",
        "1",
        "--nnodes",
        "2",
        "--node-rank",
        "2",
        "--rdzv-endpoint",
        "n:1",
    ];
    stage
        .train(&far)
        .refused(2, &["--node-rank: expected a number below 2, found 2"]);

    // A dry run plans for machines that this one is not.
    let run = stage
        .train(&[
            "--steps",
            "1",
            "--device",
            "cuda",
            "--nnodes",
            "4",
            "--batch",
            "64",
            "--dry-run",
        ])
        .ok();
    assert!(run.stdout.contains("in each of 8 ranks: weights "), "{run}");
    assert!(run.stderr.contains("finds no GPU"), "{run}");
    let memory = |ranks: &str| {
        let flags = [
            "--steps",
            "1",
            "--nnodes",
            ranks,
            "--batch",
            "64",
            "--dry-run",
            "--json",
        ];
        let json = stage.train(&flags).ok().json();
        let of = |key: &str| json["memory"][key].as_u64().unwrap();
        assert_eq!(json["ranks"], 2 * ranks.parse::<u64>().unwrap());
        [of("optimiser"), of("activations")]
    };
    let (few, many) = (memory("1"), memory("4"));
    assert!(
        few[0] >= 4 * many[0] - 64 && few[1] > many[1],
        "{few:?} {many:?}"
    );
    assert!(!run_folder(&stage.out()).exists());
}

#[test]
fn nodes_find_each_other() {
    let endpoint = [
        "--nnodes",
        "2",
        "--rdzv-endpoint",
        "first:29500",
        "--node-rank",
    ];
    let steps = ["--steps", "1"];
    let stage = Stage::new("exit 5");
    stage
        .train(&[&steps[..], &endpoint, &["0"]].concat())
        .refused(3, &["exit status: 5"]);
    let arguments = fs::read_to_string(stage.engine().join("arguments")).unwrap();
    let expected = "-m\ntorch.distributed.run\n--node-rank=0\n--nnodes=2\n--rdzv-backend=static\n--rdzv-endpoint=first:29500\n--nproc-per-node=2\n";
    assert!(arguments.starts_with(expected), "{arguments}");

    // Another node only runs its processes.
    let stage = Stage::new("echo 'of node 1' >&2");
    stage.train(&[&steps[..], &endpoint, &["1"]].concat()).ok();
    assert_eq!(
        fs::read_to_string(stage.engine().join("output-1.log")).unwrap(),
        "of node 1\n"
    );
    assert!(!stage.engine().join("plan.json").exists());

    // In a job of Slurm with several nodes, srun starts a task on each.
    let stage = Stage::new("exit 6");
    let srun = stage.path("srun");
    fs::write(&srun, "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$0.arguments\"\nwhile [ \"$1\" != sh ]; do shift; done\nSLURM_NODEID=0 exec \"$@\"\n").unwrap();
    fs::set_permissions(&srun, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = stage.command(&seed(), &steps);
    let path = format!(
        "{}:{}",
        stage.folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    command
        .env("PATH", path)
        .env("SLURM_JOB_ID", "7")
        .env("SLURM_JOB_NUM_NODES", "3");
    command
        .env("SLURMD_NODENAME", "n1")
        .env("SLURM_CPUS_PER_TASK", "12");
    finish(command).refused(3, &["exit status: 6"]);
    let words = fs::read_to_string(stage.path("srun.arguments")).unwrap();
    let begin = "--nodes=3\n--ntasks=3\n--ntasks-per-node=1\n--kill-on-bad-exit=1\n--cpus-per-task=12\nsh\n-c\n";
    assert!(words.starts_with(begin), "{words}");
    let arguments = fs::read_to_string(stage.engine().join("arguments")).unwrap();
    let expected = "-m\ntorch.distributed.run\n--node-rank=0\n--nnodes=3\n--rdzv-backend=static\n--rdzv-endpoint=n1:20007\n";
    assert!(arguments.starts_with(expected), "{arguments}");
}
