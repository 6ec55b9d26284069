//! The progress of long work as one short line, which `run` also reads back from the logs of its stages:
//! `step 20 of 500  loss 3.2140  rate 5.00e-4  12 s left`.

use std::fmt;

use crate::table;

/// What separates the parts of a line.
const GAP: &str = "  ";
/// What the last part of a line ends with, where it says how long the rest takes.
const LEFT: &str = " left";

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Steps of training.
    Steps,
    /// Tokens that a model reads.
    Tokens,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// So much of `total`: `12 of 65 tokens`.
    pub fn amount(self, done: u64, total: u64) -> String {
        match self {
            Self::Steps => format!("{} of {}", table::grouped(done), table::grouped(total)),
            Self::Tokens => format!(
                "{} of {} tokens",
                table::grouped(done),
                table::grouped(total)
            ),
            Self::Bytes => format!("{} of {}", table::bytes(done), table::bytes(total)),
        }
    }

    /// So much a second, for people.
    pub fn rate(self, per_second: f64) -> String {
        match self {
            Self::Steps => format!("{} steps/s", table::number(per_second)),
            Self::Tokens => format!("{} tokens/s", table::grouped(per_second as u64)),
            Self::Bytes => format!("{}/s", table::bytes(per_second as u64)),
        }
    }
}

/// A moment of long work.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What is done of what: `step 20 of 500`.
    pub amount: String,
    /// The same as a share of 1.
    pub share: f64,
    /// What else there is to say.
    pub details: Vec<String>,
    /// Estimated seconds of the rest, where anything tells.
    pub seconds_left: Option<f64>,
}

impl Progress {
    /// Of work that has done so much of `total`; `verb` says what it does.
    pub fn new(verb: &str, unit: Unit, done: u64, total: u64) -> Self {
        Self {
            amount: format!("{verb} {}", unit.amount(done, total)),
            share: share(done as f64, total as f64),
            details: Vec::new(),
            seconds_left: None,
        }
    }

    /// Reads a line that [`Display`](fmt::Display) has written; `None` for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split(GAP);
        let amount = parts.next()?.to_owned();
        let (done, total) = amount.split_once(" of ")?;
        let share = share(last_quantity(done)?, first_quantity(total)?);
        let mut details: Vec<String> = parts.map(str::to_owned).collect();
        let left = details.last().and_then(|last| last.strip_suffix(LEFT));
        let seconds_left = left.and_then(table::seconds);
        if seconds_left.is_some() {
            details.pop();
        }
        Some(Self {
            amount,
            share,
            details,
            seconds_left,
        })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.amount)?;
        for detail in &self.details {
            write!(f, "{GAP}{detail}")?;
        }
        match self.seconds_left {
            Some(seconds) => write!(f, "{GAP}{}{LEFT}", table::duration(seconds)),
            None => Ok(()),
        }
    }
}

fn share(done: f64, total: f64) -> f64 {
    if total > 0.0 {
        (done / total).clamp(0.0, 1.0)
    } else {
        0.0
    }
}

/// The quantity that a text ends with: `writing 1.20 GB`, `step 20`.
fn last_quantity(text: &str) -> Option<f64> {
    let mut words = text.rsplit(' ');
    let last = words.next()?;
    match table::byte_unit(last) {
        Some(unit) => Some(number(words.next()?)? * unit),
        None => number(last),
    }
}

/// The quantity that a text begins with: `2.71 GB`, `65 tokens`.
fn first_quantity(text: &str) -> Option<f64> {
    let mut words = text.split(' ');
    let value = number(words.next()?)?;
    let unit = words.next().and_then(table::byte_unit).unwrap_or(1.0);
    Some(value * unit)
}

fn number(text: &str) -> Option<f64> {
    text.replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let progress = Progress {
            details: vec!["loss 3.2140".to_owned(), "rate 5.00e-4".to_owned()],
            seconds_left: Some(720.0),
            ..Progress::new("step", Unit::Steps, 1234, 10_000)
        };
        let line = progress.to_string();
        assert_eq!(
            line,
            "step 1,234 of 10,000  loss 3.2140  rate 5.00e-4  12 min left"
        );
        assert_eq!(Progress::parse(&line), Some(progress));
        let written = Progress::new("writing", Unit::Bytes, 1_200_000_000, 2_400_000_000);
        assert_eq!(written.to_string(), "writing 1.20 GB of 2.40 GB");
        assert_eq!(Progress::parse(&written.to_string()), Some(written));
        let scored = Progress {
            seconds_left: Some(3.0),
            ..Progress::new("scoring", Unit::Tokens, 16_384, 65_536)
        };
        assert_eq!(
            scored.to_string(),
            "scoring 16,384 of 65,536 tokens  3.0 s left"
        );
        assert_eq!(Progress::parse(&scored.to_string()), Some(scored));
    }

    #[test]
    fn other_lines_are_no_progress() {
        for line in ["", "saved out", "training 12 of them", "backend: cpu"] {
            assert_eq!(Progress::parse(line), None, "{line}");
        }
    }
}
