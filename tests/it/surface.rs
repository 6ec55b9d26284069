//! What all commands share: settings from the environment, colors, more notes, threads, and the endings of names.

use std::process::Command;

use crate::common::{Run, bam, binary, finish, fixture, run};

/// Runs a command with these variables, and with none that colors depend on.
fn with(variables: &[(&str, &str)], words: &[&str]) -> Run {
    let mut command = Command::new(binary());
    command
        .args(words)
        .env_clear()
        .envs(variables.iter().copied())
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env("HF_HUB_OFFLINE", "1");
    finish(command)
}

fn seed() -> String {
    fixture("llama/seed").display().to_string()
}

#[test]
fn variables_set_flags_and_flags_win() {
    let work = tempfile::tempdir().unwrap();
    let (seed, out) = (seed(), work.path().join("out").display().to_string());
    let dry = ["convert", &seed, &out, "-n"];
    let variables = [
        ("BAM_CONVERT_THREADS", "3"),
        ("BAM_CONVERT_MEMORY", "64MiB"),
    ];
    let shown = with(&variables, &dry).ok().stdout;
    assert!(shown.contains("3 threads"), "{shown}");
    let words = [&dry[..], &["--threads", "2"]].concat();
    let shown = with(&variables, &words).ok().stdout;
    assert!(shown.contains("2 threads"), "{shown}");
    // The variable that rayon reads counts where nothing else says it.
    let shown = with(&[("RAYON_NUM_THREADS", "5")], &dry).ok().stdout;
    assert!(shown.contains("5 threads"), "{shown}");

    let quiet = with(&[("BAM_CONVERT_QUIET", "1")], &["convert", &seed, &out]).ok();
    assert_eq!(quiet.stderr, "");
    let loud = with(
        &[("BAM_CONVERT_QUIET", "0")],
        &["convert", &seed, &out, "-f"],
    )
    .ok();
    assert!(loud.stderr.contains("wrote "), "{loud}");
}

#[test]
fn a_variable_that_its_flag_refuses_is_named() {
    for (variable, value, reason) in [
        ("BAM_CONVERT_THREADS", "0", "0 is not in 1..=1024"),
        ("BAM_CONVERT_THREADS", "many", "invalid digit"),
        ("BAM_CONVERT_DEVICE", "tpu", "cpu, cuda, cuda:N"),
        ("BAM_CONVERT_DEVICE", "cuda:x", "cpu, cuda, cuda:N"),
        ("BAM_CONVERT_QUIET", "perhaps", "1 or 0"),
        ("BAM_CONVERT_MEMORY", "0", "at least one byte"),
        ("BAM_CONVERT_COLOR", "red", "auto, always, never"),
    ] {
        let run = with(&[(variable, value)], &["inspect", &seed()]);
        run.refused(2, &[variable, value, reason, "hint: unset it"]);
        with(&[(variable, "")], &["inspect", &seed()]).ok();
    }
    for variable in ["BAM_CONVERT_QUIET", "BAM_CONVERT_THREADS"] {
        let mut command = std::process::Command::new(crate::common::binary());
        let no_text = std::os::unix::ffi::OsStrExt::from_bytes(&b"1\xff"[..]);
        command
            .args(["inspect", &seed()])
            .env::<_, &std::ffi::OsStr>(variable, no_text);
        crate::common::finish(command).refused(2, &[variable, "expected UTF-8"]);
    }
}

#[test]
fn colors_are_asked_for() {
    let escape = "\u{1b}[";
    let missing = ["inspect", "absent"];
    let always = with(&[], &["inspect", "absent", "--color", "always"]);
    assert!(always.stderr.starts_with(escape), "{always}");
    for (variables, words) in [
        (&[][..], &missing[..]),
        (&[("BAM_CONVERT_COLOR", "never")], &missing),
        (&[("NO_COLOR", "1"), ("TERM", "xterm")], &missing),
        (
            &[("BAM_CONVERT_COLOR", "always")],
            &["inspect", "absent", "--color=never"],
        ),
    ] {
        let plain = with(variables, words);
        assert!(!plain.stderr.contains(escape), "{plain}");
    }
    let set = with(&[("BAM_CONVERT_COLOR", "always")], &missing);
    assert!(set.stderr.contains(escape), "{set}");
    let help = with(&[], &["--color", "always", "--help"]).ok();
    assert!(help.stdout.contains(escape), "{help}");
    // A result is for other programs, too.
    let result = with(&[], &["inspect", &seed(), "--color", "always"]).ok();
    assert!(!result.stdout.contains(escape), "{result}");
}

#[test]
fn verbose_says_threads_environment_time_and_memory() {
    let run = with(&[("BAM_CONVERT_THREADS", "1")], &["inspect", &seed(), "-v"]).ok();
    for part in ["1 thread", "BAM_CONVERT_THREADS=1", " s, memory at most "] {
        assert!(run.stderr.contains(part), "{part}\n{run}");
    }
    let quiet = with(&[], &["inspect", &seed()]).ok();
    assert_eq!(quiet.stderr, "");
    bam!("inspect", seed(), "-v", "-q").refused(2, &["--verbose", "--quiet"]);
}

#[test]
fn short_flags_are_the_long_ones() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let line = |flags: &[&str]| {
        let words = ["merge".into(), "--model".into(), seed().into(), "-o".into()];
        let flags = flags.iter().map(Into::into);
        run(words.into_iter().chain([out.clone().into()]).chain(flags))
    };
    line(&["-n"]).ok();
    assert!(!out.exists());
    line(&[]).ok();
    line(&[]).refused(2, &["--force"]);
    line(&["-f"]).ok();
}

#[test]
fn the_ending_of_a_name_says_which_file_convert_writes() {
    let work = tempfile::tempdir().unwrap();
    for form in ["gguf", "npz"] {
        let named = work.path().join(format!("named.{form}"));
        let asked = work.path().join(format!("asked-{form}"));
        bam!("convert", seed(), &named).ok();
        bam!("convert", seed(), &asked, "--to", form).ok();
        let bytes = |path| std::fs::read(path).unwrap();
        assert_eq!(bytes(&named), bytes(&asked), "{form}");
    }
    let out = work.path().join("x.gguf");
    bam!("convert", seed(), &out, "--layout", "fused").refused(2, &["--layout", "gguf"]);
    bam!("convert", seed(), &out, "--quantize", "q8_0").ok();
    bam!("convert", seed(), work.path().join("folder")).ok();
    assert!(work.path().join("folder").is_dir());
}
