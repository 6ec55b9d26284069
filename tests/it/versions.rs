//! Files of versions that this program does not know: refused by name, and nothing is written.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common::{Run, bam, copy_folder, edit_json, fixture, listing};

/// Asserts a refusal that names the file, the key, both versions, and what to do.
#[track_caller]
fn refused(run: Run, file: &Path, key: &str, known: u64, found: &str) {
    let problem = format!(
        "{}: key `{key}`: expected {known}, found {found}",
        file.display()
    );
    run.refused(2, &[&problem, "hint: "]);
}

/// A manifest of version `version` in the folder.
fn manifest(folder: &Path, version: serde_json::Value) {
    let manifest = json!({"format_version": version, "later": "keys of another time"});
    fs::write(folder.join("bam-manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn versions_that_are_not_known_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let seed = copy_folder(&fixture("llama/seed"), &root.join("seed"));
    let expert = format!("code={}", fixture("llama/code").display());
    let bam = root.join("bam");
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", bam, "-q"
    )
    .ok();

    // A checkpoint: its configuration, then its manifest.
    let config = bam.join("config.json");
    bam!("inspect", bam).ok();
    edit_json(&config, |config| config["bam_version"] = 7.into());
    let before = listing(root);
    let update = "update bam-convert, which is version";
    let texts = format!("x={}", fixture("llama/seed/config.json").display());
    for run in [
        bam!("cost", bam),
        bam!("convert", bam, root.join("out"), "--dtype", "f32"),
        bam!("eval", bam, "--data", texts),
    ] {
        refused(run, &config, "bam_version", 2, "7");
    }
    bam!("cost", bam).refused(2, &[update]);
    refused(bam!("inspect", bam), &config, "bam_version", 2, "7");
    assert_eq!(listing(root), before);
    edit_json(&config, |config| config["bam_version"] = "1".into());
    refused(
        bam!("inspect", bam),
        &config,
        "bam_version",
        2,
        "the string \"1\"",
    );
    // A configuration that does not say its version has the first one.
    edit_json(&config, |config| {
        drop(config.as_object_mut().unwrap().shift_remove("bam_version"))
    });
    bam!("inspect", bam).ok();
    for (version, found) in [
        (json!(9), "9"),
        (json!(-1), "the number -1"),
        (json!(null), "null"),
    ] {
        manifest(&bam, version);
        let file = bam.join("bam-manifest.json");
        refused(
            bam!("run", "--from-manifest", bam),
            &file,
            "format_version",
            1,
            found,
        );
        let run = bam!("validate", bam);
        let problem = format!("key `format_version`: expected 1, found {found}");
        assert!(
            run.code == Some(1) && run.stdout.contains(&problem),
            "{run}"
        );
    }

    // A recipe.
    let recipe = root.join("r.yaml");
    fs::write(&recipe, "format_version: 2\nfuture: {}\nstages: []\n").unwrap();
    bam!("run", recipe).refused(
        2,
        &[
            "r.yaml:1:17: key `format_version`: expected 1, found 2",
            update,
        ],
    );
    fs::write(
        &recipe,
        "format_version: 1\nstages: [{name: s, shell: {command: \"true\"}}]\n",
    )
    .unwrap();
    let work = root.join("work");
    bam!("run", recipe, "--work", work).ok();

    // What an earlier run left.
    let record = work.join(".bam-run/stages/s.json");
    edit_json(&record, |record| record["format_version"] = 3.into());
    for flags in [&[][..], &["--status"], &["--dry-run"]] {
        let line = [
            "run".into(),
            recipe.clone().into_os_string(),
            "--work".into(),
            work.clone().into_os_string(),
        ];
        let run = crate::common::run(line.into_iter().chain(flags.iter().map(Into::into)));
        refused(run, &record, "format_version", 2, "3");
    }

    // A token folder.
    let texts = root.join("texts.txt");
    fs::write(&texts, "Versions come and go. ".repeat(30)).unwrap();
    let tokens = root.join("tokens");
    bam!(
        "tokenize",
        "--tokenizer",
        seed,
        "--out",
        tokens,
        "--validation",
        "0",
        texts
    )
    .ok();
    let train = |flags: &[&str]| {
        let data = format!("d={}", tokens.display());
        let fixed = [
            "train".into(),
            seed.clone().into_os_string(),
            "--data".into(),
            data.into(),
        ];
        let out = root.join("trained").into_os_string();
        let rest = [
            "--steps",
            "2",
            "--batch",
            "1",
            "--seq",
            "16",
            "--save-every",
            "1",
            "--threads",
            "1",
            "--out",
        ];
        let line = fixed.into_iter().chain(rest.map(Into::into)).chain([out]);
        crate::common::run(line.chain(flags.iter().map(Into::into)))
    };
    let header = tokens.join("header.json");
    edit_json(&header, |header| header["format_version"] = 5.into());
    refused(train(&[]), &header, "format_version", 2, "5");
    edit_json(&header, |header| header["format_version"] = 1.into());

    // The state of a run that is resumed.
    train(&[]).ok();
    fs::remove_dir_all(root.join("trained")).unwrap();
    let checkpoints = fs::read_dir(root.join("trained.run/checkpoints")).unwrap();
    let last = checkpoints
        .map(|entry| entry.unwrap().path())
        .max()
        .unwrap();
    let state = last.join("training-state.json");
    edit_json(&state, |state| state["format_version"] = 4.into());
    refused(train(&["--resume"]), &state, "format_version", 1, "4");
}
