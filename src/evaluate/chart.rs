//! Charts of a report, as SVG.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::report::{EvaluationReport, ModelReport};
use super::routing::{RouterKind, RouterReport};
use crate::chart::{Area, COLOURS, Drawn, GREY, shade, words};
use crate::printable::printable_lines;
use crate::{Error, Result};

/// Perplexity by domain, a bar for each model; empty without domains.
pub fn perplexities(report: &EvaluationReport) -> Result<String> {
    let mut svg = String::new();
    draw_bars(report, &mut svg).map_err(|e| Error::compute("draw the chart", e))?;
    Ok(printable_lines(&svg))
}

/// The load of feed-forward experts and the mean gates of attention experts by layer and domain, for every mixture whose
/// routing was recorded.
pub fn routing(report: &EvaluationReport) -> Result<String> {
    let mut svg = String::new();
    draw_heat_maps(report, &mut svg).map_err(|e| Error::compute("draw the heat map", e))?;
    Ok(printable_lines(&svg))
}

fn draw_bars(report: &EvaluationReport, svg: &mut String) -> Drawn {
    let domains = report.models.first().map_or(0, |model| model.domains.len());
    let models = report.models.len();
    let (bar, gap, left, top, height) = (34, 40, 70, 60, 300);
    let group = models as i32 * bar + gap;
    let legend = models as i32 * 22 + 20;
    let width = (left + domains as i32 * group + 30).max(540);
    let bottom = top + height;
    let area = SVGBackend::with_string(svg, (width as u32, (bottom + 40 + legend) as u32))
        .into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!(
        "perplexity, windows of {} tokens (lower is better)",
        report.context
    );
    area.draw(&Text::new(
        title,
        (left, 18),
        words(17, &BLACK, HPos::Left, VPos::Top),
    ))?;
    let scores = report
        .models
        .iter()
        .flat_map(|model| &model.domains)
        .map(|score| score.perplexity);
    let highest = scores.fold(1.0, f64::max);
    let step = step(highest);
    let y = |value: f64| bottom - (value / highest * f64::from(height)) as i32;
    for tick in (0..)
        .map(|tick| f64::from(tick) * step)
        .take_while(|value| *value <= highest)
    {
        let line = vec![(left, y(tick)), (width - 20, y(tick))];
        area.draw(&PathElement::new(line, RGBColor(225, 225, 225)))?;
        let label = format!("{}", (tick * 1e6).round() / 1e6);
        area.draw(&Text::new(
            label,
            (left - 8, y(tick)),
            words(13, &GREY, HPos::Right, VPos::Center),
        ))?;
    }
    for domain in 0..domains {
        let start = left + gap / 2 + domain as i32 * group;
        for (number, model) in report.models.iter().enumerate() {
            let value = model.domains[domain].perplexity;
            let from = start + number as i32 * bar;
            let colour = COLOURS[number % COLOURS.len()];
            area.draw(&Rectangle::new(
                [(from + 2, y(value)), (from + bar - 2, bottom)],
                colour.filled(),
            ))?;
            let middle = from + bar / 2;
            let label = if value < 99.95 {
                format!("{value:.2}")
            } else {
                format!("{value:.0}")
            };
            area.draw(&Text::new(
                label,
                (middle, y(value) - 4),
                words(11, &GREY, HPos::Center, VPos::Bottom),
            ))?;
        }
        let middle = start + models as i32 * bar / 2;
        let name = report.models[0].domains[domain].domain.clone();
        area.draw(&Text::new(
            name,
            (middle, bottom + 8),
            words(14, &BLACK, HPos::Center, VPos::Top),
        ))?;
    }
    area.draw(&PathElement::new(
        vec![(left, bottom), (width - 20, bottom)],
        BLACK,
    ))?;
    for (number, model) in report.models.iter().enumerate() {
        let line = bottom + 44 + number as i32 * 22;
        let colour = COLOURS[number % COLOURS.len()];
        area.draw(&Rectangle::new(
            [(left, line), (left + 14, line + 14)],
            colour.filled(),
        ))?;
        let at = (left + 22, line + 7);
        area.draw(&Text::new(
            model.label(),
            at,
            words(14, &BLACK, HPos::Left, VPos::Center),
        ))?;
    }
    area.present()?;
    Ok(())
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

const CELL: i32 = 34;
const ROW: i32 = 16;

/// One heat map: what of which model.
struct Panel<'a> {
    model: &'a ModelReport,
    kind: RouterKind,
    layers: Vec<usize>,
    experts: usize,
}

impl<'a> Panel<'a> {
    fn of(model: &'a ModelReport, kind: RouterKind) -> Option<Self> {
        let routers = model
            .routing
            .first()?
            .routers
            .iter()
            .filter(|router| router.router == kind);
        let routers: Vec<&RouterReport> = routers.collect();
        let experts = routers.first()?.load.len();
        Some(Self {
            model,
            kind,
            layers: routers.iter().map(|router| router.layer).collect(),
            experts,
        })
    }

    fn width(&self) -> i32 {
        self.model.routing.len() as i32 * (self.experts as i32 * CELL + 14)
    }

    fn height(&self) -> i32 {
        self.layers.len() as i32 * ROW + 110
    }

    fn draw(&self, area: &Area, top: i32) -> Drawn {
        let left = 60;
        let what = match self.kind {
            RouterKind::FeedForward => "load of feed-forward experts",
            RouterKind::Attention => "mean gate of attention experts",
        };
        let title = format!("{}: {what}", self.model.label());
        area.draw(&Text::new(
            title,
            (left, top),
            words(15, &BLACK, HPos::Left, VPos::Top),
        ))?;
        let grid = top + 46;
        let bottom = grid + self.layers.len() as i32 * ROW;
        for (number, layer) in self.layers.iter().enumerate() {
            let at = (left - 8, grid + number as i32 * ROW + ROW / 2);
            area.draw(&Text::new(
                layer.to_string(),
                at,
                words(11, &GREY, HPos::Right, VPos::Center),
            ))?;
        }
        for (number, domain) in self.model.routing.iter().enumerate() {
            let start = left + number as i32 * (self.experts as i32 * CELL + 14);
            let middle = start + self.experts as i32 * CELL / 2;
            let name = domain.domain.clone();
            area.draw(&Text::new(
                name,
                (middle, grid - 6),
                words(13, &BLACK, HPos::Center, VPos::Bottom),
            ))?;
            let routers = domain
                .routers
                .iter()
                .filter(|router| router.router == self.kind);
            for (row, router) in routers.enumerate() {
                let values = match self.kind {
                    RouterKind::FeedForward => &router.load,
                    RouterKind::Attention => &router.mean_gate,
                };
                for (expert, value) in values.iter().enumerate() {
                    let (x, y) = (start + expert as i32 * CELL, grid + row as i32 * ROW);
                    let cell = Rectangle::new(
                        [(x, y), (x + CELL - 1, y + ROW - 1)],
                        shade(*value).filled(),
                    );
                    area.draw(&cell)?;
                    let ink = if *value > 0.55 { &WHITE } else { &BLACK };
                    let at = (x + CELL / 2, y + ROW / 2);
                    let text = format!("{:.0}", 100.0 * value);
                    area.draw(&Text::new(
                        text,
                        at,
                        words(10, ink, HPos::Center, VPos::Center),
                    ))?;
                }
            }
            for expert in 0..self.experts {
                let name = self.model.experts.get(expert).map_or("", String::as_str);
                let short: String = name.chars().take(6).collect();
                let at = (start + expert as i32 * CELL + CELL / 2, bottom + 5);
                area.draw(&Text::new(
                    short,
                    at,
                    words(10, &GREY, HPos::Center, VPos::Top),
                ))?;
            }
        }
        let at = (left - 8, bottom + 5);
        area.draw(&Text::new(
            "layer",
            at,
            words(10, &GREY, HPos::Right, VPos::Top),
        ))?;
        let at = (left, bottom + 26);
        area.draw(&Text::new(
            "numbers in %",
            at,
            words(10, &GREY, HPos::Left, VPos::Top),
        ))?;
        Ok(())
    }
}

fn draw_heat_maps(report: &EvaluationReport, svg: &mut String) -> Drawn {
    let panels: Vec<Panel> = report
        .models
        .iter()
        .flat_map(|model| {
            [RouterKind::FeedForward, RouterKind::Attention]
                .into_iter()
                .filter_map(|kind| Panel::of(model, kind))
        })
        .collect();
    let width = panels.iter().map(Panel::width).max().unwrap_or(0).max(320) + 80;
    let height = panels.iter().map(Panel::height).sum::<i32>() + 20;
    let area = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut top = 16;
    for panel in &panels {
        panel.draw(&area, top)?;
        top += panel.height();
    }
    area.present()?;
    Ok(())
}
