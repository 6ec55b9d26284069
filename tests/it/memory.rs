//! Whether work fits into memory: estimates beside the machine's memory, warnings, and estimates beside what work then takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Run, bam, binary, copy_folder, edit_json, finish, fixture};
use crate::train::{Shared, seed};
use serde_json::{Value, json};

/// How far an estimate may be from the measured peak, as a share of the peak.
const TOLERANCE: f64 = 0.3;

/// A model of 17 million parameters that reads the tokens of [`Shared`].
fn larger(work: &Path) -> PathBuf {
    let config = copy_folder(&seed(), &work.join("config"));
    edit_json(&config.join("config.json"), |config| {
        for (key, value) in [
            ("hidden_size", 512),
            ("intermediate_size", 2048),
            ("num_hidden_layers", 4),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 64),
        ] {
            config[key] = value.into();
        }
    });
    let model = work.join("model");
    bam!("init", config, "--out", model).ok();
    for entry in fs::read_dir(&config).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("tokenizer") {
            fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
    }
    model
}

/// Runs a command and returns what it printed, with the peak of its memory.
fn measured(mut command: Command) -> (Run, f64) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0f64;
    while child.try_wait().unwrap().is_none() {
        let facts = fs::read_to_string(&status).unwrap_or_default();
        let line = facts.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or_default() * 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let run = Run {
        command: format!("{command:?}"),
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    (run, peak)
}

#[track_caller]
fn assert_near(what: &str, estimate: &Value, peak: f64) {
    let estimate = estimate.as_f64().unwrap();
    let off = estimate / peak - 1.0;
    assert!(
        off.abs() < TOLERANCE,
        "{what}: estimated {estimate}, measured {peak}: {off:+.2}"
    );
}

fn train(model: &Path, out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("train").arg(model).arg("--out").arg(out);
    let law = Shared::get().path("law");
    command.arg("--data").arg(format!("law={}", law.display()));
    command.args(["--steps", "2", "--validate-rows", "1", "--json"]);
    command.args(arguments);
    command
}

#[test]
fn estimates_are_near_the_measured_peaks() {
    let work = tempfile::tempdir().unwrap();
    let model = larger(work.path());
    for (name, arguments) in [
        ("all", &["--batch", "2", "--seq", "64"][..]),
        ("rows", &["--batch", "8", "--seq", "128"]),
        (
            "routers",
            &["--batch", "2", "--seq", "64", "--train", "norms"],
        ),
    ] {
        let out = work.path().join(name);
        let dry = finish(train(&model, &out, &[arguments, &["--dry-run"]].concat())).ok();
        let (run, peak) = measured(train(&model, &out, arguments));
        let said = run.ok().json();
        assert_eq!(said["predicted_memory_bytes"], dry.json()["memory_bytes"]);
        assert_near(name, &said["predicted_memory_bytes"], peak);
        assert_near(name, &said["peak_memory_bytes"], peak);
    }
    let law = Shared::get().path("law");
    for (name, arguments) in [
        ("eval", &["--context", "128"][..]),
        ("eval in f32", &["--context", "512", "--dtype", "f32"]),
    ] {
        let command = |more: &[&str]| {
            let mut command = Command::new(binary());
            command.arg("eval").arg(&model).arg("--data");
            command.arg(format!("law={}", law.display()));
            command.args(["--max-tokens", "512", "--json"]);
            command.args(arguments).args(more);
            command
        };
        let dry = finish(command(&["--dry-run"])).ok().json();
        let (run, peak) = measured(command(&[]));
        run.ok();
        assert_near(name, &dry["memory_bytes"], peak);
    }
}

#[test]
fn dry_runs_show_the_peak_beside_the_machine() {
    let work = tempfile::tempdir().unwrap();
    let law = Shared::get().path("law");
    let data = format!("law={}", law.display());
    let is_beside = |text: &str| text.contains(" at the peak; ") && text.contains(" available");
    let out = work.path().join("out");
    let text = bam!(
        "train",
        seed(),
        "--data",
        data,
        "--steps",
        "2",
        "--out",
        out,
        "--dry-run"
    );
    assert!(is_beside(&text.ok().stdout));
    let eval = bam!("eval", seed(), "--data", data, "--dry-run").ok();
    assert!(is_beside(&eval.stdout), "{eval}");
    assert!(eval.stdout.contains("models"), "{eval}");
    let said = bam!("eval", seed(), "--data", data, "--dry-run", "--json").ok();
    let said = said.json();
    assert!(
        said["available_memory_bytes"].as_u64() <= said["machine_memory_bytes"].as_u64(),
        "{said}"
    );
    assert_eq!(said["models"], 1);

    let texts = work.path().join("text.txt");
    fs::write(&texts, "the law of the land ".repeat(40)).unwrap();
    let upcycle = |more: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["upcycle", "--method", "bam", "--seed"]);
        command.arg(seed()).arg("--expert");
        command.arg(format!("code={}", fixture("llama/code").display()));
        command.arg("--out").arg(&out).arg("--dry-run").args(more);
        finish(command).ok()
    };
    let checked = upcycle(&["--check", texts.to_str().unwrap()]);
    assert!(is_beside(&checked.stdout), "{checked}");
    assert!(!is_beside(&upcycle(&[]).stdout));

    let recipe = work.path().join("recipe.yaml");
    let stages = format!(
        "stages:\n  - name: trained\n    train: {{checkpoint: {0}, data: {{law: {1}}}, steps: 2, out: trained}}\n  \
         - name: evaluation\n    eval: {{checkpoints: trained, data: {{law: {1}}}, json: true}}\n    stdout: evaluation.json\n",
        seed().display(),
        law.display()
    );
    fs::write(&recipe, stages).unwrap();
    let run = bam!("run", recipe, "--work", work.path().join("w"), "--dry-run").ok();
    assert!(
        is_beside(&run.stdout) && run.stdout.contains(", in trained\n"),
        "{run}"
    );
    let run = bam!(
        "run",
        recipe,
        "--work",
        work.path().join("w"),
        "--dry-run",
        "--json"
    );
    let stages = run.ok().json()["stages"].clone();
    assert!(
        stages[0]["estimated_memory_bytes"].as_u64() > stages[1]["estimated_memory_bytes"].as_u64(),
        "{stages}"
    );
}

/// A command with so little address space that the work may not fit.
fn limited(kib: u64, command: &Command) -> Run {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {kib}; exec {}", words.join(" "))]);
    finish(shell)
}

#[test]
fn work_that_may_not_fit_is_warned_of_and_work_that_cannot_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    // An estimate between the limit and twice the limit, in a dry run that takes little itself.
    let large = ["--batch", "512", "--seq", "512", "--dry-run"];
    let command = train(&Shared::get().path("bam"), &out, &large);
    let needed = finish(train(&Shared::get().path("bam"), &out, &large)).ok();
    let needed = needed.json()["memory_bytes"].as_u64().unwrap();
    assert!(needed > 2 << 30, "{needed}");
    let run = limited(needed * 2 / 3 / 1024, &command).ok();
    assert!(
        run.stderr.contains("note: the run needs about")
            && run.stderr.contains("the system may end it"),
        "{run}"
    );
    limited(needed / 3 / 1024, &command).refused(3, &["the run takes about", "--batch"]);
    assert_eq!(
        run.json()["available_memory_bytes"],
        json!(needed * 2 / 3 / 1024 * 1024)
    );
}
