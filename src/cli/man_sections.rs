//! Sections of manual pages that come from the documentation: what holds for every command.
//!
//! A section of the page about the environment becomes a section of each manual page, so that both say the same.

use clap_mangen::roff::{Inline, Roff, bold, roman};

/// The page of the documentation.
const ENVIRONMENT: &str = include_str!("../../docs/reference/environment.md");

/// The headings of manual pages, and of the sections of the documentation that they take.
pub const SECTIONS: [(&str, &str); 3] = [
    ("EXIT STATUS", "Exit codes"),
    ("ENVIRONMENT", "Variables"),
    ("FILES", "Files outside your outputs"),
];

/// Writes the sections.
pub fn render(roff: &mut Roff) {
    for (heading, title) in SECTIONS {
        roff.control("SH", [heading]);
        let mut in_rows = false;
        let mut is_after_blank = false;
        for line in section(ENVIRONMENT, title) {
            let row = row(line);
            let is_blank = matches!(row, Row::Blank);
            match row {
                Row::Rule => in_rows = true,
                Row::Cells(cells) if in_rows => definition(roff, &cells),
                // The first row of a table names its columns.
                Row::Cells(_) => {}
                Row::Blank => in_rows = false,
                Row::Text(text) => {
                    if is_after_blank {
                        roff.control("PP", []);
                    }
                    roff.text(inlines(text));
                }
            }
            is_after_blank = is_blank;
        }
    }
}

/// A line of Markdown, as far as the page needs it.
enum Row<'a> {
    Cells(Vec<&'a str>),
    /// The line between the names of a table's columns and its rows.
    Rule,
    Blank,
    Text(&'a str),
}

fn row(line: &str) -> Row<'_> {
    let line = line.trim();
    if line.is_empty() {
        return Row::Blank;
    }
    let Some(cells) = line.strip_prefix('|') else {
        return Row::Text(line);
    };
    if cells.starts_with("---") {
        return Row::Rule;
    }
    let cells = cells.trim_end_matches('|').split('|');
    Row::Cells(cells.map(str::trim).collect())
}

/// The lines below a heading of the second level, without blank lines around them.
fn section<'a>(page: &'a str, title: &str) -> Vec<&'a str> {
    let lines = page.lines();
    let below = lines.skip_while(|line| line.strip_prefix("## ") != Some(title));
    let lines: Vec<&str> = below
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .collect();
    let first = lines.iter().position(|line| !line.is_empty());
    let last = lines.iter().rposition(|line| !line.is_empty());
    match (first, last) {
        (Some(first), Some(last)) => lines[first..=last].to_vec(),
        _ => Vec::new(),
    }
}

/// What a row of a table defines, and the meaning: its second column, and the default in its third.
fn definition(roff: &mut Roff, cells: &[&str]) {
    let (Some(term), Some(meaning)) = (cells.first(), cells.get(1)) else {
        return;
    };
    roff.control("TP", []);
    roff.text(vec![bold(plain(&term.replace('`', "")))]);
    let mut text = inlines(meaning);
    if let Some(default) = cells.get(2).filter(|default| !default.is_empty()) {
        text.push(roman(" [default: "));
        text.extend(inlines(default));
        text.push(roman("]"));
    }
    roff.text(text);
}

/// A line of Markdown with its code in bold.
fn inlines(line: &str) -> Vec<Inline> {
    let parts = line.split('`').enumerate();
    let styled = parts.map(|(number, part)| {
        if number % 2 == 1 {
            bold(part)
        } else {
            roman(plain(part))
        }
    });
    styled.collect()
}

/// A text with the words of its links in their place.
fn plain(text: &str) -> String {
    let mut rest = text;
    let mut result = String::new();
    while let Some((before, link)) = rest.split_once('[')
        && let Some((words, after)) = link.split_once("](")
        && let Some((_, after)) = after.split_once(')')
    {
        result += before;
        result += words;
        rest = after;
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_is_in_the_documentation() {
        for (_, title) in SECTIONS {
            let lines = section(ENVIRONMENT, title);
            assert!(lines.iter().any(|line| line.starts_with("| ")), "{title}");
        }
    }

    #[test]
    fn links_become_words() {
        let text = "[hub.md](hub.md#when-it-fails) lists [all] of them.";
        assert_eq!(plain(text), "hub.md lists [all] of them.");
    }
}
