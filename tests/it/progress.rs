//! What long commands show while they run: lines in a log, and bars on a terminal of 80 columns.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{bam, binary};
use crate::train::{Shared, command, seed};
use bam_convert::progress::Progress;
use tempfile::TempDir;

/// Columns of the terminal.
const COLUMNS: usize = 80;

#[test]
fn without_a_terminal_training_prints_a_line_now_and_then() {
    let work = tempfile::tempdir().unwrap();
    let mut child = command(
        &seed(),
        &work.path().join("out"),
        &["--steps", "1000000", "--save-every", "0"],
    )
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let lines = lines.map(Result::unwrap);
    let lines: Vec<String> = lines
        .filter(|line| line.starts_with("step "))
        .take(4)
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    // The first line is the measurement before the first step.
    assert!(lines[0].starts_with("step 0: perplexity "), "{lines:?}");
    let mut steps = Vec::new();
    for line in &lines[1..] {
        assert!(line.len() < COLUMNS, "{line}");
        let progress = Progress::parse(line).unwrap_or_else(|| panic!("{line}"));
        assert!(progress.amount.ends_with(" of 1,000,000"), "{line}");
        assert!(progress.details[0].starts_with("loss "), "{line}");
        assert!(progress.details[1].starts_with("rate "), "{line}");
        assert!(
            progress.seconds_left.is_some_and(|left| left > 0.0),
            "{line}"
        );
        steps.push((progress.share * 1e6) as u64);
    }
    assert!(steps.is_sorted() && steps[0] < steps[2], "{steps:?}");
}

/// A recipe of two runs of training with an evaluation and a report.
fn recipe(work: &Path, steps: u64) -> std::path::PathBuf {
    let (seed, law) = (seed(), Shared::get().path("law"));
    let (seed, law) = (seed.display(), law.display());
    let text = format!(
        "stages:\n  \
         - name: short\n    train: {{checkpoint: {seed}, data: {{law: {law}}}, steps: 2, seq: 24, batch: 1, out: short}}\n  \
         - name: a-longer-name\n    train: {{checkpoint: short, data: {{law: {law}}}, steps: {steps}, seq: 24, batch: 1, validate-every: 0, out: long}}\n  \
         - name: evaluation\n    eval: {{checkpoints: [short, long], data: {{law: {law}}}, max-tokens: 256, json: true}}\n    stdout: evaluation.json\n  \
         - name: report\n    report: {{inputs: [short, long, evaluation.json], out: report.html}}\n"
    );
    let path = work.join("recipe.yaml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_recipe_ends_with_its_results_and_says_where_nothing_is_left_to_do() {
    let work = tempfile::tempdir().unwrap();
    let recipe = recipe(work.path(), 2);
    let folder = work.path().join("w");
    let run = bam!("run", recipe, "--work", folder).ok();
    let page = format!("report: {}", folder.join("report.html").display());
    for part in ["perplexity (windows of 512 tokens; lower is better)", &page] {
        assert!(run.stdout.contains(part), "{part}\n{run}");
    }
    // One line for each stage, aligned.
    let lines: Vec<&str> = run
        .stderr
        .lines()
        .filter(|line| line.starts_with('['))
        .collect();
    assert_eq!(lines.len(), 4, "{run}");
    assert!(lines[0].starts_with("[1/4] short          "), "{run}");
    assert!(lines[1].starts_with("[2/4] a-longer-name  "), "{run}");
    assert!(!run.stderr.contains("nothing to do"), "{run}");
    let again = bam!("run", recipe, "--work", folder).ok();
    assert!(
        again
            .stderr
            .contains("nothing to do: every stage is up to date"),
        "{again}"
    );
    assert!(again.stdout.contains(&page), "{again}");
    // Programs get the report of the run alone.
    let json = bam!("run", recipe, "--work", folder, "--json").ok();
    assert_eq!(json.json()["stages"].as_array().unwrap().len(), 4);
}

/// What a command draws on a terminal of its own; none where there is no program to make one.
fn on_terminal(line: &str, folder: &TempDir) -> Option<String> {
    let script = Command::new("script").arg("--version").output();
    if !script.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let line = format!("stty cols {COLUMNS} rows 24; {line}");
    let shown = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(!shown.contains("panicked"), "{shown}");
    Some(shown)
}

/// The rows that were drawn, without what moves the cursor; a text that is too long continues in the next row.
fn drawn(shown: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = shown.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            plain.push(c);
            continue;
        }
        // A sequence ends with a letter; the cursor then is elsewhere.
        let end = rest.by_ref().skip(1).find(char::is_ascii_alphabetic);
        if end != Some('m') {
            plain.push('\n');
        }
    }
    let rows = plain.split(['\r', '\n']).flat_map(|line| {
        let line: Vec<char> = line.chars().collect();
        let rows = line.chunks(COLUMNS);
        rows.map(|row| row.iter().collect::<String>())
            .collect::<Vec<_>>()
    });
    let rows = rows.map(|row| row.trim_end().to_owned());
    rows.filter(|row| !row.is_empty()).collect()
}

#[test]
fn a_terminal_shows_the_running_stage_and_the_time_that_is_left() {
    let work = tempfile::tempdir().unwrap();
    let recipe = recipe(work.path(), 3000);
    let line = format!("{} run {} --work w", binary().display(), recipe.display());
    let Some(shown) = on_terminal(&line, &work) else {
        return;
    };
    let lines = drawn(&shown);
    // The end of a line that was too long would be a row of its own.
    let begins = |line: &&String| {
        !["short", "a-longer", "evalu", "report", "["]
            .iter()
            .any(|name| line.starts_with(name))
    };
    let others = lines
        .iter()
        .filter(|line| line.ends_with(" left"))
        .filter(begins);
    for line in others {
        assert!(line.contains(" of 4 stages  "), "{line}");
    }
    let progress = lines.iter().find(|line| {
        line.starts_with("a-longer-name [")
            && line.contains("] step ")
            && line.contains(" of 3,000  loss ")
            && line.ends_with(" left")
    });
    assert!(progress.is_some(), "{lines:#?}");
    // The name of the short stage is as wide.
    assert!(
        lines.iter().any(|line| line.starts_with("short         [")),
        "{lines:#?}"
    );
    let total = lines
        .iter()
        .find(|line| line.contains(" 1 of 4 stages  ~") && line.ends_with(" left"));
    assert!(total.is_some(), "{lines:#?}");
}

#[test]
fn bars_fit_into_the_terminal_and_have_decimal_units() {
    let work = tempfile::tempdir().unwrap();
    let bam = Shared::get().path("bam");
    let law = Shared::get().path("law");
    let lines = [
        format!(
            "train {} --data law={} --steps 40 --seq 24 --out out",
            seed().display(),
            law.display()
        ),
        format!(
            "eval {0} {1} --data law={2} --context 64",
            seed().display(),
            bam.display(),
            law.display()
        ),
        format!("convert {} copy --dtype f32", bam.display()),
        format!("validate {} --against {}", bam.display(), seed().display()),
    ];
    for line in lines {
        let line = format!("{} {line}", binary().display());
        let Some(shown) = on_terminal(&line, &work) else {
            return;
        };
        let bars = drawn(&shown);
        let bars = bars.iter().filter(|line| line.contains(" left"));
        for bar in bars {
            assert!(bar.contains('[') && bar.contains(']'), "it wraps: {bar}");
            assert!(!bar.contains("iB"), "{bar}");
        }
    }
}
