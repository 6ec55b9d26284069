//! `generate`: texts from real checkpoints, tiny as they are.

use std::path::{Path, PathBuf};

use crate::common::{Run, bam, binary, copy_folder, edit_json, edit_tensors, fixture};
use bam_convert::model::chat::{ChatTemplate, Conversation};
use bam_convert::model::generate::{
    Ending, Flow, ReadText, Settings, eos_ids, generate, generate_after,
};
use bam_convert::model::sampling::Sampling;
use bam_convert::model::text_stream::TextStream;
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::model::{CausalLm, Forward, LoadOptions};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "cohere"];

fn seed(family: &str) -> PathBuf {
    fixture(family).join("seed")
}

fn load(folder: &Path) -> CausalLm {
    CausalLm::load(folder, &LoadOptions::default()).unwrap()
}

/// What the whole sequence's last logits say, every time anew: generation without cache.
fn greedy(model: &CausalLm, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let tokens = Tensor::new(&ids[..], &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        let logits = model
            .forward(&tokens, None, &Forward::default())
            .unwrap()
            .logits;
        let last: Vec<f32> = logits
            .squeeze(0)
            .unwrap()
            .get(ids.len() - 1)
            .unwrap()
            .to_vec1()
            .unwrap();
        let best = (0..last.len())
            .max_by(|a, b| last[*a].total_cmp(&last[*b]))
            .unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

fn settings(max_tokens: usize) -> Settings {
    Settings {
        max_tokens,
        ..Settings::default()
    }
}

#[test]
fn greedy_is_the_largest_logit_of_the_whole_sequence() {
    for family in FAMILIES {
        let model = load(&seed(family));
        // Of different lengths: the batch is padded on the left, and positions leave a sliding window.
        let prompts = vec![
            vec![72, 105, 300, 17],
            vec![9],
            (20..60).collect::<Vec<u32>>(),
        ];
        let batch = generate(&model, &prompts, &settings(12), &mut |_, _| {
            Ok(Flow::Continue)
        })
        .unwrap();
        for (prompt, text) in prompts.iter().zip(&batch.texts) {
            assert_eq!(
                text.ids,
                greedy(&model, prompt, 12),
                "{family}, prompt of {}",
                prompt.len()
            );
            assert_eq!(text.ending, Ending::Length);
        }
    }
}

#[test]
fn texts_end_apart() {
    let model = load(&seed("llama"));
    let prompts = vec![vec![72, 105], vec![9, 10, 11]];
    let whole: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| greedy(&model, prompt, 8))
        .collect();
    let at = (0..8)
        .find(|at| !whole[1].contains(&whole[0][*at]) && !whole[0][..*at].contains(&whole[0][*at]))
        .unwrap();
    let ends = Settings {
        eos: vec![whole[0][at]],
        ..settings(8)
    };
    let mut seen = [0, 0];
    let batch = generate(&model, &prompts, &ends, &mut |row, _| {
        seen[row] += 1;
        Ok(if row == 1 && seen[1] == 6 {
            Flow::Stop
        } else {
            Flow::Continue
        })
    });
    let batch = batch.unwrap();
    assert_eq!(batch.texts[0].ids, whole[0][..=at]);
    assert_eq!(batch.texts[1].ids, whole[1][..6]);
    assert_eq!(
        (batch.texts[0].ending, batch.texts[1].ending),
        (Ending::Eos, Ending::Stop)
    );
    // The token that ends a text is no part of it.
    assert_eq!(seen, [at, 6]);
}

#[test]
fn the_same_seed_says_the_same() {
    let say = |seed: &str, flags: &[&str]| {
        let folder = fixture("qwen3/seed");
        let mut arguments: Vec<std::ffi::OsString> =
            ["generate", "--prompt", "Hello", "--json", "--seed", seed]
                .into_iter()
                .chain(["--max-tokens", "24"])
                .chain(flags.iter().copied())
                .map(Into::into)
                .collect();
        arguments.push(folder.into());
        crate::common::run(arguments).ok().json()["ids"].clone()
    };
    let warm = ["--temperature", "1.5"];
    assert_eq!(say("1", &warm), say("1", &warm));
    assert_ne!(say("1", &warm), say("2", &warm));
    let greedy = say("1", &[]);
    assert_eq!(greedy, say("2", &["--temperature", "0"]));
    for one in [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]] {
        assert_eq!(greedy, say("3", &one), "{one:?}");
    }
    assert_ne!(greedy, say("1", &["--repetition-penalty", "2"]));
}

#[test]
fn stop_strings_end_the_text() {
    let folder = seed("llama");
    let whole = bam!(
        "generate",
        folder,
        "--prompt",
        "Hello",
        "--max-tokens",
        "24",
        "--json"
    )
    .ok()
    .json();
    let whole = whole["text"].as_str().unwrap().to_owned();
    let characters: Vec<char> = whole.chars().collect();
    let stop: String = characters[characters.len() / 2..characters.len() / 2 + 3]
        .iter()
        .collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let run = bam!(
        "generate",
        folder,
        "--prompt",
        "Hello",
        "--max-tokens",
        "24",
        "--stop",
        "@@@",
        "--stop",
        stop
    );
    assert_eq!(run.ok().stdout, format!("{expected}\n"));
    let run = bam!(
        "generate",
        folder,
        "--prompt",
        "Hello",
        "--max-tokens",
        "24",
        "--json",
        "--stop",
        stop
    )
    .ok()
    .json();
    assert_eq!(
        (run["text"].as_str(), run["ended_by"].as_str()),
        (Some(expected), Some("stop"))
    );
}

#[test]
fn what_is_streamed_is_what_json_says() {
    let folder = seed("mistral");
    let json = bam!(
        "generate",
        folder,
        "--prompt",
        "a",
        "--prompt",
        "the law",
        "--max-tokens",
        "9",
        "--json"
    )
    .ok()
    .json();
    let text = |row: usize| json[row]["text"].as_str().unwrap();
    for row in [0, 1] {
        assert!(json[row]["prefill_seconds"].as_f64().unwrap() > 0.0);
        assert!(json[row]["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(json[row]["ids"].as_array().unwrap().len() <= 9);
    }
    let run = bam!(
        "generate",
        folder,
        "--prompt",
        "a",
        "--prompt",
        "the law",
        "--max-tokens",
        "9"
    )
    .ok();
    assert_eq!(
        run.stdout,
        format!(
            "==> prompt 1 <==\n{}\n==> prompt 2 <==\n{}\n",
            text(0),
            text(1)
        )
    );
}

#[test]
fn characters_are_shown_whole() {
    let tokenizer = Tokenizer::load(&seed("llama"), 384).unwrap();
    let text = "naïve café — 你好 🎉 done";
    let ids = tokenizer.encode(text, false).unwrap().ids;
    let stops = ["🎉 d".to_owned()];
    for stops in [&[][..], &stops[..]] {
        let mut stream = TextStream::new(&tokenizer, &[], stops);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        assert!(
            pieces.iter().all(|piece| !piece.contains('\u{fffd}')),
            "{pieces:?}"
        );
        let expected = if stops.is_empty() {
            text
        } else {
            "naïve café — 你好 "
        };
        assert_eq!(
            (pieces.concat().as_str(), stream.text()),
            (expected, expected)
        );
        assert_eq!(stream.stopped(), !stops.is_empty());
    }
}

#[test]
fn a_conversation_is_laid_out_by_the_template() {
    let folder = seed("llama");
    let text = ChatTemplate::load(&folder)
        .unwrap()
        .request(Conversation::question(None, "Hello"))
        .text()
        .unwrap();
    assert_eq!(
        text,
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    );
    let chat = bam!(
        "generate",
        folder,
        "--chat",
        "--prompt",
        "Hello",
        "--max-tokens",
        "4",
        "--json"
    )
    .ok()
    .json();
    let plain = bam!(
        "generate",
        folder,
        "--prompt",
        text,
        "--max-tokens",
        "4",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(chat["ids"], plain["ids"]);
    let work = TempDir::new().unwrap();
    let bare = copy_folder(&folder, &work.path().join("bare"));
    std::fs::remove_file(bare.join("chat_template.jinja")).unwrap();
    bam!("generate", bare, "--chat", "--prompt", "Hello")
        .refused(2, &["no chat template", "leave out --chat"]);
}

#[test]
fn bfloat16_and_float32_agree() {
    let folder = seed("llama");
    let say = |dtype: &str| {
        let run = bam!(
            "generate",
            folder,
            "--prompt",
            "Hello",
            "--max-tokens",
            "12",
            "--dtype",
            dtype,
            "--json"
        );
        run.ok().json()["ids"].clone()
    };
    // The fixture is stored as bfloat16, whose widening is exact.
    assert_eq!(say("f32"), say("bf16"));
}

#[test]
fn ends_of_text_are_read_from_the_generation_config() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&seed("llama"), &work.path().join("a"));
    assert_eq!(eos_ids(&folder).unwrap(), [2]);
    edit_json(&folder.join("generation_config.json"), |config| {
        config["eos_token_id"] = json!([5, 7])
    });
    assert_eq!(eos_ids(&folder).unwrap(), [5, 7]);
    std::fs::remove_file(folder.join("generation_config.json")).unwrap();
    assert_eq!(eos_ids(&folder).unwrap(), [2]);
    edit_json(&folder.join("config.json"), |config| {
        config["eos_token_id"] = json!("two")
    });
    assert!(
        eos_ids(&folder)
            .unwrap_err()
            .to_string()
            .contains("eos_token_id")
    );
}

#[test]
fn bad_requests_are_refused_by_name() {
    let folder = seed("llama");
    bam!(
        "generate",
        folder,
        "--prompt",
        "Hello",
        "--max-tokens",
        "600"
    )
    .refused(
        2,
        &[
            "600 new ones are more than the model's context of 512",
            "at most 508 new tokens",
        ],
    );
    bam!("generate", folder, "--prompt", "", "--max-tokens", "6")
        .refused(2, &["the prompt has no tokens"]);
    bam!("generate", folder, "--prompt", "a", "--top-p", "2")
        .refused(2, &["top-p from 0 to 1, found 2"]);
    bam!("generate", folder, "--prompt", "a", "--temperature=-1")
        .refused(2, &["temperature of 0 or more"]);
    for device in ["cuda", "cuda:0", "cuda:9"] {
        bam!("generate", folder, "--prompt", "a", "--device", device)
            .refused(2, &["no CUDA support", "--features cuda"]);
    }
    for device in ["tpu", "cuda:", "cuda:-1", "cuda:N"] {
        bam!("generate", folder, "--prompt", "a", "--device", device)
            .refused(2, &[device, "cpu, cuda, cuda:N"]);
    }
    let model = load(&folder);
    let wrong = generate(&model, &[vec![1, 400]], &settings(2), &mut |_, _| {
        Ok(Flow::Continue)
    })
    .unwrap_err();
    assert!(
        wrong
            .to_string()
            .contains("token id 400 is outside the model's vocabulary of 384"),
        "{wrong}"
    );
    let wrong = Settings {
        sampling: Sampling {
            top_k: Some(0),
            ..Sampling::default()
        },
        ..settings(2)
    };
    assert!(generate(&model, &[vec![1]], &wrong, &mut |_, _| Ok(Flow::Continue)).is_err());
}

#[test]
fn bad_checkpoints_are_refused_by_name() {
    let work = TempDir::new().unwrap();
    let nan = copy_folder(&seed("llama"), &work.path().join("nan"));
    edit_tensors(&nan, |tensors| {
        let norm = tensors.get_mut("model.norm.weight").unwrap();
        *norm =
            crate::common::Tensor::new(Dtype::BF16, &norm.shape, &vec![f64::NAN; norm.shape[0]]);
    });
    bam!("generate", nan, "--prompt", "a").refused(2, &["nan", "not finite", "validate"]);

    let other = copy_folder(&seed("llama"), &work.path().join("other"));
    edit_json(&other.join("tokenizer.json"), |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut token = added[0].clone();
        (token["id"], token["content"]) = (json!(384), json!("<|beyond|>"));
        added.push(token);
    });
    bam!("generate", other, "--prompt", "a")
        .refused(2, &["tokenizer.json", "384", "<|beyond|>", "vocabulary"]);
    std::fs::remove_file(other.join("tokenizer.json")).unwrap();
    bam!("generate", other, "--prompt", "a").refused(2, &["tokenizer.json", "is missing"]);
}

/// Runs `generate` on the seed with this text on standard input.
fn with_input(folder: &Path, flags: &[&str], input: &str) -> Run {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new(binary())
        .arg("generate")
        .arg(folder)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Run {
        command: format!("generate {} {flags:?} < {input:?}", folder.display()),
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn a_prompt_comes_from_standard_input() {
    let folder = seed("llama");
    let flags = ["--max-tokens", "5", "--json"];
    let typed = bam!(
        "generate",
        folder,
        "--prompt",
        "The year\nwas",
        "--max-tokens",
        "5",
        "--json"
    );
    let typed = typed.ok().json();
    let prompt = [&["--prompt", "-"], &flags[..]].concat();
    let read = with_input(&folder, &prompt, "The year\nwas\n").ok().json();
    assert_eq!(
        (&read["prompt"], &read["ids"]),
        (&typed["prompt"], &typed["ids"])
    );
    let twice = [&["--prompt", "-", "--prompt", "-"], &flags[..]].concat();
    with_input(&folder, &twice, "a").refused(2, &["--prompt -", "once"]);
    let chat = [&["--chat", "--prompt", "-"], &flags[..]].concat();
    let read = with_input(&folder, &chat, "Hello\n").ok().json();
    let typed = bam!(
        "generate",
        folder,
        "--chat",
        "--prompt",
        "Hello",
        "--max-tokens",
        "5",
        "--json"
    );
    assert_eq!(read["ids"], typed.ok().json()["ids"]);
}

#[test]
fn a_dialogue_keeps_its_history() {
    let folder = seed("llama");
    let flags = ["--chat", "--system", "Be brief.", "--max-tokens", "4"];
    let answers = with_input(&folder, &flags, "Hello\n\n  \nAnd then?\n").ok();

    // The same turns, laid out by the template in this process.
    let template = ChatTemplate::load(&folder).unwrap();
    let mut conversation = Conversation::begin(Some("Be brief."));
    let mut expected = String::new();
    for message in ["Hello", "And then?"] {
        conversation.say("user", message);
        let text = template.request(conversation.clone()).text().unwrap();
        // `--prompt` would add the special tokens that the template has written.
        let ids = Tokenizer::load(&folder, 384)
            .unwrap()
            .encode(&text, false)
            .unwrap()
            .ids;
        let answer = continued(&folder, &ids, 4);
        expected.push_str(&answer);
        expected.push('\n');
        conversation.say("assistant", &answer);
    }
    assert_eq!(answers.stdout, expected, "{answers}");
    // Nothing was said.
    assert_eq!(with_input(&folder, &flags, "").ok().stdout, "");

    let json = [&flags[..], &["--json"]].concat();
    with_input(&folder, &json, "Hello\n").refused(2, &["--json", "--prompt"]);
    let work = TempDir::new().unwrap();
    let bare = copy_folder(&folder, &work.path().join("bare"));
    std::fs::remove_file(bare.join("chat_template.jinja")).unwrap();
    with_input(&bare, &flags, "Hello\n").refused(2, &["no chat template", "leave out --chat"]);
    bam!("generate", folder).refused(2, &["--prompt"]);
}

#[test]
fn a_text_that_grows_is_continued_as_if_it_were_read_anew() {
    for family in ["llama", "mistral", "cohere"] {
        let model = CausalLm::load(&seed(family), &LoadOptions::default()).unwrap();
        let settings = Settings {
            max_tokens: 5,
            ..Settings::default()
        };
        let mut read = ReadText::default();
        let mut prompt: Vec<u32> = (3..20).collect();
        // A turn after the answer, a turn that takes the answer back, the same text again, and another text.
        for turn in 0..5u32 {
            let again = generate(
                &model,
                std::slice::from_ref(&prompt),
                &settings,
                &mut |_, _| Ok(Flow::Continue),
            )
            .unwrap();
            let kept = generate_after(&model, &mut read, prompt.clone(), &settings, &mut |_| {
                Ok(Flow::Continue)
            })
            .unwrap();
            assert_eq!(kept.texts, again.texts, "{family}, turn {turn}");
            match turn {
                0 | 2 => prompt.extend(again.texts[0].ids.iter().copied().chain(40..60)),
                1 => prompt.truncate(25),
                _ => prompt = (100..130).collect(),
            }
        }
    }
}

/// The greedy continuation of these tokens, as text.
fn continued(folder: &Path, prompt: &[u32], tokens: usize) -> String {
    let model = CausalLm::load(folder, &LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::load(folder, 384).unwrap();
    let settings = Settings {
        max_tokens: tokens,
        eos: eos_ids(folder).unwrap(),
        ..Settings::default()
    };
    let mut stream = TextStream::new(&tokenizer, prompt, &[]);
    generate(&model, &[prompt.to_vec()], &settings, &mut |_, id| {
        stream.push(id)?;
        Ok(Flow::Continue)
    })
    .unwrap();
    stream.finish().unwrap();
    stream.text().to_owned()
}
