//! What the parts of a `tokenizer.json` mean, whatever their spelling.
//!
//! Versions of the `tokenizers` library write the same tokenizer in different ways: merges as texts or as pairs, defaults that are
//! said or left out, and older names of options.
//! Options that change offsets alone are left out, because they change no id.

use serde_json::{Map, Value, json};

use crate::family::same_value;

/// Options of BPE models beside vocabulary and merges, with their defaults.
static MODEL_OPTIONS: [(&str, Value); 7] = [
    ("dropout", Value::Null),
    ("unk_token", Value::Null),
    ("continuing_subword_prefix", Value::Null),
    ("end_of_word_suffix", Value::Null),
    ("fuse_unk", Value::Bool(false)),
    ("byte_fallback", Value::Bool(false)),
    ("ignore_merges", Value::Bool(false)),
];

/// Options of steps, with their defaults.
static STEP_OPTIONS: [(&str, &[(&str, Value)]); 4] = [
    (
        "ByteLevel",
        &[
            ("add_prefix_space", Value::Bool(true)),
            ("use_regex", Value::Bool(true)),
        ],
    ),
    ("Metaspace", &[("split", Value::Bool(true))]),
    ("Digits", &[("individual_digits", Value::Bool(false))]),
    (
        "BertNormalizer",
        &[
            ("clean_text", Value::Bool(true)),
            ("handle_chinese_chars", Value::Bool(true)),
            ("strip_accents", Value::Null),
            ("lowercase", Value::Bool(true)),
        ],
    ),
];

/// Options that change offsets alone, or that no version reads.
const WITHOUT_MEANING: [&str; 2] = ["trim_offsets", "str_rep"];

/// Whether two lists of merges are the same: `"a b"` is `["a", "b"]`.
pub(super) fn same_merges(a: Option<&Value>, b: Option<&Value>) -> bool {
    let (a, b) = (merges(a), merges(b));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || pair(a) == pair(b))
}

/// The list of merges; none where it is absent.
fn merges(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The two tokens of a merge; a merge that is neither a text of two nor a pair is itself.
fn pair(merge: &Value) -> Result<(&str, &str), &Value> {
    let pair = match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(tokens) => match &tokens[..] {
            [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
            _ => None,
        },
        _ => None,
    };
    pair.ok_or(merge)
}

/// The first option of a model that has another meaning in the other one.
pub(super) fn other_option(a: &Map<String, Value>, b: &Map<String, Value>) -> Option<&'static str> {
    let option = |model: &Map<String, Value>, name: &str, default: &Value| {
        let value = model.get("model").and_then(|model| model.get(name));
        let value = value.filter(|value| !value.is_null()).unwrap_or(default);
        // An empty prefix or suffix is none.
        if *value == "" {
            Value::Null
        } else {
            value.clone()
        }
    };
    let differs = |(name, default): &&(&str, Value)| {
        !same_value(&option(a, name, default), &option(b, name, default))
    };
    MODEL_OPTIONS.iter().find(differs).map(|(name, _)| *name)
}

/// Whether two normalizers, or two pre-tokenizers, turn text into the same pieces.
pub(super) fn same_steps(a: Option<&Value>, b: Option<&Value>) -> bool {
    let steps = |value| {
        let mut steps = Vec::new();
        flatten(value, &mut steps);
        Value::Array(steps)
    };
    same_value(&steps(a), &steps(b))
}

/// The steps of a sequence, each in one spelling. A single step is a sequence of one, and null a sequence of none.
fn flatten(value: Option<&Value>, steps: &mut Vec<Value>) {
    let Some(Value::Object(step)) = value else {
        steps.extend(value.filter(|value| !value.is_null()).cloned());
        return;
    };
    let inner = ["normalizers", "pretokenizers"];
    match inner.iter().find_map(|key| step.get(*key)) {
        Some(Value::Array(inner)) if step.get("type").is_some_and(|kind| kind == "Sequence") => {
            for step in inner {
                flatten(Some(step), steps);
            }
        }
        _ => steps.push(Value::Object(spelled(step))),
    }
}

/// A step with its defaults, without what changes no id, and under the newer names.
fn spelled(step: &Map<String, Value>) -> Map<String, Value> {
    let mut step = step.clone();
    for name in WITHOUT_MEANING {
        step.shift_remove(name);
    }
    let kind = step.get("type").and_then(Value::as_str).unwrap_or_default();
    let kind = kind.to_owned();
    let defaults = STEP_OPTIONS.iter().find(|(name, _)| *name == kind);
    for (name, default) in defaults.into_iter().flat_map(|(_, options)| *options) {
        let value = step.entry((*name).to_owned()).or_insert(Value::Null);
        if value.is_null() {
            *value = default.clone();
        }
    }
    if kind == "Metaspace" {
        // Older versions say whether a space is put before the text, newer ones before which texts.
        let added = step.shift_remove("add_prefix_space");
        let usual = if added == Some(Value::Bool(false)) {
            "never"
        } else {
            "always"
        };
        step.entry("prepend_scheme").or_insert_with(|| json!(usual));
        step.entry("replacement").or_insert_with(|| json!("▁"));
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: Value, b: Value) -> bool {
        same_merges(Some(&a), Some(&b))
    }

    fn steps(a: Value, b: Value) -> bool {
        same_steps(Some(&a), Some(&b))
    }

    #[test]
    fn merges_are_pairs_in_either_spelling() {
        assert!(same(
            json!(["a b", "ab c"]),
            json!([["a", "b"], ["ab", "c"]])
        ));
        assert!(!same(
            json!(["a b", "ab c"]),
            json!([["ab", "c"], ["a", "b"]])
        ));
        assert!(!same(json!(["a b"]), json!(["a b", "c d"])));
        assert!(!same(json!(["a"]), json!([["a", ""]])));
        assert!(same_merges(None, Some(&json!([]))));
    }

    #[test]
    fn defaults_may_be_said() {
        let short = json!({"type": "ByteLevel"});
        let long = json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true
        });
        assert!(steps(short.clone(), long));
        let other = json!({"type": "ByteLevel", "add_prefix_space": false});
        assert!(!steps(short.clone(), other));
        let sequence = json!({"type": "Sequence", "pretokenizers": [short]});
        assert!(steps(short, sequence));
        let none = json!({"type": "Sequence", "normalizers": []});
        assert!(same_steps(None, Some(&none)));
        assert!(same_steps(None, Some(&Value::Null)));
    }

    #[test]
    fn metaspace_has_two_spellings() {
        let old = |added: bool| json!({"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": added});
        let new = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
        assert!(steps(old(true), new("always")));
        assert!(steps(old(false), new("never")));
        assert!(!steps(old(true), new("first")));
        assert!(steps(json!({"type": "Metaspace"}), new("always")));
    }

    #[test]
    fn options_of_the_model_count_with_their_defaults() {
        let model = |options: Value| {
            let object = json!({ "model": options });
            object.as_object().cloned().unwrap_or_default()
        };
        let short = model(json!({"type": "BPE"}));
        let long = model(json!({
            "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "fuse_unk": false, "byte_fallback": false,
        }));
        assert_eq!(other_option(&short, &long), None);
        let other = model(json!({"byte_fallback": true}));
        assert_eq!(other_option(&short, &other), Some("byte_fallback"));
    }
}
