//! How the program's SVG charts look: colours, words, shades.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Colours that readers with any colour vision tell apart (Okabe and Ito).
pub(crate) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];
const FONT: &str = "sans-serif";
/// Of what is said beside the data.
pub(crate) const GREY: RGBColor = RGBColor(90, 90, 90);

/// What is drawn on.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The outcome of drawing.
pub(crate) type Drawn = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Text of this size in pixels, placed by this point of it.
pub(crate) fn words(
    size: u32,
    colour: &'static RGBColor,
    horizontal: HPos,
    vertical: VPos,
) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font())
        .color(colour)
        .pos(Pos::new(horizontal, vertical))
}

/// From white at 0 to dark blue at 1.
pub(crate) fn shade(share: f64) -> RGBColor {
    mixed(share, RGBColor(245, 249, 253), RGBColor(8, 48, 107))
}

/// From white at 0 to dark red at 1: the other side of a scale that has two.
pub(crate) fn shade_below(share: f64) -> RGBColor {
    mixed(share, RGBColor(253, 248, 244), RGBColor(127, 39, 4))
}

fn mixed(share: f64, none: RGBColor, all: RGBColor) -> RGBColor {
    let mix = |from: u8, to: u8| {
        (f64::from(from) + (f64::from(to) - f64::from(from)) * share.clamp(0.0, 1.0)).round() as u8
    };
    RGBColor(mix(none.0, all.0), mix(none.1, all.1), mix(none.2, all.2))
}
