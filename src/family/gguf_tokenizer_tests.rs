use std::path::Path;

use tokenizers::Tokenizer;

use super::*;
use crate::checkpoint::gguf_build::Build;
use crate::error::Error;
use crate::family::gguf::tests::wrong_value;
use crate::family::gguf_error::{MERGES, MODEL};

const KINDS: &str = "tokenizer.ggml.token_type";

fn open(build: &Build) -> Gguf {
    let bytes = build.bytes();
    Gguf::read(Path::new("m.gguf"), &bytes[..], bytes.len() as u64).unwrap()
}

fn file(build: &Build, name: &str) -> Value {
    let files = files(&open(build)).unwrap();
    let file = files.iter().find(|file| file.name == name).unwrap();
    serde_json::from_slice(&file.bytes).unwrap()
}

fn tokenizer(build: &Build) -> Tokenizer {
    serde_json::from_value(file(build, "tokenizer.json")).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

fn refused(build: &Build) -> Error {
    files(&open(build)).unwrap_err()
}

/// Printable ASCII, a space and a new line as GPT-2 writes them, two special tokens, one of a user, and merges.
fn gpt2(pre: &str) -> Build {
    let mut tokens: Vec<String> = ["<end>", "<user>", "Ġ", "Ċ"].map(str::to_owned).into();
    tokens.extend((b'!'..=b'~').map(|byte| char::from(byte).to_string()));
    let merges = ["h e", "l l", "he ll", "Ġ Ġ", "Ġ 1", "1 2", "Ġ hell"];
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut kinds = vec![1; tokens.len()];
    kinds[..2].copy_from_slice(&[3, 4]);
    let mut build = Build::new();
    build
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre);
    build
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s(KINDS, &kinds)
        .texts("tokenizer.ggml.merges", &merges);
    build
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 0);
    build.zeros("token_embd.weight", &[tokens.len() as u64 + 2, 1]);
    build
}

fn pieces(build: &Build, text: &str) -> Vec<String> {
    tokenizer(build)
        .encode(text, false)
        .unwrap()
        .get_tokens()
        .to_vec()
}

#[test]
fn a_byte_level_vocabulary_keeps_every_id_and_merges_in_order() {
    let build = gpt2("gpt-2");
    let tokenizer = tokenizer(&build);
    for (id, token) in open(&build)
        .texts("tokenizer.ggml.tokens")
        .unwrap()
        .unwrap()
        .iter()
        .enumerate()
    {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32), "{token}");
        assert_eq!(tokenizer.id_to_token(id as u32).as_ref(), Some(token));
    }
    assert_eq!(
        pieces(&build, "hello hello<end>he<user>"),
        ["hell", "o", "Ġhell", "o", "<end>", "he", "<user>"]
    );
    assert_eq!(
        tokenizer
            .decode(&ids(&tokenizer, "hello 12<end>"), true)
            .unwrap(),
        "hello 12"
    );
}

#[test]
fn text_is_split_as_the_pre_tokenizer_says() {
    for (pre, expected) in [
        ("gpt-2", &["Ġ1", "2", "3", "4", "Ċ", "Ġ", "Ġ", "h", "i"][..]),
        (
            "smollm",
            &["Ġ", "1", "2", "3", "4", "Ċ", "Ġ", "Ġ", "h", "i"],
        ),
        ("llama-bpe", &["Ġ", "12", "3", "4", "Ċ", "Ġ", "Ġ", "h", "i"]),
        ("qwen2", &["Ġ", "1", "2", "3", "4", "Ċ", "Ġ", "Ġ", "h", "i"]),
        (
            "tekken",
            &["Ġ", "1", "2", "3", "4", "Ċ", "Ġ", "Ġ", "h", "i"],
        ),
        (
            "deepseek-coder",
            &["Ġ", "1", "2", "3", "4", "Ċ", "Ġ", "Ġ", "h", "i"],
        ),
    ] {
        assert_eq!(pieces(&gpt2(pre), " 1234\n  hi"), expected, "{pre}");
    }
}

#[test]
fn an_unknown_split_is_refused_and_an_absent_one_is_gpt_2() {
    let error = refused(&gpt2("grok-2"));
    assert!(
        matches!(&error, Error::GgufModel(GgufModelError::UnknownSplit { found, .. }) if found == "grok-2"),
        "{error}"
    );
    assert_eq!(
        pieces(gpt2("x").drop_key("tokenizer.ggml.pre"), " 12"),
        ["Ġ1", "2"]
    );
}

#[test]
fn the_first_and_last_token_are_added_where_the_file_says_or_the_vocabulary_is_used_so() {
    let first = |build: &Build| ids(&tokenizer(build), "h").first() == Some(&0);
    assert!(!first(&gpt2("smollm")));
    assert!(first(&gpt2("llama-bpe")), "as llama.cpp does for llama-bpe");
    assert!(!first(
        gpt2("llama-bpe").bool("tokenizer.ggml.add_bos_token", false)
    ));
    let mut both = gpt2("smollm");
    both.bool("tokenizer.ggml.add_bos_token", true)
        .bool("tokenizer.ggml.add_eos_token", true);
    let tokenizer = tokenizer(&both);
    assert_eq!(
        tokenizer.encode("h", true).unwrap().get_tokens(),
        ["<end>", "h", "<end>"]
    );
    let pair = tokenizer.encode(("h", "i"), true).unwrap();
    assert_eq!(
        pair.get_tokens(),
        ["<end>", "h", "<end>", "<end>", "i", "<end>"]
    );
    assert_eq!(
        file(&both, "tokenizer_config.json")["add_bos_token"],
        json!(true)
    );
}

#[test]
fn the_other_files_name_the_special_tokens_and_the_template() {
    let mut build = gpt2("smollm");
    build
        .text("tokenizer.chat_template", "{{ messages }}\n")
        .text("general.architecture", "exaone")
        .u32("exaone.context_length", 64);
    build
        .u32("tokenizer.ggml.eot_token_id", 1)
        .u32("tokenizer.ggml.padding_token_id", u32::MAX);
    let config = file(&build, "tokenizer_config.json");
    for (key, value) in [
        ("bos_token", json!("<end>")),
        ("chat_template", json!("{{ messages }}\n")),
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("model_max_length", json!(64)),
        ("model_input_names", json!(["input_ids", "attention_mask"])),
        ("clean_up_tokenization_spaces", json!(false)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(
        config["added_tokens_decoder"]["1"]["content"],
        json!("<user>")
    );
    assert_eq!(
        file(&build, "special_tokens_map.json"),
        json!({"bos_token": "<end>", "eos_token": "<end>"})
    );
    let generation = json!({"_from_model_config": true, "bos_token_id": 0, "eos_token_id": [0, 1]});
    assert_eq!(file(&build, "generation_config.json"), generation);
    let files = files(&open(&build)).unwrap();
    let template = files
        .iter()
        .find(|file| file.name == "chat_template.jinja")
        .unwrap();
    assert_eq!(template.bytes, b"{{ messages }}\n");
}

#[test]
fn a_model_without_vocabulary_has_only_generation_settings() {
    let files = files(&open(&Build::new())).unwrap();
    assert_eq!(
        files.iter().map(|file| file.name).collect::<Vec<_>>(),
        ["generation_config.json"]
    );
}

/// A SentencePiece vocabulary as Llama 2 has one: unknown, two ends, bytes, merged pieces by score, characters.
fn llama() -> Build {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let merged = ["▁t", "he", "▁the", "▁▁", "the"];
    let characters = ["▁", "t", "h", "e", "n"];
    let mut tokens = vec!["<unk>", "<s>", "</s>"];
    tokens.extend(bytes.iter().map(String::as_str));
    tokens.extend(merged);
    tokens.extend(characters);
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    kinds.extend([1; 10]);
    let mut scores = vec![0.0; 259];
    scores.extend((0..10).map(|rank| -(rank as f32)));
    let mut build = Build::new();
    build
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens);
    build
        .i32s(KINDS, &kinds)
        .f32s("tokenizer.ggml.scores", &scores);
    build
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    build.u32("tokenizer.ggml.unknown_token_id", 0);
    build
}

#[test]
fn a_sentencepiece_vocabulary_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = tokenizer(&llama());
    let pieces = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(pieces("the then"), ["<s>", "▁the", "▁the", "n"]);
    assert_eq!(pieces("  the"), ["<s>", "▁▁", "▁the"]);
    assert_eq!(
        pieces("né</s>"),
        ["<s>", "▁", "n", "<0xC3>", "<0xA9>", "</s>"]
    );
    for text in ["the then", "  thé\nn", "the"] {
        let encoding = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text);
    }
    let mut bare = llama();
    bare.bool("tokenizer.ggml.add_space_prefix", false)
        .bool("tokenizer.ggml.add_bos_token", false);
    let encoding = super::tests::tokenizer(&bare)
        .encode("the the", true)
        .unwrap();
    assert_eq!(encoding.get_tokens(), ["the", "▁the"]);
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused_by_key() {
    let (scores, unknown) = ("tokenizer.ggml.scores", "tokenizer.ggml.unknown_token_id");
    for (build, key, expected, found) in [
        (
            gpt2("gpt-2").drop_key(KINDS).i32s(KINDS, &[1]),
            KINDS,
            "one type for each of 105 tokens",
            "1",
        ),
        (
            gpt2("gpt-2").drop_key(KINDS).i32s(KINDS, &[9; 105]),
            KINDS,
            "types from 1 to 6",
            "another",
        ),
        (
            gpt2("gpt-2")
                .drop_tensor("token_embd.weight")
                .zeros("token_embd.weight", &[9, 1]),
            TOKENS,
            "at most 9 tokens, the rows of `token_embd.weight`",
            "105",
        ),
        (
            gpt2("gpt-2").u32(unknown, 500),
            unknown,
            "an id below the 105 tokens",
            "500",
        ),
        (
            llama().drop_key(scores),
            scores,
            "a score for each of 269 tokens",
            "0",
        ),
        (
            llama().drop_key(scores).f32s(scores, &[f32::NAN; 269]),
            scores,
            "finite scores",
            "another for token 0",
        ),
    ] {
        wrong_value(&refused(build), (key, expected, found));
    }
    let error = refused(gpt2("gpt-2").drop_key(MERGES));
    assert!(
        matches!(&error, Error::Input(InputError::MissingKey { key, .. }) if key == MERGES),
        "{error}"
    );
}

#[test]
fn vocabularies_that_break_a_rule_are_refused() {
    let refused = |build: &Build| match refused(build) {
        Error::GgufModel(error) => error,
        other => panic!("{other}"),
    };
    let same = ["a", "b", "a"];
    let mut build = gpt2("gpt-2");
    let build = build.drop_key(KINDS).drop_key(TOKENS).texts(TOKENS, &same);
    let error = refused(build);
    assert!(
        matches!(&error, GgufModelError::RepeatedToken { token, first: 0, second: 2, .. } if token == "a"),
        "{error}"
    );
    let error = refused(gpt2("gpt-2").drop_key(TOKENS));
    assert!(
        matches!(error, GgufModelError::NoVocabulary { .. }),
        "{error}"
    );
    let mut build = gpt2("gpt-2");
    let error = refused(build.drop_key(MERGES).texts(MERGES, &["h e", "h x"]));
    assert!(
        matches!(&error, GgufModelError::Merge { index: 1, found, .. } if found == "h x"),
        "{error}"
    );
    let mut build = llama();
    let error = refused(build.drop_key(MODEL).text(MODEL, "t5"));
    assert!(
        matches!(&error, GgufModelError::UnknownVocabulary { found, .. } if found == "t5"),
        "{error}"
    );
}
