//! Every command: what its `--help` looks like, and what one refusal looks like. The commands come from the binary, so
//! that a new one cannot be forgotten.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common::{Run, finish};

/// Arguments that each command refuses, in an empty folder.
const REFUSALS: [(&str, &[&str]); 25] = [
    ("branch", &["absent", "--into", "code", "--out", "out"]),
    ("completions", &["cmd"]),
    ("convert", &["absent", "out"]),
    ("cost", &["absent"]),
    ("diff", &["absent", "other"]),
    ("eval", &["absent", "--data", "code"]),
    (
        "expert add",
        &["absent", "--expert", "code", "--out", "out"],
    ),
    ("expert concat", &["absent", "other", "--out", "out"]),
    ("expert extract", &["absent", "code", "--out", "out"]),
    (
        "expert remove",
        &["absent", "code", "--out", "hf://org/name"],
    ),
    ("expert replace", &["absent", "code=other", "--out", "out"]),
    ("generate", &["absent", "--prompt", "The year"]),
    ("init", &["absent", "--out", "out"]),
    ("inspect", &["absent"]),
    ("logits", &["absent"]),
    ("man", &[]),
    ("merge", &["--model", "absent:much", "--out", "out"]),
    ("pull", &["../seed"]),
    ("push", &[".", "../seed"]),
    ("report", &["absent", "--out", "report.html"]),
    ("run", &["absent.yaml"]),
    (
        "tokenize",
        &["absent", "--tokenizer", "train:1", "--out", "out"],
    ),
    (
        "train",
        &[
            "absent",
            "--data",
            "code=tokens:x",
            "--steps",
            "1",
            "--out",
            "out",
        ],
    ),
    (
        "upcycle",
        &[
            "--method", "bam", "--seed", "absent", "--router", "fil:rows", "--out", "out",
        ],
    ),
    ("validate", &["absent", "--format", "hf://org/name"]),
];

/// A line of each command whose input is missing, and nothing else is wrong.
const MISSING: [(&str, &[&str]); 22] = [
    ("branch", &["org/name", "--into", "code", "--out", "out"]),
    ("convert", &["org/name", "out"]),
    ("cost", &["org/name"]),
    ("diff", &["org/name", "org/name"]),
    ("eval", &["org/name", "--data", "code=."]),
    (
        "expert add",
        &["org/name", "--expert", "code=.", "--out", "out"],
    ),
    ("expert concat", &["org/name", "org/name", "--out", "out"]),
    ("expert extract", &["org/name", "code", "--out", "out"]),
    ("expert remove", &["org/name", "code", "--out", "out"]),
    ("expert replace", &["org/name", "code=.", "--out", "out"]),
    ("generate", &["org/name", "--prompt", "The year"]),
    ("init", &["org/name", "--out", "out"]),
    ("inspect", &["org/name"]),
    ("logits", &["org/name", "org/name"]),
    ("merge", &["--model", "org/name:2", "--out", "out"]),
    ("push", &["org/name", "org/name"]),
    ("report", &["org/name", "--out", "report.html"]),
    ("run", &["org/name"]),
    (
        "tokenize",
        &["org/name", "--tokenizer", "train:400", "--out", "out"],
    ),
    (
        "train",
        &[
            "org/name", "--data", "code=.", "--steps", "1", "--out", "out",
        ],
    ),
    (
        "upcycle",
        &[
            "--method",
            "bam",
            "--seed",
            ".",
            "--expert",
            "code=org/name",
            "--out",
            "out",
        ],
    ),
    ("validate", &["org/name"]),
];

/// Commands without an input on this machine.
const NO_INPUTS: [&str; 3] = ["completions", "man", "pull"];

/// Commands whose missing input is no checkpoint that may be on the Hub.
const NO_CHECKPOINTS: [&str; 3] = ["push", "run", "tokenize"];

/// Runs the binary in a folder, on a terminal of no particular width.
fn run_in(folder: &Path, words: &[&str]) -> Run {
    let mut command = Command::new(crate::common::binary());
    command
        .current_dir(folder)
        .args(words)
        .env_remove("COLUMNS")
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder.join("hf"));
    finish(command)
}

/// The help of each command, by its name; of a command with commands below it, those too.
fn helps(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(name) = open.pop() {
        let words: Vec<&str> = name.split_whitespace().chain(["--help"]).collect();
        let help = run_in(folder, &words).ok().stdout;
        open.extend(below(&help).map(|below| format!("{name} {below}").trim().to_owned()));
        found.insert(name, help);
    }
    assert!(found.len() > 20, "{:?}", found.keys());
    found
}

/// The commands that a help lists, but for `help` itself.
fn below(help: &str) -> impl Iterator<Item = String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default();
    let list = list.split("\n\n").next().unwrap_or_default();
    let lines = list.lines().filter_map(|line| line.strip_prefix("  "));
    let names = lines
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next());
    let names: Vec<String> = names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    names.into_iter()
}

#[test]
fn the_help_of_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for (name, help) in helps(folder.path()) {
        let name = format!("help {name}").trim().replace(' ', "-");
        insta::assert_snapshot!(name, help);
    }
}

#[test]
fn a_refusal_of_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for (name, help) in helps(folder.path()) {
        if below(&help).next().is_some() {
            continue;
        }
        let refusal = REFUSALS.iter().find(|(command, _)| *command == name);
        let (_, arguments) = refusal.unwrap_or_else(|| panic!("`{name}` has no refusal here"));
        let words: Vec<&str> = name.split(' ').chain(arguments.iter().copied()).collect();
        let run = run_in(folder.path(), &words);
        assert!(matches!(run.code, Some(2 | 3)), "{run}");
        let text = format!("{}exit code {}\n", run.stderr, run.code.unwrap());
        insta::assert_snapshot!(format!("refusal-{}", name.replace(' ', "-")), text);
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "{name} wrote something");
    }
}

/// The names of the commands that have none below them.
fn leaves(folder: &Path) -> Vec<String> {
    let helps = helps(folder).into_iter();
    let leaves = helps.filter(|(_, help)| below(help).next().is_none());
    leaves.map(|(name, _)| name).collect()
}

#[test]
fn a_missing_input_has_exit_code_2_in_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for name in leaves(folder.path()) {
        let line = MISSING.iter().find(|(command, _)| *command == name);
        let Some((_, arguments)) = line else {
            assert!(NO_INPUTS.contains(&name.as_str()), "`{name}` has no line");
            continue;
        };
        let words: Vec<&str> = name.split(' ').chain(arguments.iter().copied()).collect();
        let run = run_in(folder.path(), &words).refused(2, &["org/name"]);
        let is_checkpoint = !NO_CHECKPOINTS.contains(&name.as_str());
        let has_hint = run.stderr.contains(" hint: ") && run.stderr.contains("hf://org/name");
        assert_eq!(has_hint, is_checkpoint, "{run}");
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "{name} wrote something");
    }
}

/// The last line of stderr is the error, alone.
#[test]
fn with_json_errors_are_json_in_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for name in leaves(folder.path()) {
        let mut lines = vec![vec!["--no-such-flag"]];
        let missing = MISSING.iter().find(|(command, _)| *command == name);
        lines.extend(missing.map(|(_, arguments)| arguments.to_vec()));
        let help = run_in(
            folder.path(),
            &name.split(' ').chain(["--help"]).collect::<Vec<_>>(),
        );
        if !help.stdout.contains("\n      --json") {
            lines.truncate(1);
        }
        for line in lines {
            let words = name.split(' ').chain(line.iter().copied());
            let words: Vec<&str> = words.chain(["--json"]).collect();
            let run = run_in(folder.path(), &words);
            assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run}");
            let last = run.stderr.lines().last().unwrap_or_default();
            let error: serde_json::Value = serde_json::from_str(last).expect(last);
            let error = &error["error"];
            assert_eq!(error["exit_code"], 2, "{run}");
            let message = error["message"].as_str().unwrap();
            let expected = if line[0] == "--no-such-flag" {
                "--no-such-flag"
            } else {
                "org/name"
            };
            assert!(message.contains(expected), "{run}");
        }
    }
}

#[test]
fn every_command_has_the_common_flags() {
    let folder = tempfile::tempdir().unwrap();
    for (name, help) in helps(folder.path()) {
        assert!(help.contains("\nExit codes: 0 "), "{name}");
        for flag in ["-q, --quiet", "-v, --verbose", "--color <WHEN>"] {
            assert!(help.contains(flag), "{name}: {flag}");
        }
        let is_leaf = below(&help).next().is_none();
        let works = is_leaf && !["completions", "man"].contains(&name.as_str());
        assert_eq!(help.contains("--threads <N>"), works, "{name}");
        for (long, short) in [("--out ", "-o"), ("--force", "-f"), ("--dry-run", "-n")] {
            let alone = format!("\n      {long}");
            assert!(!help.contains(&alone), "{name}: {long} lacks {short}");
        }
    }
}

#[test]
fn the_pipeline_knows_no_command_by_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pipeline");
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = helps(folder.path())
        .into_keys()
        .filter(|name| !name.is_empty())
        .collect();
    let mut open = vec![root];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            // An error of the system says what could not be done: `run`.
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.replace("Error::io(\"run\"", "");
            for name in &names {
                let literal = format!("\"{name}\"");
                assert!(!text.contains(&literal), "{}: {literal}", path.display());
            }
        }
    }
}
