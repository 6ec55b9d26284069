//! The YAML between `---` at the beginning of a model card.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::CardError;
use crate::Result;
use crate::checkpoint::yaml;
use crate::printable::printable;

/// The line before and after the keys.
const FENCE: &str = "---";

/// Keys and values in the order in which a card shows them.
#[derive(Debug, Default)]
pub(super) struct FrontMatter(Map<String, Value>);

impl FrontMatter {
    /// Sets a key to a text.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.value(key, json!(value));
    }

    /// Sets a key to a list of texts; leaves the key out where the list is empty.
    pub(super) fn list<T: AsRef<str>>(&mut self, key: &str, values: impl IntoIterator<Item = T>) {
        let values = values.into_iter();
        let values: Vec<String> = values.map(|value| value.as_ref().to_owned()).collect();
        if !values.is_empty() {
            self.value(key, json!(values));
        }
    }

    /// Sets a key to any value.
    pub(super) fn value(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), shown(value));
    }

    /// Leaves out the keys that a person has set.
    pub(super) fn without(mut self, set: &Map<String, Value>) -> Self {
        self.0.retain(|key, _| !set.contains_key(key));
        self
    }

    /// The lines, each with its end, without the fences.
    pub(super) fn lines(&self) -> Result<String> {
        if self.0.is_empty() {
            return Ok(String::new());
        }
        let text =
            serde_saphyr::to_string(&self.0).map_err(|source| CardError::NotWritten { source })?;
        Ok(format!("{}\n", text.trim_end()))
    }
}

/// The value with every text as people see it: YAML may not hold controls, and nobody sees some other characters.
fn shown(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(printable(&text)),
        Value::Array(items) => items.into_iter().map(shown).collect(),
        Value::Object(map) => {
            let entries = map.into_iter();
            Value::Object(
                entries
                    .map(|(key, value)| (printable(&key), shown(value)))
                    .collect(),
            )
        }
        other => other,
    }
}

/// A card with these lines of front matter, which may be empty, and this body.
pub(super) fn joined(lines: &str, body: &str) -> String {
    let body = body.trim_start_matches('\n');
    if lines.trim().is_empty() {
        body.to_owned()
    } else {
        format!("{FENCE}\n{lines}{FENCE}\n\n{body}")
    }
}

/// Front matter and what follows it; the front matter is empty where the text has none.
///
/// # Errors
/// A front matter without an end.
pub(super) fn split<'t>(path: &Path, text: &'t str) -> Result<(&'t str, &'t str)> {
    // Some editors write a byte order mark, which is no part of the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rest = text.strip_prefix("---\n");
    let Some(rest) = rest.or_else(|| text.strip_prefix("---\r\n")) else {
        return Ok(("", text));
    };
    let mut start = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == FENCE {
            return Ok((&rest[..start], &rest[start + line.len()..]));
        }
        start += line.len();
    }
    let path = path.to_path_buf();
    Err(CardError::FrontMatter { path }.into())
}

/// The keys of a front matter.
///
/// # Errors
/// Lines that are no YAML.
pub(super) fn keys(path: &Path, lines: &str) -> Result<Map<String, Value>> {
    if lines.trim().is_empty() {
        Ok(Map::new())
    } else {
        yaml::parse(path, lines)
    }
}

/// Removes a key and the lines that belong to it.
pub(super) fn remove(lines: &mut Vec<&str>, key: &str) {
    let is_key = |line: &&str| {
        line.strip_prefix(key)
            .is_some_and(|rest| rest.starts_with(':'))
    };
    let Some(at) = lines.iter().position(is_key) else {
        return;
    };
    let belongs = |line: &&&str| line.starts_with([' ', '\t', '-']);
    let count = lines[at + 1..].iter().take_while(belongs).count();
    lines.drain(at..=at + count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_as_it_was() {
        let texts = [
            "apache-2.0",
            "no",
            "null",
            "3.1",
            "a: b",
            "- a",
            "#x",
            "\"",
            "'",
            "{a",
            "a\\b",
            "é",
            "",
            " a",
            "a very long text of more than eighty characters, which a writer could fold into several lines",
        ];
        let mut front = FrontMatter::default();
        front.list("texts", texts);
        front.text("license", "a\nlibrary_name: evil\u{202e}");
        front.value(
            "model-index",
            json!([{"name": "x: y", "results": [{"value": 1.5}]}]),
        );
        let lines = front.lines().unwrap();
        let read = keys(Path::new("README.md"), &lines).unwrap();
        assert_eq!(read["texts"], json!(texts), "{lines}");
        assert_eq!(
            read["license"], "a\\nlibrary_name: evil\\u{202e}",
            "{lines}"
        );
        assert_eq!(
            read["model-index"][0]["results"][0]["value"], 1.5,
            "{lines}"
        );
        assert!(!read.contains_key("library_name"), "{lines}");
    }

    #[test]
    fn a_byte_order_mark_hides_no_front_matter() {
        let path = Path::new("README.md");
        for mark in ["", "\u{feff}"] {
            let text = format!("{mark}---\nlicense: mit\n---\nbody");
            assert_eq!(split(path, &text).unwrap(), ("license: mit\n", "body"));
        }
        assert_eq!(split(path, "\u{feff}body").unwrap(), ("", "body"));
    }

    #[test]
    fn keys_go_with_their_lines() {
        let mut lines = vec!["a: 1", "b:", "- x", "  y", "bc: 2"];
        remove(&mut lines, "b");
        assert_eq!(lines, ["a: 1", "bc: 2"]);
    }
}
