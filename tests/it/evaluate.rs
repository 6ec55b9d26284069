//! `eval`: perplexities that a second computation confirms, tasks, routing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::common::{bam, copy_folder, edit_json, fixture, read_file, run};
use bam_convert::model::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

const CODE: &str = "fn main() {\n    let total: usize = (0..10).map(|n| n * n).sum();\n    println!(\"{total}\");\n}\n";
const LAW: &str = "The parties agree, naïvely or not, that the contract shall be governed by the laws of the land.\n";

/// A folder with texts, and mixtures of a family's fixtures.
struct Bench {
    work: TempDir,
    family: &'static str,
}

impl Bench {
    fn new(family: &'static str) -> Self {
        let work = TempDir::new().unwrap();
        std::fs::write(work.path().join("code.txt"), CODE.repeat(3)).unwrap();
        std::fs::create_dir(work.path().join("law")).unwrap();
        std::fs::write(work.path().join("law/a.txt"), LAW).unwrap();
        let line = |text: &str| json!({ "text": text }).to_string() + "\n";
        std::fs::write(
            work.path().join("law/b.jsonl"),
            line("Whereas the seller") + &line(LAW),
        )
        .unwrap();
        Self { work, family }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn dense(&self, name: &str) -> PathBuf {
        fixture(self.family).join(name)
    }

    fn upcycle(&self, name: &str, method: &str, flags: &[&str]) -> PathBuf {
        let mut arguments: Vec<OsString> = ["upcycle", "--method", method, "--seed"]
            .map(Into::into)
            .to_vec();
        arguments.push(self.dense("seed").into());
        for expert in ["code", "law"] {
            let folder = self.dense(expert);
            arguments.extend([
                "--expert".into(),
                format!("{expert}={}", folder.display()).into(),
            ]);
        }
        arguments.extend(["--router", "normal:0.5", "--out"].map(Into::into));
        arguments.push(self.path(name).into());
        arguments.extend(flags.iter().map(Into::into));
        run(arguments).ok();
        self.path(name)
    }

    fn arguments(&self, models: &[&Path], flags: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["eval".into()];
        arguments.extend(models.iter().map(|model| model.as_os_str().to_owned()));
        arguments.extend([
            "--data".into(),
            format!("code={}", self.path("code.txt").display()).into(),
        ]);
        arguments.extend([
            "--data".into(),
            format!("law={}", self.path("law").display()).into(),
        ]);
        arguments.extend(flags.iter().map(Into::into));
        arguments
    }

    fn eval(&self, models: &[&Path], flags: &[&str]) -> Value {
        let mut arguments = self.arguments(models, flags);
        arguments.push("--json".into());
        run(arguments).ok().json()
    }
}

/// Perplexity and bits per byte out of `logits --dump` of every window, by plain arithmetic.
fn recomputed(model: &Path, texts: &[String], context: usize, work: &Path) -> (f64, f64, usize) {
    let tokenizer = Tokenizer::load(model, 384).unwrap();
    let (mut nll, mut count, mut bytes) = (0.0, 0, 0);
    for text in texts {
        let ids = tokenizer.encode(text, true).unwrap().ids;
        for window in ids.chunks(context).filter(|window| window.len() > 1) {
            let (tokens, dump) = (work.join("tokens.json"), work.join("dump"));
            std::fs::write(&tokens, serde_json::to_vec(window).unwrap()).unwrap();
            bam!("logits", model, "--tokens", tokens, "--dump", dump).ok();
            let logits = read_file(&dump)["logits"].values();
            for (row, target) in logits.chunks(384).zip(&window[1..]) {
                nll += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*target as usize];
                count += 1;
            }
        }
        bytes += text.len();
    }
    (
        (nll / f64::from(count)).exp(),
        nll / 2f64.ln() / bytes as f64,
        count as usize,
    )
}

fn assert_close(found: &Value, expected: f64, tolerance: f64) {
    let found = found.as_f64().unwrap();
    assert!(
        (found / expected - 1.0).abs() < tolerance,
        "found {found}, expected {expected}"
    );
}

#[test]
fn perplexity_is_that_of_the_dumped_logits() {
    let bench = Bench::new("llama");
    let (seed, mixture) = (bench.dense("seed"), bench.upcycle("bam", "bam", &[]));
    let report = bench.eval(&[&seed, &mixture], &["--context", "40"]);
    for (number, model) in [&seed, &mixture].into_iter().enumerate() {
        let texts = [
            vec![CODE.repeat(3)],
            vec![
                LAW.to_owned(),
                "Whereas the seller".to_owned(),
                LAW.to_owned(),
            ],
        ];
        let row = &report["models"][number];
        let mut sums = [0.0, 0.0];
        for (domain, texts) in texts.iter().enumerate() {
            let found = &row["domains"][domain];
            let (perplexity, bits, tokens) = recomputed(model, texts, 40, bench.work.path());
            assert_close(&found["perplexity"], perplexity, 1e-4);
            assert_eq!(found["tokens"], tokens);
            // Of each window the first token's bytes are not scored, which a handful of windows notices.
            let bytes = found["bytes"].as_f64().unwrap()
                / texts.iter().map(String::len).sum::<usize>() as f64;
            assert!((0.9..1.0).contains(&bytes), "{bytes}");
            assert_close(&found["bits_per_byte"], bits / bytes, 1e-4);
            sums[0] += found["perplexity"].as_f64().unwrap() / 2.0;
            sums[1] += found["bits_per_byte"].as_f64().unwrap() / 2.0;
        }
        assert_close(&row["average"]["perplexity"], sums[0], 1e-12);
        assert_close(&row["average"]["bits_per_byte"], sums[1], 1e-12);
    }
    let text = run(bench.arguments(&[&seed, &mixture], &["--context", "40"]))
        .ok()
        .stdout;
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[1], ["model", "code", "law", "average"]);
    assert_eq!((lines[2][0], lines[3][0]), ("seed", "bam"));
    let shown = format!(
        "{:.1}",
        report["models"][1]["average"]["perplexity"]
            .as_f64()
            .unwrap()
    );
    assert_eq!(lines[3][3], shown);
}

#[test]
fn at_most_so_many_tokens_are_read() {
    let bench = Bench::new("llama");
    let report = bench.eval(
        &[&bench.dense("seed")],
        &["--context", "16", "--max-tokens", "40"],
    );
    let code = &report["models"][0]["domains"][0];
    assert_eq!(
        (&code["windows"], &code["tokens"]),
        (&json!(3), &json!(15 + 15 + 7))
    );
}

#[test]
fn routing_can_be_changed() {
    let bench = Bench::new("llama");
    let mixture = bench.upcycle("bam", "bam", &[]);
    let soft = bench.upcycle("soft", "bam", &["--top-k", "soft"]);
    let perplexity = |model: &Path, flags: &[&str]| {
        bench.eval(&[model], flags)["models"][0]["average"]["perplexity"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(
        perplexity(&mixture, &["--top-k", "soft"]),
        perplexity(&soft, &[])
    );
    assert_ne!(
        perplexity(&mixture, &["--attention-top-k", "1"]),
        perplexity(&mixture, &[])
    );
    // Without every other expert, what is left has gate 1 and is the dense model, but for the averaged rest.
    let alone = perplexity(&mixture, &["--without", "code", "--without", "law"]);
    assert_eq!(
        alone,
        perplexity(&mixture, &["--without", "1", "--without", "2"])
    );
    let dense = bench.path("dense");
    copy_folder(&bench.dense("seed"), &dense);
    let averaged = read_file(&mixture.join("model.safetensors"));
    crate::common::edit_tensors(&dense, |tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if let Some(average) = averaged.get(name) {
                *tensor = average.clone();
            }
        }
    });
    assert!((perplexity(&dense, &[]) / alone - 1.0).abs() < 1e-5);
    run(bench.arguments(&[&mixture], &["--without", "lav"]))
        .refused(2, &["no expert `lav`", "did you mean `law`?"]);
    run(bench.arguments(
        &[&mixture],
        &["--without", "seed", "--without", "1", "--without", "2"],
    ))
    .refused(2, &["every expert is dropped"]);
    run(bench.arguments(&[&bench.dense("seed")], &["--without", "law"]))
        .refused(2, &["every model is dense"]);
    run(bench.arguments(&[&mixture], &["--top-k", "4"])).refused(2, &["top-k of 1 to 3, found 4"]);
    let btx = bench.upcycle("btx", "btx", &[]);
    run(bench.arguments(&[&btx], &["--attention-top-k", "1"]))
        .refused(2, &["btx", "no attention experts"]);
}

#[test]
fn routing_is_reported() {
    let bench = Bench::new("llama");
    let mixture = bench.upcycle("bam", "bam", &["--preset", "paper"]);
    let (bars, heat) = (bench.path("bars.svg"), bench.path("heat.svg"));
    let (bars_text, heat_text) = (bars.display().to_string(), heat.display().to_string());
    let flags = [
        "--report-routing",
        "--svg",
        &bars_text,
        "--routing-svg",
        &heat_text,
    ];
    let report = bench.eval(&[&bench.dense("seed"), &mixture], &flags);
    assert!(report["models"][0].get("routing").is_none());
    let row = &report["models"][1];
    assert_eq!(row["experts"], json!(["seed", "code", "law"]));
    for (domain, name) in ["code", "law"].into_iter().enumerate() {
        let routing = &row["routing"][domain];
        assert_eq!(routing["domain"], name);
        let routers = routing["routers"].as_array().unwrap();
        assert_eq!(routers.len(), 4);
        for router in routers {
            let sum = |key: &str| {
                router[key]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|x| x.as_f64().unwrap())
                    .sum::<f64>()
            };
            let soft = router["router"] == "attention";
            assert!(
                (sum("load") - 1.0).abs() < 1e-9 && (sum("mean_probability") - 1.0).abs() < 1e-5
            );
            assert!(if soft {
                (sum("mean_gate") - 1.0).abs() < 1e-5
            } else {
                sum("mean_gate") < 1.0
            });
            let entropy = router["load_entropy"].as_f64().unwrap();
            assert!(if soft {
                entropy > 0.999_999
            } else {
                entropy < 1.0
            });
            assert_eq!(router["tokens"].as_u64().unwrap() as usize, {
                let scored = &row["domains"][domain];
                (scored["tokens"].as_u64().unwrap() + scored["windows"].as_u64().unwrap()) as usize
            });
        }
    }
    for svg in [&bars, &heat] {
        let text = std::fs::read_to_string(svg).unwrap();
        assert!(
            text.starts_with("<svg")
                && text.trim_end().ends_with("</svg>")
                && !text.contains("NaN")
        );
    }
    let text = run(bench.arguments(&[&mixture], &["--report-routing", "--without", "code"]))
        .ok()
        .stdout;
    assert!(
        text.contains("routing of bam without code")
            && text.contains("load code")
            && text.contains("attention"),
        "{text}"
    );
    let dropped = bench.eval(&[&mixture], &["--report-routing", "--without", "code"]);
    for router in dropped["models"][0]["routing"][0]["routers"]
        .as_array()
        .unwrap()
    {
        assert_eq!(
            (&router["load"][1], &router["mean_gate"][1]),
            (&json!(0.0), &json!(0.0))
        );
        assert!(router["dead"].as_array().unwrap().contains(&json!(1)));
    }
}

#[test]
fn tasks_have_right_answers() {
    let bench = Bench::new("llama");
    let seed = bench.dense("seed");
    let said = bam!(
        "generate",
        seed,
        "--prompt",
        "Say it:",
        "--max-tokens",
        "8",
        "--stop",
        "\n",
        "--json"
    )
    .ok()
    .json();
    let said = said["text"].as_str().unwrap();
    let lines = [
        json!({"prompt": "Say it:", "answer": said}),
        json!({"prompt": "Say it:", "answer": ["never this", said]}),
        json!({"prompt": "Say it:", "answer": "never this"}),
    ];
    let write = |name: &str, lines: &[Value]| {
        let path = bench.path(name);
        std::fs::write(
            &path,
            lines
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>(),
        )
        .unwrap();
        path
    };
    let exact = write("exact.jsonl", &lines);
    let tokenizer = Tokenizer::load(&seed, 384).unwrap();
    let (question, choices) = (
        "Question: Which one?\nAnswer:",
        [" alpha", " be", " gamma delta"],
    );
    let context = tokenizer.encode(question, true).unwrap().ids.len();
    // Log-likelihoods by way of dumped logits.
    let scores: Vec<f64> = choices
        .iter()
        .map(|choice| {
            let ids = tokenizer
                .encode(&format!("{question}{choice}"), true)
                .unwrap()
                .ids;
            let (tokens, dump) = (bench.path("tokens.json"), bench.path("dump"));
            std::fs::write(&tokens, serde_json::to_vec(&ids).unwrap()).unwrap();
            bam!("logits", seed, "--tokens", tokens, "--dump", dump).ok();
            let logits = read_file(&dump)["logits"].values();
            let rows: Vec<&[f64]> = logits.chunks(384).collect();
            let score = |at: usize| {
                let row = rows[at - 1];
                row[ids[at] as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln()
            };
            (context..ids.len()).map(score).sum()
        })
        .collect();
    let best = |scores: &[f64]| {
        (0..3)
            .max_by(|a, b| scores[*a].total_cmp(&scores[*b]))
            .unwrap()
    };
    let by_length: Vec<f64> = scores
        .iter()
        .zip(choices)
        .map(|(score, choice)| score / choice.trim().len() as f64)
        .collect();
    let texts: Vec<&str> = choices.iter().map(|choice| choice.trim()).collect();
    let example =
        |answer: usize| json!({"question": "Which one?", "choices": texts, "answer": answer});
    let choice = write("choice.jsonl", &[example(0), example(1), example(2)]);
    let right = write("right.jsonl", &[example(best(&by_length))]);
    let right_unnormalised = write("raw.jsonl", &[example(best(&scores))]);
    let mut arguments: Vec<OsString> = vec!["eval".into(), seed.clone().into(), "--json".into()];
    for task in [&exact, &choice, &right, &right_unnormalised] {
        arguments.extend(["--task".into(), task.clone().into()]);
    }
    arguments.extend(["--answer-tokens".into(), "8".into()]);
    let report = run(arguments).ok().json();
    let tasks = &report["models"][0]["tasks"];
    assert_close(&tasks[0]["accuracy"], 2.0 / 3.0, 1e-9);
    assert_eq!(
        (&tasks[0]["task"], &tasks[0]["accuracy_unnormalised"]),
        (&json!("exact"), &Value::Null)
    );
    assert_close(&tasks[1]["accuracy"], 1.0 / 3.0, 1e-9);
    assert_eq!(tasks[2]["accuracy"], 1.0);
    assert_eq!(tasks[3]["accuracy_unnormalised"], 1.0);
    let text = bam!("eval", seed, "--task", choice, "--shots", "2")
        .ok()
        .stdout;
    assert!(
        text.contains("accuracy in %") && text.contains("choice"),
        "{text}"
    );
    bam!("eval", seed, "--task", choice, "--shots", "3")
        .refused(2, &["choice.jsonl", "too few for 3 shots"]);
    let bad = write(
        "bad.jsonl",
        &[json!({"question": "a", "choices": ["a", "b"], "answer": 2})],
    );
    bam!("eval", seed, "--task", bad).refused(2, &["bad.jsonl", "answer", "line 1", "from 0 to 1"]);
    // A file whose name holds a `=` is that file.
    let equals = write("a=b.jsonl", &[example(0)]);
    let report = bam!("eval", seed, "--task", equals, "--json").ok().json();
    assert_eq!(report["models"][0]["tasks"][0]["task"], "a=b");
}

#[test]
fn models_that_read_otherwise_are_refused() {
    let bench = Bench::new("llama");
    let (seed, other) = (bench.dense("seed"), bench.path("other"));
    copy_folder(&seed, &other);
    let size = read_json_len(&other.join("tokenizer.json"));
    edit_json(&other.join("tokenizer.json"), |tokenizer| {
        tokenizer["model"]["merges"]
            .as_array_mut()
            .unwrap()
            .truncate(5);
    });
    assert!(read_json_len(&other.join("tokenizer.json")) != size);
    run(bench.arguments(&[&seed, &other], &[]))
        .refused(2, &["other/tokenizer.json", "`code`", "bits per byte"]);
    run(bench.arguments(&[&seed], &["--context", "1"])).refused(2, &["context of 2 tokens"]);
    let twice = format!("code={}", bench.path("law").display());
    run(bench.arguments(&[&seed], &["--data", &twice])).refused(2, &["duplicate name `code`"]);
    bam!("eval", seed, "--data", "a=nowhere").refused(2, &["nowhere"]);
    bam!("eval", seed).refused(2, &["--data"]);
    std::fs::write(bench.path("bytes"), [0xff, 0xfe]).unwrap();
    bam!(
        "eval",
        seed,
        "--data",
        format!("a={}", bench.path("bytes").display())
    )
    .refused(2, &["bytes", "UTF-8"]);
    let keep = bench.path("code.txt");
    run(bench.arguments(&[&seed], &["--svg", &keep.display().to_string()]))
        .refused(2, &["code.txt", "no SVG"]);
}

fn read_json_len(path: &Path) -> usize {
    std::fs::metadata(path).unwrap().len() as usize
}

#[test]
fn a_dtype_can_be_chosen() {
    let bench = Bench::new("llama");
    let seed = bench.dense("seed");
    let perplexity = |flags: &[&str]| {
        bench.eval(&[&seed], flags)["models"][0]["average"]["perplexity"]
            .as_f64()
            .unwrap()
    };
    let usual = perplexity(&[]);
    assert_eq!(usual, perplexity(&["--dtype", "f32"]));
    // The fixture is stored in bfloat16, so that on the CPU its weights are the same and activations stay float32.
    let narrow = perplexity(&["--dtype", "bf16"]);
    assert!((usual / narrow - 1.0).abs() < 1e-5, "{usual} {narrow}");
    let mut arguments = bench.arguments(&[&seed], &["--dtype", "f8"]);
    arguments.push("--json".into());
    run(arguments).refused(2, &["f8", "f32", "bf16"]);
}

#[test]
fn a_token_behind_each_text_changes_no_answer() {
    let bench = Bench::new("llama");
    let seed = bench.dense("seed");
    let ending = copy_folder(&seed, &bench.path("ending"));
    edit_json(&ending.join("tokenizer.json"), |tokenizer| {
        let end = json!({"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]});
        let processor = &mut tokenizer["post_processor"];
        processor["special_tokens"]["<|endoftext|>"] = end;
        let pieces = processor["single"].as_array_mut().unwrap();
        pieces.push(json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}));
    });
    let task = bench.path("task.jsonl");
    let lines: Vec<String> = (0..6)
        .map(|number| {
            let choices = ["alpha", "be", "gamma delta"];
            json!({"question": format!("Which of {number}?"), "choices": choices, "answer": number % 3}).to_string()
        })
        .chain([json!({"prompt": "Say it:", "answer": "no"}).to_string()])
        .collect();
    std::fs::write(&task, lines.join("\n")).unwrap();
    let results = |folder: &Path| {
        let report = bam!(
            "eval",
            folder,
            "--task",
            task,
            "--answer-tokens",
            "4",
            "--json"
        );
        report.ok().json()["models"][0]["tasks"].clone()
    };
    assert_eq!(results(&ending), results(&seed));
    let text = |folder: &Path| {
        let run = bam!(
            "generate",
            folder,
            "--prompt",
            "Say it:",
            "--max-tokens",
            "8",
            "--json"
        );
        run.ok().json()["text"].clone()
    };
    assert_eq!(text(&ending), text(&seed));
}

/// The cells of a line of CSV.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        let cell = cells.last_mut().unwrap();
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => cell.extend(rest.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            _ => cell.push(c),
        }
    }
    cells
}

#[test]
fn scores_are_written_as_markdown_csv_and_latex() {
    let bench = Bench::new("llama");
    let name = "50%_of|a,\"b\"";
    let model = copy_folder(&bench.dense("code"), &bench.path(name));
    // A folder that is missing is made: scores of hours are not lost for it.
    let files = ["new/scores.md", "scores.csv", "scores.tex"].map(|name| bench.path(name));
    let tables = files
        .iter()
        .flat_map(|file| ["--table", file.to_str().unwrap()]);
    let flags: Vec<&str> = tables.chain(["--context", "64"]).collect();
    let models = [bench.dense("seed"), model];
    let models: Vec<&Path> = models.iter().map(PathBuf::as_path).collect();
    let result = bench.eval(&models, &flags);
    let [markdown, csv, latex] = files
        .clone()
        .map(|file| std::fs::read_to_string(file).unwrap());

    let perplexity = |model: usize, domain: usize| {
        result["models"][model]["domains"][domain]["perplexity"]
            .as_f64()
            .unwrap()
    };
    let row = format!("{:.1} | {:.1}", perplexity(1, 0), perplexity(1, 1));
    assert!(
        markdown.contains(&format!("| 50%\\_of\\|a,\"b\" | {row}")),
        "{markdown}"
    );
    assert!(
        latex.contains("50\\%\\_of\\textbar{}a,\\textquotedbl{}b\\textquotedbl{} & "),
        "{latex}"
    );
    assert!(latex.contains("\\begin{tabular}{lrrr}"), "{latex}");

    let lines: Vec<Vec<String>> = csv.lines().map(cells).collect();
    assert_eq!(lines[0], ["measure", "model", "code", "law", "average"]);
    assert_eq!(lines.len(), 5, "{csv}");
    let found = lines
        .iter()
        .find(|line| line[0] == "perplexity" && line[1] == name)
        .unwrap();
    assert_eq!(found[2].parse::<f64>().unwrap(), perplexity(1, 0));
    assert_eq!(found[3].parse::<f64>().unwrap(), perplexity(1, 1));

    // The same command again replaces what it wrote, and nothing else.
    bench.eval(&models, &flags);
    let own_csv = "measure,model,average\nlength,mine,3\n";
    for (file, own) in files.iter().flat_map(|file| {
        [
            (file, "notes of mine"),
            (file, "measure,model,comment\n"),
            (file, own_csv),
        ]
    }) {
        std::fs::write(file, own).unwrap();
        let file = file.to_str().unwrap();
        let run = run(bench.arguments(&models, &["--table", file]));
        run.refused(2, &[file, "table of bam-convert eval"]);
        assert_eq!(std::fs::read_to_string(file).unwrap(), own);
    }
    let run = run(bench.arguments(&models, &["--table", "scores.doc"]));
    run.refused(2, &["scores.doc", ".md, .csv or .tex"]);
}

#[test]
fn a_row_says_how_the_routing_was_changed() {
    let bench = Bench::new("llama");
    let mixture = bench.upcycle("bam", "bam", &[]);
    let dense = bench.dense("seed");
    let table = bench.path("scores.csv");
    let changed = ["--context", "64", "--without", "law", "--top-k", "1"];
    let flags = [&changed[..], &["--table", table.to_str().unwrap()]].concat();
    let report = bench.eval(&[&dense, &mixture], &flags);
    let [seed, bam] = &report["models"].as_array().unwrap()[..] else {
        panic!("{report}");
    };
    assert_eq!(bam["name"], "bam");
    assert_eq!(bam["without"], json!(["law"]));
    assert_eq!(bam["top_k"], 1);
    // A dense model has no routing to change.
    assert!(seed.get("without").is_none() && seed.get("top_k").is_none());

    let label = "bam without law, top-k 1";
    let csv = std::fs::read_to_string(&table).unwrap();
    assert!(csv.contains(&format!("perplexity,\"{label}\",")), "{csv}");
    assert!(csv.contains("perplexity,seed,"), "{csv}");
    let text = run(bench.arguments(&[&mixture], &changed)).ok().stdout;
    assert!(text.contains(label), "{text}");
    let unchanged = bench.eval(&[&mixture], &["--context", "64"]);
    assert!(unchanged["models"][0].get("without").is_none());
}

#[test]
fn windows_beyond_a_context_are_refused_before_anything_is_read() {
    let bench = Bench::new("llama");
    let short = copy_folder(&bench.dense("seed"), &bench.path("short"));
    crate::common::edit_json(&short.join("config.json"), |config| {
        config["max_position_embeddings"] = 64.into();
    });
    std::fs::remove_file(bench.path("code.txt")).unwrap();
    std::fs::write(bench.path("code.txt"), "").unwrap();
    for dry in [&[][..], &["--dry-run"]] {
        let flags = [&["--context", "65"], dry].concat();
        run(bench.arguments(&[&short], &flags))
            .refused(2, &["short", "context of 64 tokens", "--context 64"]);
    }
    // By default, windows are as long as the model reads.
    std::fs::write(bench.path("code.txt"), CODE.repeat(3)).unwrap();
    assert_eq!(bench.eval(&[&short], &[])["context"], 64);
    assert_eq!(bench.eval(&[&bench.dense("seed")], &[])["context"], 512);
}
