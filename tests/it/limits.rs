//! Every command on a machine that gives little: few open files, small files, little memory, closed streams, no folder for
//! temporary files, no home, a working folder that is gone. It does its work or says what it lacks; it never panics, aborts
//! or leaves half a file.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    Noise, Run, Tensor, Tensors, bam, binary, copy_folder, finish, fixture, listing, read_file,
    read_folder, write_file,
};
use safetensors::Dtype;
use tempfile::TempDir;

/// Lines of commands; `HERE` is the folder of the sources, `OUT` the output.
const COMMANDS: [&str; 24] = [
    "inspect HERE/seed --tensors",
    "cost HERE/seed",
    "init HERE/seed/config.json --out OUT",
    "convert HERE/seed OUT --dtype f16",
    "convert HERE/seed OUT --to gguf",
    "convert HERE/seed OUT --to npz",
    "branch HERE/seed --into a --out OUT",
    "merge --model HERE/seed --model HERE/code --out OUT",
    "upcycle --method bam --seed HERE/seed --expert code=HERE/code --out OUT",
    "upcycle --method btx --seed HERE/seed --expert code=HERE/code --router prompts:HERE/prompts.yaml --out OUT",
    "expert remove HERE/mixture code --out OUT",
    "validate HERE/mixture --against",
    "diff HERE/seed HERE/code",
    "inspect --divergence HERE/seed HERE/code --svg OUT",
    "tokenize --tokenizer HERE/seed --out OUT HERE/text.md",
    "train HERE/good --data x=HERE/tokens --steps 1 --batch 1 --seq 4 --out OUT",
    "eval HERE/seed --data x=HERE/text.md --context 32",
    "generate HERE/seed --prompt hello --max-tokens 2",
    "logits HERE/seed --tokens HERE/ids.json --dump OUT",
    "report HERE/seed --out OUT",
    "run HERE/recipe.yaml --work OUT",
    "run HERE/recipe.yaml --work OUT --dry-run",
    "man --out OUT",
    "completions bash",
];

/// Commands that write into a folder that they keep, whatever becomes of them.
const KEEP_THEIR_FOLDER: [&str; 2] = ["run", "man"];

/// The sources of all commands.
struct Sources(TempDir);

impl Sources {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let here = work.path();
        for name in ["seed", "code"] {
            copy_folder(&fixture("llama").join(name), &here.join(name));
        }
        copy_folder(&fixture("hostile/good"), &here.join("good"));
        copy_folder(&fixture("hostile/tokens-good"), &here.join("tokens"));
        std::fs::write(here.join("ids.json"), "[1, 2, 3]").unwrap();
        std::fs::write(here.join("text.md"), "A few words to read.\n".repeat(40)).unwrap();
        let prompts = "gate_mode: hidden\nexperts:\n- name: seed\n  positive_prompts: [words]\n\
                       - name: code\n  positive_prompts: ['fn main']\n";
        std::fs::write(here.join("prompts.yaml"), prompts).unwrap();
        let config = here.join("seed/config.json");
        let recipe = format!(
            "stages:\n- name: seed\n  init:\n    config: {}\n    out: made\n",
            config.display()
        );
        std::fs::write(here.join("recipe.yaml"), recipe).unwrap();
        let expert = format!("code={}", here.join("code").display());
        bam!(
            "upcycle",
            "--method",
            "btx",
            "--seed",
            here.join("seed"),
            "--expert",
            expert,
            "--out",
            here.join("mixture")
        )
        .ok();
        Self(work)
    }

    /// Runs a line of [`COMMANDS`] after a piece of shell, with a folder of its own for outputs.
    fn run(&self, line: &str, shell: &str) -> (Run, TempDir) {
        let made = tempfile::tempdir().unwrap();
        let place = |word: &str| {
            word.replace("HERE", self.0.path().to_str().unwrap())
                .replace("OUT", made.path().join("out").to_str().unwrap())
        };
        let mut command = Command::new("bash");
        command
            .current_dir(made.path())
            .args(["-c", &format!("{shell}\nexec \"$@\""), "bash"])
            .arg(binary())
            .args(line.split(' ').map(place))
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env("HF_HUB_OFFLINE", "1");
        (finish(command), made)
    }

    /// Runs every command after a piece of shell, some at a time.
    fn run_all(&self, shell: &str) {
        std::thread::scope(|scope| {
            for part in COMMANDS.chunks(COMMANDS.len().div_ceil(4)) {
                scope.spawn(move || {
                    for line in part {
                        let (run, made) = self.run(line, shell);
                        check(line, shell, &run, made.path());
                    }
                });
            }
        });
    }
}

/// Asserts that a command has done its work, or has said why not and left nothing that looks whole.
#[track_caller]
fn check(line: &str, shell: &str, run: &Run, made: &Path) {
    let (out, sees) = (made.join("out"), !shell.contains("2>"));
    assert!(
        run.code.is_some_and(|code| code <= 3) && !run.stderr.contains("panicked"),
        "{shell}: {run}"
    );
    let writes = line.contains("OUT") && !line.contains("--dry-run");
    if run.code == Some(0) {
        assert!(!writes || out.exists(), "{shell}: {run}");
        return;
    }
    assert!(
        !sees || run.code == Some(1) || run.stderr.contains("error: "),
        "{shell}: {run}"
    );
    let keeps = KEEP_THEIR_FOLDER.iter().any(|name| line.starts_with(name));
    // What shows is the answer; an output is there as well.
    let shows = shell.contains(">/dev/full");
    // Where memory ends, the process ends as by a kill, and the next run continues in its hidden folder.
    let may_stop = shell.contains("ulimit -v");
    let is_hidden = |name: &String| name.split('/').any(|part| part.starts_with('.'));
    // `branch` makes its hidden folders inside of the output.
    let holds_hidden_only = listing(made)
        .keys()
        .all(|name| name == "out" || is_hidden(name));
    let is_left = |name: &String| {
        if is_hidden(name) {
            !may_stop && name.ends_with(".safetensors")
        } else {
            name.ends_with(".safetensors") || name == "out" && !(may_stop && holds_hidden_only)
        }
    };
    assert!(
        keeps || shows || !listing(made).keys().any(is_left) || out.join("a").exists(),
        "{shell}: {run}\n{:?}",
        listing(made)
    );
}

#[test]
fn files_and_their_sizes() {
    let sources = Sources::new();
    for shell in ["ulimit -n 20", "ulimit -f 1", "ulimit -f 4"] {
        sources.run_all(shell);
    }
    let (run, _made) = sources.run("convert HERE/seed OUT --to gguf", "ulimit -f 4");
    run.refused(3, &["cannot write", "out", "File too large"]);
}

#[test]
fn memory() {
    let sources = Sources::new();
    // As much as it takes to be loaded, then a little more.
    let starts = |kib: &u64| {
        let (run, _) = sources.run("--version", &format!("ulimit -v {kib}"));
        run.code == Some(0)
    };
    let least = (40_000..2_000_000).step_by(5000).find(starts).unwrap();
    for more in [1000, 20_000] {
        sources.run_all(&format!("ulimit -v {}", least + more));
    }
}

#[test]
fn streams() {
    let sources = Sources::new();
    for shell in [
        "exec <&- >&- 2>&-",
        "exec >/dev/full",
        "exec 2>/dev/full",
        "exec > >(exec true); sleep 0.01",
    ] {
        sources.run_all(shell);
    }
    let (run, _made) = sources.run("inspect HERE/seed", "exec >/dev/full");
    run.refused(3, &["standard output", "No space left on device"]);
}

#[test]
fn places() {
    let sources = Sources::new();
    for shell in [
        "export TMPDIR=/nonexistent",
        "unset HOME XDG_CACHE_HOME; export LC_ALL=C LANG=C",
        "mkdir gone; cd gone; rmdir ../gone",
    ] {
        sources.run_all(shell);
    }
    for line in [COMMANDS[9], COMMANDS[21]] {
        let (run, _made) = sources.run(line, "export TMPDIR=/nonexistent");
        run.refused(3, &["/nonexistent", "TMPDIR"]);
    }
}

/// Names that are no UTF-8 are names; those that are too long are said to be.
#[test]
fn names_of_outputs() {
    let work = TempDir::new().unwrap();
    let name = |bytes: &[u8]| work.path().join(std::ffi::OsStr::from_bytes(bytes));
    let seed = fixture("llama/seed");
    for (number, to) in [&[][..], &["--to", "gguf"], &["--to", "npz"]]
        .iter()
        .enumerate()
    {
        // Two names that look alike where they are shown.
        for bytes in [&b"a\xff"[..], b"a\xfe"] {
            let out = name(&[bytes, number.to_string().as_bytes()].concat());
            let mut command = Command::new(binary());
            command.arg("convert").args([&seed, &out]).args(*to);
            finish(command).ok();
            assert!(out.exists());
        }
        let long: PathBuf = name(&[b'x'; 256]);
        let deep = work.path().join("y/".repeat(3000));
        for out in [long, deep] {
            let mut command = Command::new(binary());
            command.arg("convert").args([&seed, &out]).args(*to);
            finish(command).refused(2, &["File name too long"]);
        }
    }
    let left = listing(work.path());
    assert!(!left.keys().any(|name| name.starts_with('.')), "{left:?}");
}

/// More shards than the process may have open files, in and out.
#[test]
fn more_shards_than_open_files() {
    let work = TempDir::new().unwrap();
    let (source, out) = (work.path().join("source"), work.path().join("out"));
    std::fs::create_dir(&source).unwrap();
    let mut noise = Noise(1);
    let mut all = Tensors::new();
    for number in 1..=150 {
        let values: Vec<f64> = (0..8).map(|_| noise.value()).collect();
        let tensor = Tensor::new(Dtype::F32, &[8], &values);
        let name = format!("t{number:03}");
        let file = source.join(format!("model-{number:05}-of-00150.safetensors"));
        write_file(&file, &[(name.clone(), tensor.clone())].into());
        all.insert(name, tensor);
    }
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("bash");
        command
            .current_dir(work.path())
            .args(["-c", "ulimit -n 40; exec \"$@\"", "bash"])
            .arg(binary())
            .args(arguments);
        finish(command)
    };
    limited(&[
        "convert",
        "source",
        "out",
        "--max-shard-size",
        "1B",
        "--threads",
        "4",
    ])
    .ok();
    assert!(read_folder(&out) == all);
    limited(&["diff", "source", "out"]).ok();
    let replayed = limited(&["validate", "out", "--against"]).stdout;
    assert!(replayed.contains("150 of 150 tensors equal"), "{replayed}");
    limited(&["convert", "out", "one"]).ok();
    assert!(read_file(&work.path().join("one/model.safetensors")) == all);
}
