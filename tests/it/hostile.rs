//! Files that no reader may trust: refused by name, or read; never a crash, never much memory.
//!
//! `fixtures/hostile/index.json` lists them with what a message must hold; `fixtures/make_hostile.py` made them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Run, bam, contents, copy_folder, finish, fixture, listing, read_json};
use tempfile::TempDir;

/// Runs the binary with 2 GiB of address space.
fn confined(arguments: &[OsString]) -> Run {
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -v 2097152; exec timeout 60 \"$@\"", "bash"])
        .arg(crate::common::binary())
        .args(arguments);
    // What mergekit's files name is seen from here.
    command.current_dir(fixture("hostile"));
    let run = finish(command);
    assert!(
        !run.stderr.contains("panicked") && run.code.is_some() && run.code != Some(101),
        "{run}"
    );
    for text in [&run.stdout, &run.stderr] {
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() && c != '\n' && c != '\t'),
            "raw control characters\n{run}"
        );
    }
    run
}

struct Entry {
    name: String,
    /// What reads it, where its path does not say so.
    kind: String,
    path: PathBuf,
    expect: String,
    refused: bool,
}

fn entries() -> Vec<Entry> {
    let index = read_json(fixture("hostile/index.json"));
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let entries = index
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, entry)| Entry {
            name: name.clone(),
            kind: entry.get("use").map(text).unwrap_or_default(),
            path: fixture("hostile").join(text(&entry["path"])),
            expect: text(&entry["expect"]),
            refused: entry["refused"].as_bool().unwrap(),
        });
    let entries: Vec<Entry> = entries.collect();
    assert!(entries.len() > 300);
    entries
}

fn inspect(path: &Path) -> Vec<OsString> {
    vec!["inspect".into(), path.into(), "--tensors".into()]
}

fn convert(path: &Path, out: &Path) -> Vec<OsString> {
    vec!["convert".into(), path.into(), out.into()]
}

/// `path` as an expert of the whole checkpoint `good`.
fn upcycle(seed: &Path, expert: &Path, out: &Path) -> Vec<OsString> {
    let expert = format!("x={}", expert.display());
    ["upcycle", "--method", "bam", "--seed"]
        .map(Into::into)
        .into_iter()
        .chain([
            seed.into(),
            "--expert".into(),
            expert.into(),
            "--out".into(),
            out.into(),
        ])
        .collect()
}

#[test]
fn every_entry_of_the_index() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let good = fixture("hostile/good");
    for entry in entries().into_iter().filter(|entry| entry.kind.is_empty()) {
        let path = &entry.path;
        // What is wrong with weights shows at once; a configuration or tokenizer matters to those who use it.
        let of_weights = entry.name.starts_with("st-")
            || entry.name.starts_with("index-")
            || entry.name.starts_with("npz-")
            || entry.name.starts_with("pt-")
            || entry.name.starts_with("weights-");
        let of_words = entry.name.starts_with("gguf-to") || entry.name.starts_with("gguf-merge");
        // What is of an architecture that is not read can be shown.
        let of_words = of_words || entry.name == "gguf-architecture";
        let seen = confined(&inspect(path));
        let mut uses = vec![convert(path, &out)];
        if path.is_dir() {
            uses = vec![upcycle(&good, path, &out)];
        }
        if !entry.refused {
            assert_eq!(seen.code, Some(0), "{}: {seen}", entry.name);
            for arguments in uses {
                let run = confined(&arguments).ok();
                assert!(out.is_dir(), "{}: {run}", entry.name);
                std::fs::remove_dir_all(&out).unwrap();
            }
            continue;
        }
        let mut runs: Vec<Run> = uses.iter().map(|arguments| confined(arguments)).collect();
        if of_weights
            || (path
                .extension()
                .is_some_and(|extension| extension == "gguf")
                && !of_words)
        {
            runs.push(seen);
        }
        for run in runs {
            assert!(
                [Some(2), Some(3)].contains(&run.code),
                "{}: {run}",
                entry.name
            );
            assert!(
                run.stderr.contains(&entry.expect),
                "{}: no `{}` in {run}",
                entry.name,
                entry.expect
            );
            let file = path.file_name().unwrap().to_str().unwrap();
            assert!(
                run.stderr.contains(file),
                "{}: no file name in {run}",
                entry.name
            );
        }
        assert!(
            listing(work.path()).is_empty(),
            "{}: something was left",
            entry.name
        );
    }
}

/// The commands that read an entry with a use of its own.
fn uses(entry: &Entry, out: &Path) -> Vec<Vec<OsString>> {
    let good = fixture("hostile/good");
    let line = |parts: &[&dyn AsRef<std::ffi::OsStr>]| -> Vec<OsString> {
        parts.iter().map(|part| part.as_ref().to_owned()).collect()
    };
    let path = &entry.path;
    let of = |option: &str| format!("{option}{}", path.display());
    match entry.kind.as_str() {
        "recipe" => vec![line(&[&"run", path, &"--dry-run", &"--work", &out])],
        "format" => vec![
            line(&[&"cost", &good, &"--format", path]),
            line(&[
                &"branch",
                &good,
                &"--format",
                path,
                &"--into",
                &"a",
                &"--out",
                &out,
            ]),
        ],
        "prompts" | "router" => {
            let router = of(if entry.kind == "router" {
                "file:"
            } else {
                "prompts:"
            });
            vec![[upcycle(&good, &good, out), line(&[&"--router", &router])].concat()]
        }
        "settings" | "mergekit" => vec![line(&[&"upcycle", &"--config", path, &"--out", &out])],
        "linear" => vec![line(&[&"merge", &"--config", path, &"--out", &out])],
        "text" => vec![line(&[
            &"tokenize",
            &"--tokenizer",
            &"train:300",
            &"--validation",
            &"0",
            &"--out",
            &out,
            path,
        ])],
        "manifest" => vec![line(&[&"validate", path, &"--against"])],
        "generation" => vec![line(&[
            &"generate",
            path,
            &"--prompt",
            &"abc",
            &"--max-tokens",
            &"2",
        ])],
        "template" => vec![line(&[
            &"generate",
            path,
            &"--chat",
            &"--prompt",
            &"abc",
            &"--max-tokens",
            &"2",
        ])],
        "tokenizer" => vec![line(&[
            &"generate",
            path,
            &"--prompt",
            &"abc",
            &"--max-tokens",
            &"2",
        ])],
        "tokens" => {
            let options = "--steps 1 --batch 2 --seq 4 --documents separate --out"
                .split(' ')
                .map(Into::into);
            let data: Vec<OsString> = line(&[&"train", &good, &"--data", &of("x=")]);
            vec![
                data.into_iter()
                    .chain(options)
                    .chain([out.into()])
                    .collect(),
            ]
        }
        other => panic!("no command reads {other}"),
    }
}

#[test]
fn every_entry_with_a_use_of_its_own() {
    for entry in entries().into_iter().filter(|entry| !entry.kind.is_empty()) {
        let work = TempDir::new().unwrap();
        let out = work.path().join("out");
        for arguments in uses(&entry, &out) {
            let began = Instant::now();
            let run = confined(&arguments);
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{}: {:?} in {run}",
                entry.name,
                began.elapsed()
            );
            if !entry.refused {
                run.ok();
                continue;
            }
            // Of a manifest, `validate` says no; every other command cannot begin.
            let expected = if entry.kind == "manifest" { 1 } else { 2 };
            assert_eq!(run.code, Some(expected), "{}: {run}", entry.name);
            let said = format!("{}{}", run.stderr, run.stdout);
            assert!(
                said.contains(&entry.expect),
                "{}: no `{}` in {run}",
                entry.name,
                entry.expect
            );
            assert!(
                said.len() < 20_000,
                "{}: {} bytes said",
                entry.name,
                said.len()
            );
            // A run that began keeps its log.
            let left = listing(work.path())
                .into_keys()
                .find(|name| !name.starts_with("out.run"));
            assert_eq!(left, None, "{}: {run}", entry.name);
        }
    }
}

#[test]
fn a_broken_configuration_as_seed() {
    let work = TempDir::new().unwrap();
    for entry in entries()
        .iter()
        .filter(|entry| entry.name.starts_with("config-") && entry.refused)
    {
        let run = confined(&upcycle(
            &entry.path,
            &fixture("hostile/good"),
            &work.path().join("out"),
        ));
        assert!(
            [Some(2), Some(3)].contains(&run.code),
            "{}: {run}",
            entry.name
        );
        assert!(run.stderr.contains(&entry.expect), "{}: {run}", entry.name);
        let cost = confined(&["cost".into(), entry.path.clone().into()]);
        let of_weights =
            ["config-hidden-wrong", "config-vocab-wrong"].contains(&entry.name.as_str());
        assert_eq!(cost.code == Some(0), of_weights, "{}: {cost}", entry.name);
    }
    assert!(listing(work.path()).is_empty());
}

#[test]
fn an_escape_in_a_name_is_shown_escaped() {
    let path = fixture("hostile/st-name-escape.safetensors");
    let run = confined(&inspect(&path)).ok();
    assert!(run.stdout.contains("\\u{1b}[2Jevil"), "{run}");
    let json = bam!("inspect", path, "--tensors", "--json").ok().json();
    assert_eq!(
        json["tensors"][0]["name"], "\u{1b}[2Jevil\n\u{7}.weight",
        "a program gets the name as it is"
    );
}

/// Reading the header of a file cut anywhere, or with any one byte changed, ends in order.
#[test]
fn cut_and_changed_files() {
    let work = TempDir::new().unwrap();
    let whole = std::fs::read(fixture("hostile/st-good.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in (0..whole.len()).step_by(9) {
        let path = work.path().join("cut.safetensors");
        std::fs::write(&path, &whole[..length]).unwrap();
        confined(&inspect(&path)).refused(2, &["cut.safetensors"]);
    }
    for place in (0..header).step_by(7) {
        let path = work.path().join("changed.safetensors");
        let mut bytes = whole.clone();
        bytes[place] ^= 0x11;
        std::fs::write(&path, bytes).unwrap();
        let run = confined(&inspect(&path));
        assert!(
            [Some(0), Some(2)].contains(&run.code),
            "byte {place}: {run}"
        );
    }
}

/// A pipe in the place of a file, which nobody writes to.
fn make_pipe(path: &Path) {
    let _ = std::fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// What a training run reads again when it resumes.
#[test]
fn a_broken_run_is_not_resumed() {
    let work = TempDir::new().unwrap();
    let train = |more: &str| {
        let line = format!(
            "train {} --data x={} --steps 2 --save-every 1 --keep 1 --batch 2 --seq 4 --out {} {more}",
            fixture("hostile/good").display(),
            fixture("hostile/tokens-good").display(),
            work.path().join("out").display()
        );
        confined(
            &line
                .split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>(),
        )
    };
    train("").ok();
    std::fs::remove_dir_all(work.path().join("out")).unwrap();
    let step = "checkpoints/step-00000002";
    let (state, settings) = (
        format!("{step}/training-state.safetensors"),
        format!("{step}/training-state.json"),
    );
    let file = |name: &str| work.path().join("out.run").join(name);
    let half = |name: &str| {
        let bytes = std::fs::read(file(name)).unwrap();
        bytes[..bytes.len() / 2].to_vec()
    };
    let nested = [b"{\"a\":".to_vec(), b"[".repeat(100_000)].concat();
    for (name, bytes) in [
        (&state, half(&state)),
        (
            &state,
            std::fs::read(fixture("hostile/st-good.safetensors")).unwrap(),
        ),
        (&state, b"\xff".repeat(64)),
        (&settings, half(&settings)),
        (&settings, nested),
    ] {
        let kept = std::fs::read(file(name)).unwrap();
        std::fs::write(file(name), bytes).unwrap();
        train("--resume").refused(2, &[Path::new(name).file_name().unwrap().to_str().unwrap()]);
        assert!(!work.path().join("out").exists(), "{name} is not taken");
        std::fs::write(file(name), kept).unwrap();
    }
    train("--resume").ok();
}

#[test]
fn pipes_devices_and_loops() {
    let work = TempDir::new().unwrap();
    let pipe = work.path().join("pipe.safetensors");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    confined(&inspect(&pipe)).refused(2, &["pipe.safetensors"]);
    confined(&inspect(Path::new("/dev/zero"))).refused(2, &["/dev/zero"]);
    let around = work.path().join("loop.safetensors");
    std::os::unix::fs::symlink(&around, &around).unwrap();
    confined(&inspect(&around)).refused(2, &["loop.safetensors"]);
    // A tokenizer that is a device is not copied, a weight file that is a pipe is not waited for.
    let folder = copy_folder(&fixture("hostile/good"), &work.path().join("good"));
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    std::fs::rename(&pipe, folder.join("model.safetensors")).unwrap();
    confined(&upcycle(
        &fixture("hostile/good"),
        &folder,
        &work.path().join("out"),
    ))
    .refused(2, &["model.safetensors"]);
    assert!(contents(&fixture("hostile/good")).contains_key("model.safetensors"));
    // Nor is any other file.
    for file in [
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer_config.json",
    ] {
        let folder = copy_folder(
            &fixture("hostile/template-good"),
            &work.path().join(format!("without-{file}")),
        );
        make_pipe(&folder.join(file));
        let line =
            ["generate", "--chat", "--max-tokens", "1", "--prompt", "abc"].map(OsString::from);
        confined(&line.into_iter().chain([folder.into()]).collect::<Vec<_>>()).refused(2, &[file]);
    }
    let folder = copy_folder(&fixture("hostile/tokens-good"), &work.path().join("tokens"));
    let recipe = work.path().join("pipe.yaml");
    make_pipe(&folder.join("header.json"));
    make_pipe(&recipe);
    let text = work.path().join("pipe.txt");
    make_pipe(&text);
    let (good, data, prompts) = (
        fixture("hostile/good"),
        format!("x={}", folder.display()),
        recipe.display(),
    );
    let out = work.path().join("out");
    for (arguments, file) in [
        (
            vec![
                "eval".into(),
                good.clone().into(),
                "--data".into(),
                data.into(),
            ],
            "header.json",
        ),
        (
            vec!["run".into(), recipe.clone().into(), "--dry-run".into()],
            "pipe.yaml",
        ),
        (
            vec![
                "upcycle".into(),
                "--config".into(),
                recipe.clone().into(),
                "--out".into(),
                out.clone().into(),
            ],
            "pipe.yaml",
        ),
        (
            ["tokenize", "--tokenizer", "train:300", "--out"]
                .map(Into::into)
                .into_iter()
                .chain([out.clone().into(), text.into()])
                .collect(),
            "pipe.txt",
        ),
        (
            vec![
                "cost".into(),
                good.clone().into(),
                "--format".into(),
                recipe.clone().into(),
            ],
            "pipe.yaml",
        ),
        (
            [
                upcycle(&good, &good, &out),
                vec!["--router".into(), format!("prompts:{prompts}").into()],
            ]
            .concat(),
            "pipe.yaml",
        ),
        (
            [
                upcycle(&good, &good, &out),
                vec!["--router".into(), format!("file:{prompts}").into()],
            ]
            .concat(),
            "pipe.yaml",
        ),
    ] {
        confined(&arguments).refused(2, &[file]);
    }
}

#[test]
fn a_large_sparse_file_takes_no_memory() {
    // 8 GiB of zeros after a valid header. Recognising the file must not read them.
    let work = TempDir::new().unwrap();
    let path = work.path().join("large.safetensors");
    let elements = 4u64 << 30;
    let header = format!(
        r#"{{"w":{{"dtype":"BF16","shape":[{elements}],"data_offsets":[0,{}]}}}}"#,
        2 * elements
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    std::fs::write(&path, &bytes).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(bytes.len() as u64 + 2 * elements)
        .unwrap();
    let run = confined(&inspect(&path)).ok();
    assert!(run.stdout.contains("4,294,967,296"), "{run}");
    confined(
        &[
            convert(&path, &work.path().join("out")),
            vec!["--dry-run".into()],
        ]
        .concat(),
    )
    .ok();
}

#[test]
fn a_text_that_would_unfold_is_refused() {
    // 24 MB of empty lists would take a gigabyte as values.
    let work = TempDir::new().unwrap();
    let path = work.path().join("wide.safetensors");
    let header = format!("{{\"a\":[{}[]]}}", "[],".repeat(8_000_000));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    std::fs::write(&path, &bytes).unwrap();
    confined(&inspect(&path)).refused(2, &["wide.safetensors", "values"]);
}
