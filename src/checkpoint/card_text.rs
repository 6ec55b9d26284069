//! The text of a model card as this program writes it: its seal, and the sections that later commands replace.
//!
//! People edit cards. The last line of a card that this program wrote holds the SHA-256 of the text above it. By this line, a
//! later command tells an edited card from an unchanged one.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::hash::sha256;
use super::json;
use super::manifest::{Manifest, Origin};
use super::names::CARD;
use crate::{Error, Result};

/// Where a section begins and ends.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// The line before it.
    pub begin: &'static str,
    /// The line after it.
    pub end: &'static str,
}

/// The section about a copy of a model whose own card is carried.
pub const COPY: Marks = Marks {
    begin: "<!-- bam-convert: about this copy -->\n",
    end: "<!-- bam-convert: end of about this copy -->\n",
};
/// The recipe that made the checkpoint.
pub const RECIPE: Marks = Marks {
    begin: "<!-- recipe -->\n",
    end: "<!-- end of recipe -->\n",
};
/// The scores that `eval --card` and `push` write.
pub const EVALUATION: Marks = Marks {
    begin: "<!-- bam-convert: evaluation -->\n",
    end: "<!-- bam-convert: end of evaluation -->\n",
};
/// The section that `push` writes.
pub const PUBLISHED: Marks = Marks {
    begin: "<!-- bam-convert: from here to the end mark, push writes this anew -->",
    end: "<!-- bam-convert: end -->",
};

/// The last line of a card, before and after the hash.
const SEAL: [&str; 2] = ["<!-- bam-convert wrote this card: ", " -->\n"];

/// The text with its seal.
pub fn sealed(text: &str) -> String {
    let [begin, end] = SEAL;
    let text = format!("{}\n", text.trim_end());
    let hash = sha256(text.as_bytes());
    format!("{text}\n{begin}{hash}{end}")
}

/// The text above the seal; `None` where there is no seal, or somebody has changed the text.
pub fn unsealed(card: &str) -> Option<&str> {
    let [begin, end] = SEAL;
    let (above, hash) = card.strip_suffix(end)?.rsplit_once(begin)?;
    let text = above.strip_suffix('\n')?;
    (sha256(text.as_bytes()) == hash).then_some(text)
}

/// The card without its seal, whether or not the text has been changed since.
pub fn without_seal(card: &str) -> &str {
    let [begin, end] = SEAL;
    let cut = card
        .trim_end_matches('\n')
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let is_seal = card[cut..].starts_with(begin) && card.ends_with(end);
    if is_seal {
        let text = &card[..cut];
        text.strip_suffix('\n').unwrap_or(text)
    } else {
        card
    }
}

/// The text with a section of this content, in the place of an earlier one or at the end.
pub fn with_section(text: &str, marks: Marks, content: &str) -> String {
    let Marks { begin, end } = marks;
    let section = format!("{begin}{content}{end}");
    match place_of(text, marks) {
        Some(place) => format!("{}{section}{}", &text[..place.start], &text[place.end..]),
        None => format!("{}\n\n{section}", text.trim_end()),
    }
}

/// The text without the section between these marks; `None` where it lacks the section.
pub fn without_section(text: &str, marks: Marks) -> Option<String> {
    let place = place_of(text, marks)?;
    let before = text[..place.start].trim_end();
    let after = text[place.end..].trim_start();
    let gap = if before.is_empty() || after.is_empty() {
        "\n"
    } else {
        "\n\n"
    };
    Some(format!("{before}{gap}{after}"))
}

/// Where the section is, with its marks.
fn place_of(text: &str, marks: Marks) -> Option<Range<usize>> {
    let start = text.find(marks.begin)?;
    let inside = start + marks.begin.len();
    // A recipe may hold the mark of its end, but indents its lines.
    let mut ends = text[inside..].match_indices(marks.end);
    let (end, mark) = ends.find(|(at, _)| text[..inside + at].ends_with('\n'))?;
    Some(start..inside + end + mark.len())
}

/// Copies the card of a folder to a file beside the folder, where a person has edited it; returns the copy.
///
/// A card that came from the Hub with the folder is kept there, so it needs no copy.
///
/// # Errors
/// Where the card cannot be read, or the copy cannot be written.
pub(super) fn keep_edited(folder: &Path) -> Result<Option<PathBuf>> {
    let card = folder.join(CARD);
    if !card.is_file() || !is_edited(folder, &card)? {
        return Ok(None);
    }

    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let names = (1..).map(|number| match number {
        1 => format!("{name}.{CARD}"),
        _ => format!("{name}.{number}.{CARD}"),
    });
    for name in names {
        let copy = folder.with_file_name(name);
        if !copy.exists() {
            std::fs::copy(&card, &copy).map_err(|e| Error::io("write", &copy, e))?;
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

/// Whether the card is neither as this program wrote it nor as the Hub has it.
fn is_edited(folder: &Path, card: &Path) -> Result<bool> {
    // Without a record of ours, the folder is no checkpoint that a command wrote.
    let listed = Manifest::read(folder).ok().flatten();
    if !listed.is_some_and(|manifest| manifest.unhashed_files.iter().any(|file| file == CARD)) {
        return Ok(false);
    }
    let bytes = json::read_bytes(card)?;
    if std::str::from_utf8(&bytes).is_ok_and(|text| unsealed(text).is_some()) {
        return Ok(false);
    }
    let hash = sha256(&bytes);
    let pulled = Origin::read(folder).is_some_and(|origin| {
        let mut files = origin.files.iter();
        files.any(|file| file.path == CARD && file.sha256 == hash)
    });
    Ok(!pulled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_card_is_recognised() {
        let card = sealed("---\nlicense: mit\n---\n\n# A model\n\n\n");
        let text = "---\nlicense: mit\n---\n\n# A model\n";
        assert_eq!(unsealed(&card), Some(text));
        assert_eq!(without_seal(&card), text);
        let edited = card.replace("A model", "My model");
        assert_eq!(unsealed(&edited), None);
        assert_eq!(
            without_seal(&edited),
            "---\nlicense: mit\n---\n\n# My model\n"
        );
        for other in ["", "# A model\n", "a <!-- b -->\n"] {
            assert_eq!((unsealed(other), without_seal(other)), (None, other));
        }
    }

    #[test]
    fn a_section_goes_with_its_marks() {
        let text = with_section("a\n", COPY, "b\n");
        assert_eq!(text, format!("a\n\n{}b\n{}", COPY.begin, COPY.end));
        let text = text + "\nc\n";
        assert_eq!(without_section(&text, COPY).as_deref(), Some("a\n\nc\n"));
        assert_eq!(without_section(&text, RECIPE), None);
    }

    #[test]
    fn a_section_replaces_an_earlier_one_and_nothing_else() {
        // An indented mark of the end is content, and a second section is a person's.
        let content = format!("    {}b\n", RECIPE.end);
        let text = with_section("a", RECIPE, &content) + &with_section("c", RECIPE, "d\n");
        let expected = with_section("a", RECIPE, "e\n") + &with_section("c", RECIPE, "d\n");
        assert_eq!(with_section(&text, RECIPE, "e\n"), expected);
        assert_eq!(with_section(&expected, RECIPE, &content), text);
    }
}
