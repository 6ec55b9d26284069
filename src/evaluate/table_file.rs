//! The scores of an evaluation as a file for a page, a spreadsheet or a paper: Markdown, CSV or LaTeX, as its name ends.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::EvaluateError;
use super::report::{EvaluationReport, ModelReport};
use crate::checkpoint::single;
use crate::printable::printable;
use crate::{Result, latex};

/// What Markdown and LaTeX files begin with, by which a later run knows that it may replace them.
const MARK: &str = "Written by bam-convert eval";
/// The first columns of a CSV file.
const FIRST: [&str; 2] = ["measure", "model"];

/// The last column of a CSV file.
const LAST: &str = "average";

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Markdown,
    Csv,
    Latex,
}

/// The endings of names, each with its form.
const FORMS: [(&str, Form); 3] = [
    ("md", Form::Markdown),
    ("csv", Form::Csv),
    ("tex", Form::Latex),
];

/// Refuses a name without a known ending, and a file that [`write()`] has not made.
pub fn check(path: &Path) -> Result<()> {
    let form = form(path)?;
    single::check_kind(path, "table of bam-convert eval", &|beginning| match form {
        Form::Markdown => beginning.starts_with(format!("<!-- {MARK}").as_bytes()),
        Form::Csv => is_our_csv(beginning),
        Form::Latex => beginning.starts_with(format!("% {MARK}").as_bytes()),
    })
}

/// Whether a CSV file begins as [`csv`] writes one: with all of our columns, and a measure of ours in the first row.
fn is_our_csv(beginning: &[u8]) -> bool {
    let text = String::from_utf8_lossy(beginning);
    let Some((head, rows)) = text.split_once('\n') else {
        return false;
    };
    let is_ours = |measure: &Measure| rows.starts_with(&format!("{},", measure.name));
    head.starts_with(&FIRST.map(|name| format!("{name},")).concat())
        && head.ends_with(&format!(",{LAST}"))
        && MEASURES.iter().any(is_ours)
}

/// Writes the scores to a file.
pub fn write(path: &Path, report: &EvaluationReport) -> Result<()> {
    let text = match form(path)? {
        Form::Markdown => format!("<!-- {MARK}. -->\n\n{}", report.markdown()),
        Form::Csv => csv(report),
        Form::Latex => tables(report),
    };
    single::write(path, &[text.as_bytes()])
}

fn form(path: &Path) -> Result<Form> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    let found = FORMS.iter().find(|(known, _)| ending == Some(known));
    let (_, form) = found.ok_or_else(|| EvaluateError::TableEnding {
        path: path.to_path_buf(),
    })?;
    Ok(*form)
}

/// One table of LaTeX for each measure.
fn tables(report: &EvaluationReport) -> String {
    let parts = report.scores();
    let tables = parts
        .iter()
        .map(|part| latex::table(&part.title, &part.columns(), &part.rows));
    let begin = format!("% {MARK}; the preamble needs \\usepackage{{booktabs}}.\n");
    std::iter::once(begin)
        .chain(tables)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A row for each measure and model, with the numbers of `--json`. A domain and a task of one name share a column.
fn csv(report: &EvaluationReport) -> String {
    let mut names: Vec<&str> = Vec::new();
    for model in &report.models {
        let domains = model.domains.iter().map(|score| score.domain.as_str());
        for name in domains.chain(model.tasks.iter().map(|score| score.task.as_str())) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let head = FIRST.iter().chain(&names).chain(&[LAST]);
    let mut text = line(head.map(|name| (*name).to_owned()));
    for measure in MEASURES {
        for model in &report.models {
            let (values, average) = (measure.values)(model);
            let Some(average) = average else {
                continue;
            };
            let cells = names.iter().map(|name| values.get(name).copied());
            let cells = cells.chain([Some(average)]);
            let cells = cells.map(|value| value.map_or(String::new(), |value| value.to_string()));
            text.push_str(&line(
                [measure.name.to_owned(), model.label()]
                    .into_iter()
                    .chain(cells),
            ));
        }
    }
    text
}

/// Values by domain or task, and their average where there are any.
type Values<'a> = (BTreeMap<&'a str, f64>, Option<f64>);

/// What is measured, and how a row has it.
struct Measure {
    name: &'static str,
    values: for<'a> fn(&'a ModelReport) -> Values<'a>,
}

const MEASURES: [Measure; 3] = [
    Measure {
        name: "perplexity",
        values: |model| {
            let scores = model.domains.iter();
            let values = scores.map(|score| (score.domain.as_str(), score.perplexity));
            let average = model.average.map(|average| average.perplexity);
            (values.collect(), average)
        },
    },
    Measure {
        name: "bits_per_byte",
        values: |model| {
            let scores = model.domains.iter();
            let values = scores.map(|score| (score.domain.as_str(), score.bits_per_byte));
            let average = model.average.map(|average| average.bits_per_byte);
            (values.collect(), average)
        },
    },
    Measure {
        name: "accuracy",
        values: |model| {
            let scores = model.tasks.iter();
            let values = scores.map(|score| (score.task.as_str(), score.accuracy));
            (values.collect(), model.task_average)
        },
    },
];

/// A line of CSV.
fn line(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|cell| quoted(&cell)).collect();
    format!("{}\n", cells.join(","))
}

/// A cell as RFC 4180 writes it. Spaces at its ends are part of it. A name that a spreadsheet would run as a formula begins
/// with `'`, as in the files of `report`.
fn quoted(cell: &str) -> String {
    let is_formula = cell.starts_with(['=', '+', '-', '@']) && cell.parse::<f64>().is_err();
    let cell = format!("{}{}", if is_formula { "'" } else { "" }, printable(cell));
    let acts = |c: char| matches!(c, ',' | '"' | ';' | '\t');
    if cell.contains(acts) || cell.trim() != cell {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_ends_where_it_should() {
        for (cell, expected) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"yes\"", "\"say \"\"yes\"\"\""),
            (" a", "\" a\""),
            ("a\nb", "a\\nb"),
            ("=cmd|x", "'=cmd|x"),
            ("@SUM(1,2)", "\"'@SUM(1,2)\""),
            ("-1.5", "-1.5"),
        ] {
            assert_eq!(quoted(cell), expected);
        }
    }
}
