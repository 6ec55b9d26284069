//! How far checkpoints have moved from the seed they descend from, by role and expert.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::input::Input;
use super::lineage;
use super::tables::{Cell, Column, Table};
use crate::Result;
use crate::table;
use crate::verify::diff::{self, Diff, PartDiff};

/// Means to compare with.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Worker threads.
    pub threads: usize,
    /// Called with the number of bytes to compare first, then with each number of bytes compared.
    pub progress: &'a (dyn Fn(Work) + Sync),
}

/// A report of progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Bytes in all.
    Total(u64),
    /// Bytes done since last time.
    Done(u64),
}

/// A table for each checkpoint whose seed is there: ‖checkpoint − seed‖ / ‖seed‖ by role and expert.
pub(super) fn tables(input: &Input, means: Means) -> Result<Vec<Table>> {
    let mut pairs: Vec<(&str, PathBuf, PathBuf)> = Vec::new();
    for subject in &input.subjects {
        if let Some(checkpoint) = &subject.checkpoint
            && let Some(seed) = lineage::seed(checkpoint)?
        {
            pairs.push((&subject.name, seed, checkpoint.clone()));
        }
    }
    (means.progress)(Work::Total(
        pairs
            .iter()
            .map(|(_, seed, folder)| diff::work_length(seed, folder))
            .sum(),
    ));
    let options = diff::DiffOptions {
        threads: means.threads,
        memory: 128 << 20,
        progress: &|bytes| (means.progress)(Work::Done(bytes)),
    };
    let table = |(name, seed, folder): &(&str, PathBuf, PathBuf)| {
        Ok(of(name, &diff::diff(seed, folder, &options)?))
    };
    pairs.iter().map(table).collect()
}

/// Roles down, experts across; what experts share has a column of its own.
fn of(name: &str, found: &Diff) -> Table {
    let mut columns: BTreeMap<(bool, Option<u64>), String> = BTreeMap::new();
    let mut roles: Vec<&str> = Vec::new();
    for part in &found.parts {
        columns
            .entry(place(part))
            .or_insert_with(|| title(part, found.mixture));
        if !roles.contains(&part.role.as_str()) {
            roles.push(&part.role);
        }
    }
    let largest = found
        .parts
        .iter()
        .filter_map(|part| part.relative)
        .fold(0.0, f64::max);
    let cell = |role: &str, column: (bool, Option<u64>)| {
        let part = found
            .parts
            .iter()
            .find(|part| part.role == role && place(part) == column);
        let Some(part) = part else {
            return Cell::empty();
        };
        match part.relative {
            Some(relative) => {
                Cell::shaded(shown(relative), relative / largest.max(f64::MIN_POSITIVE))
            }
            None => Cell::number("–".to_owned()),
        }
    };
    let rows = roles.iter().map(|role| {
        let cells = columns.keys().map(|column| cell(role, *column));
        std::iter::once(Cell::text(role.replace('_', " ")))
            .chain(cells)
            .collect()
    });
    Table {
        title: name.to_owned(),
        note: format!("from {}", found.a.display()),
        columns: std::iter::once(Column::text("role"))
            .chain(columns.values().map(|title| Column::number(title)))
            .collect(),
        rows: rows.collect(),
    }
}

fn place(part: &PartDiff) -> (bool, Option<u64>) {
    (part.expert.is_none(), part.expert)
}

fn title(part: &PartDiff, mixture: bool) -> String {
    match (&part.expert_name, part.expert) {
        (Some(name), _) => name.clone(),
        (None, Some(expert)) => format!("expert {expert}"),
        (None, None) => if mixture { "shared" } else { "all" }.to_owned(),
    }
}

fn shown(relative: f64) -> String {
    if relative == 0.0 {
        "0".to_owned()
    } else {
        format!("{} %", table::number(100.0 * relative))
    }
}
