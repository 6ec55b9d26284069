//! Markdown of model cards: values of strangers' files show as they are, and never act as markup, HTML or links.

use crate::printable::printable;
use crate::table::Align;

/// A value as plain text of a paragraph, a list or a cell.
pub fn text(value: &str) -> String {
    let value = printable(value);
    let mut out = String::with_capacity(value.len());
    let mut before = ' ';
    let mut rest = value.chars().peekable();
    while let Some(c) = rest.next() {
        let after = rest.peek().copied().unwrap_or(' ');
        let acts = match c {
            '\\' | '`' | '*' | '[' | ']' | '~' | '$' => true,
            // Within a word it emphasises nothing.
            '_' => !(before.is_alphanumeric() && after.is_alphanumeric()),
            // What looks like an address would be a link.
            ':' => after == '/',
            '.' => out.ends_with("www"),
            _ => false,
        };
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            _ if acts => out.extend(['\\', c]),
            _ => out.push(c),
        }
        before = c;
    }
    out
}

/// A value as code within a line.
pub fn code(value: &str) -> String {
    let value = printable(value);
    let fence = fence(&value, 1);
    // A space keeps backticks of the value apart from those around it.
    let gap = if value.starts_with('`') || value.ends_with('`') || value.is_empty() {
        " "
    } else {
        ""
    };
    format!("{fence}{gap}{value}{gap}{fence}")
}

/// Lines of code in this language.
pub fn block(language: &str, lines: &str) -> String {
    let fence = fence(lines, 3);
    format!("{fence}{language}\n{lines}{fence}\n")
}

/// A table, whose cells are Markdown.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| {
        // Even in code, this character ends a cell.
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let head = line(columns.iter().map(|(title, _)| text(title)).collect());
    let rule = columns.iter().map(|(_, align)| match align {
        Align::Left => "---|",
        Align::Right => "---:|",
    });
    let rows = rows.iter().map(|row| line(row.clone()));
    format!(
        "{head}|{}\n{}",
        rule.collect::<String>(),
        rows.collect::<String>()
    )
}

/// More backticks in a row than the text has, and at least so many.
fn fence(text: &str, least: usize) -> String {
    let longest = text
        .split(|c| c != '`')
        .map(str::len)
        .max()
        .unwrap_or_default();
    "`".repeat((longest + 1).max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        for (value, expected) in [
            ("my_expert-2.5", "my_expert-2.5"),
            ("_a_ *b* ~c~ $d$", "\\_a\\_ \\*b\\* \\~c\\~ \\$d\\$"),
            ("<img src=x>&", "&lt;img src=x&gt;&amp;"),
            ("[a](https://b)", "\\[a\\](https\\://b)"),
            ("www.a", "www\\.a"),
            ("`\\\n", "\\`\\\\\\\\n"),
        ] {
            assert_eq!(text(value), expected);
        }
    }

    #[test]
    fn code_ends_where_it_should() {
        for (value, expected) in [("a", "`a`"), ("``a", "``` ``a ```"), ("a`b", "``a`b``")] {
            assert_eq!(code(value), expected);
        }
        assert_eq!(
            block("yaml", "a: \"```\"\n"),
            "````yaml\na: \"```\"\n````\n"
        );
    }

    #[test]
    fn a_cell_ends_where_it_should() {
        let rows = [vec![text("a|b"), code("c|d")]];
        let found = table(&[("x|y", Align::Left), ("n", Align::Right)], &rows);
        assert_eq!(found, "| x\\|y | n |\n|---|---:|\n| a\\|b | `c\\|d` |\n");
    }
}
