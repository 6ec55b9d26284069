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
    let listed = format!("{}/bam/../../models/seed", work.display());
    assert_eq!(bare.code, Some(1), "{bare}");
    assert!(
        bare.stdout.contains("is not beside the manifest's folder")
            && bare.stdout.contains(&listed),
        "{bare}"
    );
    bam!("validate", work.join("branches/law"), "--against", seed).ok();
    let (code, law) = (work.join("given/code"), work.join("law"));
    bam!("validate", work.join("bam"), "--against", seed, code, law).ok();

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
            "stage `tokens` pushes",
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

/// A folder `bam` with the manifest of a checkpoint that one stage made, with these settings.
fn one_stage(root: &Path, command: &str, settings: serde_json::Value) -> PathBuf {
    let stage =
        json!({"name": "s", "command": command, "settings": settings, "needs": [], "inputs": {}});
    let manifest = json!({
        "format_version": 1, "tool": {"name": "bam-convert", "version": "0.1.0"}, "method": "bam", "settings": {},
        "sources": [], "files": [], "unhashed_files": [], "tensors": {},
        "recipe": {"output": "out", "sources": {}, "stages": [stage]},
    });
    let folder = root.join("bam");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("bam-manifest.json"), manifest.to_string()).unwrap();
    folder
}

/// Settings that take any text, because no command takes them for a path.
const TEXTS: [(&str, &str); 15] = [
    ("branch", "into"),
    ("eval", "without"),
    ("expert extract", "expert"),
    ("expert remove", "experts"),
    ("generate", "prompt"),
    ("generate", "stop"),
    ("generate", "system"),
    ("pull", "exclude"),
    ("pull", "include"),
    ("pull", "repository"),
    ("tokenize", "end-of-text"),
    ("tokenize", "text-key"),
    ("train", "freeze"),
    ("train", "train"),
    ("upcycle", "shared-expert"),
];

#[test]
fn no_setting_of_any_command_leads_a_manifest_out_of_its_work_folder() {
    let schema = bam!("run", "--schema").ok().json();
    let commands = schema["$defs"]["stage"]["properties"].as_object().unwrap();
    let mut settings = Vec::new();
    for (command, definition) in commands {
        let properties = definition["properties"].as_object().into_iter().flatten();
        if !["shell", "slurm"].contains(&command.as_str()) {
            let takes_values = |setting: &serde_json::Value| setting["type"] != "boolean";
            settings.extend(
                properties
                    .filter(|(_, setting)| takes_values(setting))
                    .map(|(key, _)| (command.as_str(), key.as_str())),
            );
        }
    }
    assert!(settings.len() > 100, "{settings:?}");
    let try_one = |(command, key): (&str, &str)| {
        let folder = tempfile::tempdir().unwrap();
        let bam = one_stage(folder.path(), command, json!({ key: ["../escape"] }));
        let run = bam!("run", "--from-manifest", bam);
        assert_eq!(run.code, Some(2), "{command} {key}: {run}");
        let refusals = [
            "outside the work folder",
            "invalid value '../escape'",
            "pushes: ",
        ];
        let is_refused = refusals.iter().any(|words| run.stderr.contains(words));
        (!is_refused).then(|| format!("{command} {key}"))
    };
    let half = settings.len() / 2;
    let open: Vec<String> = std::thread::scope(|scope| {
        let of =
            |part: &[(&str, &str)]| part.iter().copied().filter_map(try_one).collect::<Vec<_>>();
        let (first, second) = settings.split_at(half);
        let first = scope.spawn(move || of(first));
        let mut open = of(second);
        open.extend(first.join().unwrap());
        open
    });
    let mut expected: Vec<String> = TEXTS
        .iter()
        .map(|(command, key)| format!("{command} {key}"))
        .collect();
    let mut open = open;
    open.sort();
    expected.sort();
    assert_eq!(
        open, expected,
        "a new setting takes any text: if it names a path, its type must say so"
    );
}

#[test]
fn every_setting_that_writes_stays_below_the_work_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("bashrc"), "precious").unwrap();
    let outputs = [
        ("train", "out"),
        ("train", "dump-rows"),
        ("eval", "svg"),
        ("eval", "routing-svg"),
        ("inspect", "svg"),
        ("logits", "dump"),
        ("pull", "folder"),
        ("convert", "out"),
        ("report", "out"),
        ("tokenize", "out"),
        ("expert add", "out"),
    ];
    for (command, key) in outputs {
        for place in ["../bashrc", "a/../../bashrc", "/tmp/bashrc", "."] {
            let bam = one_stage(root, command, json!({ key: [place] }));
            let problem = format!("stage `s` writes {place} outside the work folder");
            bam!("run", "--from-manifest", bam)
                .refused(2, &[&problem, &format!("recipe.stages.0.settings.{key}")]);
        }
    }
    // So does what a stage prints.
    let bam = one_stage(root, "cost", json!({"config": ["x"]}));
    edit_json(&bam.join("bam-manifest.json"), |manifest| {
        manifest["recipe"]["stages"][0]["stdout"] = "../bashrc".into();
    });
    bam!("run", "--from-manifest", bam).refused(2, &["writes ../bashrc outside the work folder"]);
    assert_eq!(fs::read_to_string(root.join("bashrc")).unwrap(), "precious");
    assert!(!root.join("bam.again").exists());
}

#[test]
fn a_work_folder_of_links_is_refused() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("home")).unwrap();
    let config = fixture("llama/seed/config.json");
    fs::create_dir_all(root.join("bam.again")).unwrap();
    fs::copy(&config, root.join("bam.again/config.json")).unwrap();
    let bam = one_stage(
        root,
        "init",
        json!({"config": ["config.json"], "out": ["a/out"]}),
    );
    let links = [
        ("bam.again/a", "home"),
        ("bam.again/a", "home/absent"),
        ("bam.again/.bam-run", "home"),
        ("bam.again/b", "../.."),
        // A source is there to be read.
        ("bam.again/a", "seed"),
        ("bam.again/a", "."),
    ];
    crate::common::copy_folder(&fixture("llama/seed"), &root.join("seed"));
    edit_json(&bam.join("bam-manifest.json"), |manifest| {
        manifest["recipe"]["sources"] = json!({"seed": "../seed"});
    });
    for (link, target) in links {
        symlink(root.join(target), root.join(link)).unwrap();
        bam!("run", "--from-manifest", bam).refused(
            2,
            &[
                &root.join(link).display().to_string(),
                "is a link that leads out",
            ],
        );
        fs::remove_file(root.join(link)).unwrap();
    }
    fs::create_dir_all(root.join("bam.again/.bam-run/logs")).unwrap();
    symlink(
        root.join("home/log"),
        root.join("bam.again/.bam-run/logs/s.log"),
    )
    .unwrap();
    bam!("run", "--from-manifest", bam).refused(2, &["s.log", "is a link that leads out"]);
    fs::remove_dir_all(root.join("bam.again")).unwrap();
    symlink(root.join("home"), root.join("bam.again")).unwrap();
    bam!("run", "--from-manifest", bam).refused(2, &["bam.again", "is a link", "--work DIR"]);
    assert_eq!(fs::read_dir(root.join("home")).unwrap().count(), 0);
    // A link that the user names is the user's own.
    fs::copy(&config, root.join("home/config.json")).unwrap();
    let run = bam!(
        "run",
        "--from-manifest",
        bam,
        "--work",
        root.join("bam.again")
    )
    .ok();
    assert!(root.join("home/a/out/config.json").exists(), "{run}");
}

#[test]
fn sources_of_a_manifest_are_neighbours_or_named_by_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("secret"), "0123456789").unwrap();
    let secret = root.join("secret").display().to_string();
    let bam = one_stage(
        &root.join("deep"),
        "init",
        json!({"config": ["${x}"], "out": ["out"]}),
    );
    fs::write(root.join("deep/near"), "0123456789").unwrap();
    std::os::unix::fs::symlink(root.join("secret"), root.join("deep/link")).unwrap();
    fs::create_dir_all(root.join("deep/texts/more")).unwrap();
    std::os::unix::fs::symlink(root, root.join("deep/texts/more/link")).unwrap();
    let manifest = bam.join("bam-manifest.json");
    for place in [
        secret.as_str(),
        "../../secret",
        "../link",
        "../texts",
        "",
        "hf://org/x",
    ] {
        edit_json(&manifest, |manifest| {
            manifest["recipe"]["sources"] = json!({"x": place});
            manifest["recipe"]["stages"][0]["inputs"] = json!({"${x}": "0".repeat(64)});
        });
        bam!("run", "--from-manifest", bam).refused(2, &["recipe.sources.x"]);
    }
    fs::remove_file(root.join("deep/link")).unwrap();
    fs::remove_dir_all(root.join("deep/texts")).unwrap();
    // Missing, unreadable or other bytes: one answer, which tells nothing of the file.
    let mut said = Vec::new();
    for place in ["../near", "../absent"] {
        edit_json(&manifest, |manifest| {
            manifest["recipe"]["sources"] = json!({"x": ".."});
            let input = place.replace("..", "${x}");
            manifest["recipe"]["stages"][0]["inputs"] = json!({input: "0".repeat(64)});
        });
        let run = bam!("run", "--from-manifest", bam).refused(
            2,
            &["source `x` is missing or has changed: expected SHA-256 000"],
        );
        said.push(run.stderr.replace("near", "FILE").replace("absent", "FILE"));
    }
    assert_eq!(said[0], said[1]);
}

#[test]
fn a_replay_opens_neighbours_alone_and_tells_no_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["seed", "code"] {
        crate::common::copy_folder(&fixture("llama").join(name), &at("near").join(name));
    }
    let (seed, code, bam) = (at("near/seed"), at("near/code"), at("near/bam"));
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", bam, "-q"
    )
    .ok();
    bam!("validate", bam, "--against").ok();

    // Missing, of another size, or of other bytes: the same words.
    let tokenizer = code.join("tokenizer.json");
    let original = fs::read(&tokenizer).unwrap();
    let mut other = original.clone();
    other[1] ^= 1;
    let mut said = Vec::new();
    for content in [Some(&other[..]), Some(&original[..9]), None] {
        match content {
            Some(bytes) => fs::write(&tokenizer, bytes).unwrap(),
            None => fs::remove_file(&tokenizer).unwrap(),
        }
        let run = bam!("validate", bam, "--against", "--json");
        assert_eq!(run.code, Some(1), "{run}");
        let mut findings = run.json()["findings"].as_array().unwrap().clone();
        findings.retain(|finding| finding["check"] == "sources");
        let words = "is missing or differs: expected the file";
        assert!(
            findings.len() == 1 && findings[0].to_string().contains(words),
            "{run}"
        );
        said.push(findings);
    }
    assert!(said.iter().all(|findings| *findings == said[0]), "{said:?}");
    fs::write(&tokenizer, original).unwrap();

    // What is no neighbour, or leads away by a link, is the user's to name.
    fs::create_dir(at("far")).unwrap();
    fs::rename(&seed, at("far/seed")).unwrap();
    std::os::unix::fs::symlink(at("far/seed"), &seed).unwrap();
    let far = at("far/seed").display().to_string();
    for path in ["../seed", "../../far/seed", &far, "../../far/none", ""] {
        edit_json(&bam.join("bam-manifest.json"), |manifest| {
            manifest["sources"][0]["path"] = path.into();
        });
        let run = bam!("validate", bam, "--against", "--all");
        assert!(
            run.code == Some(1) && run.stdout.contains("not beside the manifest's folder"),
            "{run}"
        );
        bam!("validate", bam, "--against", at("far/seed"), code).ok();
    }
    // So is a repository of the Hub at a branch, which may be another one tomorrow.
    edit_json(&bam.join("bam-manifest.json"), |manifest| {
        manifest["sources"][0]["path"] = "hf://org/seed@main".into();
    });
    bam!("validate", bam, "--against")
        .refused(2, &["key `sources.0.path`", "hf://ORG/NAME@COMMIT"]);
}

#[test]
fn no_stage_runs_a_recipe_or_a_hidden_command() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("bam.again")).unwrap();
    let inner = "stages: [{name: s, shell: {command: \"touch ../PWNED\"}}]\n";
    fs::write(root.join("bam.again/inner.yaml"), inner).unwrap();
    let settings = [
        ("run", json!({"recipe": ["inner.yaml"]})),
        (
            "run",
            json!({"supervise": ["true"], "supervised": ["touch", "../PWNED"]}),
        ),
        ("man", json!({"out": ["."]})),
        ("completions", json!({"shell": ["bash"]})),
        ("render-chat", json!({})),
        ("help", json!({})),
        ("expert help", json!({})),
    ];
    for (command, settings) in settings {
        let bam = one_stage(root, command, settings);
        let key = format!("key `{command}`: unknown key of a stage");
        bam!("run", "--from-manifest", bam).refused(2, &[&key]);
        let recipe = root.join("r.yaml");
        fs::write(&recipe, format!("stages: [{{name: s, {command}: {{}}}}]\n")).unwrap();
        bam!("run", recipe, "--work", root.join("w")).refused(2, &[&key]);
    }
    assert!(!root.join("PWNED").exists() && !root.join("w").exists());
}

#[test]
fn no_value_passes_for_a_repository_or_a_flag() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("bam.again/hf:")).unwrap();
    fs::create_dir_all(root.join("bam.again/x=hf:")).unwrap();
    crate::common::copy_folder(&fixture("llama/seed"), &root.join("secret"));
    for place in [
        "./hf://../../secret",
        "hf:/../../secret/hf://",
        "x=hf://../../secret",
        "/x/hf://",
    ] {
        let bam = one_stage(root, "init", json!({"config": [place], "out": ["out"]}));
        let problem = format!("reads {place} outside the work folder");
        bam!("run", "--from-manifest", bam).refused(2, &[&problem]);
    }
    let settings = json!({"tokenizer": ["t"], "paths": ["--force", "x"], "out": ["out"]});
    let bam = one_stage(root, "tokenize", settings);
    bam!("run", "--from-manifest", bam).refused(2, &["`paths`", "`--force`", "`./--force`"]);
    let bam = one_stage(root, "inspect", json!({"divergence": ["a", "--json"]}));
    bam!("run", "--from-manifest", bam).refused(2, &["`divergence`", "`--json`"]);
}
