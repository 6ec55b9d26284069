//! `train --engine torch`: a script plays the part of Python, torch and `train_bam.py`. It prints events, and hands in states
//! that this program's own trainer has written. `tests/live/engine.py` runs the real ones.

mod failures;
mod results;
mod signals;
mod start;

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Run, Tensors, finish, read_file, read_json, write_file};
use crate::train::{command, metrics, of_kind, run_folder, seed, train};

/// What the stand-in answers when it is asked what it has.
const PROBE: &str =
    r#"{"event":"probe","python":"3.12.1","torch":"2.9.1","transformers":"4.57.6","cuda":[]}"#;

/// What it says when its processes have started.
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

/// The flags of that run.
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
