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
