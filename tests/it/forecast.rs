//! `run --dry-run`: the disk and time of stages that never ran.

use crate::common::{bam, fixture, listing, read_json};
use crate::train::{Shared, seed};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// A work folder that is not there yet, and a folder for temporary files.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { folder }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn recipe(&self, text: &str) -> PathBuf {
        fs::write(self.path("recipe.yaml"), text).unwrap();
        self.path("recipe.yaml")
    }

    /// A dry run, which leaves nothing.
    #[track_caller]
    fn look(&self, recipe: &Path, arguments: &[&str]) -> crate::common::Run {
        let before = listing(self.folder.path());
        let mut command = std::process::Command::new(crate::common::binary());
        command
            .arg("run")
            .arg(recipe)
            .arg("--work")
            .arg(self.path("work"))
            .arg("--dry-run")
            .args(arguments);
        command
            .env("TMPDIR", self.path("tmp"))
            .env("HF_HUB_OFFLINE", "1")
            .env("XDG_CACHE_HOME", self.path("cache"));
        let run = crate::common::finish(command).ok();
        assert_eq!(
            listing(self.folder.path()),
            before,
            "a dry run leaves nothing"
        );
        run
    }

    #[track_caller]
    fn json(&self, recipe: &Path, arguments: &[&str]) -> Value {
        self.look(recipe, &[&["--json"], arguments].concat()).json()
    }
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recipes")
        .join(name)
}

fn stage<'a>(forecast: &'a Value, name: &str) -> &'a Value {
    let found = forecast["stages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|stage| stage["stage"] == name);
    found.unwrap_or_else(|| panic!("no stage {name}"))
}

#[track_caller]
fn assert_near(found: &Value, expected: f64, share: f64) {
    let found = found
        .as_f64()
        .unwrap_or_else(|| panic!("expected {expected}, found {found}"));
    assert!(
        (found / expected - 1.0).abs() < share,
        "expected {expected}, found {found}"
    );
}

#[test]
fn the_papers_large_setting_is_told_from_an_empty_folder() {
    let bench = Bench::new();
    let forecast = bench.json(&shipped("paper-large.yaml"), &[]);
    // The paper's shape: parallel blocks with one norm, gated feed-forward, tied embeddings; bfloat16.
    let (d, inner, layers, vocab, kv) = (2304.0, 9216.0, 18.0, 256_000.0, 6.0 * 128.0);
    let (q_and_o, k_and_v, ffn, norm) = (2.0 * d * d, 2.0 * d * kv, 3.0 * d * inner, d);
    let outside = vocab * d + d;
    let dense = outside + layers * (q_and_o + k_and_v + ffn + norm);
    let btx = outside + layers * (q_and_o + k_and_v + 6.0 * ffn + norm + 6.0 * d);
    let expert = outside + layers * (4.0 * (q_and_o + k_and_v + ffn) + norm + 8.0 * d);
    let shared = outside + layers * (4.0 * (q_and_o + ffn) + k_and_v + norm + 8.0 * d);
    for (name, parameters) in [
        ("random", dense),
        ("btx", btx),
        ("bam-expert", expert),
        ("bam-shared", shared),
    ] {
        assert_near(
            &stage(&forecast, name)["estimated_bytes"],
            2.0 * parameters,
            1e-3,
        );
    }
    // A training leaves its output and two checkpoints, each with weights, and masters and moments in float32.
    let trained = [
        ("seed", dense),
        ("law", dense),
        ("train-btx", btx),
        ("train-bam-expert", expert),
    ];
    for (name, parameters) in trained {
        assert_near(
            &stage(&forecast, name)["estimated_bytes"],
            (2.0 + 2.0 * 14.0) * parameters,
            0.01,
        );
    }
    // Forward, again, and backward: eight operations a weight and token, and attention's scores.
    let tokens = 178_814.0 * 16.0 * 128.0 * 2048.0;
    assert_near(
        &stage(&forecast, "seed")["estimated_flops"],
        8.0 * dense * tokens * 1.03,
        0.03,
    );
    // Each of 32 processes has its share of masters, gradients and moments, and what it gathers and computes.
    for (name, parameters) in [
        ("seed", dense),
        ("train-btx", btx),
        ("train-bam-expert", expert),
    ] {
        let stage = stage(&forecast, name);
        assert_eq!(stage["estimated_ranks"], 32);
        let memory = stage["estimated_memory_bytes"].as_f64().unwrap();
        let share = 16.0 * parameters / 32.0;
        assert!(memory > share && memory < share + 16e9, "{name}: {memory}");
    }
    // How fast a GPU is that is not here, nobody knows.
    if cfg!(not(feature = "cuda")) {
        assert_eq!(stage(&forecast, "seed")["estimated_seconds"], Value::Null);
        assert_eq!(forecast["total"]["seconds_are_all"], false);
    }
    assert_eq!(forecast["total"]["bytes_are_all"], true);
    let sum = dense * (2.0 + 4.0 * 30.0) + (btx + expert + shared) * 32.0;
    assert_near(&forecast["total"]["bytes"], sum, 0.01);
    let text = bench.look(&shipped("paper-large.yaml"), &[]).stdout;
    assert!(
        text.contains("# 13 of 13 stages would run; ~")
            && text.contains("; at least ~")
            && text.contains("  32 x ~"),
        "{text}"
    );
    assert!(!bench.path("work").exists());
}

#[test]
fn the_quickstart_is_told_from_an_empty_folder() {
    let bench = Bench::new();
    let forecast = bench.json(&shipped("quickstart.yaml"), &[]);
    for stage in forecast["stages"].as_array().unwrap() {
        assert!(
            stage["estimated_bytes"].is_u64() && stage["estimated_seconds"].is_f64(),
            "{stage}"
        );
        assert_eq!(
            (&stage["last_bytes"], &stage["is_measured"]),
            (&Value::Null, &Value::Bool(false)),
            "{stage}"
        );
    }
    let seed = fs::metadata(shipped("quickstart/seed/model.safetensors"))
        .unwrap()
        .len() as f64;
    assert_near(
        &stage(&forecast, "branches")["estimated_bytes"],
        3.0 * (seed + 123_617.0 + 156.0 + 676.0),
        0.01,
    );
    // The output in bfloat16, and of 50 steps one checkpoint with the state.
    assert_near(
        &stage(&forecast, "law")["estimated_bytes"],
        2.0 * seed + 6.0 * seed,
        0.08,
    );
    let [seconds, bytes] = ["estimated_seconds", "estimated_bytes"].map(|key| {
        let stages = forecast["stages"].as_array().unwrap().iter();
        stages
            .map(|stage| stage[key].as_f64().unwrap())
            .sum::<f64>()
    });
    assert_near(&forecast["total"]["seconds"], seconds, 1e-9);
    assert_near(&forecast["total"]["bytes"], bytes, 1e-9);
}

#[test]
fn a_gguf_file_is_looked_through_to_the_trained_mixture() {
    let bench = Bench::new();
    let gguf = fixture("gguf/llama-q4_0.gguf");
    let set = format!("gguf={}", gguf.display());
    let forecast = bench.json(
        &shipped("smollm2.yaml"),
        &["--set", &set, "--set", "seq=32"],
    );
    assert_eq!(forecast["total"]["bytes_are_all"], true, "{forecast}");
    assert_eq!(forecast["total"]["seconds_are_all"], true, "{forecast}");

    // Without the file nothing can be said of what follows from it, but of the texts.
    let run = bench.look(
        &shipped("smollm2.yaml"),
        &["--set", "gguf=nowhere.gguf", "--json"],
    );
    for part in [
        " note: a run would be refused now: stage `seed` reads ",
        "/work/nowhere.gguf, which does not exist",
        "--set gguf=PATH",
    ] {
        assert!(run.stderr.contains(part), "{run}");
    }
    let forecast = run.json();
    assert_eq!(stage(&forecast, "bam")["unknown_because"], "it needs seed");
    assert_eq!(
        stage(&forecast, "replay")["unknown_because"],
        "it needs bam"
    );
    assert!(
        stage(&forecast, "seed")["unknown_because"]
            .as_str()
            .unwrap()
            .contains("nowhere.gguf"),
        "{forecast}"
    );
    assert_eq!(stage(&forecast, "mixture")["estimated_bytes"], Value::Null);
    assert!(
        stage(&forecast, "tokens-law")["estimated_bytes"].is_u64(),
        "{forecast}"
    );
    assert_eq!(forecast["total"]["bytes_are_all"], false);
}

const SMALL: &str = r#"variables: {steps: 4}
stages:
  - name: tokens
    tokenize: {tokenizer: SEED, paths: [TEXTS/law.jsonl], validation: 0.1, out: tokens/law}
  - name: branches
    branch: {seed: SEED, into: "a,b", out: branches}
  - name: trained-${branch}
    for_each: {branch: [a, b]}
    train:
      checkpoint: ${stage.branches}/${branch}
      data: {law: tokens/law}
      steps: ${steps}
      batch: 2
      seq: 32
      save-every: 1
      out: trained/${branch}
  - name: bam
    upcycle: {method: bam, seed: SEED, expert: {a: trained/a, b: trained/b}, out: bam}
  - name: validate
    validate: {path: bam, json: true}
    stdout: validate.json
"#;

fn small() -> String {
    let (seed, texts) = (fixture("llama/seed"), shipped("quickstart/texts"));
    SMALL
        .replace("SEED", seed.to_str().unwrap())
        .replace("TEXTS", texts.to_str().unwrap())
}

#[test]
fn what_was_measured_wins_over_what_is_estimated() {
    let bench = Bench::new();
    let recipe = bench.recipe(&small());
    let before = bench.json(&recipe, &[]);
    bam!("run", recipe, "--work", bench.path("work")).ok();
    let after = bench.json(&recipe, &[]);
    assert_eq!(after["total"]["stages"], 0);
    for (name, share) in [
        ("branches", 0.3),
        ("trained-a", 0.2),
        ("trained-b", 0.2),
        ("bam", 0.3),
        ("tokens", 1.0),
    ] {
        // Fixtures are so small that manifests count.
        let measured = stage(&after, name)["last_bytes"].as_f64().unwrap();
        assert_near(&stage(&before, name)["estimated_bytes"], measured, share);
    }
    let kept = |path: &str| {
        let files = listing(&bench.path(path))
            .into_keys()
            .map(|name| bench.path(path).join(name));
        files
            .filter(|path| path.is_file())
            .map(|path| fs::metadata(path).unwrap().len())
            .sum::<u64>()
    };
    let length = kept("work/trained/a") + kept("work/trained/a.run");
    assert_near(
        &stage(&after, "trained-a")["last_bytes"],
        length as f64,
        0.001,
    );

    let forced = bench.look(&recipe, &["--force"]).stdout;
    assert!(
        forced.contains("# 6 of 6 stages would run; ") && !forced.contains('~'),
        "{forced}"
    );
    let forced = bench.json(&recipe, &["--force"]);
    assert_eq!(stage(&forced, "bam")["estimated_bytes"], Value::Null);
    assert_eq!(stage(&forced, "bam")["is_measured"], true);

    // A training that was cut short has the steps that are left.
    let record = bench.path("work/.bam-run/stages/trained-a.json");
    let kept = fs::read_to_string(&record).unwrap();
    fs::remove_dir_all(bench.path("work/trained/a")).unwrap();
    crate::common::edit_json(&record, |record| record["state"] = "failed".into());
    let flops = |bench: &Bench| {
        let forecast = bench.json(&recipe, &[]);
        let stage = stage(&forecast, "trained-a");
        (stage["resumes"].clone(), stage["estimated_flops"].clone())
    };
    let (resumes, left) = flops(&bench);
    assert_eq!(resumes, true);
    let run = bench.path("work/trained/a.run");
    fs::rename(run.join("checkpoints"), bench.path("checkpoints")).unwrap();
    let (_, all) = flops(&bench);
    assert!(
        left.as_f64().unwrap() < 0.5 * all.as_f64().unwrap(),
        "{left} of {all}"
    );
    fs::rename(bench.path("checkpoints"), run.join("checkpoints")).unwrap();
    fs::write(&record, kept).unwrap();
    bam!("run", recipe, "--work", bench.path("work")).ok();

    // Other settings: an estimate again, though later stages were measured.
    let longer = bench.json(&recipe, &["--set", "steps=8"]);
    let trained = stage(&longer, "trained-a");
    assert!(
        trained["is_measured"] == false && trained["last_bytes"].is_u64(),
        "{trained}"
    );
    assert_near(
        &trained["estimated_bytes"],
        trained["last_bytes"].as_f64().unwrap(),
        0.2,
    );
    assert_eq!(stage(&longer, "bam")["is_measured"], true);
    let text = bench.look(&recipe, &["--set", "steps=8"]).stdout;
    assert!(text.contains("# trained-a  ~"), "{text}");
}

#[test]
fn where_nothing_can_be_known_totals_are_at_least() {
    let bench = Bench::new();
    let text = small().replace(
        "stages:\n",
        "stages:\n  - name: words\n    shell: {command: \"true\", outputs: words.txt}\n",
    );
    let recipe = bench.recipe(&text);
    let forecast = bench.json(&recipe, &[]);
    assert_eq!(stage(&forecast, "words")["estimated_bytes"], Value::Null);
    assert_eq!(
        stage(&forecast, "words")["unknown_because"],
        "`shell` cannot tell before it runs"
    );
    assert!(stage(&forecast, "bam")["estimated_bytes"].is_u64());
    assert_eq!(forecast["total"]["bytes_are_all"], false);
    let text = bench.look(&recipe, &[]).stdout;
    assert!(
        text.contains("# words ") && text.contains("7 of 7 stages would run; at least ~"),
        "{text}"
    );

    // Its output is what another reads; and an offline pull.
    let recipe = bench.recipe(
        "stages:\n  - name: words\n    shell: {command: \"true\", outputs: words.txt}\n  - name: tokens\n    tokenize: \
         {tokenizer: \"train:300\", paths: [words.txt], out: tokens}\n  - name: seed\n    pull: {repository: org/seed, folder: seed}\n",
    );
    let forecast = bench.json(&recipe, &[]);
    assert_eq!(
        stage(&forecast, "tokens")["unknown_because"],
        "it needs words"
    );
    assert_eq!(stage(&forecast, "seed")["estimated_bytes"], Value::Null);
    assert!(
        stage(&forecast, "seed")["unknown_because"]
            .as_str()
            .unwrap()
            .contains("HF_HUB_OFFLINE"),
        "{forecast}"
    );
}

#[test]
fn outlines_stay_in_their_folder_whatever_outputs_are_called() {
    let bench = Bench::new();
    let outside = bench.path("outside/inner");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir(bench.path("work")).unwrap();
    std::os::unix::fs::symlink(&outside, bench.path("work/link")).unwrap();
    let (config, absolute) = (fixture("llama/seed"), bench.path("elsewhere/absolute"));
    for out in [
        "link/../up",
        "link/down",
        "../beside",
        "./here/../there",
        absolute.to_str().unwrap(),
    ] {
        let recipe = bench.recipe(&format!(
            "stages:\n  - name: seed\n    init: {{config: {config}, out: \"{out}\"}}\n  - name: branches\n    branch: {{seed: \
             \"{out}\", into: \"a\", out: branches}}\n  - name: mean\n    merge: {{model: [\"{out}:0.5\", branches/a], out: mean}}\n",
            config = config.display()
        ));
        let forecast = bench.json(&recipe, &[]);
        assert_eq!(
            forecast["total"]["bytes_are_all"], true,
            "{out}: {forecast}"
        );
        assert!(listing(&bench.path("outside")).len() == 1, "{out}");
    }
}

#[test]
fn a_signal_leaves_no_outlines() {
    let bench = Bench::new();
    let mut command = std::process::Command::new(crate::common::binary());
    command
        .arg("run")
        .arg(shipped("quickstart.yaml"))
        .arg("--work")
        .arg(bench.path("work"))
        .arg("--dry-run");
    command
        .env("TMPDIR", bench.path("tmp"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    while listing(&bench.path("tmp")).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for _ in 0..2 {
        std::process::Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap();
    }
    // It may have been done before.
    let code = child.wait().unwrap().code();
    assert!([Some(0), Some(3)].contains(&code), "{code:?}");
    assert!(listing(&bench.path("tmp")).is_empty());
}

#[test]
fn training_tells_what_it_takes_and_trains_nothing() {
    let bench = Bench::new();
    let (texts, tokens) = (shipped("quickstart/texts/law.jsonl"), bench.path("tokens"));
    let seed = fixture("llama/seed");
    bam!(
        "tokenize",
        texts,
        "--tokenizer",
        seed,
        "--validation",
        "0.1",
        "--out",
        tokens
    )
    .ok();
    let data = format!("law={}", tokens.display());
    let out = bench.path("out");
    let train = |arguments: &[&str]| {
        let fixed = [
            OsStr::new("train"),
            seed.as_os_str(),
            OsStr::new("--data"),
            OsStr::new(&data),
            OsStr::new("--out"),
        ];
        let given = fixed
            .into_iter()
            .chain([out.as_os_str()])
            .chain(arguments.iter().map(OsStr::new));
        crate::common::run(given.map(OsStr::to_owned))
    };
    let before = listing(bench.folder.path());
    let said = train(&[
        "--steps",
        "10",
        "--batch",
        "2",
        "--seq",
        "32",
        "--dry-run",
        "--json",
    ])
    .ok()
    .json();
    assert_eq!(said["tokens"], 640);
    let parameters = said["parameters"].as_u64().unwrap();
    let of_seed: u64 = fs::read_dir(&seed)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    // The template of chats and the files of the tokenizer go along.
    assert_eq!(said["output_bytes"], of_seed);
    assert_eq!(said["run_bytes"], of_seed + 12 * parameters + 10 * 1200);
    assert!(
        said["seconds"].as_f64().unwrap() > 0.0
            && said["products"]["flops"].as_f64().unwrap() > 0.0,
        "{said}"
    );
    let text = train(&["--steps", "10", "--seq", "32", "--dry-run"])
        .ok()
        .stdout;
    assert!(text.contains("time ") && text.contains('~'), "{text}");
    let noted = train(&[
        "--steps",
        "10",
        "--seq",
        "32",
        "--preset",
        "large-expert",
        "--dry-run",
    ])
    .ok()
    .stderr;
    assert_eq!(
        noted.matches("note: a warm-up of 1 steps").count(),
        1,
        "{noted}"
    );
    assert_eq!(listing(bench.folder.path()), before);
    // What the run would refuse is refused.
    train(&["--steps", "10", "--seq", "9999", "--dry-run"]).refused(2, &["--seq"]);
    fs::remove_file(tokens.join("train-00000.bin")).unwrap();
    train(&["--steps", "10", "--seq", "32", "--dry-run"]).refused(2, &["train-00000.bin"]);
    assert!(read_json(tokens.join("header.json"))["splits"].is_object());
}

/// The rate of matmuls is measured on the GPU that a stage names.
#[test]
fn estimates_name_the_gpu() {
    let bench = Bench::new();
    let data = format!("law={}", Shared::get().path("law").display());
    let numbers = [
        ("cpu", Value::Null),
        ("cuda", 0.into()),
        ("cuda:1", 1.into()),
    ];
    for (device, number) in numbers {
        let train = bam!(
            "train",
            seed(),
            "--data",
            data,
            "--steps",
            "2",
            "--device",
            device,
            "--out",
            bench.path(&device.replace(':', "-")),
            "--outline"
        );
        let eval = bam!(
            "eval",
            seed(),
            "--data",
            data,
            "--device",
            device,
            "--outline"
        );
        for said in [train, eval] {
            assert_eq!(said.ok().json()["work"]["products"]["gpu"], number);
        }
    }
}
