//! What earlier versions wrote, read by this one: `fixtures/written-by-VERSION/`, which `fixtures/make_written.py` made with that version.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    against, bam, binary, contents, edit_json, finish, fixture, read_json, run, sha256,
};
use serde_json::{Value, json};

/// Versions whose output is kept.
const VERSIONS: [&str; 2] = ["0.1", "0.2"];
/// Those that have a mixture of a GGUF file among it.
const WITH_GGUF: [&str; 1] = ["0.2"];

fn written(version: &str) -> PathBuf {
    fixture(format!("written-by-{version}"))
}

/// A copy of what `version` wrote beside copies of what it was made of, as in `fixtures/`.
fn copy(version: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for source in ["hostile/good", "gguf"] {
        copy_tree(&fixture(source), &folder.path().join(source));
    }
    let kept = folder.path().join("kept");
    copy_tree(&written(version), &kept);
    (folder, kept)
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// SHA-256 of each file of a flat folder.
fn hashes(folder: &Path) -> Value {
    contents(folder)
        .iter()
        .map(|(name, bytes)| (name.clone(), json!(sha256(bytes))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The command of the run that was stopped, in a folder of `version`, with the words that follow.
fn train(version: &str, kept: &Path, more: &[&str]) -> crate::common::Run {
    let golden = read_json(written(version).join("golden.json"));
    let words = golden["command"].as_array().unwrap();
    let mut command = Command::new(binary());
    command
        .args(words.iter().map(|word| word.as_str().unwrap()))
        .args(more)
        .current_dir(kept.join("stopped"));
    finish(command).ok()
}

/// Whether this machine computes as the one on which `version` wrote the golden hashes: another kind of processor rounds other
/// sums, and only trained bytes depend on that. A run that was never stopped tells.
fn trains_to_golden_bytes(version: &str) -> bool {
    let (_folder, kept) = copy(version);
    fs::remove_dir_all(kept.join("stopped/trained.run")).unwrap();
    train(version, &kept, &[]);
    let golden = read_json(kept.join("golden.json"));
    hashes(&kept.join("stopped/trained"))["model.safetensors"]
        == golden["resumed"]["model.safetensors"]
}

/// Makes a checkpoint again in `work`, from the sources beside it.
fn made_again(checkpoint: &Path, work: &Path) -> crate::common::Run {
    let manifest = read_json(checkpoint.join("bam-manifest.json"));
    let mut line: Vec<OsString> = vec!["run".into(), "--from-manifest".into(), checkpoint.into()];
    line.extend(["--work".into(), work.into()]);
    for (name, path) in manifest["recipe"]["sources"].as_object().unwrap() {
        let path = checkpoint.join(path.as_str().unwrap());
        let source = format!("{name}={}", path.display());
        line.extend(["--source".into(), source.into()]);
    }
    run(line).ok()
}

#[test]
fn checkpoints_are_valid_and_replay_from_their_manifests() {
    for version in VERSIONS {
        let folder = written(version);
        for name in [
            "llama-bam",
            "qwen3-bam-shared",
            "cohere-btx",
            "mistral-mixtral",
            "recipe/work/bam",
        ] {
            against(folder.join(name)).ok();
            bam!(
                "generate",
                folder.join(name),
                "--prompt",
                "abc",
                "--max-tokens",
                "2"
            )
            .ok();
        }
    }
}

#[test]
fn a_checkpoint_is_made_again_from_its_manifest() {
    for version in VERSIONS {
        let (_folder, kept) = copy(version);
        let bam = kept.join("recipe/work/bam");
        let work = kept.join("again");
        made_again(&bam, &work);
        let made = work.join("bam");
        if trains_to_golden_bytes(version) {
            assert_eq!(
                sha256(&fs::read(made.join("model.safetensors")).unwrap()),
                read_json(kept.join("golden.json"))["rebuilt"]["model.safetensors"],
            );
        }
        let tensors =
            |folder: &Path| read_json(folder.join("bam-manifest.json"))["tensors"].clone();
        assert_eq!(tensors(&made), tensors(&bam));
        // The recipe leaves the routing to the defaults, as its version had them.
        let settings = |folder: &Path| {
            let settings = read_json(folder.join("bam-manifest.json"))["settings"].clone();
            ["top_k", "norm_topk_prob"].map(|key| settings[key].clone())
        };
        let expected = match version {
            "0.1" => [json!(1), json!(false)],
            _ => [json!(2), json!(true)],
        };
        assert_eq!(settings(&made), expected);
        assert_eq!(settings(&made), settings(&bam));
    }
}

#[test]
fn a_mixture_of_a_gguf_file_is_made_again_with_the_tokenizers_former_settings() {
    for version in WITH_GGUF {
        let (_folder, kept) = copy(version);
        let mixture = kept.join("gguf/work/mixture");
        bam!("validate", &mixture).ok();
        let work = kept.join("again");
        let run = made_again(&mixture, &work);
        // `model_input_names` is of a later version.
        assert!(
            run.stdout.contains("mixture/tokenizer_config.json"),
            "{run}"
        );
        let (made, first) = (hashes(&work.join("mixture")), hashes(&mixture));
        for file in ["model.safetensors", "config.json", "tokenizer.json"] {
            assert_eq!(made[file], first[file], "{file}");
        }
        let settings = |folder: &Path| read_json(folder.join("tokenizer_config.json"));
        let (made, first) = (settings(&work.join("mixture")), settings(&mixture));
        for (key, value) in first.as_object().unwrap() {
            assert_eq!(made[key], *value, "{key}");
        }
    }
}

/// Gives the records of a work folder the times and inodes of a copy's files; nothing else changes.
fn as_left(work: &Path) {
    for entry in fs::read_dir(work.join(".bam-run/stages")).unwrap() {
        edit_json(&entry.unwrap().path(), |record| {
            for (name, stamp) in record["outputs"].as_object_mut().unwrap() {
                let now = fs::metadata(work.join(name)).unwrap();
                assert_eq!(stamp["length"], now.len(), "{name}");
                stamp["modified"] = json!(now.mtime() * 1_000_000_000 + now.mtime_nsec());
                stamp["inode"] = json!(now.ino());
            }
        });
    }
}

#[test]
fn a_finished_recipe_of_another_version_says_why_it_runs_again() {
    for version in VERSIONS {
        let (_folder, kept) = copy(version);
        let work = kept.join("recipe/work");
        as_left(&work);
        let recipe = kept.join("recipe/recipe.yaml");
        let planned = bam!("run", recipe, "--work", work, "--dry-run").ok();
        let reason = if env!("CARGO_PKG_VERSION") == format!("{version}.0") {
            ": does not run".to_owned()
        } else {
            format!("runs: version {version}.0 made it")
        };
        assert_eq!(planned.stdout.matches(&reason).count(), 4, "{planned}");
        bam!("run", recipe, "--work", work).ok();
        // The recipe leaves the routing to the defaults, and its words now mean these.
        let config = read_json(work.join("bam/config.json"));
        let routing = (&config["num_experts_per_tok"], &config["norm_topk_prob"]);
        assert_eq!(routing, (&json!(2), &json!(true)));
        let run = bam!("run", recipe, "--work", work).ok();
        assert_eq!(run.stdout.matches("up to date").count(), 4, "{run}");
    }
}

#[test]
fn token_folders_are_read() {
    for version in VERSIONS {
        let data = format!(
            "x={}",
            written(version).join("recipe/work/tokens").display()
        );
        let found = bam!(
            "eval",
            fixture("hostile/good"),
            "--data",
            data,
            "--context",
            "16",
            "--json"
        )
        .ok()
        .json();
        let domain = &found["models"][0]["domains"][0];
        assert_eq!(domain["tokens"], 148, "{found}");
        let perplexity = domain["perplexity"].as_f64().unwrap();
        // What each version said of its own tokens.
        assert!((perplexity - 15.788_181).abs() < 1e-4, "{found}");
    }
}

#[test]
fn a_stopped_run_is_resumed_to_the_same_bytes() {
    for version in VERSIONS {
        let (_folder, kept) = copy(version);
        let golden = read_json(kept.join("golden.json"));
        let run = train(version, &kept, &["--resume"]);
        assert!(run.stderr.contains("resumed"), "{run}");
        let made = hashes(&kept.join("stopped/trained"));
        assert_eq!(made["config.json"], golden["resumed"]["config.json"]);
        if trains_to_golden_bytes(version) {
            assert_eq!(
                made["model.safetensors"],
                golden["resumed"]["model.safetensors"]
            );
        }
    }
}
