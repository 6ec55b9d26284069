//! Completions: each script in its own shell, where a person types a line and presses Tab.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::common::{bam, finish, note};

/// What is typed before Tab, and how the line begins after it. Shells differ in what they put after a flag.
const LINES: [(&str, &str); 10] = [
    ("bam-convert upc", "bam-convert upcycle "),
    ("bam-convert expert repl", "bam-convert expert replace "),
    ("bam-convert upcycle --see", "bam-convert upcycle --seed"),
    (
        "bam-convert upcycle --kv sh",
        "bam-convert upcycle --kv shared ",
    ),
    (
        "bam-convert upcycle --method inter",
        "bam-convert upcycle --method interpolate ",
    ),
    (
        "bam-convert convert a b --dtype bf",
        "bam-convert convert a b --dtype bf16 ",
    ),
    (
        "bam-convert upcycle --seed spec",
        "bam-convert upcycle --seed specialist/",
    ),
    (
        "bam-convert upcycle --expert code=spec",
        "bam-convert upcycle --expert code=specialist/",
    ),
    (
        "bam-convert inspect spec",
        "bam-convert inspect specialist/",
    ),
    (
        "bam-convert completions fi",
        "bam-convert completions fish ",
    ),
];

/// A shell prints the line between these when it gets the character of [`SHOW`].
const BASH: &str = r#"
PS1=
bind 'set enable-bracketed-paste off'
show() { printf '\nLINE<%s>\n' "$READLINE_LINE"; exit; }
bind -x '"\C-g": show'
source ./script
"#;
const ZSH: &str = r#"
PS1=
fpath=($PWD $fpath)
autoload -U compinit
compinit -D -u
show() { print -r -- "
LINE<$BUFFER>"; exit }
zle -N show
bindkey '^G' show
"#;
const SHOW: char = '\x07';

fn has(program: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("command -v {program}")]);
    finish(command).code == Some(0)
}

/// A folder with the script of a shell, and a folder whose name can be completed.
fn prepared(shell: &str, script: &str) -> TempDir {
    let work = TempDir::new().unwrap();
    let text = bam!("completions", shell).ok().stdout;
    fs::write(work.path().join(script), text).unwrap();
    fs::create_dir(work.path().join("specialist")).unwrap();
    work
}

/// The line that a shell on a terminal has after `typed` and Tab.
fn after_tab(work: &Path, shell: &str, typed: &str) -> String {
    let mut command = Command::new("timeout");
    command
        .args(["60", "script", "--quiet", "--return"])
        .args(["--command", shell, "/dev/null"])
        .current_dir(work)
        .env("ZDOTDIR", work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    write!(input, "{typed}\t{SHOW}").unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = screen
        .rsplit_once("LINE<")
        .and_then(|(_, after)| after.split_once('>'));
    line.unwrap_or_else(|| panic!("{shell}, {typed}: {screen}"))
        .0
        .to_owned()
}

#[test]
fn bash_completes_commands_flags_values_and_paths() {
    if !has("script") {
        note("`script` is not installed, so completions in bash are not tested");
        return;
    }
    let work = prepared("bash", "script");
    fs::write(work.path().join("rc"), BASH).unwrap();
    for (typed, expected) in LINES {
        let line = after_tab(work.path(), "bash --rcfile rc -i", typed);
        // readline adds the slash to a folder with the next Tab.
        let is_folder = expected.ends_with('/') && line.trim_end().len() + 1 == expected.len();
        assert!(line.starts_with(expected) || is_folder, "{typed} => {line}");
    }
}

#[test]
fn zsh_completes_commands_flags_values_and_paths() {
    if !(has("script") && has("zsh")) {
        note("zsh is not installed, so its completions are not tested");
        return;
    }
    let work = prepared("zsh", "_bam-convert");
    fs::write(work.path().join(".zshrc"), ZSH).unwrap();
    for (typed, expected) in LINES {
        let line = after_tab(work.path(), "zsh -d -i", typed);
        assert!(line.starts_with(expected), "{typed} => {line}");
    }
}

#[test]
fn fish_completes_commands_flags_values_and_paths() {
    if !has("fish") {
        note("fish is not installed, so its completions are not tested");
        return;
    }
    let work = prepared("fish", "script");
    for (typed, expected) in LINES {
        let mut command = Command::new("fish");
        command
            .args([
                "--no-config",
                "-c",
                "source script; complete -C $argv[1]",
                typed,
            ])
            .env("HOME", work.path())
            .current_dir(work.path());
        let list = finish(command).ok().stdout;
        // fish lists the last word of the line, and what the word means.
        let word = expected.trim_end().rsplit(' ').next().unwrap();
        let is_listed = list
            .lines()
            .any(|line| line.split('\t').next() == Some(word));
        assert!(is_listed, "{typed} => {list}");
    }
}
