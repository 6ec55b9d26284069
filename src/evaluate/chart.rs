//! Charts of a report, as SVG.

use super::report::{DomainRouting, EvaluationReport, ModelReport};
use super::routing::{RouterKind, RouterReport};
use crate::heat_map::{self, HeatBlock, HeatCell, HeatMap};
use crate::svg::{Anchor, Area, CHARACTER, Fill, Line, Svg, Words, shortened};

/// Pixels of the chart of perplexities.
const BAR: i32 = 44;
const GAP: i32 = 34;
const LEFT: i32 = 70;
const TOP: i32 = 60;
const HEIGHT: i32 = 300;
const BOTTOM: i32 = TOP + HEIGHT;
const LEGEND_ROW: i32 = 22;

/// Perplexity by domain, a bar for each model; empty without domains.
pub fn perplexities(report: &EvaluationReport) -> String {
    let models = report.models.len() as i32;
    let domains = report
        .models
        .first()
        .map_or(&[][..], |model| &model.domains);
    let group = models * BAR + GAP;
    let names = report
        .models
        .iter()
        .map(|model| model.label().chars().count() as i32);
    let legend = names.max().unwrap_or(0) * CHARACTER + LEFT + 30;
    let width = (LEFT + domains.len() as i32 * group + 30)
        .max(legend)
        .max(540);
    let mut svg = Svg::new(width, BOTTOM + 50 + models * LEGEND_ROW);
    let title = format!(
        "Perplexity, windows of {} tokens (lower is better)",
        report.context
    );
    svg.words(LEFT, 30, Anchor::Start, Words::Title, &title);

    let scores = report.models.iter().flat_map(|model| &model.domains);
    let highest = scores.fold(1.0, |highest, score| score.perplexity.max(highest));
    let y = |value: f64| BOTTOM - (value / highest * f64::from(HEIGHT)) as i32;
    let step = step(highest);
    let ticks = (0..).map(|tick| f64::from(tick) * step);
    for tick in ticks.take_while(|tick| *tick <= highest) {
        svg.line(LEFT, width - 20, y(tick), Line::Grid);
        let label = format!("{}", (tick * 1e6).round() / 1e6);
        svg.words(LEFT - 8, y(tick) + 4, Anchor::End, Words::Label, &label);
    }

    for (number, domain) in domains.iter().enumerate() {
        let start = LEFT + GAP / 2 + number as i32 * group;
        for (series, model) in report.models.iter().enumerate() {
            let value = model.domains[number].perplexity;
            let bar = Area {
                x: start + series as i32 * BAR + 2,
                y: y(value),
                width: BAR - 4,
                height: BOTTOM - y(value),
            };
            svg.rectangle(bar, Fill::Series(series));
            let label = if value < 99.95 {
                format!("{value:.2}")
            } else {
                format!("{value:.0}")
            };
            let middle = bar.x + bar.width / 2;
            svg.words(middle, bar.y - 4, Anchor::Middle, Words::Label, &label);
        }
        let (middle, name) = (start + models * BAR / 2, shortened(&domain.domain, group));
        svg.words(middle, BOTTOM + 18, Anchor::Middle, Words::Name, &name);
    }
    svg.line(LEFT, width - 20, BOTTOM, Line::Axis);

    for (series, model) in report.models.iter().enumerate() {
        let key = Area {
            x: LEFT,
            y: BOTTOM + 40 + series as i32 * LEGEND_ROW,
            width: 12,
            height: 12,
        };
        svg.rectangle(key, Fill::Series(series));
        svg.words(
            LEFT + 20,
            key.y + 10,
            Anchor::Start,
            Words::Name,
            &model.label(),
        );
    }
    svg.finish()
}

/// A round distance between about five ticks up to `highest`.
fn step(highest: f64) -> f64 {
    let rough = highest / 5.0;
    let power = 10f64.powi(rough.log10().floor() as i32);
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

/// The load of feed-forward experts and the mean gates of attention experts by layer and domain, for every mixture whose
/// routing was recorded.
pub fn routing(report: &EvaluationReport) -> String {
    let kinds = [RouterKind::FeedForward, RouterKind::Attention];
    let maps = report
        .models
        .iter()
        .flat_map(|model| kinds.into_iter().filter_map(|kind| heat_map(model, kind)));
    heat_map::draw(&maps.collect::<Vec<_>>())
}

/// What the routers of one kind did; none for a model that has none of them.
fn heat_map(model: &ModelReport, kind: RouterKind) -> Option<HeatMap> {
    let first = of_kind(model.routing.first()?, kind);
    let experts = first.first()?.shares().len();
    let cell = |share: &f64| {
        Some(HeatCell {
            share: *share,
            text: format!("{:.0}", 100.0 * share),
        })
    };
    let block = |domain: &DomainRouting| HeatBlock {
        title: domain.domain.clone(),
        columns: (0..experts)
            .map(|expert| model.expert_name(expert))
            .collect(),
        cells: of_kind(domain, kind)
            .iter()
            .map(|router| router.shares().iter().map(cell).collect())
            .collect(),
    };
    Some(HeatMap {
        title: format!("{}: {}", model.label(), kind.shares_name()),
        layers: first
            .iter()
            .map(|router| router.layer.to_string())
            .collect(),
        blocks: model.routing.iter().map(block).collect(),
        note: "numbers in %".to_owned(),
    })
}

fn of_kind(domain: &DomainRouting, kind: RouterKind) -> Vec<&RouterReport> {
    let routers = domain.routers.iter();
    routers.filter(|router| router.router == kind).collect()
}
