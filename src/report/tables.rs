//! Tables of a page: the runs, their settings, evaluations.

use std::collections::BTreeSet;

use serde::Serialize;

use super::colours::Colours;
use super::hashes::shortened;
use super::input::{Input, Subject};
use super::lineage::plain;
use crate::evaluate::perplexity::Score;
use crate::evaluate::report::{Average, EvaluationReport, ModelReport};
use crate::table::{bytes, counted, duration, grouped};
use crate::train::metrics::Record;

/// Rows under titles.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Column {
    title: String,
    number: bool,
}

impl Column {
    pub(super) fn text(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            number: false,
        }
    }

    pub(super) fn number(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            number: true,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Cell {
    text: String,
    number: bool,
    /// The best of its column, or a setting by which runs differ.
    strong: bool,
    /// Background, from 0 (none) to 1.
    shade: Option<f64>,
    /// The colour of the name in it, in CSS.
    colour: Option<String>,
    /// The whole text, where a part of it is shown.
    title: Option<String>,
}

impl Cell {
    pub(super) fn empty() -> Self {
        Self::default()
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        let (text, title) = shortened(&text.into());
        Self {
            text,
            title,
            ..Self::default()
        }
    }

    /// A name with its colour.
    pub(super) fn name(name: &str, colour: String) -> Self {
        Self {
            text: name.to_owned(),
            colour: Some(colour),
            ..Self::default()
        }
    }

    pub(super) fn number(text: String) -> Self {
        Self {
            text,
            number: true,
            ..Self::default()
        }
    }

    pub(super) fn shaded(text: String, shade: f64) -> Self {
        Self {
            text,
            number: true,
            shade: Some(shade.clamp(0.0, 1.0)),
            ..Self::default()
        }
    }
}

/// What each run was and how it ended.
pub(super) fn overview(input: &Input, colours: &Colours) -> Option<Table> {
    let titles = [
        "parameters",
        "active",
        "steps",
        "tokens",
        "last loss",
        "time",
        "tokens/s",
        "peak memory",
    ];
    let rows: Vec<Vec<Cell>> = input
        .subjects
        .iter()
        .enumerate()
        .filter_map(|(run, subject)| row(run, subject, colours))
        .collect();
    let columns = [Column::text("run"), Column::text("model")].into_iter();
    (!rows.is_empty()).then(|| Table {
        title: String::new(),
        note: String::new(),
        columns: columns
            .chain(titles.iter().map(|title| Column::number(title)))
            .collect(),
        rows,
    })
}

fn row(run: usize, subject: &Subject, colours: &Colours) -> Option<Vec<Cell>> {
    let log = subject.log.as_ref()?;
    let architecture = log.iter().find_map(|record| match record {
        Record::Start { architecture, .. } => Some(architecture),
        _ => None,
    });
    let fact = |key: &str| architecture.and_then(|architecture| architecture.get(key));
    let count = |key: &str| {
        fact(key)
            .and_then(|value| value.as_u64())
            .map_or("–".to_owned(), grouped)
    };
    let last = subject.steps().last();
    let of_last =
        |show: fn(&crate::train::metrics::Step) -> String| last.map_or("–".to_owned(), show);
    let end = log.iter().rev().find_map(|record| match record {
        Record::End {
            seconds,
            peak_memory_bytes,
            ..
        } => Some((*seconds, *peak_memory_bytes)),
        _ => None,
    });
    let speeds: Vec<f64> = subject.steps().map(|step| step.tokens_per_second).collect();
    let speed = speeds.iter().sum::<f64>() / speeds.len() as f64;
    let mut cells = vec![
        Cell::name(&subject.name, colours.css(&subject.name, run)),
        Cell::text(fact("model_type").map_or("–".to_owned(), plain)),
    ];
    let numbers = [
        count("parameters"),
        count("active_parameters"),
        of_last(|step| grouped(step.step)),
        of_last(|step| grouped(step.tokens)),
        of_last(|step| format!("{:.4}", step.loss)),
        end.map_or("not done".to_owned(), |(seconds, _)| duration(seconds)),
        if speeds.is_empty() {
            "–".to_owned()
        } else {
            grouped(speed.round() as u64)
        },
        end.and_then(|(_, memory)| memory)
            .map_or("–".to_owned(), bytes),
    ];
    cells.extend(numbers.map(Cell::number));
    Some(cells)
}

/// The settings of all runs side by side; those by which runs differ stand out.
pub(super) fn settings(input: &Input) -> Option<Table> {
    let runs: Vec<_> = input
        .subjects
        .iter()
        .enumerate()
        .filter_map(|(run, subject)| {
            let log = subject.log.as_ref()?;
            log.iter().find_map(|record| match record {
                Record::Start {
                    settings,
                    tool_version,
                    ..
                } => Some((run, &subject.name, settings, tool_version)),
                _ => None,
            })
        })
        .collect();
    let mut seen = BTreeSet::new();
    let keys = runs
        .iter()
        .flat_map(|(_, _, settings, _)| settings.keys())
        .filter(|key| seen.insert(*key));
    let mut rows: Vec<Vec<Cell>> = keys
        .map(|key| {
            line(
                key,
                runs.iter()
                    .map(|(_, _, settings, _)| settings.get(key).map_or(String::new(), plain))
                    .collect(),
            )
        })
        .collect();
    rows.push(line(
        "version of bam-convert",
        runs.iter()
            .map(|(_, _, _, version)| (*version).clone())
            .collect(),
    ));
    let columns = std::iter::once(Column::text("setting"))
        .chain(runs.iter().map(|(_, name, _, _)| Column::text(name)));
    (!runs.is_empty()).then(|| Table {
        title: String::new(),
        note: "Settings in bold differ between runs.".to_owned(),
        columns: columns.collect(),
        rows,
    })
}

fn line(name: &str, values: Vec<String>) -> Vec<Cell> {
    let differ = values.iter().collect::<BTreeSet<_>>().len() > 1;
    let value = |text: String| Cell {
        strong: differ,
        ..Cell::text(text)
    };
    std::iter::once(Cell::text(name))
        .chain(values.into_iter().map(value))
        .collect()
}

/// What went otherwise than planned.
pub(super) fn events(input: &Input, colours: &Colours) -> Option<Table> {
    let mut rows = Vec::new();
    for (run, subject) in input.subjects.iter().enumerate() {
        for record in subject.log.iter().flatten() {
            let (step, what) = match record {
                Record::Resume { step } => (step, "resumed".to_owned()),
                Record::Extend { step, steps, .. } => {
                    (step, format!("extended to {} steps", grouped(*steps)))
                }
                Record::Skip { step, reason, rows } => {
                    (step, format!("skipped: {reason}; rows {rows}"))
                }
                _ => continue,
            };
            let name = Cell::name(&subject.name, colours.css(&subject.name, run));
            rows.push(vec![name, Cell::number(grouped(*step)), Cell::text(what)]);
        }
    }
    let columns = vec![
        Column::text("run"),
        Column::number("step"),
        Column::text("what happened"),
    ];
    (!rows.is_empty()).then(|| Table {
        title: "Events".to_owned(),
        note: String::new(),
        columns,
        rows,
    })
}

type OfScore = fn(&Score) -> f64;
type OfAverage = fn(&Average) -> f64;

/// Perplexity, bits per byte and tasks of an evaluation; the best of each column is highlighted.
pub(super) fn evaluation(name: &str, found: &EvaluationReport, colours: &Colours) -> Vec<Table> {
    let mut tables = Vec::new();
    if found.models.iter().any(|model| !model.domains.is_empty()) {
        let domains: Vec<&str> = found
            .models
            .first()
            .iter()
            .flat_map(|model| &model.domains)
            .map(|score| score.domain.as_str())
            .collect();
        let kinds: [(&str, OfScore, OfAverage); 2] = [
            (
                "Perplexity",
                |score| score.perplexity,
                |average| average.perplexity,
            ),
            (
                "Bits per byte",
                |score| score.bits_per_byte,
                |average| average.bits_per_byte,
            ),
        ];
        for (title, value, average) in kinds {
            let values = |model: &ModelReport| -> Vec<f64> {
                model
                    .domains
                    .iter()
                    .map(value)
                    .chain(model.average.as_ref().map(average))
                    .collect()
            };
            tables.push(Table {
                title: title.to_owned(),
                note: format!(
                    "Windows of {}, lower is better; from {name}.",
                    counted(found.context as u64, "token")
                ),
                columns: columns(&domains),
                rows: rows(
                    found,
                    colours,
                    values,
                    |value| format!("{value:.3}"),
                    f64::min,
                ),
            });
        }
    }
    if found.models.iter().any(|model| !model.tasks.is_empty()) {
        let tasks: Vec<&str> = found
            .models
            .first()
            .iter()
            .flat_map(|model| &model.tasks)
            .map(|score| score.task.as_str())
            .collect();
        let values = |model: &ModelReport| -> Vec<f64> {
            model
                .tasks
                .iter()
                .map(|score| score.accuracy)
                .chain(model.task_average)
                .collect()
        };
        tables.push(Table {
            title: "Accuracy in %".to_owned(),
            note: format!("Higher is better; from {name}."),
            columns: columns(&tasks),
            rows: rows(
                found,
                colours,
                values,
                |share| format!("{:.2}", 100.0 * share),
                f64::max,
            ),
        });
    }
    tables
}

fn columns(names: &[&str]) -> Vec<Column> {
    let numbers = names.iter().copied().chain(["average"]).map(Column::number);
    std::iter::once(Column::text("model"))
        .chain(numbers)
        .collect()
}

fn rows(
    found: &EvaluationReport,
    colours: &Colours,
    values: impl Fn(&ModelReport) -> Vec<f64>,
    show: fn(f64) -> String,
    better: fn(f64, f64) -> f64,
) -> Vec<Vec<Cell>> {
    let all: Vec<Vec<f64>> = found.models.iter().map(values).collect();
    let best = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column).copied())
            .reduce(better)
    };
    let row = |(number, (model, values)): (usize, (&ModelReport, &Vec<f64>))| {
        let cells = values.iter().enumerate().map(|(column, value)| {
            // Two that look the same are both the best.
            let strong = best(column).is_some_and(|best| show(best) == show(*value));
            Cell {
                strong,
                ..Cell::number(show(*value))
            }
        });
        std::iter::once(Cell::name(&model.name, colours.css(&model.name, number)))
            .chain(cells)
            .collect()
    };
    found.models.iter().zip(&all).enumerate().map(row).collect()
}
