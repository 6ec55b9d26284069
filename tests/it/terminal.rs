//! What reaches a terminal: names of strangers' files cannot move its cursor, hide or turn round words, or forge lines.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Run, bam, copy_folder, edit_json, fixture, run};
use serde_json::json;

/// What a terminal obeys, what turns round words, what nobody sees, and a line of its own.
const EVIL: &str = "e\u{1b}[2J\u{9b}31m\u{7f}\r\u{202e}\u{2066}\u{200f}\u{61c}\u{200b}\u{feff}\u{2028}\u{e0041}\nFORGED";

fn is_raw(c: char) -> bool {
    let hidden = [
        '\u{ad}',
        '\u{61c}',
        '\u{feff}',
        '\u{2028}',
        '\u{2029}',
        '\u{200b}',
        '\u{e0041}',
    ];
    let turns = ('\u{200e}'..='\u{200f}').contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c);
    c.is_control() && c != '\n' || hidden.contains(&c) || turns
}

#[track_caller]
fn assert_printable(text: &str, of: &dyn std::fmt::Display) {
    let raw: Vec<char> = text.chars().filter(|c| is_raw(*c)).collect();
    assert!(raw.is_empty(), "raw {raw:?}\n{of}");
    let forged = text.lines().any(|line| line.starts_with("FORGED"));
    assert!(!forged, "a forged line\n{of}");
}

/// Asserts that a run ended in order, and printed nothing raw; returns whether it showed the hostile name.
#[track_caller]
fn assert_safe(run: &Run) -> bool {
    assert!(matches!(run.code, Some(0..=3)), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    assert_printable(&run.stdout, run);
    assert_printable(&run.stderr, run);
    let said = format!("{}{}", run.stdout, run.stderr);
    said.contains("\\u{202e}") || said.contains("\\u202e")
}

/// A mixture whose experts have hostile names, in a folder with a hostile name, beside dense models, texts and a log.
struct World {
    work: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            work: tempfile::tempdir().unwrap(),
        };
        for name in ["seed", "code"] {
            copy_folder(&fixture("llama").join(name), &world.path(name));
        }
        copy_folder(&fixture("llama/code"), &world.path(EVIL));
        fs::write(world.path("code.txt"), "fn main() {}\n".repeat(40)).unwrap();
        fs::copy(world.path("code.txt"), world.path(&format!("{EVIL}.txt"))).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn mixture(&self) -> PathBuf {
        let out = self.path(&format!("{EVIL}-mixture"));
        let expert = format!("code={}", self.path("code").display());
        bam!(
            "upcycle",
            "--method",
            "btx",
            "--seed",
            self.path("seed"),
            "--expert",
            expert,
            "--out",
            out
        )
        .ok();
        edit_json(&out.join("config.json"), |config| {
            let names = config["expert_names"].as_array_mut().unwrap();
            names.iter_mut().for_each(|name| {
                *name = format!("{}{EVIL}", name.as_str().unwrap()).into();
            });
        });
        edit_json(&out.join("bam-manifest.json"), |manifest| {
            manifest["method"] = EVIL.into();
        });
        out
    }
}

fn words(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

fn named(path: &Path) -> String {
    format!("{EVIL}={}", path.display())
}

/// A text as YAML, which cannot hold controls as they are.
fn yaml(text: &str) -> String {
    let escape = |c: char| match c {
        ' '..='~' if !"\"\\".contains(c) => c.to_string(),
        _ => format!("\\U{:08x}", u32::from(c)),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

#[test]
fn no_command_prints_a_name_raw() {
    let world = World::new();
    let (mixture, seed, evil) = (world.mixture(), world.path("seed"), world.path(EVIL));
    let out = world.path(&format!("{EVIL}-out"));
    let text = world.path("code.txt");
    let (data, expert) = (named(&text), named(&evil));
    let llama = fs::read_to_string(fixture("../formats/llama.yaml")).unwrap();
    let format = world.path("format.yaml");
    let family = llama.replace("name: llama\n", &format!("name: {}\n", yaml(EVIL)));
    fs::write(&format, family).unwrap();
    let lines = [
        words(&[&"cost", &seed, &"--format", &format]),
        words(&[
            &"init",
            &evil,
            &"--out",
            &world.path(&format!("{EVIL}-new")),
        ]),
        words(&[&"branch", &seed, &"--into", &EVIL, &"--out", &out]),
        words(&[
            &"expert",
            &"add",
            &mixture,
            &"--expert",
            &expert,
            &"--out",
            &out,
        ]),
        words(&[&"expert", &"replace", &mixture, &expert, &"--out", &out]),
        words(&[&"expert", &"concat", &mixture, &mixture, &"--out", &out]),
        words(&[&"completions", &EVIL]),
        words(&[&"man", &"--out", &world.path(&format!("{EVIL}-man"))]),
        words(&[&"inspect", &mixture, &"--tensors"]),
        words(&[&"inspect", &mixture, &"--json"]),
        words(&[&"inspect", &"--divergence", &seed, &evil]),
        words(&[&"inspect", &"--divergence", &seed, &expert, &"--json"]),
        words(&[&"inspect", &world.path(&format!("{EVIL}-missing"))]),
        words(&[&"validate", &mixture]),
        words(&[&"validate", &mixture, &"--against", &"--json"]),
        words(&[&"diff", &mixture, &mixture]),
        words(&[&"diff", &seed, &evil, &"--all"]),
        words(&[&"convert", &mixture, &out, &"--dry-run"]),
        words(&[&"convert", &evil, &world.path(&format!("{EVIL}-out"))]),
        words(&[&"merge", &evil, &evil, &"--out", &out]),
        words(&[
            &"upcycle",
            &"--method",
            &"btx",
            &"--seed",
            &seed,
            &"--expert",
            &expert,
            &"--out",
            &out,
        ]),
        words(&[
            &"upcycle",
            &"--method",
            &EVIL,
            &"--seed",
            &seed,
            &"--out",
            &out,
        ]),
        words(&[&"expert", &"remove", &mixture, &EVIL, &"--out", &out]),
        words(&[&"expert", &"extract", &mixture, &EVIL, &"--out", &out]),
        words(&[
            &"eval",
            &mixture,
            &"--data",
            &data,
            &"--report-routing",
            &"--max-tokens",
            &"16",
        ]),
        words(&[
            &"eval",
            &mixture,
            &"--data",
            &data,
            &"--json",
            &"--max-tokens",
            &"16",
        ]),
        words(&[
            &"tokenize",
            &world.path(&format!("{EVIL}.txt")),
            &"--tokenizer",
            &seed,
            &"--out",
            &world.path(&format!("{EVIL}-tokens")),
        ]),
        words(&[&"logits", &seed, &evil, &"--tokens", &EVIL]),
        words(&[
            &"report",
            &evil,
            &"--out",
            &world.path(&format!("{EVIL}.html")),
        ]),
        words(&[
            &"generate",
            &evil,
            &"--prompt",
            &EVIL,
            &"--json",
            &"--max-tokens",
            &"1",
        ]),
        words(&[&EVIL]),
        words(&[&"inspect", &seed, &format!("--{EVIL}")]),
        words(&[&"run", &world.path(&format!("{EVIL}.yaml"))]),
    ];
    let count = lines.len();
    let shown = lines
        .into_iter()
        .filter(|line| assert_safe(&run(line.clone())));
    // A preview names patterns of tensors only, and what clap does not know it shows without escapes.
    let shown = shown.count();
    assert!(shown + 3 >= count, "{shown} of {count} show the name");
    let train = [
        "train",
        "--steps",
        "1",
        "--batch",
        "1",
        "--seq",
        "8",
        "--dry-run",
        "--out",
    ];
    let tokens = named(&world.path(&format!("{EVIL}-tokens")));
    let mut line: Vec<OsString> = train.map(Into::into).to_vec();
    line.extend(words(&[&out, &"--data", &tokens, &seed]));
    assert!(assert_safe(&run(line)));
    // A page and a drawing are shown too.
    let svg = world.path("routing.svg");
    bam!(
        "eval",
        mixture,
        "--data",
        data,
        "--max-tokens",
        "16",
        "--routing-svg",
        svg
    )
    .ok();
    for file in [svg, world.path(&format!("{EVIL}.html"))] {
        assert_printable(
            &fs::read_to_string(&file).unwrap().replace("\nFORGED", ""),
            &file.display(),
        );
    }
}

#[test]
fn json_says_what_it_escapes() {
    let world = World::new();
    let mixture = world.mixture();
    let run = bam!("inspect", mixture, "--json").ok();
    assert_printable(&run.stdout, &run);
    let name = run.json()["expert_names"][0].clone();
    assert_eq!(
        name,
        json!(format!("seed{EVIL}")),
        "a program gets the name as it is"
    );
}

#[test]
fn a_recipe_cannot_hide_its_commands() {
    let world = World::new();
    let recipe = world.path("recipe.yaml");
    let write = |work: &str, shell: &str| {
        let text = format!(
            "work: {}\nstages:\n  - name: a\n    shell: {{command: {}, inputs: {}}}\n  - name: b\n    inspect: {{path: {}}}\n    stdout: b.txt\n",
            yaml(work),
            yaml(shell),
            yaml(&format!("{EVIL}.in")),
            yaml(EVIL)
        );
        fs::write(&recipe, text).unwrap();
    };
    let work = world.path("work");
    let work = work.to_str().unwrap();
    write(&format!("{work}{EVIL}"), "true");
    for flags in [
        &["--dry-run"][..],
        &["--executor", "slurm", "--dry-run"],
        &[],
    ] {
        let line = [recipe.as_os_str().to_owned()].into_iter();
        let line = line.chain(flags.iter().map(Into::into));
        let run = run([OsString::from("run")].into_iter().chain(line));
        assert_safe(&run.refused(2, &["recipe.yaml:1", "`work`"]));
    }
    write(work, &format!("printf '%s' '{EVIL}' >&2; exit 4"));
    for flag in ["--dry-run", "--status", "--json"] {
        assert_safe(&bam!("run", recipe, flag));
    }
    // The last lines of a log have a mark.
    fs::create_dir_all(work).unwrap();
    fs::write(Path::new(work).join(format!("{EVIL}.in")), "").unwrap();
    let run = bam!("run", recipe).refused(2, &["exit code 4", "  | FORGED"]);
    assert!(assert_safe(&run));
}

#[test]
fn a_manifest_cannot_hide_the_shell_that_it_runs() {
    let world = World::new();
    let mixture = world.mixture();
    edit_json(&mixture.join("bam-manifest.json"), |manifest| {
        let stage = json!({"name": EVIL, "command": "shell", "settings": {"command": [EVIL]}, "needs": [], "inputs": {}});
        manifest["recipe"] = json!({"output": "out", "sources": {EVIL: EVIL}, "stages": [stage]});
    });
    let run = bam!("run", "--from-manifest", mixture);
    assert_safe(&run.refused(2, &["--allow-shell"]));
}

/// A terminal of its own shows a model's text without what would move its cursor; a file gets it as it is.
#[test]
fn a_model_s_text_is_made_printable_on_a_terminal_only() {
    let script = Command::new("script").arg("--version").output();
    if !script.is_ok_and(|output| output.status.success()) {
        return;
    }
    let world = World::new();
    let seed = world.path("seed");
    // The model repeats nothing: its tokenizer spells every token as an escape.
    edit_json(&seed.join("tokenizer.json"), |tokenizer| {
        tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"Regex": ".+"}, "content": "\u{1b}[2J\u{202e}x\n"}]});
    });
    let line = [
        "generate",
        seed.to_str().unwrap(),
        "--prompt",
        "a",
        "--max-tokens",
        "3",
    ];
    let plain = run(line.map(Into::into)).ok();
    assert!(plain.stdout.contains("\u{1b}[2J\u{202e}x\n"), "{plain}");
    let command = format!("{} {}", crate::common::binary().display(), line.join(" "));
    let shown = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        !shown.contains("\u{1b}[2J") && !shown.contains('\u{202e}'),
        "{shown:?}"
    );
    assert!(shown.contains("\\u{1b}[2J\\u{202e}x\r\n"), "{shown:?}");
}
