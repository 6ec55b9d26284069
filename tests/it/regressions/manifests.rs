//! What a stranger's manifest once reached: files, commands and flags that the user had not named.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::{bam, copy_folder, edit_json, fixture};
use serde_json::json;

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

/// Some settings of a manifest named files of the user outside the work folder.
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
            "publishes a checkpoint",
            "would run or connect to",
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

/// A stage of a manifest could replace any file of the user.
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

/// A stage wrote through a link in the work folder to wherever the link led.
#[test]
fn a_work_folder_of_links_is_refused() {
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
    copy_folder(&fixture("llama/seed"), &root.join("seed"));
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

/// A manifest could name any file of the machine as its source, and the error said whether the file exists.
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
    symlink(root.join("secret"), root.join("deep/link")).unwrap();
    fs::create_dir_all(root.join("deep/texts/more")).unwrap();
    symlink(root, root.join("deep/texts/more/link")).unwrap();
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

/// `validate --against` opened any path in a manifest, and its findings showed the sizes of files.
#[test]
fn a_replay_opens_neighbours_alone_and_tells_no_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["seed", "code"] {
        copy_folder(&fixture("llama").join(name), &at("near").join(name));
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
    symlink(at("far/seed"), &seed).unwrap();
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

/// A stage could be `run` itself, and so ran shell commands that nobody had agreed to.
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

/// A path that looked like a repository was not checked, and a value that looked like a flag became one.
#[test]
fn no_value_passes_for_a_repository_or_a_flag() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("bam.again/hf:")).unwrap();
    fs::create_dir_all(root.join("bam.again/x=hf:")).unwrap();
    copy_folder(&fixture("llama/seed"), &root.join("secret"));
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
