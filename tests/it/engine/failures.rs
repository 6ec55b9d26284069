//! Processes that die, say what cannot be, or fail by themselves.

use std::fs;

use serde_json::{Value, json};

use super::{Model, READY, STEPS, Stage};
use crate::common::finish;
use crate::train::{command, metrics, of_kind, run_folder, seed};

#[test]
fn processes_that_die_are_named_with_what_they_said_and_how_to_continue() {
    let model = Model::get();
    let script = format!(
        "{}echo 'Traceback: out of luck' >&2; printf 'half a line'; kill -9 $$",
        model.script(1, 2)
    );
    let stage = Stage::new(&script);
    let run = stage.train(&STEPS).refused(
        3,
        &[
            "engine/output.log: torch's processes ended after step 2 (signal: 9 (SIGKILL))",
            "Traceback: out of luck",
            "half a line",
            "hint: continue with: ",
            " --resume",
        ],
    );
    assert!(!stage.out().exists(), "{run}");
    let checkpoints = fs::read_dir(run_folder(&stage.out()).join("checkpoints")).unwrap();
    assert_eq!(checkpoints.count(), 2);
}

#[test]
fn talk_of_libraries_goes_to_a_file() {
    let model = Model::get();
    let talk = r"head -c 300000 /dev/zero | tr '\0' 'x'; printf '\n\377\376 no text \000\n'; printf 'later\036{not ours}\n'";
    let script = format!(
        "{talk}\n{}\n{talk}\nevent '{{\"event\":\"end\",\"step\":4}}'",
        model.script(1, 4)
    );
    let stage = Stage::new(&script);
    stage.train(&STEPS).ok();
    let log = fs::read(stage.engine().join("output.log")).unwrap();
    assert!(log.len() > 600_000 && log.windows(5).any(|part| part == b"later"));
}

#[test]
fn events_that_cannot_be_are_refused() {
    let model = Model::get();
    let ready = format!("event '{READY}'\n");
    let second = model.step(2);
    let wrong_state = model.state(1).replace("\"step\":1", "\"step\":3");
    for (script, problem) in [
        (
            format!("{ready}event '{{\"event\":\"step\"'"),
            "printed an event that cannot be read",
        ),
        (
            format!("{ready}event '{{\"event\":\"dance\"}}'"),
            "unknown variant `dance`",
        ),
        (format!("{ready}{second}"), "reported step 2 after step 0"),
        (
            format!("{ready}{}{wrong_state}", model.step(1)),
            "reported a state of step 3 after step 1",
        ),
        (
            format!("{ready}event '{{\"event\":\"end\",\"step\":4}}'"),
            "reported the end of step 4 after step 0",
        ),
        (
            "event '{\"event\":\"end\",\"step\":0}'".to_owned(),
            "reported `end` after step 0",
        ),
        (
            format!(
                "{ready}{}",
                model
                    .state(1)
                    .replace("cp '", ": '")
                    .replace("\"step\":1", "\"step\":0")
            ),
            "reported a state of step 0 after step 0",
        ),
    ] {
        let stage = Stage::new(&script);
        let run = stage.train(&STEPS).refused(3, &[problem]);
        assert!(!stage.out().exists(), "{run}");
    }
    // A state that lacks a parameter is no checkpoint, nor is one with files that its event does not name, or without some.
    let second = "training-state-00002-of-00002.safetensors";
    let removed = model
        .state(1)
        .replace("event ", &format!("rm \"$engine/state/{second}\"; event "));
    let unnamed = |script: &str| script.replace(&format!(",\"{second}\""), "");
    let files = "reported a state with other files than those in its folder after step 1";
    for (state, code, problem) in [
        (
            unnamed(&removed),
            2,
            "is missing from the optimiser's state",
        ),
        (removed, 3, files),
        (unnamed(&model.state(1)), 3, files),
    ] {
        let stage = Stage::new(&format!("{ready}{}{state}", model.step(1)));
        stage.train(&STEPS).refused(code, &[problem]);
        let checkpoints = fs::read_dir(run_folder(&stage.out()).join("checkpoints"));
        assert_eq!(checkpoints.unwrap().count(), 0);
    }
}

#[test]
fn bad_steps_and_failures_are_named() {
    let model = Model::get();
    let begin = model.script(1, 2);
    for (event, problem) in [
        (
            r#"{"event":"failed","kind":"nan","what":"the loss","step":3}"#,
            "step 3: the loss is not finite; its batch is rows 16 to 23",
        ),
        (
            r#"{"event":"failed","kind":"spike","norm":50.0,"factor":10.0,"mean":1.0,"step":3}"#,
            "step 3: the norm of the gradients is 5.000e1, more than 10 times the mean 1.000e0",
        ),
    ] {
        let stage = Stage::new(&format!("{begin}event '{event}'"));
        stage.train(&STEPS).refused(2, &[problem]);
    }
    let stage = Stage::new(&format!(
        "{begin}event '{}'",
        r#"{"event":"failed","kind":"memory","message":"the card ran out of memory"}"#
    ));
    stage.train(&STEPS).refused(
        3,
        &[
            "torch ran out of memory after step 2",
            "--gradient-checkpointing",
        ],
    );
    let stage = Stage::new(&format!(
        "{begin}event '{}'",
        r#"{"event":"failed","kind":"disk","message":"/x/state.part: No space left on device","path":"/x","errno":28}"#
    ));
    stage
        .train(&STEPS)
        .refused(3, &["/x/state.part: No space left", " --resume"]);

    // Numbers that are not finite are null in events, and in the log.
    let nulls =
        r#"event '{"event":"validation","step":2,"domains":{"code":{"nll":null,"tokens":5}}}'"#;
    let stage = Stage::new(&format!("{begin}{nulls}\nexit 1"));
    stage.train(&STEPS).refused(3, &["ended after step 2"]);
    let found = of_kind(&metrics(&stage.out()), "validation").pop().unwrap();
    assert_eq!(found["domains"]["code"]["nll"], Value::Null);
    // Our own trainer reads this log, and continues.
    let mut native = command(&seed(), &stage.out(), &STEPS);
    native.arg("--resume");
    let run = finish(native).ok();
    assert!(!run.stderr.contains("metrics.jsonl: "), "{run}");

    // What a rank says that lost another is less than what the other says.
    let lost = r#"{"event":"failed","kind":"rank-lost","message":"lost a rank"}"#;
    for (then, problem) in [
        ("exit 1".to_owned(), "lost a rank"),
        (
            r#"event '{"event":"failed","kind":"error","message":"the true cause"}'"#.to_owned(),
            "the true cause",
        ),
    ] {
        let stage = Stage::new(&format!("{begin}event '{lost}'\n{then}"));
        stage
            .train(&STEPS)
            .refused(3, &["torch failed after step 2", problem]);
    }

    // A step that is skipped is logged, and the run continues.
    let mut skip = model.position(3);
    let before = model.position(2);
    for key in ["updates", "norms", "norm_mean"] {
        skip[key] = before[key].clone();
    }
    skip["event"] = json!("skip");
    skip["kind"] = json!("nan");
    skip["what"] = json!("the norm of the gradients");
    let stage = Stage::new(&format!("{begin}event '{skip}'\nexit 1"));
    let run = stage.train(&STEPS).refused(
        3,
        &[
            "step 3 skipped: the norm of the gradients is not finite",
            "after step 3",
        ],
    );
    let skipped = &of_kind(&metrics(&stage.out()), "skip")[0];
    assert_eq!(
        skipped["rows"], "rows 16 to 23 (4 of code, 4 of law)",
        "{run}"
    );
}
