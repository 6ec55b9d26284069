//! Chat templates: programs from strangers, rendered in a process that may die.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Run, copy_folder, finish, fixture, read_json};

/// The templates of a group of `fixtures/hostile_templates.json`, where `[text, n]` stands for n times the text.
fn hostile(group: &str) -> Vec<(String, String)> {
    let piece = |piece: &Value| match piece {
        Value::Array(repeated) => {
            let [text, times] = &repeated[..] else {
                panic!("{piece}")
            };
            let times = times.as_u64().unwrap() as usize;
            text.as_str().unwrap().repeat(times)
        }
        text => text.as_str().unwrap().to_owned(),
    };
    let table = read_json(fixture("hostile_templates.json"));
    let templates = table[group].as_object().unwrap().iter();
    let whole = |pieces: &Value| pieces.as_array().unwrap().iter().map(piece).collect();
    templates
        .map(|(name, pieces)| (name.clone(), whole(pieces)))
        .collect()
}

/// Runs every template in a process with 1 GiB of address space: each is refused or rendered, and none takes long.
fn endures(templates: Vec<(String, String)>) {
    let left = Mutex::new(templates);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let work = TempDir::new().unwrap();
                let folder = copy_folder(&fixture("hostile/template-good"), &work.path().join("a"));
                let file = folder.join("chat_template.jinja");
                while let Some((name, template)) = { left.lock().unwrap().pop() } {
                    std::fs::write(&file, template).unwrap();
                    let began = Instant::now();
                    let run = generate_within_a_gibibyte(&folder);
                    assert!(
                        began.elapsed() < Duration::from_secs(15),
                        "{name}: {:?}",
                        began.elapsed()
                    );
                    assert!([Some(0), Some(2)].contains(&run.code), "{name}: {run}");
                    assert!(run.stderr.len() < 2000, "{name}: {run}");
                    if run.code == Some(2) && !run.stderr.contains("the prompt ") {
                        assert!(run.stderr.contains("chat_template.jinja"), "{name}: {run}");
                    }
                }
            });
        }
    });
}

fn generate_within_a_gibibyte(folder: &Path) -> Run {
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -v 1048576; exec timeout 60 \"$@\"", "bash"])
        .arg(crate::common::binary())
        .arg("generate")
        .arg(folder)
        .args(["--chat", "--prompt", "abc", "--max-tokens", "1"]);
    finish(command)
}

#[test]
fn hostile_templates_are_refused_or_rendered() {
    let templates = hostile("quick");
    assert!(templates.len() > 150);
    endures(templates);
}

#[test]
#[ignore = "many of them take two seconds of a processor"]
fn hostile_templates_that_never_end_are_refused() {
    endures(hostile("slow"));
}

#[test]
fn what_the_engine_cannot_bound_ends_with_the_file_named() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("hostile/template-good"), &work.path().join("a"));
    let cycle = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns ~ '' }}";
    let chain = format!("{{{{ 1{} }}}}", "+1".repeat(400_000));
    let long = format!("{{{{ 'x'{} }}}}", " ".repeat(1 << 20));
    let raised = "{{ raise_exception('x' * 1000000) }}";
    for (template, parts) in [
        (cycle, ["MiB of memory", "nests too deep"]),
        (chain.as_str(), ["MiB of memory", "nests too deep"]),
        ("{{ '{:>999999999}'.format('x') }}", ["MiB of memory", ""]),
        (long.as_str(), ["at most 1048576 bytes", "found 10485"]),
        (raised, ["xxxxx", "more bytes)"]),
        ("{{ raise_exception('no system') }}", ["no system", ""]),
    ] {
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
        let run = generate_within_a_gibibyte(&folder).refused(2, &["chat_template.jinja"]);
        assert!(run.stderr.len() < 2000, "{run}");
        run.refused(2, &parts);
    }
}
