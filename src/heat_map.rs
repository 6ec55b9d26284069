//! Heat maps as SVG: layers down, experts or roles across.

use crate::svg::{Anchor, Area, CHARACTER, Fill, Svg, Words, shortened};

/// A heat map: blocks side by side, with the same layers.
pub(crate) struct HeatMap {
    pub(crate) title: String,
    /// Names of the layers, from above.
    pub(crate) layers: Vec<String>,
    pub(crate) blocks: Vec<HeatBlock>,
    /// A line below it.
    pub(crate) note: String,
}

/// A block of cells.
pub(crate) struct HeatBlock {
    /// A heading; empty for none.
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    /// By layer, then by column.
    pub(crate) cells: Vec<Vec<Option<HeatCell>>>,
}

/// A value.
#[derive(Clone)]
pub(crate) struct HeatCell {
    /// From −1 to 1: 1 is the darkest blue and −1 the darkest red.
    pub(crate) share: f64,
    pub(crate) text: String,
}

const LEFT: i32 = 60;
const ROW: i32 = 17;
/// Between two blocks.
const GAP: i32 = 14;
/// Between a title and the first layer, without headings of blocks.
const ABOVE: i32 = 34;
/// For headings of blocks.
const HEADING: i32 = 18;
/// Between the last layer and the next title.
const BELOW: i32 = 52;
/// Width of a cell in pixels.
const LEAST: i32 = 34;
const MOST: i32 = 96;

/// The heat maps below each other.
pub(crate) fn draw(maps: &[HeatMap]) -> String {
    let width = maps.iter().map(HeatMap::width).max().unwrap_or(0).max(320);
    let height: i32 = maps.iter().map(HeatMap::height).sum();
    let mut svg = Svg::new(LEFT + width + 20, height + 20);
    let mut top = 26;
    for map in maps {
        map.draw(&mut svg, top);
        top += map.height();
    }
    svg.finish()
}

impl HeatMap {
    /// Width of a cell, the same in all blocks.
    fn cell(&self) -> i32 {
        let names = self.blocks.iter().flat_map(|block| &block.columns);
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
        (longest as i32 * CHARACTER + 6).clamp(LEAST, MOST)
    }

    fn width(&self) -> i32 {
        let columns: usize = self.blocks.iter().map(|block| block.columns.len()).sum();
        let blocks = columns as i32 * self.cell() + (self.blocks.len() as i32 - 1) * GAP;
        let words = self.title.chars().count().max(self.note.chars().count());
        blocks.max(words as i32 * CHARACTER)
    }

    /// Between the title and the first layer.
    fn above(&self) -> i32 {
        let has_headings = self.blocks.iter().any(|block| !block.title.is_empty());
        ABOVE + if has_headings { HEADING } else { 0 }
    }

    fn height(&self) -> i32 {
        self.above() + self.layers.len() as i32 * ROW + BELOW
    }

    /// Draws it with the base line of its title at `top`.
    fn draw(&self, svg: &mut Svg, top: i32) {
        svg.words(LEFT, top, Anchor::Start, Words::Title, &self.title);
        let grid = top + self.above();
        svg.words(LEFT - 8, grid - 6, Anchor::End, Words::Label, "layer");
        for (layer, y) in self.layers.iter().zip((grid..).step_by(ROW as usize)) {
            svg.words(LEFT - 8, y + 12, Anchor::End, Words::Label, layer);
        }
        let mut left = LEFT;
        for block in &self.blocks {
            block.draw(svg, left, grid, self.cell());
            left += block.columns.len() as i32 * self.cell() + GAP;
        }
        let below = grid + self.layers.len() as i32 * ROW + 18;
        svg.words(LEFT, below, Anchor::Start, Words::Label, &self.note);
    }
}

impl HeatBlock {
    fn draw(&self, svg: &mut Svg, left: i32, grid: i32, cell: i32) {
        let width = self.columns.len() as i32 * cell;
        let title = shortened(&self.title, width);
        svg.words(
            left + width / 2,
            grid - 22,
            Anchor::Middle,
            Words::Name,
            &title,
        );
        for (name, x) in self.columns.iter().zip((left..).step_by(cell as usize)) {
            let name = shortened(name, cell + 2);
            svg.words(x + cell / 2, grid - 6, Anchor::Middle, Words::Label, &name);
        }

        for (cells, y) in self.cells.iter().zip((grid..).step_by(ROW as usize)) {
            for (found, x) in cells.iter().zip((left..).step_by(cell as usize)) {
                let Some(HeatCell { share, text }) = found else {
                    continue;
                };
                let area = Area {
                    x,
                    y,
                    width: cell - 1,
                    height: ROW - 1,
                };
                svg.rectangle(area, Fill::Rgb(shade(*share)));
                let ink = if share.abs() > 0.55 {
                    Words::OnDark
                } else {
                    Words::OnLight
                };
                svg.words(x + cell / 2, y + 12, Anchor::Middle, ink, text);
            }
        }
    }
}

/// From white at 0 to dark blue at 1, and to dark red at −1.
fn shade(share: f64) -> [u8; 3] {
    let (none, all) = if share < 0.0 {
        ([253, 248, 244], [127, 39, 4])
    } else {
        ([245, 249, 253], [8, 48, 107])
    };
    let mix = |from: u8, to: u8| {
        let (from, to) = (f64::from(from), f64::from(to));
        (from + (to - from) * share.abs().min(1.0)).round() as u8
    };
    [0, 1, 2].map(|part| mix(none[part], all[part]))
}
