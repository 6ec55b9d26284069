//! `train --resume` with more steps: planned steps stay as they were, and the longer run is the same every time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Run, assert_same_folder, contents, listing, read_json};
use crate::train::{
    command, metrics, of_kind, run_folder, seed, series, start_until, timeless, train,
};

/// A run of 6 steps, with a warm-up and checkpoints on the way.
const SHORT: [&str; 11] = [
    "--steps",
    "6",
    "--batch",
    "2",
    "--warmup",
    "2",
    "--save-every",
    "2",
    "--validate-every",
    "3",
    "--json",
];

/// The same run with so many steps, resumed.
fn extended(out: &Path, steps: &str) -> Run {
    // The warm-up is the one that the run was begun with.
    let arguments = ["--steps", steps, "--batch", "2", "--save-every", "2"];
    let resumed = ["--validate-every", "3", "--resume"];
    train(&seed(), out, &[&arguments[..], &resumed].concat())
}

fn copy_run(from: &Path, to: &Path) -> PathBuf {
    for (from, to) in [(from, to), (&run_folder(from), &run_folder(to))] {
        let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    }
    to.to_path_buf()
}

#[test]
fn planned_steps_stay_and_the_longer_run_is_the_same_twice() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    train(&seed(), &out, &SHORT).ok();
    let (rates, losses) = (series(&out, "learning_rate"), series(&out, "nll"));
    let again = copy_run(&out, &work.path().join("again"));

    let run = extended(&out, "10").ok();
    assert!(
        run.stderr
            .contains("note: extended to 10 steps: from step 7, the learning rate follows"),
        "{run}"
    );
    extended(&again, "10").ok();
    assert_same_folder(&out, &again);
    assert_eq!(timeless(&out), timeless(&again));

    let longer = series(&out, "learning_rate");
    assert_eq!(longer.len(), 10);
    assert_eq!(longer[..6], rates);
    assert_eq!(series(&out, "nll")[..6], losses);
    // On the cosine of the longer run from the end of the warm-up, and at the floor in the end.
    let seventh = 0.1 + 0.9 * (0.5 + 0.5 * (std::f64::consts::PI * 5.0 / 8.0).cos());
    assert!((longer[6] / 1e-2 - seventh).abs() < 1e-9, "{longer:?}");
    assert!(longer[6] > rates[5]);
    assert!((longer[9] / 1e-2 - 0.1).abs() < 1e-9, "{longer:?}");

    let extend = of_kind(&metrics(&out), "extend");
    assert_eq!(extend.len(), 1);
    assert_eq!([&extend[0]["step"], &extend[0]["steps"]], [6, 10]);
    let manifest = read_json(out.join("bam-manifest.json"));
    assert_eq!(manifest["settings"]["extended"], serde_json::json!([6]));
    assert_eq!(manifest["settings"]["warmup"], 2);
    assert_eq!(manifest["lineage"]["step"], 10);
    crate::common::against(&out).ok();

    // What is complete is left as it is, and a shorter run is another one.
    let before = contents(&out);
    extended(&out, "10").ok();
    extended(&out, "8").refused(2, &["--steps: begun with 10, found 8"]);
    assert_eq!(contents(&out), before);
    // A run can be extended again.
    extended(&out, "11").ok();
    let manifest = read_json(out.join("bam-manifest.json"));
    assert_eq!(manifest["settings"]["extended"], serde_json::json!([6, 10]));
}

#[test]
fn a_run_that_was_cut_short_extends_to_the_same_bytes() {
    let work = tempfile::tempdir().unwrap();
    let (whole, cut) = (work.path().join("whole"), work.path().join("cut"));
    train(&seed(), &whole, &SHORT).ok();
    extended(&whole, "9").ok();

    let mut child = start_until(command(&seed(), &cut, &SHORT), &cut, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let arguments = ["--steps", "9", "--batch", "2", "--save-every", "2"];
    let resumed = ["--validate-every", "3", "--resume"];
    let arguments = [&arguments[..], &resumed].concat();
    for step in [5, 6, 8] {
        let mut child = start_until(command(&seed(), &cut, &arguments), &cut, step);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    extended(&cut, "9").ok();
    assert_same_folder(&whole, &cut);
    assert_eq!(timeless(&whole), timeless(&cut));
}

#[test]
fn a_run_without_checkpoints_says_how_to_train_longer() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    train(&seed(), &out, &SHORT).ok();
    fs::remove_dir_all(run_folder(&out).join("checkpoints")).unwrap();
    let before = listing(work.path());
    extended(&out, "8").refused(2, &["no checkpoint to extend it from", "new run"]);
    assert_eq!(listing(work.path()), before);
    // Other settings are named, before anything is written.
    let other = [&SHORT[..], &["--resume", "--clip", "2"]].concat();
    train(&seed(), &out, &other).refused(2, &["--clip: begun with 1.0, found 2.0"]);
    assert_eq!(listing(work.path()), before);
}

/// The same flags as [`extended`], on any output, with more of them.
fn resumed(checkpoint: &Path, out: &Path, steps: &str, more: &[&str]) -> Run {
    let arguments = ["--steps", steps, "--batch", "2", "--save-every", "2"];
    let resumed = ["--validate-every", "3", "--resume", "--json"];
    train(checkpoint, out, &[&arguments[..], &resumed, more].concat())
}

#[test]
fn a_dry_run_of_a_resume_refuses_what_the_run_would_and_counts_what_is_left() {
    let work = tempfile::tempdir().unwrap();
    let checkpoint = crate::common::copy_folder(&seed(), &work.path().join("seed"));
    let out = work.path().join("out");
    train(&checkpoint, &out, &SHORT).ok();
    let before = (contents(&out), listing(&run_folder(&out)));

    let dry = |steps: &str, more: &[&str]| {
        resumed(&checkpoint, &out, steps, &[more, &["--dry-run"]].concat())
    };
    dry("10", &["--clip", "2"]).refused(2, &["--clip: begun with 1.0, found 2.0"]);
    dry("4", &[]).refused(2, &["--steps: begun with 6, found 4"]);
    let left = |steps: &str| {
        let said = dry(steps, &[]).ok().json();
        [&said["steps"], &said["tokens"]].map(|count| count.as_u64().unwrap())
    };
    assert_eq!(left("6"), [0, 0]);
    assert_eq!(left("10"), [4, 4 * 2 * 24]);
    let shown = [&SHORT[..10], &["--resume", "--dry-run"]].concat();
    let shown = train(&checkpoint, &out, &shown).ok();
    assert!(
        shown
            .stdout
            .lines()
            .any(|line| line.starts_with("steps left") && line.ends_with(" 0")),
        "{shown}"
    );
    assert_eq!((contents(&out), listing(&run_folder(&out))), before);

    // A run that is there already: without --resume, with it, and with another model than it was begun with.
    fs::remove_dir_all(&out).unwrap();
    let anew = [&SHORT[..], &["--dry-run"]].concat();
    train(&checkpoint, &out, &anew).refused(2, &["out.run", "--resume", "--force"]);
    assert_eq!(left("10"), [4, 4 * 2 * 24]);
    crate::common::edit_json(&checkpoint.join("config.json"), |config| {
        config["attention_dropout"] = 0.5.into()
    });
    dry("10", &[]).refused(2, &["config.json", "begun with"]);
}

#[test]
fn the_end_of_a_resumed_run_tells_what_was_done_now_from_all() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let first = train(&seed(), &out, &SHORT).ok().json();
    assert_eq!([&first["step"], &first["new_steps"]], [6, 6]);
    assert_eq!(first["tokens"], first["new_tokens"]);
    let losses = series(&out, "loss");
    let mean = losses.iter().sum::<f64>() / 6.0;
    assert_eq!(first["loss"], losses[5]);
    assert_eq!(first["mean_loss_steps"], 6);
    assert!((first["mean_loss"].as_f64().unwrap() - mean).abs() < 1e-12);

    let longer = resumed(&seed(), &out, "8", &[]).ok().json();
    assert_eq!([&longer["step"], &longer["new_steps"]], [8, 2]);
    assert_eq!(longer["mean_loss_steps"], 2);
    let counts = |key: &str| longer[key].as_u64().unwrap();
    assert_eq!(counts("tokens"), 4 * counts("new_tokens"));

    let longest = extended(&out, "9").ok();
    let end = longest.stderr.lines().last().unwrap();
    assert!(end.starts_with("steps 9 to 9, "), "{longest}");
    assert!(end.contains("; 9 steps, "), "{longest}");
    assert!(end.contains("last step: loss "), "{longest}");
    assert!(end.contains("mean loss of the last 1 step: "), "{longest}");
}
