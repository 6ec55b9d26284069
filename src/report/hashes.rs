//! Hashes in texts, short enough to read.

/// Hexadecimal digits from which a word is a hash: a commit has 40, a SHA-256 has 64.
const HASH: usize = 40;
/// Digits that are shown.
const SHOWN: usize = 10;

/// The text with the first digits of each hash, and the whole text where that is another.
pub(super) fn shortened(text: &str) -> (String, Option<String>) {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, word) = rest.split_at(start);
        let length = word
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(word.len());
        let (digits, after) = word.split_at(length);
        short.push_str(before);
        if length >= HASH {
            short.push_str(&digits[..SHOWN]);
            short.push('…');
        } else {
            short.push_str(digits);
        }
        rest = after;
    }
    short.push_str(rest);
    let full = (short != text).then(|| text.to_owned());
    (short, full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_short_and_words_stay() {
        let hash = "0123456789abcdef".repeat(4);
        let text = format!("code sha256={hash} é deadbeef");
        let (short, full) = shortened(&text);
        assert_eq!(short, "code sha256=0123456789… é deadbeef");
        assert_eq!(full.as_deref(), Some(text.as_str()));
        assert_eq!(
            shortened("weight=1 cafe"),
            ("weight=1 cafe".to_owned(), None)
        );
    }
}
