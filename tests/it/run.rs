//! `run`: recipes of stages.

use crate::common::{bam, fixture, read_json};
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
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::copy(
            fixture("llama/seed/config.json"),
            folder.path().join("config/config.json"),
        )
        .unwrap();
        fs::write(folder.path().join("mixture.yaml"), RECIPE).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn recipe(&self) -> PathBuf {
        self.folder.path().join("mixture.yaml")
    }

    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.recipe()).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.recipe(), text.replace(from, to)).unwrap();
    }

    fn run(&self) -> crate::common::Run {
        bam!("run", self.recipe(), "--work", self.work(), "--json")
    }

    /// Each stage with what is said of it.
    fn states(&self, stages: &serde_json::Value, key: &str) -> Vec<String> {
        let stages = stages.as_array().unwrap().iter();
        stages
            .map(|stage| format!("{} {}", stage["stage"], stage[key]).replace('"', ""))
            .collect()
    }

    /// Which stages ran.
    fn ran(&self) -> Vec<String> {
        let report = self.run().ok().json();
        let stages = report["stages"].as_array().unwrap();
        let ran = stages.iter().filter(|stage| stage["ran"] == "done");
        ran.map(|stage| stage["stage"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn a_recipe_runs_what_changed_and_no_more() {
    let bench = Bench::new();
    assert_eq!(
        bench.ran(),
        ["seed", "expert-code", "expert-law", "bam", "validate"]
    );
    assert_eq!(
        read_json(bench.work().join("checks/validate.json"))["checks"][0]["status"],
        "ok"
    );
    let log = fs::read_to_string(bench.work().join(".bam-run/logs/seed.log")).unwrap();
    assert!(
        log.starts_with("$ bam-convert init ../config --out seed\n"),
        "{log}"
    );
    assert!(bench.ran().is_empty());

    // A setting, and what depends on it.
    bench.edit("  seed: 1", "  seed: 2");
    let report = bam!("run", bench.recipe(), "--work", bench.work(), "--dry-run").ok();
    let status = bam!(
        "run",
        bench.recipe(),
        "--work",
        bench.work(),
        "--status",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(
        bench.states(&status, "state")[..2],
        ["seed done", "expert-code stale"]
    );
    assert!(report.stdout.contains("# seed: does not run\n"), "{report}");
    assert!(
        report
            .stdout
            .contains("# expert-law: runs: its settings changed\nbam-convert init "),
        "{report}"
    );
    assert!(
        report
            .stdout
            .contains("# bam: runs: stage expert-code runs before it\n"),
        "{report}"
    );
    assert!(
        report
            .stdout
            .contains("# needs seed, expert-code, expert-law\n"),
        "{report}"
    );
    assert!(
        report.stdout.contains("# 4 of 5 stages would run; ~"),
        "{report}"
    );
    assert_eq!(
        bench.ran(),
        ["expert-code", "expert-law", "bam", "validate"]
    );

    // An input with other bytes; the same bytes at another time change nothing.
    let config = bench.folder.path().join("config/config.json");
    let bytes = fs::read(&config).unwrap();
    fs::write(&config, &bytes).unwrap();
    assert!(bench.ran().is_empty());
    fs::write(&config, [&bytes[..], b"\n"].concat()).unwrap();
    assert!(
        bench
            .ran()
            .starts_with(&["seed".to_owned(), "expert-code".to_owned()])
    );

    // An output that someone else touched.
    fs::write(bench.work().join("checks/validate.json"), "{}").unwrap();
    assert_eq!(bench.ran(), ["validate"]);
    fs::remove_dir_all(bench.work().join("bam")).unwrap();
    assert_eq!(bench.ran(), ["bam"]);
}

#[test]
fn stages_are_chosen_by_name_and_pattern() {
    let bench = Bench::new();
    let run = |arguments: &[&str]| {
        let fixed = [
            "run".into(),
            bench.recipe().into_os_string(),
            "--work".into(),
            bench.work().into_os_string(),
        ];
        let given = ["--json"]
            .iter()
            .chain(arguments)
            .map(std::ffi::OsString::from);
        crate::common::run(fixed.into_iter().chain(given))
    };
    let ran = |arguments: &[&str]| -> Vec<String> {
        let states = bench.states(&run(arguments).ok().json()["stages"], "ran");
        states
            .iter()
            .filter_map(|state| state.strip_suffix(" done"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        ran(&["--only", "expert-*", "--jobs", "2"]),
        ["expert-code", "expert-law"]
    );
    assert!(!bench.work().join("seed").exists());
    assert_eq!(ran(&["--only", "seed"]), ["seed"]);
    assert_eq!(
        ran(&["--force=expert-law"]),
        ["expert-law", "bam", "validate"]
    );
    assert_eq!(ran(&["--from", "bam", "--force"]), ["bam", "validate"]);
    assert_eq!(ran(&["--only", "bam", "--force=seed"]), [""; 0]);
    let forecast = run(&["--from", "bam", "--force=validate", "--dry-run"])
        .ok()
        .json();
    let forecast = &forecast["stages"];
    assert_eq!(forecast[3]["runs_because"], serde_json::Value::Null);
    assert_eq!(forecast[4]["runs_because"], "it was asked for");
    assert_eq!(forecast[4]["needs"], serde_json::json!(["bam"]));
    run(&["--only", "expret-law"]).refused(
        2,
        &[
            "no stage is named `expret-law`",
            "the nearest is `expert-law`",
        ],
    );
}

const SHELL: &str = r#"stages:
  - name: words
    shell: {command: "echo words > words.txt; \"$BAM_CONVERT\" --version", outputs: words.txt}
  - name: broken
    shell: {command: "echo no; exit 3", outputs: broken.txt}
  - name: count
    shell: {command: "wc -l < ${stage.words}; test ! -e stop"}
    stdout: count.txt
  - name: never
    shell: {command: "cat broken.txt", inputs: [broken.txt], outputs: never.txt}
  - name: forgets
    shell: {command: "true", outputs: forgotten.txt}
"#;

#[test]
fn shell_stages_run_and_a_failure_stops_only_what_needs_it() {
    let bench = Bench::new();
    fs::write(bench.recipe(), SHELL).unwrap();
    let parts = &[
        "stage `broken` ended with exit code 3",
        "`forgets` ended well, but did not make forgotten.txt",
    ];
    let run = bench.run();
    assert!(run.code == Some(2) || run.code == Some(3), "{run}");
    let code = run.code.unwrap();
    let run = run.refused(code, parts);
    let expected = [
        "words done",
        "broken failed",
        "count done",
        "never skipped",
        "forgets failed",
    ];
    assert_eq!(bench.states(&run.json()["stages"], "ran"), expected);
    assert_eq!(
        fs::read_to_string(bench.work().join("count.txt"))
            .unwrap()
            .trim(),
        "1"
    );
    let log = fs::read_to_string(bench.work().join(".bam-run/logs/words.log")).unwrap();
    assert!(
        log.starts_with("$ sh -c echo words") && log.contains("bam-convert "),
        "{log}"
    );
    // What the command refers to is what it reads.
    fs::write(bench.work().join("words.txt"), "two\nlines\n").unwrap();
    let status = bam!("run", bench.recipe(), "--work", bench.work(), "--status").ok();
    assert!(
        status
            .stdout
            .contains("stale: words.txt is not as it was left"),
        "{status}"
    );
    assert!(
        status.stdout.contains("stale: words.txt changed"),
        "{status}"
    );
}

#[test]
fn stages_without_needs_run_at_once_and_a_signal_stops_them_all() {
    let bench = Bench::new();
    // Each of the two waits for the other.
    let wait = |name: &str, other: &str| {
        let command = format!("touch {name}; until test -e {other}; do sleep 0.02; done");
        format!("  - name: {name}\n    shell: {{command: \"{command}\", outputs: {name}}}\n")
    };
    fs::write(
        bench.recipe(),
        format!(
            "stages:\n{}{}",
            wait("left", "right"),
            wait("right", "left")
        ),
    )
    .unwrap();
    bam!("run", bench.recipe(), "--work", bench.work(), "--jobs", "2").ok();

    let endless = "stages:\n  - name: long\n    shell: {command: \"touch begun; sleep 60\", outputs: begun}\n";
    fs::write(bench.recipe(), endless).unwrap();
    let mut command = std::process::Command::new(crate::common::binary());
    command
        .arg("run")
        .arg(bench.recipe())
        .arg("--work")
        .arg(bench.work())
        .stderr(std::process::Stdio::piped());
    let start = std::time::Instant::now();
    let child = command.spawn().unwrap();
    while !bench.work().join("begun").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let status = bam!(
        "run",
        bench.recipe(),
        "--work",
        bench.work(),
        "--status",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(status[0]["state"], "running");
    bam!("run", bench.recipe(), "--work", bench.work())
        .refused(2, &["another run works in this folder"]);
    let kill = std::process::Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains(" note: stopped by a signal"),
        "{output:?}"
    );
    assert!(start.elapsed().as_secs() < 30, "the sleeper was waited for");
    let status = bam!(
        "run",
        bench.recipe(),
        "--work",
        bench.work(),
        "--status",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(status[0]["state"], "stopped");
}

#[test]
fn what_is_known_of_large_inputs_is_not_read_again() {
    let bench = Bench::new();
    let recipe = "stages:\n  - name: sizes\n    shell: {command: \"ls data\", inputs: data}\n    stdout: sizes.txt\n";
    fs::write(bench.recipe(), recipe).unwrap();
    let data = bench.work().join("data");
    fs::create_dir_all(&data).unwrap();
    for number in 0..10 {
        fs::write(data.join(format!("{number}.bin")), "some bytes").unwrap();
    }
    assert_eq!(bench.ran(), ["sizes"]);
    // 100 GB that take no space, and a record that knows them.
    let record = bench.work().join(".bam-run/stages/sizes.json");
    crate::common::edit_json(&record, |record| {
        for number in 0..10 {
            let path = data.join(format!("{number}.bin"));
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(10_000_000_000)
                .unwrap();
            let modified = i64::try_from(crate::common::identity(&path).2).unwrap();
            let stamp = &mut record["inputs"][format!("data/{number}.bin")]["stamp"];
            stamp["length"] = 10_000_000_000u64.into();
            stamp["modified"] = modified.into();
        }
    });
    let start = std::time::Instant::now();
    assert!(bench.ran().is_empty());
    assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
}

#[test]
fn verify_reads_what_only_looks_unchanged() {
    let bench = Bench::new();
    bench.run().ok();
    let config = bench.folder.path().join("config/config.json");
    let times = fs::metadata(&config).unwrap().modified().unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let other = text.replacen(": ", " :", 1);
    assert!(other != text && other.len() == text.len());
    fs::write(&config, other).unwrap();
    fs::File::options()
        .write(true)
        .open(&config)
        .unwrap()
        .set_modified(times)
        .unwrap();
    assert!(bench.ran().is_empty());
    let run = bam!(
        "run",
        bench.recipe(),
        "--work",
        bench.work(),
        "--verify",
        "--dry-run"
    )
    .ok();
    assert!(
        run.stdout
            .contains("# seed: runs: ../config/config.json changed"),
        "{run}"
    );
}

#[test]
fn set_replaces_variables_and_work_defaults_to_the_recipes_name() {
    let bench = Bench::new();
    let mut command = std::process::Command::new(crate::common::binary());
    command
        .args([
            "run",
            "mixture.yaml",
            "--set",
            "seed=7",
            "--dry-run",
            "--json",
        ])
        .current_dir(bench.folder.path());
    let stages = &crate::common::finish(command).ok().json()["stages"];
    assert_eq!(
        stages[1]["command"],
        serde_json::json!([
            "init",
            "../config",
            "--out",
            "experts/code",
            "--rng-seed",
            "7"
        ])
    );
    assert_eq!(stages[4]["stdout"], "checks/validate.json");
    assert!(
        !bench.folder.path().join("mixture").exists(),
        "a dry run makes nothing"
    );
}

#[test]
fn a_failing_stage_stops_with_its_name_and_the_end_of_its_log() {
    let bench = Bench::new();
    bench.edit("seed: ${stage.seed}", "seed: nowhere");
    let run = bench.run().refused(
        2,
        &[
            "stage `bam` ended with exit code 2",
            "cannot open nowhere",
            "logs/bam.log",
        ],
    );
    assert_eq!(run.json()["failures"][0]["stage"], "bam");
    assert_eq!(
        bench.states(&run.json()["stages"], "ran")[3..],
        ["bam failed", "validate skipped"]
    );
    assert_eq!(run.json()["stages"][4]["because"], "bam");
    let status = bam!(
        "run",
        bench.recipe(),
        "--work",
        bench.work(),
        "--status",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(
        bench.states(&status, "state")[2..],
        ["expert-law done", "bam failed", "validate new"]
    );
    assert!(
        status[3]["last_line"]
            .as_str()
            .unwrap()
            .contains("cannot open nowhere"),
        "{status}"
    );
    // The work of the others stays.
    bench.edit("seed: nowhere", "seed: seed");
    assert_eq!(bench.ran(), ["bam", "validate"]);
}

#[test]
fn a_check_that_says_no_is_a_no() {
    let bench = Bench::new();
    bench.run().ok();
    crate::common::edit_tensors(&bench.work().join("bam"), |tensors| {
        tensors.remove("model.norm.weight").unwrap();
    });
    // Only validate runs again, so that it meets the damage.
    let record = bench.work().join(".bam-run/stages/bam.json");
    let stamp = |path: &Path| {
        let (_, inode, modified) = crate::common::identity(path);
        format!(
            r#"{{"length": {}, "modified": {modified}, "inode": {inode}}}"#,
            fs::metadata(path).unwrap().len()
        )
    };
    let weights = bench.work().join("bam/model.safetensors");
    let text = fs::read_to_string(&record).unwrap();
    let start =
        text.find("\"bam/model.safetensors\": ").unwrap() + "\"bam/model.safetensors\": ".len();
    let end = start + text[start..].find('}').unwrap() + 1;
    fs::write(
        &record,
        format!("{}{}{}", &text[..start], stamp(&weights), &text[end..]),
    )
    .unwrap();
    bench
        .run()
        .refused(1, &["stage `validate` ended with exit code 1"]);
}

#[test]
fn what_no_stage_made_is_not_replaced() {
    let bench = Bench::new();
    fs::create_dir_all(bench.work().join("seed")).unwrap();
    fs::write(bench.work().join("seed/config.json"), "mine").unwrap();
    bench.run().refused(
        2,
        &["work/seed: exists already, and stage `seed` did not make it"],
    );
    assert_eq!(
        fs::read_to_string(bench.work().join("seed/config.json")).unwrap(),
        "mine"
    );
}

#[test]
fn faults_of_a_recipe_are_refused_where_they_stand() {
    let faults: [(&str, &str, &[&str]); 19] = [
        (
            "stages:",
            "stagse:",
            &[
                "mixture.yaml:5:1: key `stagse`",
                "nearest known key is `stages`",
            ],
        ),
        (
            "init: {config",
            "inti: {config",
            &[
                "mixture.yaml:7:5: key `inti`",
                "nearest known key is `init`",
            ],
        ),
        (
            "rng-seed",
            "rng-sede",
            &[
                "mixture.yaml:11:59: key `rng-sede`",
                "nearest known key is `rng-seed`",
            ],
        ),
        (
            "rng-seed: \"${seed}\"",
            "rng-seed: soon",
            &["mixture.yaml:11:5: stage `expert-code`", "'soon'"],
        ),
        (
            "method: bam",
            "method: bum",
            &["mixture.yaml:13:5: stage `bam`", "'bum'"],
        ),
        (
            "stage.expert-law",
            "stage.expert-lwa",
            &[
                "no stage above this one",
                "nearest known name is `stage.expert-law`",
            ],
        ),
        (
            "${stage.seed}",
            "${stage.seed",
            &["mixture.yaml:15:13", "closing brace"],
        ),
        (
            "\"${seed}\"",
            "[1, 2]",
            &["mixture.yaml:11:69: `rng-seed` takes one value, found 2"],
        ),
        (
            "json: true",
            "json: 3",
            &["mixture.yaml:19:", "expected true or false, found `3`"],
        ),
        ("expert-${domain}", "expert", &["must hold `${domain}`"]),
        ("name: bam", "name: seed", &["two stages are named `seed`"]),
        ("out: bam", "out: seed", &["stage `bam` makes seed again"]),
        (
            "out: bam",
            "out: ./seed/bam",
            &["stage `bam` makes ./seed/bam, within or around what `seed` makes"],
        ),
        (
            "validate: {path",
            "shell: {comand",
            &[
                "mixture.yaml:19:13: key `comand`",
                "nearest known key is `command`",
            ],
        ),
        ("name: bam", "name: ../bam", &["cannot be named `../bam`"]),
        (
            "    stdout: checks/validate.json",
            "    init: {}",
            &["mixture.yaml:20:5: a stage is one command"],
        ),
        (
            "name: bam",
            "name: bam\n    name: bim",
            &["mixture.yaml:13:5: duplicate key `name`"],
        ),
        (
            "method: bam",
            "method: bam\n      force: true",
            &["key `force`: unknown key of `upcycle`"],
        ),
        (
            "method: bam",
            "method: bam\n      config: x.yaml",
            &["key `config`: unknown key of `upcycle`"],
        ),
    ];
    for (from, to, parts) in faults {
        let bench = Bench::new();
        bench.edit(from, to);
        bench.run().refused(2, parts);
        assert!(!bench.work().exists(), "{from}");
    }
    let bench = Bench::new();
    bam!("run", bench.recipe(), "--set", "sede=1")
        .refused(2, &["has no variable `sede`", "the nearest is `seed`"]);
    fs::write(bench.recipe(), "stages: [").unwrap();
    bench
        .run()
        .refused(2, &["mixture.yaml:1:", "not YAML that can be read"]);
    fs::write(bench.recipe(), "stages: []\n").unwrap();
    bench.run().refused(2, &["expected at least one stage"]);
}

#[test]
fn slurm_gets_jobs_arrays_and_what_each_waits_for() {
    let bench = Bench::new();
    bench.edit(
        "stages:\n",
        "slurm: {partition: cpu, time: \"${minutes}\", cpus: 2}\nstages:\n",
    );
    bench.edit("  seed: 1\n", "  seed: 1\n  minutes: 10\n");
    bench.edit(
        "      out: bam\n",
        "      out: bam\n    slurm: {time: 2-00:00:00, mem: 64G, gpus: h100:1}\n",
    );
    let dry = |arguments: &[&str]| {
        let fixed = [
            "run".into(),
            bench.recipe().into_os_string(),
            "--work".into(),
            bench.work().into_os_string(),
        ];
        let given = ["--dry-run", "--executor", "slurm"]
            .iter()
            .chain(arguments)
            .map(std::ffi::OsString::from);
        crate::common::run(fixed.into_iter().chain(given))
    };
    let script = dry(&["--set", "seed=it's"]).refused(2, &["stage `expert-code`", "it's"]);
    assert!(script.stdout.is_empty());
    let script = dry(&["--set", "seed=5"]).ok().stdout;
    let [folder, program] =
        [bench.folder.path(), crate::common::binary()].map(|path| path.display().to_string());
    let script = script
        .replace(&program, "PROGRAM")
        .replace(&folder, "FOLDER");
    insta::assert_snapshot!("slurm", script);

    // Nothing changed: nothing would be submitted.
    bench.run().ok();
    assert_eq!(dry(&[]).ok().stdout.trim(), "");
    let jobs = dry(&["--force=expert-*", "--json"]).ok().json();
    let names: Vec<&str> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["expert", "bam", "validate"]);
    assert!(
        jobs[0]["script"]
            .as_str()
            .unwrap()
            .contains("&& force=--force\n"),
        "{jobs}"
    );

    bench.edit("gpus: h100:1", "gpu: 1");
    dry(&[]).refused(
        2,
        &[
            "mixture.yaml:20:41: key `gpu`: unknown key of `slurm`",
            "nearest known key is `gpus`",
        ],
    );
    bench.edit("gpu: 1", "gpus: \"1 # 2\"");
    dry(&[]).refused(2, &["`gpus` must be a line without", "but is `1 # 2`"]);
    if which("sbatch").is_none() {
        bench.edit("gpus: \"1 # 2\"", "gpus: 1");
        let run = bam!(
            "run",
            bench.recipe(),
            "--work",
            bench.work(),
            "--executor",
            "slurm",
            "--force"
        );
        run.refused(
            3,
            &["sbatch", "--executor slurm needs the commands of Slurm"],
        );
    }
}

/// The path of a program that the shell would find.
fn which(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
}

#[test]
fn jobs_of_one_folder_run_beside_each_other_and_keep_runs_of_it_out() {
    let bench = Bench::new();
    let wait = |name: &str, other: &str| {
        let command = format!("touch {name}; until test -e {other}; do sleep 0.02; done");
        format!("  - name: {name}\n    shell: {{command: \"{command}\", outputs: {name}}}\n")
    };
    fs::write(
        bench.recipe(),
        format!(
            "stages:\n{}{}",
            wait("left", "right"),
            wait("right", "left")
        ),
    )
    .unwrap();
    let job = |stage: &str| {
        let mut command = std::process::Command::new(crate::common::binary());
        command
            .arg("run")
            .arg(bench.recipe())
            .arg("--work")
            .arg(bench.work())
            .args(["--only", stage, "--job"]);
        command
    };
    let left = job("left")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !bench.work().join("left").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let status = bam!(
        "run",
        bench.recipe(),
        "--work",
        bench.work(),
        "--status",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(
        bench.states(&status, "state"),
        ["left running", "right new"]
    );
    bam!("run", bench.recipe(), "--work", bench.work())
        .refused(2, &["another run works in this folder"]);
    crate::common::finish(job("left")).refused(2, &["another run works in this folder"]);
    crate::common::finish(job("right")).ok();
    assert!(left.wait_with_output().unwrap().status.success());
    let times = read_json(bench.work().join(".bam-run/run.json"));
    assert!(
        times["left"]["seconds"].is_number() && times["right"]["seconds"].is_number(),
        "{times}"
    );
    assert!(bench.ran().is_empty());
}

#[test]
fn stages_end_by_the_code_or_signal_of_their_commands() {
    let bench = Bench::new();
    let shell = |command: &str| {
        let recipe = serde_json::json!({"stages": [{"name": "s", "shell": {"command": command}}]});
        fs::write(bench.recipe(), recipe.to_string()).unwrap();
        bam!("run", bench.recipe(), "--work", bench.work())
    };
    shell("exit 7").refused(3, &["stage `s` ended with exit code 7"]);
    shell("kill -KILL $$").refused(3, &["stage `s` was ended by a signal"]);
    shell("read line; test $? -ne 0").ok();
}
