//! How tables look, everywhere: aligned columns, no lines, numbers to the right.

use comfy_table::{CellAlignment, Table, presets};

/// An empty table with these column heads.
pub fn new<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if header.iter().any(|head| !head.is_empty()) {
        table.set_header(header);
    }
    table
}

/// The table's text, the columns in `right` (counted from 0) aligned to the right.
pub fn render(mut table: Table, right: &[usize]) -> String {
    for (number, column) in table.column_iter_mut().enumerate() {
        let alignment = if right.contains(&number) { CellAlignment::Right } else { CellAlignment::Left };
        column.set_padding((0, 2));
        column.set_cell_alignment(alignment);
    }
    table.trim_fmt()
}

/// A number with its thousands apart: `1,234,567`.
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
