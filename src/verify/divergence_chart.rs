//! How far specialists have moved, as SVG: a heat map for each of them, and one for each pair of their directions.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::divergence::{Divergence, percent};
use crate::chart::{Area, Drawn, GREY, shade, shade_below, words};
use crate::printable::printable_lines;
use crate::{Error, Result};

const CELL: i32 = 62;
const ROW: i32 = 16;
const LEFT: i32 = 60;

/// One heat map: layers down, roles across.
struct Panel {
    title: String,
    grid: Vec<(u64, Vec<Option<f64>>)>,
    /// The text of a cell.
    shown: fn(f64) -> String,
    /// The value of the darkest shade.
    most: f64,
    /// The roles outside the layers, in words.
    below: String,
}

impl Divergence {
    /// The heat maps.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg)
            .map_err(|e| Error::compute("draw the divergence", e))?;
        Ok(printable_lines(&svg))
    }

    fn panels(&self, roles: &[&str]) -> Vec<Panel> {
        let all = self
            .layers
            .iter()
            .flat_map(|row| &row.experts)
            .filter_map(|moved| moved.relative);
        let most = all.fold(0.0, f64::max);
        let moved = self.experts.iter().enumerate().map(|(number, expert)| {
            let outside = self
                .roles
                .iter()
                .filter(|row| !roles.contains(&row.role.as_deref().unwrap_or_default()));
            let outside = outside.chain([&self.total]).map(|row| {
                let role = row.role.as_deref().unwrap_or("all");
                format!("{role} {}", percent(row.experts[number].relative))
            });
            Panel {
                title: format!("{}: ‖W − W₀‖ / ‖W₀‖ in %", expert.name),
                grid: self.grid(roles, |row| row.experts[number].relative),
                shown: |value| crate::table::number(100.0 * value),
                most,
                below: outside.collect::<Vec<_>>().join(", "),
            }
        });
        let pairs = self
            .total
            .pairs
            .iter()
            .enumerate()
            .map(|(number, pair)| Panel {
                title: format!(
                    "{} and {}: cosine of their changes",
                    pair.experts[0], pair.experts[1]
                ),
                grid: self.grid(roles, |row| row.pairs[number].cosine),
                shown: |value| format!("{value:.2}"),
                most: 1.0,
                below: pair
                    .cosine
                    .map_or_else(String::new, |cosine| format!("all {cosine:.3}")),
            });
        moved.chain(pairs).collect()
    }

    fn draw(&self, svg: &mut String) -> Drawn {
        let roles = self.layer_roles();
        let panels = self.panels(&roles);
        let width = (LEFT + roles.len() as i32 * CELL + 20).max(560);
        let height = panels.iter().map(Panel::height).sum::<i32>() + 20;
        let area = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut top = 16;
        for panel in &panels {
            panel.draw(&area, &roles, top)?;
            top += panel.height();
        }
        area.present()?;
        Ok(())
    }
}

impl Panel {
    fn height(&self) -> i32 {
        self.grid.len() as i32 * ROW + 86
    }

    fn draw(&self, area: &Area, roles: &[&str], top: i32) -> Drawn {
        area.draw(&Text::new(
            self.title.clone(),
            (LEFT, top),
            words(15, &BLACK, HPos::Left, VPos::Top),
        ))?;
        let grid = top + 40;
        for (column, role) in roles.iter().enumerate() {
            let (name, half) = (role.replace('_', " "), ["norm", "attention", "feedforward"]);
            let short = half
                .iter()
                .fold(name, |name, word| name.replace(word, &word[..4]));
            let at = (LEFT + column as i32 * CELL + CELL / 2, grid - 4);
            area.draw(&Text::new(
                short,
                at,
                words(10, &GREY, HPos::Center, VPos::Bottom),
            ))?;
        }
        for (number, (layer, values)) in self.grid.iter().enumerate() {
            let y = grid + number as i32 * ROW;
            let at = (LEFT - 8, y + ROW / 2);
            area.draw(&Text::new(
                layer.to_string(),
                at,
                words(11, &GREY, HPos::Right, VPos::Center),
            ))?;
            for (column, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let x = LEFT + column as i32 * CELL;
                let share = value.abs() / self.most.max(f64::MIN_POSITIVE);
                let colour = if *value < 0.0 {
                    shade_below(share)
                } else {
                    shade(share)
                };
                area.draw(&Rectangle::new(
                    [(x, y), (x + CELL - 1, y + ROW - 1)],
                    colour.filled(),
                ))?;
                let ink = if share > 0.55 { &WHITE } else { &BLACK };
                let at = (x + CELL / 2, y + ROW / 2);
                area.draw(&Text::new(
                    (self.shown)(*value),
                    at,
                    words(10, ink, HPos::Center, VPos::Center),
                ))?;
            }
        }
        let at = (LEFT, grid + self.grid.len() as i32 * ROW + 6);
        area.draw(&Text::new(
            self.below.clone(),
            at,
            words(11, &GREY, HPos::Left, VPos::Top),
        ))?;
        let at = (LEFT - 8, grid - 4);
        area.draw(&Text::new(
            "layer",
            at,
            words(10, &GREY, HPos::Right, VPos::Bottom),
        ))?;
        Ok(())
    }
}
