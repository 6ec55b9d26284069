//! Evaluations: a chart of perplexities, and what routers did by layer and domain.

use super::charts::{Chart, Kind, Series};
use super::colours::Colours;
use super::input::Input;
use super::tables::{Cell, Column, Table};
use crate::evaluate::report::{EvaluationReport, ModelReport};
use crate::evaluate::routing::{RouterKind, RouterReport};

/// Perplexity by domain, a bar for each model; none without domains.
pub(super) fn bars(input: &Input, found: &EvaluationReport, colours: &Colours) -> Option<Chart> {
    let first = found
        .models
        .iter()
        .find(|model| !model.domains.is_empty())?;
    let domains = first.domains.iter().map(|score| score.domain.clone());
    let series = found
        .models
        .iter()
        .enumerate()
        .map(|(number, model)| Series {
            run: input
                .subjects
                .iter()
                .position(|subject| subject.name == model.name),
            colour: colours.css(&model.name, number),
            name: model.label(),
            points: (0..)
                .zip(&model.domains)
                .map(|(domain, score)| (f64::from(domain), score.perplexity))
                .collect(),
        });
    Some(Chart {
        title: "Perplexity by domain".to_owned(),
        unit: "lower is better",
        kind: Kind::Bars,
        log: false,
        noisy: false,
        labels: domains.collect(),
        series: series.collect(),
    })
}

/// The load of feed-forward experts and the mean gates of attention experts: a table for each mixture and kind of router.
pub(super) fn routing(found: &EvaluationReport) -> Vec<Table> {
    let kinds = [RouterKind::FeedForward, RouterKind::Attention];
    let models = found
        .models
        .iter()
        .flat_map(|model| kinds.map(|kind| (model, kind)));
    models
        .filter_map(|(model, kind)| table(model, kind))
        .collect()
}

fn table(model: &ModelReport, kind: RouterKind) -> Option<Table> {
    let values = |domain: usize, layer: usize| -> &[f64] {
        let mut routers = model.routing[domain].routers.iter();
        let found = routers.find(|router| router.router == kind && router.layer == layer);
        found.map_or(&[], RouterReport::shares)
    };
    let routers = model.routing.first()?.routers.iter();
    let layers: Vec<usize> = routers
        .filter(|router| router.router == kind)
        .map(|router| router.layer)
        .collect();
    let experts = values(0, *layers.first()?).len();

    let mut columns = vec![Column::text("layer")];
    for domain in &model.routing {
        columns.extend(
            (0..experts)
                .map(|expert| model.expert_name(expert))
                .map(|name| Column::number(&format!("{}: {name}", domain.domain))),
        );
    }
    let row = |layer: &usize| {
        let domains = 0..model.routing.len();
        let shares = domains.flat_map(|domain| values(domain, *layer));
        let cells = shares.map(|share| Cell::shaded(format!("{:.0}", 100.0 * share), *share));
        std::iter::once(Cell::text(layer.to_string()))
            .chain(cells)
            .collect()
    };
    Some(Table {
        title: format!("{}: {}", model.label(), kind.shares_name()),
        note: "In %, by domain and expert.".to_owned(),
        rows: layers.iter().map(row).collect(),
        columns,
    })
}
