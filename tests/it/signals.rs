//! Ctrl-C and SIGTERM: an answer at once, an orderly end that says how to continue, and a second signal that ends at once.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{assert_same_folder, binary, finish, listing};
use crate::run::Bench;
use crate::train::{command, run_folder, seed, start_until, train};

fn send(child: &Child, signal: &str) {
    let number = child.id().to_string();
    let sent = Command::new("kill").args([signal, &number]).status();
    assert!(sent.unwrap().success());
}

/// Reads lines until one contains `part`; returns all of them.
fn read_until(stderr: &mut BufReader<ChildStderr>, part: &str) -> String {
    let mut said = String::new();
    while !said.lines().any(|line| line.contains(part)) {
        let read = stderr.read_line(&mut said).unwrap();
        assert!(read > 0, "no line contains {part:?}:\n{said}");
    }
    said
}

/// The command that a hint names.
fn command_in(said: &str) -> &str {
    let hint = said
        .lines()
        .find_map(|line| line.strip_prefix(" hint: continue with: "));
    hint.unwrap_or_else(|| panic!("no command to continue with:\n{said}"))
}

fn shell(line: &str) -> crate::common::Run {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    finish(command)
}

#[test]
fn a_signal_saves_and_names_the_command_that_continues() {
    let work = tempfile::tempdir().unwrap();
    let whole = work.path().join("whole");
    let arguments = ["--steps", "60", "--validate-every", "0", "--batch", "2"];
    train(&seed(), &whole, &arguments).ok();
    for (signal, again) in [("-TERM", "term"), ("-INT", "it is quoted")] {
        let out = work.path().join(again);
        let forced = [&arguments[..], &["--force"]].concat();
        let child = start_until(command(&seed(), &out, &forced), &out, 2);
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        let answer = "saving after this step; press Ctrl-C again to stop now";
        let end = " note: stopped by a signal after step ";
        assert!(said.contains(answer) && said.contains(end), "{said}");
        assert!(
            said.contains(", saved in ") && !said.contains("error"),
            "{said}"
        );
        let line = command_in(&said);
        assert!(
            line.ends_with(" --resume") && !line.contains("--force"),
            "{line}"
        );
        let run = shell(line).ok();
        assert!(run.stderr.contains("resumed after step"), "{run}");
        assert_same_folder(&whole, &out);
    }
}

#[test]
fn a_signal_is_answered_within_a_step_and_a_second_one_ends_it() {
    // Both at once, because they wait for most of their time.
    std::thread::scope(|scope| {
        for signal in ["-INT", "-TERM"] {
            scope.spawn(move || send_twice_within_a_step(signal));
        }
    });
}

fn send_twice_within_a_step(signal: &str) {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    // One step of this run takes minutes.
    let arguments = ["--steps", "2", "--accumulate", "50000", "--batch", "1"];
    let mut child = command(&seed(), &out, &arguments);
    child.args(["--validate-every", "0"]);
    let mut child = child
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // The first step begins at once after this line.
    read_until(&mut stderr, "training ");
    std::thread::sleep(Duration::from_secs(2));
    send(&child, signal);
    read_until(&mut stderr, "saving after this step");
    assert!(child.try_wait().unwrap().is_none(), "it waits for the step");
    let sent = Instant::now();
    send(&child, signal);
    let status = child.wait().unwrap();
    assert!(sent.elapsed() < Duration::from_secs(20));
    assert_eq!(status.code(), Some(130));
    // No checkpoint is half there, and there is no output.
    assert!(!out.exists());
    assert!(listing(&run_folder(&out).join("checkpoints")).is_empty());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("error"), "{rest}");
}

#[test]
fn a_signal_during_the_first_measurement_ends_it() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let slow = ["--steps", "2", "--accumulate", "50000", "--batch", "1"];
    let mut child = command(&seed(), &out, &slow)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let sent = loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
        if line.starts_with("training ") {
            send(&child, "-INT");
            break Instant::now();
        }
    };
    let mut said = String::new();
    // The step may have begun before the signal came; then only a second signal ends it soon.
    while child.try_wait().unwrap().is_none() && sent.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    if child.try_wait().unwrap().is_none() {
        send(&child, "-INT");
        assert_eq!(child.wait().unwrap().code(), Some(130));
        return;
    }
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{said}");
    assert!(said.contains("before the first step"), "{said}");
    assert!(command_in(&said).ends_with(" --resume"), "{said}");
}

#[test]
fn a_recipe_answers_too_and_a_second_signal_ends_its_stages() {
    let bench = Bench::new();
    let recipe = "stages:\n  - name: long\n    shell: {command: \"trap '' TERM; touch begun; sleep 60\", outputs: begun}\n";
    std::fs::write(bench.recipe(), recipe).unwrap();
    let start = || {
        let mut command = Command::new(binary());
        command.arg("run").arg(bench.recipe()).arg("--force");
        command.arg("--work").arg(bench.work());
        let _ = std::fs::remove_file(bench.work().join("begun"));
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        while !bench.work().join("begun").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    };
    let mut child = start();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    send(&child, "-INT");
    read_until(
        &mut stderr,
        "stopping: running stages save and end; press Ctrl-C again to stop now",
    );
    send(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));

    let recipe = recipe.replace("trap '' TERM; ", "");
    std::fs::write(bench.recipe(), recipe).unwrap();
    let child = start();
    send(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains(" note: stopped by a signal; stages that ended stay"),
        "{said}"
    );
    assert!(said.contains("long  stopped"), "{said}");
    let line = command_in(&said);
    assert!(
        line.contains(" run ") && line.contains("--work") && !line.contains("--force"),
        "{line}"
    );
}
