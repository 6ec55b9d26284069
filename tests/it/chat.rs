//! Conversations: as token ids with a mask of answers, in training and in `eval`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_convert::data::{Mixture, Split, TokenFolder};
use bam_convert::evaluate::perplexity::negative_log_likelihoods;
use bam_convert::model::{CausalLm, LoadOptions, Overrides};
use candle_core::Device;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    Run, assert_same_folder, bam, binary, contents, copy_folder, edit_json, finish, fixture,
    read_json, sha256,
};
use crate::tokenize::write;
use crate::train::{Shared, metrics, of_kind};

fn chats() -> PathBuf {
    fixture("chat")
}

/// A folder with the tokenizer and one of the templates.
pub fn tokenizer(work: &TempDir, template: &str) -> PathBuf {
    let folder = work.path().join(template);
    fs::create_dir_all(&folder).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(chats().join(name), folder.join(name)).unwrap();
    }
    let from = chats().join(format!("{template}.jinja"));
    fs::copy(from, folder.join("chat_template.jinja")).unwrap();
    folder
}

/// A line with one question and one answer.
fn turns_of(text: &str) -> String {
    json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]})
        .to_string()
}

/// Ids and mask of each document of the training split.
fn documents(folder: &Path) -> Vec<Value> {
    let folder = TokenFolder::open(folder).unwrap();
    let split = Split::Train;
    let document = |number| {
        let positions = folder.document(split, number).unwrap();
        let scored = folder.scored(split, positions.clone()).unwrap();
        let mask: Vec<u8> = scored.into_iter().map(u8::from).collect();
        json!({"ids": folder.ids(split, positions).unwrap(), "mask": mask})
    };
    (0..folder.documents(split)).map(document).collect()
}

/// Golden: `apply_chat_template` of transformers 5.24.0, by `fixtures/make_chat.py`.
#[test]
fn ids_and_masks_are_those_of_transformers() {
    let work = TempDir::new().unwrap();
    let expected = read_json(chats().join("expected.json"));
    for (template, expected) in expected.as_object().unwrap() {
        let tokenizer = tokenizer(&work, template);
        let out = work.path().join(format!("{template}-tokens"));
        let run = bam!(
            "tokenize",
            chats().join("chats.jsonl"),
            "--chat",
            "--tokenizer",
            tokenizer,
            "--validation",
            "0",
            "--out",
            out,
            "--json"
        );
        let report = run.json();
        assert_eq!(Value::from(documents(&out)), *expected, "{template}");
        let sums = expected.as_array().unwrap().iter();
        let masks = sums.flat_map(|document| document["mask"].as_array().unwrap());
        let answers: u64 = masks.map(|bit| bit.as_u64().unwrap()).sum();
        assert_eq!(report["train"]["answer_tokens"], answers);

        // The folder is a tokenizer with a template of its own.
        let again = work.path().join(format!("{template}-again"));
        bam!(
            "tokenize",
            chats().join("chats.jsonl"),
            "--chat",
            "--tokenizer",
            out,
            "--validation",
            "0",
            "--out",
            again
        )
        .ok();
        assert_same_folder(&out, &again);
        // All its files are ours to replace.
        bam!(
            "tokenize",
            chats().join("chats.jsonl"),
            "--chat",
            "--tokenizer",
            out,
            "--validation",
            "0",
            "--out",
            again,
            "--force"
        )
        .ok();
        assert_same_folder(&out, &again);
    }
}

/// A copy of a token folder in which the tokens with these numbers modulo 3 carry loss.
fn masked(folder: &Path, to: &Path, numbers: &[usize]) -> PathBuf {
    copy_folder(folder, to);
    edit_json(&to.join("header.json"), |header| {
        header["format_version"] = 2.into();
        for shard in header["splits"].as_object_mut().unwrap().values_mut() {
            let shard = &mut shard[0];
            let count = shard["tokens"].as_u64().unwrap() as usize;
            let mask: Vec<u8> = (0..count)
                .map(|at| u8::from(numbers.contains(&(at % 3))))
                .collect();
            let file = shard["file"].as_str().unwrap().replace(".bin", ".mask");
            let tokens = mask.iter().filter(|byte| **byte == 1).count();
            shard["mask"] =
                json!({"sha256": sha256(&mask), "tokens": tokens, "bytes_of_text": 3 * tokens});
            write(to.join(file), mask);
        }
    });
    to.to_path_buf()
}

/// The sum of the losses of the first step, and its tokens.
fn first_step(out: &Path) -> (f64, u64) {
    let step = &of_kind(&metrics(out), "step")[0];
    let tokens = step["tokens"].as_u64().unwrap();
    (step["nll"].as_f64().unwrap() * tokens as f64, tokens)
}

fn train_on(data: &Path, out: &Path, flags: &[&str]) -> Run {
    let mut command = Command::new(binary());
    command.arg("train").arg(fixture("llama/seed"));
    command.arg("--out").arg(out).arg("--data");
    command.arg(format!("texts={}", data.display()));
    command.args(["--seq", "24", "--threads", "1", "--steps", "2"]);
    command.args(flags);
    finish(command)
}

/// Two masks that share the tokens share the losses, and batches are weighed by their tokens.
#[test]
fn masked_tokens_alone_are_trained_on_and_scored() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let texts = Shared::get().path("code");
    let parts = [
        ("all", vec![0, 1, 2]),
        ("first", vec![0]),
        ("rest", vec![1, 2]),
    ];
    for flags in [
        vec!["--batch", "4"],
        vec!["--batch", "1", "--accumulate", "4", "--documents", "joined"],
    ] {
        let mut sums = Vec::new();
        for (name, numbers) in &parts {
            let data = masked(&texts, &path(&format!("{name}-{}", flags.len())), numbers);
            let out = path(&format!("{name}-out-{}", flags.len()));
            train_on(&data, &out, &flags).ok();
            sums.push(first_step(&out));
        }
        let [(all, tokens), (first, one), (rest, two)] = sums[..] else {
            panic!("{sums:?}")
        };
        assert!(one > 0 && tokens == one + two, "{sums:?}");
        assert!((all - first - rest).abs() < 1e-4 * all, "{sums:?}");
    }
    // A mask of all tokens is none.
    let plain = path("plain-out");
    train_on(&texts, &plain, &["--batch", "4", "--documents", "separate"]).ok();
    assert_eq!(
        fs::read(plain.join("model.safetensors")).unwrap(),
        fs::read(path("all-out-2").join("model.safetensors")).unwrap()
    );

    let mut scores = Vec::new();
    for (name, _) in &parts {
        let data = format!("texts={}", path(&format!("{name}-2")).display());
        let run = bam!("eval", fixture("llama/seed"), "--data", data, "--json");
        let score = run.json()["models"][0]["domains"][0].clone();
        scores.push((
            score["nll"].as_f64().unwrap(),
            score["tokens"].as_u64().unwrap(),
        ));
    }
    let [(all, tokens), (first, one), (rest, two)] = scores[..] else {
        panic!("{scores:?}")
    };
    assert!(one > 0 && tokens == one + two, "{scores:?}");
    assert!((all - first - rest).abs() < 1e-6 * all, "{scores:?}");
}

/// A mask that is shifted by one token would have another loss. The model itself tells the losses of tokens, row by row.
#[test]
fn the_loss_is_of_the_masked_tokens_and_of_no_others() {
    let work = TempDir::new().unwrap();
    let data = masked(&Shared::get().path("code"), &work.path().join("data"), &[1]);
    let out = work.path().join("out");
    train_on(
        &data,
        &out,
        &["--batch", "2", "--accumulate", "2", "--documents", "joined"],
    )
    .ok();
    let folder = TokenFolder::open(&data).unwrap();
    let mixture =
        Mixture::new(vec![("texts".to_owned(), folder, 1.0)], 0, 24, Split::Train).unwrap();
    let model = CausalLm::load(&fixture("llama/seed"), &LoadOptions::train(Device::Cpu)).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for row in mixture.rows(0, 4).unwrap() {
        let losses =
            negative_log_likelihoods(&model, &row.ids, &Overrides::default(), None).unwrap();
        for (loss, scored) in losses.iter().zip(&row.scored[1..]) {
            if *scored {
                sum += loss;
                count += 1;
            }
        }
    }
    let (found, tokens) = first_step(&out);
    assert!(count > 0 && tokens == count, "{tokens} {count}");
    assert!((found - sum).abs() < 1e-5 * sum, "{found} {sum}");
}

/// Answers can be far between: a step without one is counted, and the run continues.
#[test]
fn steps_without_an_answer_make_no_update() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let data = masked(&Shared::get().path("code"), &path("data"), &[0, 1, 2]);
    let set = |mask: Vec<u8>| {
        edit_json(&data.join("header.json"), |header| {
            let tokens = mask.iter().filter(|byte| **byte == 1).count();
            header["splits"]["train"][0]["mask"] =
                json!({"sha256": sha256(&mask), "tokens": tokens, "bytes_of_text": 0});
        });
        write(data.join("train-00000.mask"), mask);
    };
    let length = fs::metadata(data.join("train-00000.mask")).unwrap().len() as usize;
    // One token in the middle: most rows have none.
    let mut mask = vec![0; length];
    mask[length / 2] = 1;
    set(mask);
    let flags = ["--batch", "1", "--validate-every", "0"];
    let run = train_on(&data, &path("out"), &flags).ok();
    let records = metrics(&path("out"));
    let (steps, skips) = (of_kind(&records, "step"), of_kind(&records, "skip"));
    assert!(
        !skips.is_empty() && steps.len() + skips.len() == 2,
        "{records:?}"
    );
    assert!(
        run.stderr.contains("skipped: no token of it carries loss"),
        "{run}"
    );
    set(vec![0; length]);
    train_on(&data, &path("none"), &flags)
        .refused(2, &["no token of its train split carries loss"]);
}

#[test]
fn folders_with_masks_are_checked() {
    let work = TempDir::new().unwrap();
    let data = masked(&Shared::get().path("code"), &work.path().join("data"), &[0]);
    let out = work.path().join("out");
    let mask = data.join("train-00000.mask");
    let bytes = fs::read(&mask).unwrap();
    let refused = |parts: &[&str]| {
        train_on(&data, &out, &[]).refused(2, parts);
        assert!(!out.exists());
    };
    fs::write(&mask, &bytes[1..]).unwrap();
    refused(&["train-00000.mask: expected", "items of 1 bytes"]);
    let mut other = bytes.clone();
    other[7] ^= 1;
    fs::write(&mask, &other).unwrap();
    refused(&["train-00000.mask: expected SHA-256"]);
    other.fill(2);
    fs::write(&mask, &other).unwrap();
    edit_json(&data.join("header.json"), |header| {
        header["splits"]["train"][0]["mask"]["sha256"] = sha256(&other).into();
    });
    refused(&["train-00000.mask: byte ", "expected 0 or 1, found 2"]);
    edit_json(&data.join("header.json"), |header| {
        header["format_version"] = 1.into();
    });
    refused(&[
        "key `splits.train.0.mask`",
        "expected none in format_version 1",
    ]);
    edit_json(&data.join("header.json"), |header| {
        header["format_version"] = 3.into();
    });
    refused(&["format_version", "3"]);
    edit_json(&data.join("header.json"), |header| {
        header["format_version"] = 2.into();
        header["splits"]["train"][0]["mask"]["tokens"] = u64::MAX.into();
    });
    refused(&["key `splits.train.0.mask.tokens`", "expected at most"]);
}

#[test]
fn lines_that_are_no_conversations_are_refused() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let tokenizer = tokenizer(&work, "plain");
    let refused = |name: &str, text: &str, flags: &[&str], parts: &[&str]| {
        let file = write(work.path().join(name), text);
        let mut command = Command::new(binary());
        command
            .arg("tokenize")
            .arg(&file)
            .args(["--chat", "--validation", "0", "--out"]);
        command.arg(&out).args(flags);
        if !flags.contains(&"--tokenizer") {
            command.arg("--tokenizer").arg(&tokenizer);
        }
        finish(command).refused(2, parts);
        assert!(!out.join("header.json").exists());
    };
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let refused_line =
        |line: &str, parts: &[&str]| refused("a.jsonl", &format!("{good}\n{line}\n"), &[], parts);
    refused_line(
        r#"{"text": "a"}"#,
        &[
            "line 2: expected `messages`, `conversations`, or",
            "its keys are: text",
        ],
    );
    refused_line(
        r#"{"messages": [{"role": "assistant", "weight": 0}]}"#,
        &["key `messages.0.weight`: line 2: expected none: every answer"],
    );
    refused(
        "a.txt",
        "a",
        &[],
        &["expected JSON lines or parquet, which hold conversations"],
    );
    let user = r#"{"prompt": "a"}"#;
    refused("b.jsonl", user, &[], &["key `completion`: line 1"]);
    let alone = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    refused(
        "c.jsonl",
        alone,
        &[],
        &["expected text, found none: 1 documents are empty"],
    );
    refused(
        "d.jsonl",
        good,
        &["--tokenizer", "train:300"],
        &["cannot make a tokenizer of conversations"],
    );
    let file = write(work.path().join("h.jsonl"), turns_of("a"));
    let data = format!("x={}", file.display());
    bam!("eval", fixture("llama/seed"), "--data", data).refused(
        2,
        &["key `text`", "conversations: `bam-convert tokenize --chat`"],
    );
    let bare = chats();
    refused(
        "e.jsonl",
        good,
        &["--tokenizer", bare.to_str().unwrap()],
        &["has no chat template", "--chat-template FILE"],
    );
    // The text before the second answer depends on whether another follows.
    let changing =
        "{% for m in messages %}{{ '>' if loop.last else '<' }}{{ m.content }}{% endfor %}";
    let changing = write(work.path().join("changing.jinja"), changing);
    let turns = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    refused(
        "f.jsonl",
        turns,
        &["--chat-template", changing.to_str().unwrap()],
        &[
            "f.jsonl: line 1: ",
            "cannot find the answer in message 2",
            "{% generation %}",
        ],
    );
    let hostile = write(
        work.path().join("hostile.jinja"),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    );
    refused(
        "f.jsonl",
        turns,
        &["--chat-template", hostile.to_str().unwrap()],
        &["f.jsonl: line 1: ", "cannot be rendered"],
    );
}

/// What conversations share does not make them near-duplicates, and what surrounds them does not lose them.
#[test]
fn shared_prompts_and_halves_of_characters_beside_a_conversation() {
    let work = TempDir::new().unwrap();
    let system = "You are a careful assistant of a court of law who answers in one word.".repeat(4);
    let line = |number: usize| {
        let turns = json!([
            {"role": "system", "content": system},
            {"role": "user", "content": format!("What is {number} times {}?", number * 7)},
            {"role": "assistant", "content": format!("It is {}.", number * number * 7)},
        ]);
        format!("{{\"messages\": {turns}, \"source\": \"\\ud83d\"}}\n")
    };
    let chats = write(
        work.path().join("a.jsonl"),
        (0..20).map(line).collect::<String>(),
    );
    let out = work.path().join("out");
    let tokenizer = tokenizer(&work, "plain");
    let run = bam!(
        "tokenize",
        chats,
        "--chat",
        "--tokenizer",
        tokenizer,
        "--validation",
        "0.1",
        "--out",
        out,
        "--json"
    );
    let report = run.ok().json();
    assert_eq!(
        (&report["documents"], &report["unreadable"]),
        (&json!(20), &json!(0))
    );
    assert_eq!(report["near_duplicates"], 0, "{report}");
    assert!(report["validation"]["answer_tokens"].as_u64().unwrap() > 0);
}

/// The tables are written by pyarrow, in `fixtures/make_chat_tables.py`.
#[test]
fn tables_hold_the_conversations_of_json_lines() {
    let work = TempDir::new().unwrap();
    let tokenizer = tokenizer(&work, "plain");
    for (name, documents, empty) in [("messages", 6, 3), ("prompts", 2, 0)] {
        let tokens = |ending: &str| {
            let out = work.path().join(format!("{name}-{ending}"));
            let texts = chats().join(format!("{name}.{ending}"));
            let run = bam!(
                "tokenize",
                texts,
                "--chat",
                "--tokenizer",
                tokenizer,
                "--validation",
                "0",
                "--out",
                out,
                "--json"
            );
            let report = run.ok().json();
            assert_eq!(report["documents"], documents, "{name}.{ending}");
            assert_eq!(report["empty"], empty, "{name}.{ending}");
            contents(&out)
                .into_iter()
                .filter(|(name, _)| name.starts_with("train-"))
                .collect::<Vec<_>>()
        };
        assert_eq!(tokens("parquet"), tokens("jsonl"), "{name}");
    }
}
