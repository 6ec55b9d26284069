//! Text made safe to print.
//!
//! Names come from strangers' files, and a terminal obeys some characters: escape sequences move the cursor, and
//! bidirectional controls show words in another order. Everything that the program prints passes through this file. Whoever
//! composes several lines passes each value through [`printable`] first, so that no value can forge a line of the layout.

use std::borrow::Cow;
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

/// The most characters of a stranger's value that a message repeats.
const EXCERPT: usize = 80;
/// How many characters before the first difference of two values a message repeats.
const BEFORE: usize = 20;

/// A value for a message: whole if it is short, else its beginning.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(EXCERPT) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]).into(),
    }
}

/// Two values that differ, for a message: whole if they are short, else the parts around their first difference.
pub fn excerpts(a: &str, b: &str) -> [String; 2] {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let is_long = [a, b]
        .iter()
        .any(|text| text.chars().nth(EXCERPT).is_some());
    let skipped = same.saturating_sub(BEFORE);
    [a, b].map(|text| match text.char_indices().nth(skipped) {
        Some((start, _)) if is_long && same > EXCERPT / 2 => {
            format!("…{}", excerpt(&text[start..]))
        }
        _ => excerpt(text).into_owned(),
    })
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
    fn long_values_are_cut_where_they_differ() {
        let list = |last: &str| format!("[{}{last}]", "\"full_attention\",".repeat(40));
        assert_eq!(excerpt("short"), "short");
        assert_eq!(excerpt(&"ä".repeat(81)), format!("{}…", "ä".repeat(80)));
        assert_eq!(excerpts("1", "22"), ["1", "22"]);
        assert_eq!(
            excerpts(&list("1"), &list("2")),
            ["…n\",\"full_attention\",1]", "…n\",\"full_attention\",2]"]
        );
        let [a, b] = excerpts(&format!("1{}", "0".repeat(200)), &"2".repeat(200));
        assert!(a.starts_with("10") && b.starts_with("22"));
        assert!(
            [a, b]
                .iter()
                .all(|text| text.chars().count() == EXCERPT + 1)
        );
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
