//! The programs in `examples/`, run on the fixtures, do what the command line does.

use std::path::PathBuf;
use std::process::Command;

use crate::common::{Run, assert_same_folder, bam, finish, fixture};
use tempfile::TempDir;

/// A command that runs an example. Cargo builds examples for `cargo test`, into a folder beside the folder of this program.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let built: PathBuf = [
        tests.parent().unwrap(),
        "../examples".as_ref(),
        name.as_ref(),
    ]
    .iter()
    .collect();
    assert!(
        built.is_file(),
        "no {}: run `cargo build --workspace --examples`, which `cargo test` with a filter of targets leaves out",
        built.display()
    );
    Command::new(built)
}

#[test]
fn the_upcycle_example_prints_the_plan_and_writes_what_the_command_writes() {
    let work = TempDir::new().unwrap();
    let (out, same) = (work.path().join("out"), work.path().join("same"));
    let [seed, code] = ["seed", "code"].map(|name| fixture("llama").join(name));

    let mut command = example("upcycle");
    command.args([&seed, &code, &out]);
    let run: Run = finish(command).ok();
    let planned = "model.embed_tokens.weight BF16 [384, 32] = mean(seed, code)";
    assert!(run.stdout.lines().any(|line| line == planned), "{run}");

    let expert = format!("code={}", code.display());
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", same
    )
    .ok();
    assert_same_folder(&out, &same);
}

#[test]
fn the_evaluate_example_prints_the_perplexity_of_eval() {
    let (model, text) = (fixture("llama/seed"), fixture("../SECURITY.md"));
    let data = format!("text={}", text.display());
    let report = bam!("eval", model, "--data", data, "--json").ok().json();
    let score = &report["models"][0]["domains"][0];

    let mut command = example("evaluate");
    command.args([&model, &text]);
    let run = finish(command).ok();
    let expected = format!(
        "perplexity {} over {} tokens\n",
        score["perplexity"], score["tokens"]
    );
    assert_eq!(run.stdout, expected);
}

#[test]
fn an_example_without_arguments_says_what_it_expects() {
    for (name, expected) in [
        ("upcycle", "SEED EXPERT... OUT"),
        ("evaluate", "MODEL TEXT"),
    ] {
        let run = finish(example(name));
        assert_eq!(run.code, Some(1), "{run}");
        assert!(run.stderr.contains(expected), "{run}");
    }
}
