//! Signals to a run of torch.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Model, READY, STEPS, Stage};
use crate::common::read_folder;
use crate::train::{run_folder, seed};

#[test]
fn a_signal_reaches_the_processes_as_a_file_and_the_run_resumes() {
    let model = Model::get();
    let script = format!(
        "{}touch '{{ready}}'; until [ -e \"$engine/stop\" ]; do sleep 0.01; done\n{}{}event '{{\"event\":\"stopped\",\"step\":3}}'",
        model.script(1, 2),
        model.step(3),
        model.state(3),
    );
    let stage = Stage::new("");
    let ready = stage.path("ready");
    let text = fs::read_to_string(stage.python()).unwrap();
    fs::write(
        stage.python(),
        text + &script.replace("{ready}", ready.to_str().unwrap()),
    )
    .unwrap();
    let mut command = stage.command(&seed(), &STEPS);
    let child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    assert!(
        Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("stopped by a signal after step 3, saved in ") && said.contains(" --resume"),
        "{said}"
    );
    assert!(
        read_folder(&model.checkpoint(3))
            == read_folder(&run_folder(&stage.out()).join("checkpoints/step-00000003"))
    );
}

#[test]
fn a_signal_to_another_node_outlasts_the_start_of_the_first() {
    // The first node removes the file when it starts.
    let wait = "until [ -e \"$engine/stop\" ]; do sleep 0.01; done";
    let stage = Stage::new("");
    let ready = stage.path("ready");
    let script = format!(
        "touch '{}'; {wait}; rm \"$engine/stop\"; {wait}",
        ready.display()
    );
    let text = fs::read_to_string(stage.python()).unwrap();
    fs::write(stage.python(), text + &script).unwrap();
    let node = [
        "--steps",
        "1",
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--rdzv-endpoint",
        "first:29500",
    ];
    let mut command = stage.command(&seed(), &node);
    let mut child = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the processes do not hear of the signal");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_signal_ends_all_processes() {
    let stage = Stage::new("");
    let (ready, pid) = (stage.path("ready"), stage.path("pid"));
    let text = fs::read_to_string(stage.python()).unwrap();
    let script = format!(
        "event '{READY}'\n(trap '' TERM; echo $$ > '{}'; touch '{}'; sleep 600) & sleep 600",
        pid.display(),
        ready.display()
    );
    fs::write(stage.python(), text + &script).unwrap();
    let mut command = stage.command(&seed(), &STEPS);
    let mut child = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&ready);
    let own = fs::read_to_string(&pid).unwrap();
    for _ in 0..2 {
        let sent = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let begun = Instant::now();
    while Path::new("/proc").join(own.trim()).exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "process {own} lives"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{} does not come",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
