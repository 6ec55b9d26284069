//! The recipe in manifests and on cards, and checkpoints made again from it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{assert_same_folder, bam, contents, edit_json, fixture, read_json};
use serde_json::json;

const RECIPE: &str = r#"variables:
  seed: ${recipe}/models/seed
  steps: 1
stages:
  - name: texts
    shell: {command: "cat < ${recipe}/texts/laws.txt > texts.txt", inputs: "${recipe}/texts/laws.txt", outputs: texts.txt}
  - name: tokens
    tokenize: {tokenizer: "${seed}", paths: "${stage.texts}", validation: 0, out: tokens}
  - name: branches
    branch: {seed: "${seed}", into: "code,law", out: branches}
  - name: law
    train: {checkpoint: branches/law, data: {law: tokens}, steps: "${steps}", batch: 1, seq: 24, threads: 1, out: law}
  - name: bam
    upcycle:
      method: bam
      seed: ${seed}
      expert: {code: given/code, law: law}
      out: bam
  - name: other
    init: {config: "${seed}", out: other}
"#;

/// The recipe, what it is given, and its work folder with all that it made.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let root = bench.folder.path();
        fs::create_dir_all(root.join("models")).unwrap();
        fs::create_dir_all(root.join("texts")).unwrap();
        fs::create_dir_all(root.join("work/given")).unwrap();
        crate::common::copy_folder(&fixture("llama/seed"), &root.join("models/seed"));
        crate::common::copy_folder(&fixture("llama/code"), &root.join("work/given/code"));
        fs::write(
            root.join("texts/laws.txt"),
            "All that is made once can be made again. ".repeat(20),
        )
        .unwrap();
        fs::write(root.join("recipe.yaml"), RECIPE).unwrap();
        bench.run("work");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `NAME=PATH`, for `--source`.
    fn source(&self, name: &str, path: &str) -> String {
        format!("{name}={}", self.path(path).display())
    }

    fn run(&self, work: &str) -> crate::common::Run {
        bam!(
            "run",
            self.path("recipe.yaml"),
            "--work",
            self.path(work),
            "--set",
            "steps=2"
        )
        .ok()
    }
}

#[test]
fn manifests_and_cards_have_the_recipe_and_what_it_read() {
    let bench = Bench::new();
    let manifest = read_json(bench.path("work/bam/bam-manifest.json"));
    let recipe = &manifest["recipe"];
    assert_eq!(recipe["output"], "bam");
    let sources = json!({"code": "../given/code", "laws": "../../texts/laws.txt", "seed": "../../models/seed"});
    assert_eq!(recipe["sources"], sources);
    let stages = recipe["stages"].as_array().unwrap();
    let names: Vec<&str> = stages
        .iter()
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["texts", "tokens", "branches", "law", "bam"],
        "what it does not follow from is left out"
    );
    assert_eq!(
        stages[0]["settings"]["command"],
        json!(["cat < ${laws} > texts.txt"])
    );
    assert_eq!(stages[3]["settings"]["steps"], json!(["2"]));
    assert_eq!(stages[3]["needs"], json!(["tokens", "branches"]));
    assert_eq!(
        stages[4]["settings"]["expert"],
        json!(["code=${code}", "law=law"])
    );
    let hash = |path: &str| crate::common::sha256(&fs::read(bench.path(path)).unwrap());
    assert_eq!(
        stages[4]["inputs"]["${seed}/model.safetensors"],
        hash("models/seed/model.safetensors")
    );
    assert_eq!(
        stages[4]["inputs"]["law/model.safetensors"],
        hash("work/law/model.safetensors")
    );
    assert_eq!(
        stages[3]["outputs"]["law/model.safetensors"],
        hash("work/law/model.safetensors")
    );
    assert_eq!(stages[4].get("outputs"), None);

    let card = fs::read_to_string(bench.path("work/bam/README.md")).unwrap();
    assert!(
        card.contains("## How to make it again")
            && card.contains("    command: cat < ${laws} > texts.txt"),
        "{card}"
    );
    // The recipe on the card is one.
    let text = card
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    fs::write(bench.path("work/card.yaml"), text).unwrap();
    let stages = &bam!(
        "run",
        bench.path("work/card.yaml"),
        "--work",
        bench.path("work"),
        "--dry-run",
        "--json"
    )
    .ok()
    .json()["stages"];
    let command = "upcycle --expert code=given/code --expert law=law --method bam --out bam --seed ../models/seed";
    assert_eq!(
        stages[4]["command"],
        json!(command.split(' ').collect::<Vec<_>>())
    );

    // A branch is its seed byte for byte, and has a recipe in its manifest.
    assert_eq!(
        read_json(bench.path("work/branches/law/bam-manifest.json"))["recipe"]["output"],
        "branches/law"
    );
    // A manifest leads to its neighbours by itself, and no further.
    let (work, seed) = (bench.path("work"), bench.path("models/seed"));
    bam!("validate", work.join("law"), "--against").ok();
    let bare = bam!("validate", work.join("bam"), "--against");
    assert_eq!(bare.code, Some(1), "{bare}");
    assert!(
        bare.stdout.contains("is not beside the manifest's folder")
            && bare.stdout.contains(&format!(" {} ", seed.display())),
        "{bare}"
    );
    // One piece of advice for all of them, and a fault for each source, not for each tensor.
    assert_eq!(
        bare.stdout.matches("hint: name the sources").count(),
        1,
        "{bare}"
    );
    let without = |line: &&str| line.contains("cannot be computed without source");
    let faults = bare
        .stdout
        .lines()
        .filter(|line| line.starts_with("fault: replay"));
    assert!(
        faults.clone().all(|line| without(&line)) && faults.count() <= 3,
        "{bare}"
    );
    bam!("validate", work.join("branches/law"), "--against", seed).ok();
    let (code, law) = (work.join("given/code"), work.join("law"));
    bam!("validate", work.join("bam"), "--against", seed, code, law).ok();
    // Sources in the work folder are found, and the order of those that are named does not matter.
    bam!("validate", work.join("bam"), "--against", seed).ok();
    let swapped = bam!("validate", work.join("bam"), "--against", law, seed, code).ok();
    assert!(
        swapped.stdout.contains("by their hashes")
            && swapped
                .stdout
                .contains(&format!("`law` is {}", law.display())),
        "{swapped}"
    );

    // Another work folder makes the same bytes, and so does a change of what a checkpoint does not follow from.
    fs::create_dir_all(bench.path("elsewhere/given")).unwrap();
    crate::common::copy_folder(&fixture("llama/code"), &bench.path("elsewhere/given/code"));
    let text = RECIPE
        .replace("name: other", "name: another")
        .replace("steps: 1", "steps: 3 # of the specialist");
    fs::write(bench.path("recipe.yaml"), text).unwrap();
    bench.run("elsewhere");
    for folder in ["bam", "law", "branches/law"] {
        assert_same_folder(
            &bench.path("work").join(folder),
            &bench.path("elsewhere").join(folder),
        );
    }
}

#[test]
fn a_checkpoint_is_made_again_from_its_manifest_alone() {
    let bench = Bench::new();
    // The checkpoint and what was given are left.
    for made in [
        "texts.txt",
        "tokens",
        "branches",
        "law",
        "law.run",
        "other",
        ".bam-run",
    ] {
        let path = bench.path("work").join(made);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }
    fs::remove_file(bench.path("recipe.yaml")).unwrap();
    let bam = bench.path("work/bam");
    bam!("run", "--from-manifest", bam).refused(
        2,
        &[
            "stage `texts` is a command of the shell: cat <",
            "--allow-shell",
        ],
    );
    // Sources that are no neighbours of the manifest are the user's to name; the hint says how.
    let laws = bench.source("laws", "texts/laws.txt");
    let seed = bench.source("seed", "models/seed");
    bam!("run", "--from-manifest", bam, "--allow-shell").refused(
        2,
        &[
            "key `recipe.sources.laws`",
            "--source laws=",
            "--source seed=",
        ],
    );
    assert!(!bench.path("work.again").exists());
    let run = bam!(
        "run",
        "--from-manifest",
        bam,
        "--allow-shell",
        "--source",
        laws,
        "--source",
        seed
    )
    .ok();
    assert!(run.stdout.contains("files have the same bytes"), "{run}");
    // The source that lay in the first work folder is now another step away; but for that, all is equal.
    let again = bench.path("work.again/bam");
    let (mut first, mut second) = (contents(&bam), contents(&again));
    for made in [&mut first, &mut second] {
        made.remove("bam-manifest.json").unwrap();
        made.remove("README.md").unwrap();
    }
    assert_eq!(first, second);
    let stages =
        |folder: &Path| read_json(folder.join("bam-manifest.json"))["recipe"]["stages"][4].clone();
    assert_eq!(stages(&bam)["settings"], stages(&again)["settings"]);

    // What was moved is found by its bytes.
    fs::rename(bench.path("models/seed"), bench.path("moved")).unwrap();
    let work = bench.path("third");
    let run = |source: &str| {
        bam!(
            "run",
            "--from-manifest",
            bam,
            "--allow-shell",
            "--work",
            work,
            "--source",
            laws,
            "--source",
            source,
            "--json"
        )
    };
    run(&seed).refused(
        2,
        &[
            "is missing: source `seed` of the recipe",
            "--source seed=PATH",
        ],
    );
    run("sede=x").refused(2, &["has no source `sede`", "the nearest is `seed`"]);
    let compared = run(&bench.source("seed", "moved")).ok().json()["compared"].clone();
    let equal = |file: &serde_json::Value| file["expected"] == file["found"];
    assert!(
        compared.as_array().unwrap().len() > 10 && compared.as_array().unwrap().iter().all(equal),
        "{compared}"
    );
    let weights = bench.path("moved/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    run(&bench.source("seed", "moved")).refused(
        2,
        &[
            "source `seed` is missing or has changed: expected SHA-256",
            "moved/model.safetensors",
        ],
    );
}

/// Defaults changed with 0.2; only settings that a manifest does not have are theirs.
#[test]
fn a_manifest_means_the_defaults_of_the_version_that_wrote_it() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    crate::common::copy_folder(&fixture("llama/seed"), &path("work/seed"));
    crate::common::copy_folder(&fixture("llama/code"), &path("work/code"));
    let made_by = |name: &str, settings: &str| {
        let stage = format!(
            "stages:\n  - name: made\n    upcycle: {{seed: seed, expert: {{code: code}}, seed-copies: 1, out: {name}, {settings}}}\n"
        );
        fs::write(path("recipe.yaml"), stage).unwrap();
        bam!("run", path("recipe.yaml"), "--work", path("work")).ok();
        path("work").join(name)
    };
    // Settings, and the number of experts a token with the gates' rule as 0.1 and 0.2 have them.
    let cases = [
        ("method: bam", (1, false), (2, true)),
        ("method: bam, top-k: 2", (2, false), (2, true)),
        ("method: btx, norm-topk-prob: false", (1, false), (2, false)),
        ("method: btx, target: mixtral", (2, true), (2, true)),
        ("method: bam, preset: paper", (1, false), (1, false)),
        ("method: interpolate, top-k: soft", (3, false), (3, true)),
    ];
    for (number, (settings, before, now)) in cases.into_iter().enumerate() {
        let made = made_by(&format!("made-{number}"), settings);
        let again = |version: &str| {
            edit_json(&made.join("bam-manifest.json"), |manifest| {
                manifest["tool"]["version"] = json!(version);
            });
            let work = path(&format!("again-{number}-{version}"));
            let sources = ["seed", "code"]
                .map(|name| format!("{name}={}", path("work").join(name).display()));
            // The tokens of a layer differ, and so may the files; the settings tell.
            bam!(
                "run",
                "--from-manifest",
                made,
                "--work",
                work,
                "--source",
                sources[0],
                "--source",
                sources[1]
            );
            let manifest = read_json(work.join(format!("made-{number}/bam-manifest.json")));
            let settings = &manifest["settings"];
            (
                settings["top_k"].clone(),
                settings["norm_topk_prob"].clone(),
            )
        };
        for (version, (top_k, norm)) in [("0.1.0", before), ("0.2.0", now)] {
            assert_eq!(
                again(version),
                (json!(top_k), json!(norm)),
                "{settings}, {version}"
            );
        }
    }
}

#[test]
fn a_checkpoint_is_made_again_by_jobs() {
    let bench = Bench::new();
    let (bam, work) = (bench.path("work/bam"), bench.path("again"));
    fs::rename(bench.path("models/seed"), bench.path("moved")).unwrap();
    let (laws, source) = (
        bench.source("laws", "texts/laws.txt"),
        bench.source("seed", "moved"),
    );
    let jobs = bam!(
        "run",
        "--from-manifest",
        bam,
        "--allow-shell",
        "--source",
        laws,
        "--source",
        source,
        "--work",
        work,
        "--executor",
        "slurm",
        "--dry-run",
        "--json"
    );
    // As the machines of a cluster would, somewhere else.
    for job in jobs.ok().json().as_array().unwrap() {
        let mut shell = std::process::Command::new("sh");
        let script = job["script"].as_str().unwrap();
        let ran = shell
            .args(["-c", script])
            .current_dir(bench.path("work"))
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{script}\n{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    let run = bam!(
        "run",
        "--from-manifest",
        bam,
        "--allow-shell",
        "--source",
        laws,
        "--source",
        source,
        "--work",
        work
    )
    .ok();
    assert!(
        run.stdout.contains("files have the same bytes") && !run.stdout.contains("done"),
        "{run}"
    );
}

#[test]
fn a_checkpoint_that_does_not_come_out_again_is_told_file_by_file() {
    let bench = Bench::new();
    let branch = bench.path("work/branches/law");
    edit_json(&branch.join("bam-manifest.json"), |manifest| {
        manifest["files"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(|file| {
                if file["path"] == "model.safetensors" {
                    file["sha256"] = "0".repeat(64).into();
                }
            });
    });
    let seed = bench.source("seed", "models/seed");
    let run = bam!("run", "--from-manifest", branch, "--source", seed);
    assert_eq!(run.code, Some(1), "{run}");
    assert!(
        run.stdout.contains("branches/law/model.safetensors")
            && run.stdout.contains(&"0".repeat(64)),
        "{run}"
    );
}

#[test]
fn recipes_that_were_tampered_with_are_found_and_not_run() {
    let bench = Bench::new();
    let bam = bench.path("work/bam");
    let manifest = bam.join("bam-manifest.json");
    let original = read_json(&manifest);
    let faults: [(&str, serde_json::Value, &str); 6] = [
        (
            "/recipe/stages/3/outputs/law~1model.safetensors",
            "0".repeat(64).into(),
            "read law/model.safetensors with SHA-256",
        ),
        (
            "/recipe/stages/4/inputs/${seed}~1model.safetensors",
            "0".repeat(64).into(),
            "read no model.safetensors with",
        ),
        (
            "/recipe/stages/4/needs/0",
            "lwa".into(),
            "needs `lwa`, which is no stage before it",
        ),
        (
            "/recipe/stages/1/name",
            "texts".into(),
            "is a second stage `texts`",
        ),
        (
            "/recipe/sources",
            json!({"code": "x", "laws": "x"}),
            "which no stage made and no source holds",
        ),
        ("/recipe/stages", json!([]), "expected one stage at least"),
    ];
    for (pointer, value, problem) in faults {
        let mut edited = original.clone();
        *edited.pointer_mut(pointer).unwrap() = value;
        fs::write(&manifest, edited.to_string()).unwrap();
        let run = bam!("validate", bam);
        assert!(
            run.code == Some(1) && run.stdout.contains(problem),
            "{pointer}: {run}"
        );
    }
    let (laws, seed) = (
        bench.source("laws", "texts/laws.txt"),
        bench.source("seed", "models/seed"),
    );
    let refusals: [(&str, serde_json::Value, &str); 5] = [
        (
            "/recipe/stages/3/settings/data/0",
            "law=/etc/hostname:0.5".into(),
            "stage `law` reads law=/etc/hostname:0.5 outside the work folder",
        ),
        (
            "/recipe/stages/1/settings/out/0",
            "../tokens".into(),
            "stage `tokens` writes ../tokens outside the work folder",
        ),
        (
            "/recipe/output",
            "../bam".into(),
            "expected a path below the work folder",
        ),
        (
            "/recipe/stages/1/command",
            "push".into(),
            "stage `tokens` publishes",
        ),
        (
            "/recipe/stages/1/command",
            "tokenise".into(),
            "nearest known key is `tokenize`",
        ),
    ];
    for (pointer, value, problem) in refusals {
        let mut edited = original.clone();
        *edited.pointer_mut(pointer).unwrap() = value;
        fs::write(&manifest, edited.to_string()).unwrap();
        bam!(
            "run",
            "--from-manifest",
            bam,
            "--allow-shell",
            "--source",
            laws,
            "--source",
            seed
        )
        .refused(2, &[problem]);
        assert!(!bench.path("work.again").exists());
    }
    fs::write(&manifest, json!(original).to_string()).unwrap();
    edit_json(&manifest, |manifest| {
        drop(manifest.as_object_mut().unwrap().remove("recipe"))
    });
    bam!("run", "--from-manifest", bam)
        .refused(2, &["key `recipe`", "no recipe made this checkpoint"]);
}
