//! `run --prune`: checkpoints of finished stages go, and nothing that a stage or a person still needs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Run, bam, contents, listing};
use crate::train::{Shared, seed};
use serde_json::json;

/// A recipe of two runs, a mixture of them that trains, and whatever else is asked for.
fn recipe(work: &Path, more: &str) -> PathBuf {
    let (seed, law) = (seed(), Shared::get().path("law"));
    let (seed, law) = (seed.display(), law.display());
    let train = |name: &str, checkpoint: &str, steps: u64| {
        format!(
            "  - name: {name}\n    train: {{checkpoint: {checkpoint}, data: {{law: {law}}}, steps: {steps}, seq: 24, batch: 1, save-every: 1, out: {name}}}\n"
        )
    };
    let text = format!(
        "stages:\n{}{}  - name: bam\n    upcycle: {{method: bam, seed: {seed}, expert: {{a: a, b: b}}, out: bam}}\n{}{more}",
        train("a", &seed.to_string(), 3),
        train("b", &seed.to_string(), 2),
        train("trained", "bam", 2),
    );
    let path = work.join("recipe.yaml");
    fs::write(&path, text).unwrap();
    path
}

fn run(work: &Path, arguments: &[&str]) -> Run {
    let line = ["run".into(), work.join("recipe.yaml").into_os_string()];
    let place = ["--work".into(), work.join("w").into_os_string()];
    let line = line.into_iter().chain(place);
    crate::common::run(line.chain(arguments.iter().map(Into::into)))
}

fn checkpoints(work: &Path, name: &str) -> usize {
    let folder = work.join("w").join(format!("{name}.run/checkpoints"));
    fs::read_dir(folder).unwrap().count()
}

/// Bytes of everything in a folder.
fn length(folder: &Path) -> u64 {
    let files = listing(folder).into_keys().map(|name| folder.join(name));
    let files = files.filter(|path| path.is_file());
    files.map(|path| fs::metadata(path).unwrap().len()).sum()
}

#[test]
fn pruning_removes_checkpoints_and_leaves_everything_up_to_date() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    recipe(work, "");
    run(work, &[]).ok();
    assert_eq!(checkpoints(work, "a"), 2);
    let results = ["a", "b", "bam", "trained"].map(|name| contents(&work.join("w").join(name)));
    let kept: u64 = ["a", "b", "trained"]
        .iter()
        .map(|name| length(&work.join("w").join(format!("{name}.run/checkpoints"))))
        .sum();

    let dry = run(work, &["--prune", "--dry-run"]).ok();
    let freed = bam_convert::table::bytes(kept);
    let line = format!("--prune would free {freed}: the checkpoints of a, b, trained");
    assert!(dry.stderr.contains(&line), "{dry}");
    assert_eq!(checkpoints(work, "a"), 2);

    let pruned = run(work, &["--prune", "--json"]).ok();
    assert_eq!(
        pruned.json()["pruned"],
        json!({"stages": ["a", "b", "trained"], "bytes": kept, "kept": []})
    );
    assert!(
        pruned
            .stderr
            .contains(&format!("freed {freed}: the checkpoints of")),
        "{pruned}"
    );
    for name in ["a", "b", "trained"] {
        assert_eq!(checkpoints(work, name), 0);
        assert!(
            work.join("w")
                .join(format!("{name}.run/metrics.jsonl"))
                .exists()
        );
    }
    let after = ["a", "b", "bam", "trained"].map(|name| contents(&work.join("w").join(name)));
    assert_eq!(results, after);
    let again = run(work, &["--prune"]).ok();
    assert!(
        again
            .stderr
            .contains("nothing to do: every stage is up to date")
            && again.stderr.contains("nothing to prune"),
        "{again}"
    );
    // A stage whose result was pruned can run again.
    run(work, &["--force=trained"]).ok();
    assert_eq!(contents(&work.join("w/trained")), after[3]);
    run(work, &["--prune", "--executor", "slurm"]).refused(2, &["--prune", "--executor slurm"]);
}

#[test]
fn what_is_still_needed_stays() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    // One stage reads a checkpoint of `a`, and another does not end well.
    let more = "  - name: early\n    inspect: {path: a.run/checkpoints/step-00000002, json: true}\n    stdout: early.json\n  \
                - name: broken\n    shell: {command: \"test -e allowed && cp -r b c\", inputs: b, outputs: c}\n";
    recipe(work, more);
    let failed = run(work, &["--prune"]);
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(
        failed
            .stderr
            .contains("the checkpoints of a stay, because stage early uses them"),
        "{failed}"
    );
    assert_eq!(checkpoints(work, "a"), 2);
    assert_eq!(checkpoints(work, "b"), 0);
    fs::write(work.join("w/allowed"), "").unwrap();
    let report = run(work, &["--json"]).ok().json();
    let ran = report["stages"].as_array().unwrap().iter();
    let ran: Vec<_> = ran.filter(|stage| stage["ran"] == "done").collect();
    assert_eq!(ran.len(), 1, "{report}");

    // A stale stage, and one in which somebody keeps a file.
    let text = fs::read_to_string(work.join("recipe.yaml")).unwrap();
    let note = work.join("w/trained.run/checkpoints/step-00000002");
    fs::create_dir_all(&note).unwrap();
    run(work, &["--force=trained"]).ok();
    fs::write(note.join("notes.txt"), "mine").unwrap();
    let stale = text.replace("out: b}", "out: b, clip: 2}");
    fs::write(work.join("recipe.yaml"), stale).unwrap();
    run(work, &["--only", "a", "--prune"]).ok();
    assert!(note.join("notes.txt").exists());
    assert!(bam!("inspect", &note).code == Some(0));
}

#[test]
fn links_are_followed_and_what_no_record_lists_stays() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    let link = work.join("link");
    let more = format!(
        "  - name: early\n    inspect: {{path: {}/step-00000002, json: true}}\n    stdout: early.json\n",
        link.display()
    );
    recipe(work, &more);
    run(work, &["--only", "a"]).ok();
    std::os::unix::fs::symlink(work.join("w/a.run/checkpoints"), &link).unwrap();
    run(work, &[]).ok();
    let own = work.join("w/b.run/checkpoints/step-00000099");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("thesis.txt"), "mine").unwrap();
    let before = checkpoints(work, "a");

    run(work, &["--prune"]).ok();

    assert_eq!(checkpoints(work, "a"), before);
    assert_eq!(checkpoints(work, "b"), 1);
    assert_eq!(fs::read(own.join("thesis.txt")).unwrap(), b"mine");
    run(work, &[]).ok();
}

/// Nobody writes into the pipe: whoever opens it waits without end.
#[test]
fn a_log_that_is_a_pipe_is_not_opened() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    recipe(work, "");
    run(work, &["--only", "a"]).ok();
    let log = work.join("w/a.run/metrics.jsonl");
    fs::remove_file(&log).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&log).status();
    assert!(made.unwrap().success());
    let refused = bam!(
        "report",
        work.join("w/a.run"),
        "--out",
        work.join("report.html")
    );
    refused.refused(2, &["metrics.jsonl", "expected a regular file"]);
}
