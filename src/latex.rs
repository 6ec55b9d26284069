//! LaTeX tables: values show as they are, and never act as commands.

use crate::printable::printable;
use crate::table::Align;

/// A value as plain text of a cell or a caption.
pub fn text(value: &str) -> String {
    let value = printable(value);
    let mut out = String::with_capacity(value.len());
    let mut before = ' ';
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '`' => out.push_str("\\textasciigrave{}"),
            '"' => out.push_str("\\textquotedbl{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '{' | '}' | '$' | '&' | '#' | '_' | '%' => out.extend(['\\', c]),
            // After the end of a row, these would be options of the line break.
            '[' | '*' => out.extend(['{', c, '}']),
            // Two of them would be a dash.
            '-' if before == '-' => out.push_str("{}-"),
            _ => out.push(c),
        }
        before = c;
    }
    out
}

/// A `table` with lines of the package booktabs. Cells are plain text.
pub fn table(caption: &str, columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| format!("    {} \\\\\n", cells.join(" & "));
    let aligned = columns.iter().map(|(_, align)| match align {
        Align::Left => 'l',
        Align::Right => 'r',
    });
    let head = line(columns.iter().map(|(title, _)| text(title)).collect());
    let rows: String = rows
        .iter()
        .map(|row| line(row.iter().map(|cell| text(cell)).collect()))
        .collect();
    format!(
        "\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\begin{{tabular}}{{{}}}\n    \\toprule\n{head}    \\midrule\n{rows}    \\bottomrule\n  \\end{{tabular}}\n\\end{{table}}\n",
        text(caption),
        aligned.collect::<String>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_command() {
        for (value, expected) in [
            ("my_model 50 %", "my\\_model 50 \\%"),
            ("\\input{x}", "\\textbackslash{}input\\{x\\}"),
            ("$a^2$ & b # c", "\\$a\\textasciicircum{}2\\$ \\& b \\# c"),
            ("[2pt] *", "{[}2pt] {*}"),
            ("a--b-c", "a-{}-b-c"),
            (
                "~`<|>\"",
                "\\textasciitilde{}\\textasciigrave{}\\textless{}\\textbar{}\\textgreater{}\\textquotedbl{}",
            ),
        ] {
            assert_eq!(text(value), expected);
        }
    }

    #[test]
    fn a_table_has_its_rows() {
        let rows = [vec!["a_b".to_owned(), "1.5".to_owned()]];
        let found = table(
            "50 %",
            &[("model", Align::Left), ("x&y", Align::Right)],
            &rows,
        );
        assert!(found.contains("\\caption{50 \\%}"), "{found}");
        assert!(found.contains("\\begin{tabular}{lr}"), "{found}");
        assert!(
            found.contains("    model & x\\&y \\\\\n    \\midrule\n    a\\_b & 1.5 \\\\\n"),
            "{found}"
        );
    }
}
