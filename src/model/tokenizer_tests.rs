//! Texts in pieces have the tokens of the whole, for every kind of tokenizer that is cut at all.

use serde_json::{Value, json};

use super::tokenizer::{Offsets, Tokenizer};
use super::tokenizer_error::{TokenizerError, TokenizerPartRule as Rule};
use crate::Error;
use crate::family::gguf_tokenizer::WORD_EXPRESSIONS;

const BYTE_LEVEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/fixtures/llama/seed/tokenizer.json"
);

/// Pieces of random texts: everything that may be before or after a cut.
const BITS: [&str; 40] = [
    "a", "b", "ab", "x", "Foo", "don't", "'s", " ", " ", " ", "  ", "\n", "\n", "\n\n", "\r\n",
    "\t", ".", ",", "//", "!?", "1", "23", "456", "天地", "。", "é", "e\u{301}", "कि", "\u{345}",
    "ﬃ", "İ", "▁", "\u{a0}", "🙂", "Ⅷ", "ǅ", "<s>", "ab cd", "\u{3000}", "_",
];

fn byte_level(pre_tokenizer: Value) -> Value {
    let text = std::fs::read_to_string(BYTE_LEVEL).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer["pre_tokenizer"] = pre_tokenizer;
    tokenizer
}

/// Byte pairs with a mark for spaces, as SentencePiece makes them.
fn marked(normalizer: Value, pre_tokenizer: Value) -> Value {
    let tokens = [
        "<unk>", "<s>", "▁", "▁▁", "a", "b", "ab", "▁a", "▁ab", "F", "o", "oo", "Foo", "▁Foo", ".",
        "\n", "1", "x", "c", "d", "cd", "▁c", "▁cd", "天",
    ];
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    let merges = [
        ["▁", "▁"],
        ["a", "b"],
        ["▁", "a"],
        ["▁a", "b"],
        ["▁", "ab"],
        ["o", "o"],
        ["F", "oo"],
        ["▁", "Foo"],
        ["c", "d"],
        ["▁", "c"],
        ["▁c", "d"],
        ["▁", "cd"],
    ];
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    })
}

fn opened(tokenizer: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    Tokenizer::open(&path).unwrap()
}

/// How many pieces random texts have in all, whose tokens are compared with the whole texts'.
fn pieces_with_the_tokens_of_the_whole(tokenizer: &Value) -> usize {
    let tokenizer = opened(tokenizer);
    let mut state = 1u64;
    let mut pieces = 0;
    for _ in 0..1500 {
        let mut text = String::new();
        for _ in 0..24 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            text.push_str(BITS[(state >> 33) as usize % BITS.len()]);
        }
        let of = |piece| {
            tokenizer
                .tokens(&text, true, Offsets::Kept, piece)
                .unwrap()
                .0
        };
        let (whole, cut) = (of(usize::MAX), of(1));
        assert_eq!(cut.ids, whole.ids, "{text:?}");
        pieces += tokenizer.pieces(&text, 1).unwrap().len();
    }
    pieces - 1500
}

#[test]
fn words_of_known_expressions() {
    let byte_level_step = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    for expression in WORD_EXPRESSIONS {
        let split = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let steps = json!({"type": "Sequence", "pretokenizers": [split, byte_level_step]});
        for normalizer in [Value::Null, json!({"type": "NFC"}), json!({"type": "NFKD"})] {
            let mut tokenizer = byte_level(steps.clone());
            tokenizer["normalizer"] = normalizer;
            assert!(pieces_with_the_tokens_of_the_whole(&tokenizer) > 1000);
        }
    }
    for prefix in [false, true] {
        let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let steps = json!({"type": "Sequence", "pretokenizers": [digits, gpt2]});
        for steps in [gpt2, steps] {
            assert!(pieces_with_the_tokens_of_the_whole(&byte_level(steps)) > 500);
        }
    }
}

#[test]
fn words_behind_marks() {
    let mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend =
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, mark]});
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    for tokenizer in [
        marked(mark.clone(), Value::Null),
        marked(mark, split),
        marked(prepend, Value::Null),
        marked(Value::Null, metaspace("first", false)),
        marked(Value::Null, metaspace("never", false)),
        marked(Value::Null, metaspace("always", true)),
        marked(
            Value::Null,
            json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always", true)]}),
        ),
    ] {
        assert!(pieces_with_the_tokens_of_the_whole(&tokenizer) > 300);
    }
}

#[test]
fn what_is_not_known_is_not_cut() {
    let uncut = |tokenizer: &Value| assert_eq!(pieces_with_the_tokens_of_the_whole(tokenizer), 0);
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    uncut(&byte_level(split(r"\w+ \w+|\s+")));
    // A token that reaches across a space.
    let mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut across = marked(mark, Value::Null);
    across["model"]["vocab"]["ab▁"] = json!(24);
    across["model"]["merges"]
        .as_array_mut()
        .unwrap()
        .insert(2, json!(["ab", "▁"]));
    uncut(&across);
    let added = |content: &str, side: &str| {
        let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let mut tokenizer = byte_level(gpt2);
        let mut token = json!({"id": 384, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                               "normalized": false, "special": false});
        token[side] = json!(true);
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(token);
        tokenizer
    };
    uncut(&added("ab cd", "special"));
    uncut(&added("ab", "lstrip"));
    uncut(&added("ab", "rstrip"));
}

/// The library takes a step whose type it does not know for another one, by its keys.
#[test]
fn a_step_is_what_its_type_says() {
    let grows =
        json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaaaaaaaa"});
    let steps = vec![grows; 8];
    for kind in ["Sequense", "BertNormalizer"] {
        let mut tokenizer = marked(Value::Null, Value::Null);
        tokenizer["normalizer"] = json!({"type": kind, "normalizers": steps});
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), tokenizer.to_string()).unwrap();
        let error = Tokenizer::open(file.path()).unwrap_err();
        let Error::Tokenizer(TokenizerError::Part { key, rule, .. }) = &error else {
            panic!("{error}");
        };
        assert_eq!(key, "normalizer");
        let named = match rule {
            Rule::UnknownType { found, .. } => found,
            Rule::OtherKey { kind, .. } => kind,
            _ => panic!("{error}"),
        };
        assert_eq!(named, kind);
    }
}
