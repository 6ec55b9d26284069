//! The page itself, from its template.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use super::charts::{self, Chart, Group, Run};
use super::divergence::{self, Means};
use super::graph;
use super::input::Input;
use super::lineage;
use super::tables;
use crate::evaluate::chart;
use crate::pipeline::progress;
use crate::printable::{printable_json, printable_lines};
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The report as one HTML file; texts from the inputs are escaped, and nothing is fetched.
///
/// # Errors
/// Where a checkpoint or the seed it is compared with cannot be read.
pub fn html(input: &Input, means: Means) -> Result<String> {
    let groups = charts::groups(input);
    let mut evaluations = Vec::new();
    for (name, found) in &input.evaluations {
        let mut drawings = Vec::new();
        if found.models.iter().any(|model| !model.domains.is_empty()) {
            drawings.push(chart::perplexities(found)?);
        }
        if found.models.iter().any(|model| !model.routing.is_empty()) {
            drawings.push(chart::routing(found)?);
        }
        let drawings: Vec<Value> = drawings.into_iter().map(Value::from_safe_string).collect();
        evaluations.push(context! { tables => Serde(tables::evaluation(name, found)), drawings });
    }
    let checkpoints = input
        .subjects
        .iter()
        .filter_map(|subject| Some((subject.name.as_str(), subject.checkpoint.as_deref()?)));
    let ancestors = checkpoints
        .map(|(name, folder)| lineage::of(name, folder))
        .collect::<Result<Vec<_>>>()?;
    let mut recipes = Vec::new();
    for work in &input.works {
        let name = work
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(drawing) = graph::drawing(&progress(work)?) {
            recipes.push(context! { name, drawing => Serde(drawing) });
        }
    }
    let names: Vec<&str> = input
        .subjects
        .iter()
        .map(|subject| subject.name.as_str())
        .collect();
    let page = context! {
        title => if names.is_empty() { if input.evaluations.is_empty() { "recipe" } else { "evaluation" }.to_owned() } else { names.join(", ") },
        version => env!("CARGO_PKG_VERSION"),
        style => Value::from_safe_string(STYLE.to_owned()),
        script => Value::from_safe_string(SCRIPT.to_owned()),
        recipes,
        overview => Serde(tables::overview(input)),
        evaluations,
        groups => groups.iter().map(Group::heading).collect::<Vec<_>>(),
        data => data(input, &groups)?,
        divergence => Serde(divergence::tables(input, means)?),
        settings => Serde(tables::settings(input)),
        events => Serde(tables::events(input)),
        ancestors => Serde(ancestors),
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let html = environment
        .render_str(TEMPLATE, page)
        .map_err(|e| Error::compute("lay out the report", e))?;
    // Browsers turn text round at the same characters as terminals do.
    Ok(printable_lines(&html))
}

/// What the script draws, as JSON that can stand inside a script element.
#[derive(Serialize)]
struct Data<'a> {
    runs: Vec<Run>,
    charts: Vec<&'a Chart>,
}

fn data(input: &Input, groups: &[Group]) -> Result<Value> {
    let data = Data {
        runs: charts::runs(input),
        charts: groups.iter().flat_map(|group| &group.charts).collect(),
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

impl Group {
    /// The data in the page itself.
    fn heading(&self) -> Value {
        let charts = self
            .charts
            .iter()
            .map(|chart| context! { title => &chart.title, unit => chart.unit });
        context! { title => &self.title, note => &self.note, small => self.small, charts => charts.collect::<Vec<_>>() }
    }
}
