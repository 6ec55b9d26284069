//! Charts as SVG files, in the look of the report: shapes, words, and colours for a light and for a dark system.
//!
//! The program's files have rectangles, lines and words alone, so a drawing library would bring more than it saves.
//! Colours are classes: programs that do not know `prefers-color-scheme` show the light ones.

use std::fmt::Write;

use minijinja::HtmlEscape;

use crate::printable::{printable, printable_lines};

/// Colours of pages and charts.
struct Palette {
    paper: &'static str,
    panel: &'static str,
    ink: &'static str,
    soft: &'static str,
    rule: &'static str,
    /// Of runs, models and experts; readers with any colour vision tell them apart (after Okabe and Ito).
    series: [&'static str; CHOSEN],
}

/// Series with a colour in the palette.
const CHOSEN: usize = 8;

const LIGHT: Palette = Palette {
    paper: "#ffffff",
    panel: "#f6f7f9",
    ink: "#1b1f24",
    soft: "#59636e",
    rule: "#d8dde3",
    series: [
        "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c08a00", "#3d9fd6", "#7a5195", "#5f6b76",
    ],
};

const DARK: Palette = Palette {
    paper: "#14171b",
    panel: "#1c2126",
    ink: "#e4e8ec",
    soft: "#9aa5b1",
    rule: "#343c45",
    series: [
        "#4fa8e0", "#f0813a", "#2fc49a", "#e39cc4", "#e6b422", "#8fd0f5", "#b391d1", "#a3afba",
    ],
};

/// Between the hues of further series, in degrees: the golden angle, which keeps neighbours apart.
const ANGLE: f64 = 137.508;

/// The colour of a series.
pub(crate) enum SeriesColour {
    /// The number of a colour in the palette.
    Chosen(usize),
    /// A colour for series beyond the palette, in CSS.
    Further(String),
}

/// The colour of the series of this number.
pub(crate) fn series_colour(number: usize) -> SeriesColour {
    let Some(further) = number.checked_sub(CHOSEN) else {
        return SeriesColour::Chosen(number);
    };
    let hue = further as f64 * ANGLE % 360.0;
    SeriesColour::Further(format!("hsl({hue:.0}, 55%, 52%)"))
}

/// The palette as variables of a style sheet: `--paper`, …, `--c0`, ….
pub(crate) fn variables() -> String {
    let set = |palette: &Palette| {
        let Palette {
            paper,
            panel,
            ink,
            soft,
            rule,
            series,
        } = palette;
        let colours = each_colour(series, |number, colour| format!(" --c{number}: {colour};"));
        format!(
            ":root {{ --paper: {paper}; --panel: {panel}; --ink: {ink}; --soft: {soft}; --rule: {rule};{colours} }}"
        )
    };
    format!("{}\n{DARK_SYSTEM} {{ {} }}\n", set(&LIGHT), set(&DARK))
}

const DARK_SYSTEM: &str = "@media (prefers-color-scheme: dark)";

/// The palette as classes of a file.
fn classes(palette: &Palette) -> String {
    let Palette {
        paper,
        ink,
        soft,
        rule,
        series,
        ..
    } = palette;
    let colours = each_colour(series, |number, colour| {
        format!(" .c{number} {{ fill: {colour}; }}")
    });
    format!(
        ".paper {{ fill: {paper}; }} .title, .name {{ fill: {ink}; }} .label {{ fill: {soft}; }} .grid {{ stroke: {rule}; }} .axis {{ stroke: {soft}; }}{colours}"
    )
}

/// The rules of all colours of series, by their numbers.
fn each_colour(series: &[&str], rule: impl Fn(usize, &str) -> String) -> String {
    let colours = series.iter().enumerate();
    colours
        .map(|(number, colour)| rule(number, colour))
        .collect()
}

/// What a text is for, which decides its size and colour.
#[derive(Clone, Copy)]
pub(crate) enum Words {
    /// The heading of a chart.
    Title,
    /// A name.
    Name,
    /// A number or a remark.
    Label,
    /// In a light cell.
    OnLight,
    /// In a dark cell.
    OnDark,
}

impl Words {
    fn class(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Name => "name",
            Self::Label => "label",
            Self::OnLight => "on-light",
            Self::OnDark => "on-dark",
        }
    }
}

/// The point of a text that its place is of.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// The colour of a rectangle.
#[derive(Clone, Copy)]
pub(crate) enum Fill {
    /// The colour of a series.
    Series(usize),
    /// Red, green and blue.
    Rgb([u8; 3]),
}

/// What a line is for.
#[derive(Clone, Copy)]
pub(crate) enum Line {
    /// An axis.
    Axis,
    /// A value to compare with.
    Grid,
}

/// A rectangle: its left upper corner, and its extents in pixels.
#[derive(Clone, Copy)]
pub(crate) struct Area {
    pub(crate) x: i32,
    pub(crate) y: i32,
    pub(crate) width: i32,
    pub(crate) height: i32,
}

/// A file being drawn.
pub(crate) struct Svg {
    text: String,
}

/// Width of a character of a name or label in pixels, rounded up.
pub(crate) const CHARACTER: i32 = 7;

impl Svg {
    /// An empty file of this size in pixels.
    pub(crate) fn new(width: i32, height: i32) -> Self {
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
        );
        let _ = writeln!(
            text,
            "<style>text {{ font: 11px system-ui, sans-serif; }} .title {{ font-size: 15px; font-weight: 550; }} .name {{ font-size: 12px; }} .on-light {{ fill: #1b1f24; }} .on-dark {{ fill: #ffffff; }}\n{}\n{DARK_SYSTEM} {{ {} }}</style>",
            classes(&LIGHT),
            classes(&DARK)
        );
        let _ = writeln!(
            text,
            "<rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>"
        );
        Self { text }
    }

    /// A filled rectangle.
    pub(crate) fn rectangle(&mut self, area: Area, fill: Fill) {
        let Area {
            x,
            y,
            width,
            height,
        } = area;
        let fill = match fill {
            Fill::Series(number) => match series_colour(number) {
                SeriesColour::Chosen(number) => format!("class=\"c{number}\""),
                SeriesColour::Further(colour) => format!("fill=\"{colour}\""),
            },
            Fill::Rgb([red, green, blue]) => format!("fill=\"#{red:02x}{green:02x}{blue:02x}\""),
        };
        let _ = writeln!(
            self.text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {fill}/>"
        );
    }

    /// A level line.
    pub(crate) fn line(&mut self, from: i32, to: i32, y: i32, line: Line) {
        let class = match line {
            Line::Axis => "axis",
            Line::Grid => "grid",
        };
        let _ = writeln!(
            self.text,
            "<line class=\"{class}\" x1=\"{from}\" x2=\"{to}\" y1=\"{y}\" y2=\"{y}\"/>"
        );
    }

    /// A text; its base line is at `y`.
    pub(crate) fn words(&mut self, x: i32, y: i32, anchor: Anchor, words: Words, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (class, text) = (words.class(), printable(text));
        let _ = writeln!(
            self.text,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{}</text>",
            HtmlEscape(&text)
        );
    }

    /// The file.
    pub(crate) fn finish(self) -> String {
        printable_lines(&(self.text + "</svg>\n"))
    }
}

/// A name of at most `width` pixels.
pub(crate) fn shortened(name: &str, width: i32) -> String {
    let most = (width / CHARACTER).max(2) as usize;
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_end_its_element() {
        let mut svg = Svg::new(10, 10);
        svg.words(1, 2, Anchor::End, Words::Name, "</text><script>\u{1b}&");
        let text = svg.finish();
        assert!(
            !text.contains("<script") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert_eq!(text.matches("</text>").count(), 1, "{text}");
    }

    #[test]
    fn names_are_cut_to_their_room() {
        assert_eq!(shortened("übergrößen", 42), "überg…");
        assert_eq!(shortened("law", 42), "law");
    }
}
