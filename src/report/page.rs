//! The page itself, from its template.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use super::charts::{self, Chart, Group, Run};
use super::colours::Colours;
use super::divergence::{self, Means};
use super::input::Input;
use super::lineage::{self, Ancestor};
use super::{evaluations, graph, hashes, tables};
use crate::pipeline::progress;
use crate::printable::{printable_json, printable_lines};
use crate::{Error, Result, svg};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Evaluations that are open when the page is.
const OPEN_EVALUATIONS: usize = 2;

/// The report as one HTML file; texts from the inputs are escaped, and nothing is fetched.
///
/// # Errors
/// Where a checkpoint or the seed it is compared with cannot be read.
pub fn html(input: &Input, means: Means) -> Result<String> {
    let colours = Colours::of(input);
    let groups = charts::groups(input, &colours);
    let mut drawn: Vec<Chart> = Vec::new();
    let mut evaluations = Vec::new();
    for (name, found) in &input.evaluations {
        let bars = evaluations::bars(input, found, &colours);
        let chart = bars.map(|chart| {
            drawn.push(chart);
            drawn.len() - 1
        });
        evaluations.push(context! {
            name => hashes::shortened(name).0,
            // A reader looks at one or two; more of them would hide the curves below.
            folded => evaluations.len() >= OPEN_EVALUATIONS,
            chart => chart.map(|number| context! { number, title => &drawn[number].title, unit => drawn[number].unit }),
            tables => Serde(tables::evaluation(name, found, &colours)),
            routing => Serde(evaluations::routing(found)),
        });
    }
    let first = drawn.len();
    let headings = headings(&groups, first);
    drawn.extend(groups.into_iter().flat_map(|group| group.charts));

    let names: Vec<&str> = input
        .subjects
        .iter()
        .map(|subject| subject.name.as_str())
        .collect();
    let page = context! {
        title => title(input, &names),
        version => env!("CARGO_PKG_VERSION"),
        style => Value::from_safe_string(svg::variables() + STYLE),
        script => Value::from_safe_string(SCRIPT.to_owned()),
        recipes => recipes(input)?,
        overview => Serde(tables::overview(input, &colours)),
        evaluations,
        groups => headings,
        data => data(input, &colours, &drawn)?,
        divergence => Serde(divergence::tables(input, means)?),
        settings => Serde(tables::settings(input)),
        events => Serde(tables::events(input, &colours)),
        ancestors => Serde(ancestors(input)?),
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let html = environment
        .render_str(TEMPLATE, page)
        .map_err(|e| Error::compute("lay out the report", e))?;
    // Browsers turn text round at the same characters as terminals do.
    Ok(printable_lines(&html))
}

/// What the page is about, in its title.
fn title(input: &Input, names: &[&str]) -> String {
    match names {
        [] if input.evaluations.is_empty() => "recipe".to_owned(),
        [] => "evaluation".to_owned(),
        names => names.join(", "),
    }
}

/// The graphs of the recipes whose work folders are shown.
fn recipes(input: &Input) -> Result<Vec<Value>> {
    let mut recipes = Vec::new();
    for work in &input.works {
        let name = work.file_name().unwrap_or_default().to_string_lossy();
        if let Some(drawing) = graph::drawing(&progress(work)?) {
            recipes.push(context! { name, drawing => Serde(drawing) });
        }
    }
    Ok(recipes)
}

/// Where each checkpoint comes from.
fn ancestors(input: &Input) -> Result<Vec<Ancestor>> {
    let subjects = input.subjects.iter();
    let checkpoints = subjects
        .filter_map(|subject| Some((subject.name.as_str(), subject.checkpoint.as_deref()?)));
    checkpoints
        .map(|(name, folder)| lineage::of(name, folder))
        .collect()
}

/// What the script draws, as JSON that can stand inside a script element.
#[derive(Serialize)]
struct Data<'a> {
    runs: Vec<Run>,
    charts: &'a [Chart],
}

fn data(input: &Input, colours: &Colours, charts: &[Chart]) -> Result<Value> {
    let data = Data {
        runs: charts::runs(input, colours),
        charts,
    };
    let text = serde_json::to_string(&data).map_err(|e| Error::compute("lay out the report", e))?;
    // Within JSON, these stand in strings alone; there they could end the element.
    Ok(Value::from_safe_string(
        printable_json(&text)
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026"),
    ))
}

/// The groups in the page itself; the data of their charts begin with the chart `first`.
fn headings(groups: &[Group], first: usize) -> Vec<Value> {
    let mut next = first;
    let heading = |group: &Group| {
        let charts: Vec<Value> = group
            .charts
            .iter()
            .map(|chart| {
                next += 1;
                context! { number => next - 1, title => &chart.title, unit => chart.unit }
            })
            .collect();
        context! { title => &group.title, note => &group.note, small => group.small, folded => group.folded, charts }
    };
    groups.iter().map(heading).collect()
}
