//! `train` on the built binary: losses, freezing, memory, resuming, refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::{
    Run, Tensors, assert_same_folder, binary, contents, finish, fixture, read_file, read_folder,
    read_json,
};
use serde_json::Value;
use tempfile::TempDir;

/// Token folders of two domains and a mixture, made once.
pub struct Shared {
    folder: TempDir,
}

impl Shared {
    pub fn get() -> &'static Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            for (name, texts) in [
                ("code", ["tests/it/common/mod.rs", "src/error.rs"]),
                ("law", ["LICENSE-APACHE", "LICENSE-MIT"]),
            ] {
                // One document a paragraph, so that some can be held back.
                let paragraphs = texts
                    .iter()
                    .map(|text| std::fs::read_to_string(root.join(text)).unwrap())
                    .collect::<String>();
                let lines = paragraphs
                    .split("\n\n")
                    .map(|text| format!("{}\n", serde_json::json!({ "text": text })));
                let file = folder.path().join(format!("{name}.jsonl"));
                std::fs::write(&file, lines.collect::<String>()).unwrap();
                let mut command = Command::new(binary());
                command
                    .arg("tokenize")
                    .arg("--tokenizer")
                    .arg(fixture("llama/seed"))
                    .arg("--validation")
                    .arg("0.1");
                finish({
                    command.arg("--out").arg(folder.path().join(name)).arg(file);
                    command
                })
                .ok();
            }
            for (name, options) in [("bam", &[][..]), ("choice", &["--router-bias", "choice"])] {
                let mut command = Command::new(binary());
                command
                    .arg("upcycle")
                    .arg("--method")
                    .arg("bam")
                    .arg("--seed")
                    .arg(fixture("llama/seed"));
                for expert in ["code", "law"] {
                    let path = fixture(format!("llama/{expert}"));
                    command
                        .arg("--expert")
                        .arg(format!("{expert}={}", path.display()));
                }
                finish({
                    command
                        .args(options)
                        .arg("--out")
                        .arg(folder.path().join(name));
                    command
                })
                .ok();
            }
            Self { folder }
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A `train` command with `arguments` after the usual ones.
pub fn command(checkpoint: &Path, out: &Path, arguments: &[&str]) -> Command {
    let shared = Shared::get();
    let mut command = Command::new(binary());
    command.arg("train").arg(checkpoint).arg("--out").arg(out);
    for name in ["code", "law"] {
        command
            .arg("--data")
            .arg(format!("{name}={}", shared.path(name).display()));
    }
    command
        .args(["--seq", "24", "--threads", "1"])
        .args(arguments);
    if !arguments.contains(&"--learning-rate") {
        command.args(["--learning-rate", "1e-2"]);
    }
    command
}

pub fn train(checkpoint: &Path, out: &Path, arguments: &[&str]) -> Run {
    finish(command(checkpoint, out, arguments))
}

pub fn seed() -> PathBuf {
    fixture("llama/seed")
}

pub fn run_folder(out: &Path) -> PathBuf {
    out.with_file_name(format!(
        "{}.run",
        out.file_name().unwrap().to_str().unwrap()
    ))
}

pub fn metrics(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run_folder(out).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub fn of_kind(records: &[Value], kind: &str) -> Vec<Value> {
    records
        .iter()
        .filter(|record| record["kind"] == kind)
        .cloned()
        .collect()
}

/// A number of every step.
pub fn series(out: &Path, key: &str) -> Vec<f64> {
    of_kind(&metrics(out), "step")
        .iter()
        .map(|step| step[key].as_f64().unwrap())
        .collect()
}

/// The log without times and without the lines that say that the run was resumed.
pub fn timeless(out: &Path) -> Vec<Value> {
    let mut records = metrics(out);
    records.retain(|record| record["kind"] != "resume");
    for record in &mut records {
        let record = record.as_object_mut().unwrap();
        for key in [
            "time",
            "seconds",
            "tokens_per_second",
            "flops_per_second",
            "peak_share",
            "peak_memory_bytes",
        ] {
            record.remove(key);
        }
    }
    records
}

/// Master weights of the latest checkpoint.
fn masters(out: &Path) -> Tensors {
    let mut steps: Vec<PathBuf> = std::fs::read_dir(run_folder(out).join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    steps.sort();
    let tensors = read_file(&steps.pop().unwrap().join("training-state.safetensors"));
    tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("master.")?.to_owned(), tensor)))
        .collect()
}

fn changed(before: &Path, after: &Path) -> BTreeMap<String, bool> {
    let (before, after) = (read_folder(before), read_folder(after));
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    before
        .into_iter()
        .map(|(name, tensor)| (name.clone(), tensor != after[&name]))
        .collect()
}

#[test]
fn losses_fall_and_the_output_is_a_checkpoint() {
    let work = tempfile::tempdir().unwrap();
    for (name, checkpoint) in [("dense", seed()), ("mixture", Shared::get().path("bam"))] {
        let out = work.path().join(name);
        let run = train(&checkpoint, &out, &["--steps", "16", "--json"]).ok();
        assert_eq!(run.json()["step"], 16);
        let losses = series(&out, "nll");
        assert_eq!(losses.len(), 16);
        assert!(losses[15] < losses[0] - 1.0, "{name}: {losses:?}");
        crate::common::against(&out).ok();
        let records = metrics(&out);
        assert_eq!(records[0]["kind"], "start");
        assert_eq!(
            records[0]["architecture"]["model_type"],
            if name == "dense" { "llama" } else { "bam" }
        );
        assert_eq!(records.last().unwrap()["kind"], "end");
        let validations = of_kind(&records, "validation");
        // Before the first step, and after each.
        assert_eq!(validations.len(), 17);
        assert_eq!(validations[0]["step"], 0);
        let perplexity = |record: &Value| record["domains"]["law"]["perplexity"].as_f64().unwrap();
        assert!(perplexity(&validations[16]) < perplexity(&validations[0]));
        let details = of_kind(&records, "detail");
        assert_eq!(
            details
                .iter()
                .map(|detail| detail["step"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [1, 10, 16]
        );
        assert!(
            details[2]["roles"]["down"]["update_ratio"]
                .as_f64()
                .unwrap()
                > 0.0
        );
        let routers = details[2]["ffn_routing"].as_array().unwrap().len();
        assert_eq!(routers, if name == "dense" { 0 } else { 2 });
        let manifest = read_json(out.join("bam-manifest.json"));
        assert_eq!(manifest["lineage"]["step"], 16);
        assert_eq!(manifest["lineage"]["tokens"], 16 * 8 * 24);
        assert_eq!(
            manifest["lineage"]["parent_manifest"].is_string(),
            name == "mixture"
        );
        assert!(
            run_folder(&out)
                .join("checkpoints/step-00000016/config.json")
                .exists()
        );
        let events = run_folder(&out).join("events.out.tfevents.0.bam-convert");
        assert!(events.metadata().unwrap().len() > 1000);
    }
}

#[test]
fn everything_trainable_changes_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let bam = Shared::get().path("bam");
    let every = |_: &str| true;
    let routers = |name: &str| name.contains("router");
    let code = |name: &str| name.contains("experts.1.");
    let no_norms = |name: &str| !name.contains("norm") && !name.contains("embed");
    let cases: [(&[&str], &dyn Fn(&str) -> bool); 5] = [
        (&[], &every),
        (&["--train", "routers"], &routers),
        (&["--train", "expert:code"], &code),
        (&["--freeze", "norms,embeddings"], &no_norms),
        (&["--train", "model.layers.1.mlp.*"], &|name| {
            name.starts_with("model.layers.1.mlp.")
        }),
    ];
    for (number, (options, expected)) in cases.into_iter().enumerate() {
        let out = work.path().join(number.to_string());
        let mut arguments = vec![
            "--steps",
            "4",
            "--router-learning-rate",
            "0.05",
            "--validate-every",
            "0",
        ];
        arguments.extend(options);
        train(&bam, &out, &arguments).ok();
        for (name, changed) in changed(&bam, &out) {
            assert_eq!(changed, expected(&name), "{options:?}: {name}");
        }
    }
}

#[test]
fn checkpointing_gives_the_same_bytes() {
    let work = tempfile::tempdir().unwrap();
    let bam = Shared::get().path("bam");
    let arguments = ["--steps", "4", "--validate-every", "0"];
    let (plain, recomputed) = (work.path().join("plain"), work.path().join("recomputed"));
    train(&bam, &plain, &arguments).ok();
    train(
        &bam,
        &recomputed,
        &[&arguments[..], &["--gradient-checkpointing"]].concat(),
    )
    .ok();
    assert_same_folder(&plain, &recomputed);
    assert_eq!(timeless(&plain), timeless(&recomputed));
    assert_eq!(masters(&plain), masters(&recomputed));
}

#[test]
fn accumulated_batches_equal_one_larger_batch() {
    let work = tempfile::tempdir().unwrap();
    let (large, small) = (work.path().join("large"), work.path().join("small"));
    // The load-balancing loss is a product of means over a batch, so that it depends on the batch.
    let arguments = [
        "--steps",
        "3",
        "--aux-loss-coef",
        "0",
        "--validate-every",
        "0",
        "--learning-rate",
        "1e-4",
    ];
    let bam = Shared::get().path("bam");
    train(&bam, &large, &[&arguments[..], &["--batch", "6"]].concat()).ok();
    train(
        &bam,
        &small,
        &[&arguments[..], &["--batch", "2", "--accumulate", "3"]].concat(),
    )
    .ok();
    for key in ["nll", "loss", "z", "gradient_norm"] {
        for (a, b) in series(&large, key).iter().zip(series(&small, key)) {
            assert!(
                (a - b).abs() < 1e-6 * a.abs().max(1.0),
                "{key}: {a} and {b}"
            );
        }
    }
}

#[test]
fn bfloat16_trains_and_separate_documents_are_another_loss() {
    let work = tempfile::tempdir().unwrap();
    let bam = Shared::get().path("bam");
    let losses = |name: &str, options: &[&str]| {
        let out = work.path().join(name);
        train(
            &bam,
            &out,
            &[&["--steps", "6", "--validate-every", "3"], options].concat(),
        )
        .ok();
        series(&out, "nll")
    };
    let joined = losses("joined", &[]);
    let half = losses("half", &["--dtype", "bf16"]);
    assert!(
        (joined[0] - half[0]).abs() < 0.05 * joined[0] && half[5] < half[0],
        "{joined:?} {half:?}"
    );
    let separate = losses("separate", &["--documents", "separate"]);
    assert!(
        separate != joined && separate[5] < separate[0],
        "{joined:?} {separate:?}"
    );
    let predicted = of_kind(&metrics(&work.path().join("separate")), "step")
        .pop()
        .unwrap()["tokens"]
        .as_u64()
        .unwrap();
    assert!(
        predicted < 6 * 8 * 24,
        "the first tokens of documents are not predicted: {predicted}"
    );
}

#[test]
fn biases_balance_experts() {
    let work = tempfile::tempdir().unwrap();
    let (choice, out) = (Shared::get().path("choice"), work.path().join("out"));
    let balance = [
        "--steps",
        "3",
        "--bias-balancing",
        "0.25",
        "--train",
        "routers",
        "--validate-every",
        "0",
    ];
    train(&choice, &out, &balance).ok();
    let name = "model.layers.0.mlp.router.bias";
    let steps: Vec<f64> = read_folder(&out)[name]
        .values()
        .iter()
        .map(|bias| bias / 0.25)
        .collect();
    assert!(steps.iter().any(|steps| *steps != 0.0), "{steps:?}");
    assert!(
        steps
            .iter()
            .all(|steps| steps.fract() == 0.0 && steps.abs() <= 3.0),
        "{steps:?}"
    );
    let untouched = work.path().join("untouched");
    train(
        &choice,
        &untouched,
        &["--steps", "2", "--validate-every", "0"],
    )
    .ok();
    assert_eq!(read_folder(&choice)[name], read_folder(&untouched)[name]);
    train(
        &Shared::get().path("bam"),
        &work.path().join("none"),
        &balance,
    )
    .refused(2, &["--bias-balancing", "router-bias"]);
}

/// Starts a run and waits until its log has a record of step `step`.
pub fn start_until(mut command: Command, out: &Path, step: u64) -> Child {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = run_folder(out).join("metrics.jsonl");
    let deadline = Instant::now() + Duration::from_secs(120);
    let wanted = format!("\"kind\":\"step\",\"step\":{step},");
    while Instant::now() < deadline {
        let found = std::fs::read_to_string(&log).is_ok_and(|text| text.contains(&wanted));
        if found || child.try_wait().unwrap().is_some() {
            return child;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    panic!(
        "step {step} was not reached: {:?}",
        child.wait_with_output()
    );
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let work = tempfile::tempdir().unwrap();
    let bam = Shared::get().path("bam");
    let arguments = [
        "--steps",
        "14",
        "--save-every",
        "3",
        "--validate-every",
        "4",
        "--batch",
        "3",
        "--clip",
        "0.5",
    ];
    let (whole, broken) = (work.path().join("whole"), work.path().join("broken"));
    train(&bam, &whole, &arguments).ok();
    let resuming = [&arguments[..], &["--resume"]].concat();
    // Before the first checkpoint, right after one, between two, and again in the same place.
    for step in [1, 3, 5, 5, 11] {
        let mut child = start_until(command(&bam, &broken, &resuming), &broken, step);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!broken.exists());
    }
    train(&bam, &broken, &resuming).ok();
    assert_same_folder(&whole, &broken);
    assert_eq!(timeless(&whole), timeless(&broken));
    assert_eq!(masters(&whole), masters(&broken));
    assert!(!of_kind(&metrics(&broken), "resume").is_empty());
    // What is complete is left as it is.
    let before = contents(&broken);
    train(&bam, &broken, &resuming).ok();
    assert_eq!(contents(&broken), before);
}

#[test]
fn other_settings_and_inputs_are_refused_at_resume() {
    let work = tempfile::tempdir().unwrap();
    let seed_copy = crate::common::copy_folder(&seed(), &work.path().join("seed"));
    let out = work.path().join("out");
    let arguments = [
        "--steps",
        "30",
        "--save-every",
        "1",
        "--validate-every",
        "0",
        "--batch",
        "1",
    ];
    let mut child = start_until(command(&seed_copy, &out, &arguments), &out, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let again = |options: &[&str]| train(&seed_copy, &out, &[&arguments[..], options].concat());
    again(&[]).refused(2, &["out.run", "--resume", "--force"]);
    again(&["--resume", "--clip", "2", "--freeze", "norms"])
        .refused(2, &["--clip", "--freeze", "begun with 1"]);
    crate::common::edit_json(&seed_copy.join("config.json"), |config| {
        config["attention_dropout"] = 0.5.into()
    });
    again(&["--resume"]).refused(2, &["config.json", "begun with"]);
}

#[test]
fn what_others_keep_in_a_run_is_not_replaced() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let rows = work.path().join("rows");
    let rows_flag = format!("--dump-rows={}", rows.display());
    let arguments = ["--steps", "1", "--validate-every", "0", &rows_flag];
    fs::write(&rows, "precious").unwrap();
    train(&seed(), &out, &arguments)
        .refused(2, &["rows", "exists already, and is no file of rows"]);
    assert!(!out.exists() && fs::read_to_string(&rows).unwrap() == "precious");
    fs::remove_file(&rows).unwrap();
    train(&seed(), &out, &arguments).ok();

    let again = [&arguments[..], &["--force"]].concat();
    let mine = work.path().join("out.run/checkpoints/mine");
    fs::create_dir(&mine).unwrap();
    train(&seed(), &out, &again).refused(2, &["out.run/checkpoints", "did not make there: mine"]);
    fs::remove_dir(&mine).unwrap();
    train(&seed(), &out, &again).ok();
    assert_eq!(fs::read_to_string(&rows).unwrap().lines().count(), 2 * 8);
}

#[test]
fn only_checkpoints_with_a_record_of_ours_are_removed() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let mine = run_folder(&out).join("checkpoints/step-00000001");
    let keep = ["--steps", "4", "--save-every", "1", "--keep", "1"];
    let arguments = [&keep[..], &["--validate-every", "0", "--resume"]].concat();
    fs::create_dir_all(&mine).unwrap();
    fs::write(mine.join("notes.txt"), "precious").unwrap();
    // A folder that no run has made is damage to a run, unless a whole checkpoint is newer.
    train(&seed(), &out, &arguments).refused(2, &["step-00000001", "no checkpoint of the run"]);
    fs::rename(&mine, work.path().join("aside")).unwrap();
    let two = [&["--steps", "2"], &arguments[2..]].concat();
    train(&seed(), &out, &two).ok();
    fs::rename(work.path().join("aside"), &mine).unwrap();
    train(&seed(), &out, &arguments).ok();
    let names = fs::read_dir(run_folder(&out).join("checkpoints")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["step-00000001", "step-00000004"]);

    let anew = [&keep[..], &["--validate-every", "0", "--force"]].concat();
    train(&seed(), &out, &anew).refused(2, &["step-00000001"]);
    assert_eq!(
        fs::read_to_string(mine.join("notes.txt")).unwrap(),
        "precious"
    );
}

#[test]
fn a_disk_that_is_too_full_for_the_checkpoints_is_named_before_the_run() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let huge = [
        "--steps",
        "1000000000",
        "--save-every",
        "1",
        "--keep",
        "1000000000",
    ];
    let dry = train(&seed(), &out, &[&huge[..], &["--dry-run"]].concat()).ok();
    let note = " note: the run needs about ";
    assert!(dry.stderr.contains(note), "{dry}");
    assert!(
        dry.stderr
            .contains("of disk for its output and checkpoints"),
        "{dry}"
    );
    let small = ["--steps", "2", "--dry-run"];
    let dry = train(&seed(), &out, &small).ok();
    assert!(!dry.stderr.contains("of disk"), "{dry}");
}

#[test]
fn loss_that_is_no_number_stops_or_is_skipped() {
    let work = tempfile::tempdir().unwrap();
    let wild = [
        "--steps",
        "4",
        "--learning-rate",
        "1e25",
        "--warmup",
        "0",
        "--validate-every",
        "0",
    ];
    let out = work.path().join("stopped");
    let run = train(&seed(), &out, &wild).refused(2, &["not finite", "rows ", "--on-nan skip"]);
    assert!(run.stderr.contains("step "), "{run}");
    let out = work.path().join("skipped");
    train(&seed(), &out, &[&wild[..], &["--on-nan", "skip"]].concat()).ok();
    let skips = of_kind(&metrics(&out), "skip");
    assert!(
        !skips.is_empty() && skips[0]["rows"].as_str().unwrap().contains("code"),
        "{skips:?}"
    );
}

#[test]
fn bad_input_is_named() {
    let shared = Shared::get();
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let refused = |options: &[&str], parts: &[&str]| {
        train(&seed(), &out, &[&["--steps", "2"], options].concat()).refused(2, parts);
        assert!(!out.exists());
    };
    refused(&["--freeze", "all"], &["everything is frozen"]);
    refused(
        &["--train", "routers"],
        &["--train routers", "no parameters of this kind"],
    );
    refused(
        &["--train", "routr"],
        &["--train routr", "nearest known word is `router"],
    );
    refused(&["--warmup", "3"], &["--warmup", "3 steps"]);
    refused(&["--learning-rate", "0"], &["--learning-rate", "positive"]);
    refused(
        &[
            "--data",
            &format!("more={}:0", shared.path("code").display()),
        ],
        &["weight", "more"],
    );
    refused(
        &["--data", &format!("code={}", shared.path("code").display())],
        &["code", "twice"],
    );
    refused(
        &["--data", &format!("none={}", work.path().display())],
        &["header.json"],
    );
    let train_on = |checkpoint: &Path, options: &[&str]| {
        let mut command = Command::new(binary());
        command
            .arg("train")
            .arg(checkpoint)
            .arg("--steps")
            .arg("2")
            .arg("--out")
            .arg(&out)
            .args(options);
        finish(command)
    };
    let code = format!("code={}", shared.path("code").display());
    train_on(&seed(), &["--data", &code, "--seq", "100000"]).refused(2, &["--seq", "context"]);
    let other = crate::common::copy_folder(&seed(), &work.path().join("other"));
    crate::common::edit_json(&other.join("tokenizer.json"), |tokenizer| {
        tokenizer["version"] = "1.0 ".into()
    });
    train_on(&other, &["--data", &code]).refused(2, &["tokenizer"]);
    let cut = crate::common::copy_folder(&shared.path("code"), &work.path().join("cut"));
    let shard = cut.join("train-00000.bin");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 2]).unwrap();
    train_on(&seed(), &["--data", &format!("cut={}", cut.display())])
        .refused(2, &["train-00000.bin"]);
    std::fs::create_dir(&out).unwrap();
    train_on(&seed(), &["--data", &code]).refused(2, &["exists already"]);
}

/// Changes one byte in the middle of a file, and nothing else of it but its time.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn overwritten_tokens_are_named() {
    let work = tempfile::tempdir().unwrap();
    let (shared, out) = (Shared::get(), work.path().join("out"));
    for name in [
        "train-00000.bin",
        "train-00000.ends",
        "validation-00000.bin",
        "validation-00000.ends",
    ] {
        let tokens = crate::common::copy_folder(&shared.path("code"), &work.path().join(name));
        let data = format!("changed={}", tokens.display());
        flip(&tokens.join(name));
        for options in [&[][..], &["--dry-run"], &["--validate-every", "0"]] {
            let arguments = [&["--steps", "1", "--data", &data], options].concat();
            train(&seed(), &out, &arguments).refused(2, &[name, "SHA-256", "header.json"]);
        }
        assert!(!out.exists() && !run_folder(&out).exists());
        let mut command = Command::new(binary());
        command.arg("eval").arg(seed()).args(["--data", &data]);
        let run = finish(command);
        if name.starts_with("validation") {
            run.refused(2, &[name, "SHA-256", "header.json"]);
        } else {
            run.ok();
        }
    }
}

/// A run of eight steps with its checkpoints, whose output is gone.
struct Stopped {
    work: TempDir,
    arguments: Vec<&'static str>,
    whole: BTreeMap<String, Vec<u8>>,
    log: Vec<Value>,
}

impl Stopped {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let arguments = vec![
            "--steps",
            "8",
            "--save-every",
            "2",
            "--keep",
            "3",
            "--validate-every",
            "4",
            "--batch",
            "2",
            "--detail-every",
            "3",
        ];
        let out = work.path().join("out");
        train(&seed(), &out, &arguments).ok();
        let (whole, log) = (contents(&out), timeless(&out));
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::rename(run_folder(&out), work.path().join("kept")).unwrap();
        Self {
            work,
            arguments,
            whole,
            log,
        }
    }

    /// The output of a copy of the run named `name`, which `damage` may change.
    fn copy(&self, name: &str, damage: impl FnOnce(&Path)) -> PathBuf {
        let (kept, out) = (self.work.path().join("kept"), self.work.path().join(name));
        let run = run_folder(&out);
        for (path, hash) in crate::common::listing(&kept) {
            let (from, to) = (kept.join(&path), run.join(&path));
            if hash.is_empty() {
                std::fs::create_dir_all(to).unwrap();
            } else {
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(from, to).unwrap();
            }
        }
        damage(&run);
        out
    }

    fn resume(&self, out: &Path) -> Run {
        train(&seed(), out, &[&self.arguments[..], &["--resume"]].concat())
    }

    /// Resumes after `step`, and finds the bytes and the log of the run that nothing disturbed.
    fn resumes_after(&self, step: u64, out: &Path) -> Run {
        let run = self.resume(out).ok();
        assert_eq!(contents(out), self.whole, "{run}");
        assert_eq!(timeless(out), self.log, "{run}");
        let resumed = of_kind(&metrics(out), "resume");
        assert_eq!(resumed.last().unwrap()["step"], step, "{run}");
        run
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_resumes_to_the_same_bytes() {
    let stopped = Stopped::new();
    let newest = |run: &Path| run.join("checkpoints/step-00000008");
    let edit_state = |run: &Path, edit: &dyn Fn(&mut Value)| {
        crate::common::edit_json(&newest(run).join("training-state.json"), edit);
    };
    // As somebody would who wants the change to pass.
    let forge = |run: &Path, edit: &dyn Fn(&mut Value)| {
        edit_state(run, edit);
        let bytes = std::fs::read(newest(run).join("training-state.json")).unwrap();
        crate::common::edit_json(&newest(run).join("bam-manifest.json"), |manifest| {
            let files = manifest["files"].as_array_mut().unwrap();
            let of_state = |file: &&mut Value| file["path"] == "training-state.json";
            let record = files.iter_mut().find(of_state).unwrap();
            record["size"] = bytes.len().into();
            record["sha256"] = crate::common::sha256(&bytes).into();
        });
    };
    let cases: [(&str, &dyn Fn(&Path), &str); 15] = [
        (
            "optimiser",
            &|run| flip(&newest(run).join("training-state.safetensors")),
            "training-state.safetensors: expected SHA-256",
        ),
        (
            "weights",
            &|run| flip(&newest(run).join("model.safetensors")),
            "model.safetensors: expected SHA-256",
        ),
        (
            "cut",
            &|run| std::fs::write(newest(run).join("training-state.safetensors"), b"{}").unwrap(),
            "training-state.safetensors: expected",
        ),
        (
            "removed",
            &|run| std::fs::remove_file(newest(run).join("training-state.json")).unwrap(),
            "training-state.json: is missing",
        ),
        (
            "unlisted",
            &|run| std::fs::remove_file(newest(run).join("bam-manifest.json")).unwrap(),
            "bam-manifest.json: is missing",
        ),
        (
            "broken manifest",
            &|run| std::fs::write(newest(run).join("bam-manifest.json"), "{").unwrap(),
            "bam-manifest.json",
        ),
        (
            "emptied",
            &|run| {
                std::fs::remove_dir_all(newest(run)).unwrap();
                std::fs::create_dir(newest(run)).unwrap();
            },
            "bam-manifest.json: is missing",
        ),
        (
            "file",
            &|run| {
                std::fs::remove_dir_all(newest(run)).unwrap();
                std::fs::write(newest(run), "").unwrap();
            },
            "expected a folder",
        ),
        (
            "edited",
            &|run| edit_state(run, &|state| state["step"] = 99.into()),
            "training-state.json: expected",
        ),
        (
            "step",
            &|run| forge(run, &|state| state["step"] = 99.into()),
            "training-state.json: step",
        ),
        (
            "tokens",
            &|run| forge(run, &|state| state["tokens"] = 1.into()),
            "training-state.json: step, tokens",
        ),
        (
            "row",
            &|run| forge(run, &|state| state["row"] = 7.into()),
            "key `row`: expected 16 to 16, found 7",
        ),
        (
            "updates",
            &|run| forge(run, &|state| state["updates"] = u64::MAX.into()),
            "key `updates`: expected 0 to 8",
        ),
        (
            "norm",
            &|run| forge(run, &|state| state["norm_mean"] = (-1.0).into()),
            "key `norm_mean`",
        ),
        (
            "negative",
            &|run| forge(run, &|state| state["updates"] = (-1).into()),
            "expected the state of a run",
        ),
    ];
    for (name, damage, named) in cases {
        let out = stopped.copy(name, damage);
        let run = stopped.resumes_after(6, &out);
        let said = ["step-00000008 is damaged", "step-00000008.damaged", named];
        for part in said {
            assert!(run.stderr.contains(part), "{name}: `{part}`\n{run}");
        }
        assert!(
            run_folder(&out)
                .join("checkpoints/step-00000008.damaged")
                .exists()
        );
    }
}

#[test]
fn a_run_without_a_whole_checkpoint_says_how_to_begin_anew() {
    let stopped = Stopped::new();
    let out = stopped.copy("all", |run| {
        for step in [4, 6, 8] {
            flip(&run.join(format!(
                "checkpoints/step-{step:08}/training-state.safetensors"
            )));
        }
    });
    let before = crate::common::listing(&run_folder(&out));
    stopped.resume(&out).refused(
        2,
        &[
            "no checkpoint of the run is whole",
            "step-00000004",
            "step-00000008",
            "--force",
        ],
    );
    assert_eq!(crate::common::listing(&run_folder(&out)), before);
    train(
        &seed(),
        &out,
        &[&stopped.arguments[..], &["--force"]].concat(),
    )
    .ok();
    assert_eq!(contents(&out), stopped.whole);
}

#[test]
fn a_damaged_log_does_not_stop_a_run() {
    let stopped = Stopped::new();
    let newest =
        |run: &Path| std::fs::remove_dir_all(run.join("checkpoints/step-00000008")).unwrap();
    let log = |run: &Path| run.join("metrics.jsonl");
    let out = stopped.copy("torn", |run| {
        newest(run);
        let mut bytes = std::fs::read(log(run)).unwrap();
        bytes.extend(b"{\"kind\":\"step\",\"ste\0\0\xff");
        std::fs::write(log(run), bytes).unwrap();
    });
    stopped.resumes_after(6, &out);
    let out = stopped.copy("middle", |run| {
        let text = std::fs::read_to_string(log(run)).unwrap();
        std::fs::write(log(run), text.replacen('\n', "\nnothing\n", 1)).unwrap();
    });
    let run = stopped.resumes_after(8, &out);
    assert!(run.stderr.contains("metrics.jsonl: line 2"), "{run}");
    let out = stopped.copy("lost", |run| {
        std::fs::remove_file(log(run)).unwrap();
        std::fs::remove_file(run.join("settings.json")).unwrap();
    });
    stopped.resume(&out).ok();
    // The card cannot say losses that were in the log alone.
    let (mut found, mut whole) = (contents(&out), stopped.whole.clone());
    for folder in [&mut found, &mut whole] {
        folder.remove("README.md").unwrap();
    }
    assert_eq!(found, whole);
    assert_eq!(metrics(&out)[0]["kind"], "start");
}

#[test]
fn a_complete_output_that_is_damaged_is_named() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let arguments = ["--steps", "1", "--validate-every", "0", "--resume"];
    train(&seed(), &out, &arguments).ok();
    let run = train(&seed(), &out, &arguments).ok();
    assert!(run.stderr.contains("complete already"), "{run}");
    flip(&out.join("model.safetensors"));
    train(&seed(), &out, &arguments).refused(2, &["model.safetensors", "SHA-256", "remove it"]);
}

#[test]
fn commands_name_their_backend_and_why_it_is_the_slower_one() {
    let work = tempfile::tempdir().unwrap();
    let text = work.path().join("text.txt");
    fs::write(&text, "the law of the land ".repeat(20)).unwrap();
    let adapted = work.path().join("adapted");
    let mut upcycle = Command::new(binary());
    upcycle.args(["upcycle", "--method", "bam", "--adapters", "--seed"]);
    upcycle.arg(seed()).arg("--expert");
    upcycle.arg(format!("code={}", fixture("llama/code").display()));
    finish({
        upcycle.arg("--out").arg(&adapted);
        upcycle
    })
    .ok();

    let reference = "backend: reference (kernels compute in f32, and the dtype is bf16)";
    let by_adapters = "backend: cpu (attention by reference, because experts have adapters; \
                       feed-forward by reference, because experts have adapters)";
    for (number, (checkpoint, dtype, expected)) in [
        (&seed(), "f32", "backend: cpu\n"),
        (&seed(), "bf16", reference),
        (&adapted, "f32", by_adapters),
    ]
    .into_iter()
    .enumerate()
    {
        let out = work.path().join(format!("out-{number}"));
        let run = train(
            checkpoint,
            &out,
            &["--steps", "1", "--dtype", dtype, "--json"],
        )
        .ok();
        assert!(run.stderr.contains(expected), "{run}");
        let printed: Value = serde_json::from_str(&run.stdout).unwrap();
        let name = printed["backend"]["name"].as_str().unwrap();
        assert!(expected.contains(&format!("backend: {name}")), "{run}");
    }

    let mut generate = Command::new(binary());
    generate.arg("generate").arg(&adapted);
    generate.args(["--prompt", "The", "--max-tokens", "1"]);
    let run = finish(generate).ok();
    assert!(run.stderr.contains("backend: cpu\n"), "{run}");
    let mut eval = Command::new(binary());
    eval.arg("eval").arg(seed()).arg("--data");
    eval.arg(format!("text={}", text.display()));
    let run = finish(eval).ok();
    assert!(run.stderr.contains("backend of seed: cpu\n"), "{run}");
}
