//! Text made safe to print.
//!
//! Names come from strangers' files, and a terminal obeys some characters: escape sequences move the cursor, and
//! bidirectional controls show words in another order. Everything that the program prints passes through this file. Whoever
//! composes several lines passes each value through [`printable`] first, so that no value can forge a line of the layout.

use std::fmt::Write;

/// Code points that Unicode's `Default_Ignorable_Code_Point` names, with line and paragraph separators and annotations:
/// nobody sees them, and they hide, join or turn round what people see.
const INVISIBLE: [(u32, u32); 17] = [
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffb),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe0fff),
];

/// A value in one line: what a terminal would obey or nobody would see is escaped, as `\u{1b}` and `\n`.
pub fn printable(text: &str) -> String {
    escaped(text, is_printable)
}

/// Text of several lines: as [`printable`], but line breaks and tabs stay.
pub fn printable_lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t') || is_printable(c))
}

/// JSON with the same characters as `\uXXXX`; outside of strings JSON has none of them but line breaks.
pub fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_printable(c) {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// Whether a character shows as itself, where it is.
pub fn is_printable(c: char) -> bool {
    let code = u32::from(c);
    !c.is_control()
        && !INVISIBLE
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&code))
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if stays(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_default());
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_terminals_obey_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\n\t"), "a\\u{1b}[2J\\n\\t");
        for c in [
            '\0',
            '\r',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200e}',
            '\u{2028}',
            '\u{202e}',
            '\u{2066}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            assert!(!printable(&format!("x{c}y")).contains(c), "{c:?}");
            assert!(!printable_lines(&format!("x{c}y")).contains(c), "{c:?}");
        }
    }

    #[test]
    fn words_of_every_script_stay() {
        let text = "Grüße, 你好, שלום, سلام, हिन्दी, π ≈ 3, “a” – b…, 🙂";
        assert_eq!(printable(text), text);
    }

    #[test]
    fn layout_keeps_its_lines() {
        assert_eq!(printable_lines("a\tb\r\n\u{85}c\n"), "a\tb\\r\n\\u{85}c\n");
    }

    #[test]
    fn json_reads_back_as_it_was() {
        let value = serde_json::json!({"a\u{7f}\u{9b}": "\u{202e}\u{e0041}\n\u{1b}"});
        let text = printable_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || is_printable(c)), "{text}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
