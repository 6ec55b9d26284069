//! Numbers out of every range, for each numeric flag of each command: an answer or a refusal, never a crash.
//!
//! The flags are those that `--help` lists. A line of [`LINES`] is a command that works, on which each of its flags is
//! tried with each of [`VALUES`] in limited memory and time.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Run, bam, binary, finish, fixture};

const VALUES: [&str; 11] = [
    "0",
    "1",
    "2147483648",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "1e9",
    "1e300",
    "nan",
    "inf",
    "-1",
];

/// What `--help` calls the values of numeric flags.
const NUMERIC: [&str; 20] = [
    "N", "K", "G", "C", "R", "F", "X", "T", "P", "B", "E", "STD", "WIDTH", "ROWS", "TOKENS",
    "STEPS", "STEP", "RATE", "SHARE", "NORM",
];

/// The same of flags that are numbers with something around them.
const PARTLY: [&str; 4] = ["SIZE", "WEIGHT", "FACTOR[:stop|:skip]", "1,3,5-7"];

/// Commands that work; a flag is tried on the first line of its command that names it, else on the first that names none.
/// `SEED`, `CODE`, `TOKENS` and `OUT` stand for paths, and OUT is new for each run.
const LINES: &[(&str, &[&str])] = &[
    ("pull org/x OUT", &[]),
    ("push SEED org/x", &[]),
    ("inspect SEED", &[]),
    ("branch SEED --into a --out OUT", &[]),
    (
        "cost SEED --method granular --kv shared",
        &["granularity", "expert-width"],
    ),
    ("cost SEED --method bam", &[]),
    ("init SEED/config.json --out OUT", &[]),
    ("convert SEED OUT", &[]),
    ("merge --model SEED --out OUT", &[]),
    (
        "upcycle --method sparse --seed SEED --out OUT",
        &["experts"],
    ),
    (
        "upcycle --method noise --experts 4 --seed SEED --out OUT",
        &["noise-std", "noise-ratio"],
    ),
    (
        "upcycle --method drop --experts 4 --seed SEED --out OUT",
        &["drop-ratio"],
    ),
    (
        "upcycle --method granular --experts 4 --granularity 2 --seed SEED --out OUT",
        &["granularity", "output-scale"],
    ),
    (
        "upcycle --method shuffle --experts 4 --expert-width 24 --seed SEED --out OUT",
        &["expert-width", "reinit-ratio"],
    ),
    (
        "upcycle --method btx --seed SEED --expert code=CODE --out OUT",
        &["split-ffn"],
    ),
    (
        "upcycle --method bam --seed SEED --expert code=CODE --out OUT",
        &[],
    ),
    ("expert add BAM --expert law=CODE --out OUT", &[]),
    ("expert remove BAM code --out OUT", &[]),
    ("expert replace BAM code=CODE --out OUT", &[]),
    ("expert extract BAM code OUT", &[]),
    ("expert concat BAM BAM --out OUT", &[]),
    ("validate BAM", &[]),
    ("diff SEED SEED", &[]),
    ("tokenize --tokenizer SEED --out OUT WORK/texts.jsonl", &[]),
    (
        "train SEED --data a=TOKENS --seq 8 --batch 1 --steps 1 --out OUT",
        &[
            "batch",
            "accumulate",
            "seq",
            "rng-seed",
            "threads",
            "save-every",
            "keep",
            "validate-every",
            "validate-rows",
            "detail-every",
        ],
    ),
    (
        "train SEED --data a=TOKENS --seq 8 --steps 9 --schedule wsd --warmup 1 --out OUT --dry-run",
        &[],
    ),
    (
        "eval SEED --task WORK/task.jsonl",
        &["shots", "answer-tokens"],
    ),
    ("eval BAM --data a=TOKENS", &[]),
    ("generate SEED --prompt ab --max-tokens 2", &[]),
    ("logits SEED SEED", &[]),
    ("report SEED --out OUT.html", &[]),
    ("run WORK/recipe.yaml --dry-run", &[]),
];

/// The numeric flags of a command, by its help.
fn numeric_flags(command: &str) -> Vec<String> {
    let help = bam_words(&format!("{command} --help")).ok().stdout;
    let flags = help.lines().filter_map(|line| {
        let at = line.find("--").filter(|at| line[..*at].trim().len() <= 3)?;
        let (flag, rest) = line[at + 2..].split_once([' ', '='])?;
        let value = rest.trim_start().strip_prefix('<')?.split('>').next()?;
        let is_numeric = NUMERIC.contains(&value) || PARTLY.contains(&value);
        is_numeric.then(|| flag.to_owned())
    });
    flags.collect()
}

fn bam_words(line: &str) -> Run {
    crate::common::run(line.split(' ').map(Into::into))
}

/// Every command, those below another one too.
fn commands() -> Vec<String> {
    let listed = |help: String| {
        let list = help.split("Commands:\n").nth(1).unwrap_or("").to_owned();
        let names = list
            .lines()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| {
                line.strip_prefix("  ")?
                    .split(' ')
                    .next()
                    .map(str::to_owned)
            })
            .filter(|name| !name.is_empty() && name != "help");
        names.collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    for name in listed(bam!("--help").ok().stdout) {
        let below = listed(bam!(&name, "--help").ok().stdout);
        if below.is_empty() {
            found.push(name);
        } else {
            found.extend(below.iter().map(|below| format!("{name} {below}")));
        }
    }
    found
}

/// A line with `--flag=value`, in place of the flag that it has already.
fn arguments(line: &str, work: &Path, out: &str, flag: &str, value: &str) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let names = [
        ("SEED", path(&fixture("llama/seed"))),
        ("CODE", path(&fixture("llama/code"))),
        ("TOKENS", path(&work.join("tokens"))),
        ("BAM", path(&work.join("bam"))),
        ("WORK", path(work)),
        ("OUT", path(&work.join(out))),
    ];
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    if let Some(at) = words.iter().position(|word| *word == format!("--{flag}")) {
        words.drain(at..at + 2);
    }
    for word in &mut words {
        for (name, path) in &names {
            if word.contains(name) {
                *word = word.replace(name, path);
                break;
            }
        }
    }
    words.push(format!("--{flag}={value}"));
    words
}

#[test]
fn no_number_makes_a_command_crash() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name);
    let texts = (0..60).map(|n| format!("{{\"text\": \"fox {n} jumps over dog {}\"}}\n", 7 * n));
    std::fs::write(path("texts.jsonl"), texts.collect::<String>()).unwrap();
    let task = "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n";
    std::fs::write(path("task.jsonl"), task.repeat(2)).unwrap();
    std::fs::write(
        path("recipe.yaml"),
        "stages:\n- name: a\n  validate: {path: x}\n",
    )
    .unwrap();
    let (seed, code) = (fixture("llama/seed"), fixture("llama/code"));
    bam!(
        "tokenize",
        "--tokenizer",
        seed,
        "--out",
        path("tokens"),
        path("texts.jsonl")
    )
    .ok();
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        seed,
        "--expert",
        expert,
        "--out",
        path("bam")
    )
    .ok();

    let mut tries = Vec::new();
    for command in commands() {
        let of_command = |line: &str| line.starts_with(&format!("{command} "));
        let lines: Vec<_> = LINES.iter().filter(|(line, _)| of_command(line)).collect();
        for flag in numeric_flags(&command) {
            let named = lines
                .iter()
                .find(|(_, flags)| flags.contains(&flag.as_str()));
            let line = named.or_else(|| lines.iter().find(|(_, flags)| flags.is_empty()));
            let Some((line, _)) = line else {
                panic!("no line of LINES tries {command} --{flag}");
            };
            tries.extend(VALUES.map(|value| (*line, flag.clone(), value.to_owned())));
        }
    }
    let flags: BTreeSet<&str> = tries.iter().map(|(_, flag, _)| flag.as_str()).collect();
    for flag in [
        "batch",
        "memory",
        "tolerance",
        "on-spike",
        "max-workers",
        "layers",
    ] {
        assert!(flags.contains(flag), "{flag} is not among {flags:?}");
    }
    for (line, flag, around) in [
        (
            "train SEED --seq 8 --batch 1 --steps 1 --out OUT",
            "data",
            "a=TOKENS:",
        ),
        ("merge --model SEED --out OUT", "model", "CODE:"),
        ("tokenize --out OUT WORK/texts.jsonl", "tokenizer", "train:"),
        (
            "upcycle --method bam --seed SEED --expert code=CODE --out OUT",
            "router",
            "normal:",
        ),
        (
            "upcycle --method bam --seed SEED --expert code=CODE --out OUT",
            "layers",
            "every:",
        ),
        (
            "upcycle --method bam --seed SEED --expert code=CODE --out OUT",
            "layers",
            "0-",
        ),
    ] {
        tries.extend(VALUES.map(|value| (line, flag.to_owned(), format!("{around}{value}"))));
    }

    let next = AtomicUsize::new(0);
    let work_off = || {
        while let Some((line, flag, value)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
            let number = next.load(Ordering::Relaxed);
            let out = format!("out-{number}-{:?}", std::thread::current().id());
            let mut words = arguments(line, work.path(), &out, flag, value);
            if let Some(last) = words.last_mut() {
                *last = last.replace("TOKENS", &path("tokens").display().to_string());
                *last = last.replace("CODE", &code.display().to_string());
            }
            let mut command = Command::new("bash");
            command.args(["-c", "ulimit -v 4000000; exec timeout 60 \"$@\"", "bash"]);
            command.arg(binary()).args(words);
            command.env("HF_HUB_OFFLINE", "1").env("HOME", work.path());
            command.current_dir(work.path());
            let run = finish(command);
            // What the machine has too little memory for is refused before it begins.
            let is_expected = match run.code {
                Some(0 | 1) => true,
                Some(2) => run.stderr.contains("error: "),
                Some(3) => run.stderr.contains("of memory, but"),
                _ => false,
            };
            assert!(is_expected && !run.stderr.contains("panicked"), "{run}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(work_off);
        }
    });
}

#[test]
fn counts_and_sizes_of_nothing_or_too_much_are_named() {
    let work = tempfile::tempdir().unwrap();
    let seed = fixture("llama/seed");
    let (tokens, texts) = (work.path().join("tokens"), work.path().join("texts.txt"));
    std::fs::write(&texts, "one two three four five six seven eight nine ten").unwrap();
    bam!(
        "tokenize",
        "--tokenizer",
        &seed,
        "--validation",
        "0",
        "--out",
        &tokens,
        &texts
    )
    .ok();
    let data = format!("a={}", tokens.display());
    let out = work.path().join("out");
    let train = |flag: &str, value: &str| {
        let seed = seed.display();
        let (data, out) = (&data, out.display());
        let line = format!(
            "train {seed} --data {data} --out {out} --steps 1 --seq 8 --batch 1 --accumulate 1"
        );
        bam_words(&arguments(&line, work.path(), "out", flag, value).join(" "))
    };
    let largest = u64::MAX.to_string();
    for (flag, value, said) in [
        ("validate-rows", "0", "--validate-rows"),
        ("keep", "0", "--keep"),
        ("batch", "0", "--batch"),
        ("accumulate", &largest, "--accumulate"),
        ("steps", &largest, "--steps"),
        ("seq", "1000000000000", "--seq"),
        ("on-spike", "inf", "--on-spike"),
    ] {
        train(flag, value).refused(2, &[said]);
        assert!(!out.exists(), "{flag}");
    }
    for (flag, value) in [("batch", "1000000000"), ("accumulate", "1000000000000")] {
        train(flag, value).refused(3, &["of memory", "available", "hint: ", "--batch"]);
        assert!(!out.exists(), "{flag}");
    }
    let sizes = ["--memory", "--max-shard-size"];
    for flag in sizes {
        bam!("convert", &seed, &out, flag, "0").refused(2, &[flag, "at least one byte"]);
    }
    bam!("convert", &seed, &out, "--memory", "1EB").refused(2, &["--memory", "at most"]);
    bam!(
        "tokenize",
        "--tokenizer",
        "train:2147483648",
        "--out",
        &out,
        &texts
    )
    .refused(2, &["train:", "1048576"]);
    bam!(
        "upcycle",
        "--method",
        "sparse",
        "--seed",
        &seed,
        "--experts",
        "4294967296",
        "--out",
        &out
    )
    .refused(2, &["4294967296 experts", "--experts"]);
    bam!("logits", &seed, &seed, "--tolerance", "nan").refused(2, &["--tolerance", "nan"]);
    bam!("eval", &seed, "--task", &texts, "--answer-tokens", "0").refused(2, &["--answer-tokens"]);
}
