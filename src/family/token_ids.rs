//! The token ids that a `tokenizer.json` holds.

use serde_json::{Map, Value};

/// Hands each id to `each`, with the key that holds it and its token. The id is `None` where the file has something
/// else in its place.
pub fn each_token_id(
    tokenizer: &Map<String, Value>,
    each: &mut dyn FnMut(&'static str, &str, Option<u64>),
) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    match tokenizer.get("model").and_then(|model| model.get("vocab")) {
        Some(Value::Object(vocab)) => vocab
            .iter()
            .for_each(|(token, id)| each("model.vocab", token, id.as_u64())),
        // A unigram model lists [token, score] and counts the ids.
        Some(Value::Array(vocab)) => (0..).zip(vocab).for_each(|(id, token)| {
            each("model.vocab", &text(token.get(0)), Some(id));
        }),
        _ => {}
    }
    if let Some(Value::Array(added)) = tokenizer.get("added_tokens") {
        for token in added {
            let id = token.get("id").and_then(Value::as_u64);
            each("added_tokens", &text(token.get("content")), id);
        }
    }
    if let Some(processor) = tokenizer.get("post_processor") {
        around(processor, each);
    }
}

/// Ids that a post-processor puts around a text.
fn around(processor: &Value, each: &mut dyn FnMut(&'static str, &str, Option<u64>)) {
    let key = "post_processor";
    if let Some(Value::Array(processors)) = processor.get("processors") {
        processors
            .iter()
            .for_each(|processor| around(processor, each));
    }
    if let Some(Value::Object(tokens)) = processor.get("special_tokens") {
        for (name, token) in tokens {
            let ids = token.get("ids").and_then(Value::as_array);
            ids.into_iter()
                .flatten()
                .for_each(|id| each(key, name, id.as_u64()));
        }
    }
    for name in ["cls", "sep"] {
        if let Some([Value::String(token), id]) = processor
            .get(name)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        {
            each(key, token, id.as_u64());
        }
    }
}
