//! Tables as this program prints them: aligned columns, no lines.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::printable::printable;

/// Which way a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header; every line ends without spaces and with a newline.
pub fn render(columns: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if columns.iter().any(|(title, _)| !title.is_empty()) {
        table.set_header(columns.iter().map(|(title, _)| printable(title)));
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (number, (_, align)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(number) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A word for a shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A whole number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Names and values in two columns, without a header.
pub fn facts(rows: impl IntoIterator<Item = (String, String)>) -> String {
    let rows = rows.into_iter().map(|(name, value)| vec![name, value]);
    render(&[("", Align::Left), ("", Align::Left)], rows)
}

/// Units of bytes, each a thousand times the one before.
const BYTE_UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// Bytes in a unit that [`bytes()`] writes.
pub fn byte_unit(unit: &str) -> Option<f64> {
    let power = BYTE_UNITS.iter().position(|known| *known == unit)?;
    Some(1000f64.powi(power as i32))
}

/// A number of bytes with three significant digits and a decimal unit: `269 MB`.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < BYTE_UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", BYTE_UNITS[unit])
}

/// Floating-point operations a second: `431 GFLOP/s`.
pub fn rate(flops: f64) -> String {
    if flops < 1e12 {
        format!("{:.0} GFLOP/s", flops / 1e9)
    } else {
        format!("{:.1} TFLOP/s", flops / 1e12)
    }
}

/// A number that is not negative, with three significant digits.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if (0.000_999_5..999.5).contains(&value) {
        let decimals = (2 - libm::floor(libm::log10(value * 1.0005)) as i32).clamp(0, 5) as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.2e}")
    }
}

/// Units of time longer than a second, in seconds.
const TIME_UNITS: [(f64, &str); 3] = [(86_400.0, "days"), (3600.0, "h"), (60.0, "min")];

/// The seconds of a text that [`duration`] has written.
pub fn seconds(text: &str) -> Option<f64> {
    let (value, unit) = text.split_once(' ')?;
    let mut known = TIME_UNITS.into_iter().chain([(1.0, "s")]);
    let (length, _) = known.find(|(_, known)| *known == unit)?;
    Some(value.parse::<f64>().ok()? * length)
}

/// Seconds in the unit that people would use: `4.2 s`, `12 min`, `3.5 h`, `41 days`.
pub fn duration(seconds: f64) -> String {
    // From two of a unit on, fewer say more in the smaller one.
    let (value, unit) = match TIME_UNITS
        .into_iter()
        .find(|(length, _)| seconds >= 2.0 * length)
    {
        Some((length, unit)) => (seconds / length, unit),
        None => (seconds, "s"),
    };
    let decimals = if value < 9.95 { 1 } else { 0 };
    format!("{value:.decimals$} {unit}")
}

/// A count with its noun, plural where it is not one: `1 tensor`, `3 tensors`.
pub fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_clean() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["bcd".to_owned(), "10".to_owned()],
        ];
        let text = render(&[("name", Align::Left), ("n", Align::Right)], rows);
        assert_eq!(text, "name   n\na      1\nbcd   10\n");
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown: Vec<String> = [0.0, 9.0, 0.0123456, 899.9, 1234.0, 9.999, 1e-7, 0.00123]
            .into_iter()
            .map(number)
            .collect();
        assert_eq!(
            shown,
            [
                "0", "9.00", "0.0123", "900", "1.23e3", "10.0", "1.00e-7", "0.00123"
            ]
        );
    }

    #[test]
    fn durations_have_the_unit_that_people_use() {
        let shown: Vec<String> = [0.04, 9.94, 119.0, 120.0, 9000.0, 3.6e6]
            .into_iter()
            .map(duration)
            .collect();
        assert_eq!(
            shown,
            ["0.0 s", "9.9 s", "119 s", "2.0 min", "2.5 h", "42 days"]
        );
    }

    #[test]
    fn bytes_have_three_digits() {
        let shown: Vec<String> = [0, 999, 1000, 269_000_000, 2_710_000_000, 999_999]
            .into_iter()
            .map(bytes)
            .collect();
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.00 kB", "269 MB", "2.71 GB", "1.00 MB"]
        );
    }
}
