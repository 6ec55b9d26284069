//! The stages of a recipe as a graph to look at: a box a stage, a column a level, an arrow from each to those that need it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::pipeline::Progress;
use crate::table::duration;

const BOX: (f64, f64) = (176.0, 42.0);
/// Between columns, between boxes, and around all.
const GAPS: (f64, f64, f64) = (48.0, 14.0, 8.0);
/// Height of the place where an arrow passes a column.
const PASSAGE: f64 = 6.0;
/// Letters of a name that fit into a box.
const FITTING: usize = 21;
/// Times that the order within columns is improved.
const SWEEPS: usize = 8;

/// The drawing.
#[derive(Debug, Serialize)]
pub(super) struct Drawing {
    width: f64,
    height: f64,
    boxes: Vec<Stage>,
    /// Paths of the arrows, in SVG's words.
    arrows: Vec<String>,
    /// In words: how many are done, and how long they took.
    summary: String,
}

/// A box.
#[derive(Debug, Serialize)]
struct Stage {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    /// Its name, cut where it is long.
    label: String,
    /// Its name, command, state and needs.
    title: String,
    /// The text below the name.
    note: String,
    /// `done`, `failed`, `started`, `new`.
    state: &'static str,
    /// Length of the bar that says its share of the longest time.
    bar: f64,
}

/// A place in a column: a stage, or where its arrows pass.
type Node = (usize, usize);

/// The drawing of these stages; none of none.
pub(super) fn drawing(stages: &[Progress]) -> Option<Drawing> {
    if stages.is_empty() {
        return None;
    }
    let needs = without_detours(stages);
    let mut levels = vec![0; stages.len()];
    for (stage, needed) in needs.iter().enumerate() {
        levels[stage] = needed
            .iter()
            .map(|needed| levels[*needed] + 1)
            .max()
            .unwrap_or(0);
    }
    let (columns, before) = columns(&needs, &levels);
    let heights: Vec<f64> = columns
        .iter()
        .map(|column| height(column, &levels))
        .collect();
    let height = heights.iter().fold(0.0, |a: f64, b| a.max(*b)) + 2.0 * GAPS.2;
    let mut places = BTreeMap::new();
    for (level, column) in columns.iter().enumerate() {
        let mut y = (height - heights[level]) / 2.0;
        for node in column {
            places.insert(
                *node,
                (
                    GAPS.2 + level as f64 * (BOX.0 + GAPS.0),
                    y + own_height(*node, &levels) / 2.0,
                ),
            );
            y += own_height(*node, &levels) + GAPS.1;
        }
    }
    let longest = stages
        .iter()
        .filter_map(|stage| stage.seconds)
        .fold(0.0, f64::max);
    let boxed = |(number, stage): (usize, &Progress)| {
        let (x, middle) = places[&(number, levels[number])];
        Stage::of(stage, stages, x, middle - BOX.1 / 2.0, longest)
    };
    let arrows = before
        .iter()
        .map(|(to, from)| arrow(places[from], places[to], to.1 < levels[to.0]))
        .collect();
    let done = stages
        .iter()
        .filter(|stage| stage.ended == Some(Some(true)))
        .count();
    let seconds: f64 = stages.iter().filter_map(|stage| stage.seconds).sum();
    Some(Drawing {
        width: columns.len() as f64 * (BOX.0 + GAPS.0) - GAPS.0 + 2.0 * GAPS.2,
        height,
        boxes: stages.iter().enumerate().map(boxed).collect(),
        arrows,
        summary: format!(
            "{done} of {} stages are done; {} of work",
            stages.len(),
            duration(seconds)
        ),
    })
}

/// What each stage needs, but for what it needs by way of another as well.
fn without_detours(stages: &[Progress]) -> Vec<BTreeSet<usize>> {
    let mut all: Vec<BTreeSet<usize>> = Vec::with_capacity(stages.len());
    let mut direct = Vec::with_capacity(stages.len());
    for stage in stages {
        let around: BTreeSet<usize> = stage
            .needs
            .iter()
            .flat_map(|needed| &all[*needed])
            .copied()
            .collect();
        direct.push(
            stage
                .needs
                .iter()
                .filter(|needed| !around.contains(needed))
                .copied()
                .collect(),
        );
        all.push(
            around
                .into_iter()
                .chain(stage.needs.iter().copied())
                .collect(),
        );
    }
    direct
}

/// The columns from top to bottom, and the pairs that arrows lead between, each from one column to the next. All arrows of a
/// stage that go further than that share a passage through the columns between.
fn columns(needs: &[BTreeSet<usize>], levels: &[usize]) -> (Vec<Vec<Node>>, Vec<(Node, Node)>) {
    let mut columns: Vec<Vec<Node>> =
        vec![Vec::new(); levels.iter().max().map_or(0, |last| last + 1)];
    let mut before: BTreeMap<Node, BTreeSet<Node>> = BTreeMap::new();
    for (stage, level) in levels.iter().enumerate() {
        columns[*level].push((stage, *level));
    }
    for (stage, needed) in needs.iter().enumerate() {
        for from in needed {
            for (level, column) in columns
                .iter_mut()
                .enumerate()
                .take(levels[stage])
                .skip(levels[*from] + 1)
            {
                if before
                    .insert((*from, level), BTreeSet::from([(*from, level - 1)]))
                    .is_none()
                {
                    column.push((*from, level));
                }
            }
            before
                .entry((stage, levels[stage]))
                .or_default()
                .insert((*from, levels[stage] - 1));
        }
    }
    let mut after: BTreeMap<Node, BTreeSet<Node>> = BTreeMap::new();
    for (to, from) in before
        .iter()
        .flat_map(|(to, from)| from.iter().map(move |from| (to, from)))
    {
        after.entry(*from).or_default().insert(*to);
    }
    // Each goes to the middle of what it hangs on, once seen from the left and once from the right.
    for sweep in 0..SWEEPS {
        let neighbours = if sweep % 2 == 0 { &before } else { &after };
        let mut order: Vec<usize> = (0..columns.len()).collect();
        if sweep % 2 == 1 {
            order.reverse();
        }
        for level in order {
            let position: BTreeMap<Node, f64> = columns
                .iter()
                .flat_map(|column| positions(column))
                .collect();
            let wanted = |node: &Node| match neighbours.get(node) {
                Some(others) => {
                    others.iter().map(|other| position[other]).sum::<f64>() / others.len() as f64
                }
                None => position[node],
            };
            let mut keyed: Vec<(f64, Node)> = columns[level]
                .iter()
                .map(|node| (wanted(node), *node))
                .collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            columns[level] = keyed.into_iter().map(|(_, node)| node).collect();
        }
    }
    let pairs = before
        .into_iter()
        .flat_map(|(to, from)| from.into_iter().map(move |from| (to, from)))
        .collect();
    (columns, pairs)
}

/// The position of each in its column, from 0 at the top to 1.
fn positions(column: &[Node]) -> impl Iterator<Item = (Node, f64)> {
    column
        .iter()
        .enumerate()
        .map(|(place, node)| (*node, (place as f64 + 0.5) / column.len() as f64))
}

fn own_height(node: Node, levels: &[usize]) -> f64 {
    if levels[node.0] == node.1 {
        BOX.1
    } else {
        PASSAGE
    }
}

fn height(column: &[Node], levels: &[usize]) -> f64 {
    column
        .iter()
        .map(|node| own_height(*node, levels) + GAPS.1)
        .sum::<f64>()
        - GAPS.1
}

/// From the right side of one place to the left side of another, and on through it where it is a passage.
fn arrow(from: (f64, f64), to: (f64, f64), passes: bool) -> String {
    let (x, end, half) = (from.0 + BOX.0, to.0, GAPS.0 / 2.0);
    let through = if passes {
        format!(" H{}", to.0 + BOX.0)
    } else {
        String::new()
    };
    format!(
        "M{x},{} C{},{} {},{} {end},{}{through}",
        from.1,
        x + half,
        from.1,
        end - half,
        to.1,
        to.1
    )
}

impl Stage {
    fn of(stage: &Progress, all: &[Progress], x: f64, y: f64, longest: f64) -> Self {
        let (state, words) = match stage.ended {
            Some(Some(true)) => ("done", "done"),
            Some(Some(false)) => ("failed", "failed"),
            Some(None) => ("started", "started"),
            None => ("new", "never ran"),
        };
        let time = stage.seconds.map(duration);
        let note = match (&time, state) {
            (Some(time), "done") => format!("{} · {time}", stage.command),
            _ => format!("{} · {words}", stage.command),
        };
        let cut: String = stage.stage.chars().take(FITTING - 1).collect();
        let label = if stage.stage.chars().count() > FITTING {
            format!("{cut}…")
        } else {
            stage.stage.clone()
        };
        let needs: Vec<&str> = stage
            .needs
            .iter()
            .map(|needed| all[*needed].stage.as_str())
            .collect();
        let needs = if needs.is_empty() {
            String::new()
        } else {
            format!("; needs {}", needs.join(", "))
        };
        let took = time.map_or(String::new(), |time| format!(", took {time}"));
        let title = format!("{}: {}, {words}{took}{needs}", stage.stage, stage.command);
        let share = if longest > 0.0 {
            stage.seconds.unwrap_or_default() / longest
        } else {
            0.0
        };
        Self {
            x,
            y,
            width: BOX.0,
            height: BOX.1,
            label,
            title,
            note,
            state,
            bar: (share * (BOX.0 - 8.0)).round(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, needs: &[usize]) -> Progress {
        let (stage, command) = (name.to_owned(), "train".to_owned());
        Progress {
            stage,
            command,
            needs: needs.to_vec(),
            ended: Some(Some(true)),
            seconds: Some(2.0),
        }
    }

    #[test]
    fn arrows_lead_from_column_to_column_and_detours_are_left_out() {
        let stages = [
            stage("a", &[]),
            stage("b", &[0]),
            stage("c", &[0, 1]),
            stage("d", &[0]),
            stage("e", &[2, 3]),
        ];
        let drawing = drawing(&stages).unwrap();
        // a-b, b-c, c-e, a-d, and d-e in two parts: past the column of c.
        assert_eq!(drawing.arrows.len(), 6);
        let x: Vec<f64> = drawing.boxes.iter().map(|stage| stage.x).collect();
        assert!(
            x[0] < x[1] && x[1] == x[3] && x[1] < x[2] && x[2] < x[4],
            "{x:?}"
        );
        assert_eq!(drawing.summary, "5 of 5 stages are done; 10 s of work");
        assert!(super::drawing(&[]).is_none());
    }
}
