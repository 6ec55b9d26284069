//! Times of rounds, and how they compare.

// Each bench uses some of it.
#![allow(dead_code, clippy::unwrap_used)]

use serde_json::Value;

/// Seconds of each round, by the clock and of processor time.
#[derive(Default)]
pub struct Times {
    pub wall: Vec<f64>,
    pub processor: Vec<f64>,
}

impl Times {
    pub fn of_json(json: &Value) -> Self {
        let list = |key: &str| {
            json[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|second| second.as_f64().unwrap())
                .collect()
        };
        Self {
            wall: list("wall"),
            processor: list("processor"),
        }
    }

    /// Mean, median, least and most seconds by the clock, and mean processor time.
    pub fn shown(&self) -> String {
        let mut sorted = self.wall.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, median, most) = (
            sorted[0],
            sorted[sorted.len() / 2],
            sorted[sorted.len() - 1],
        );
        let (wall, processor) = (mean(&self.wall), mean(&self.processor));
        format!(
            "{wall:.3} s (median {median:.3}, {least:.3} to {most:.3}), processor {processor:.3} s"
        )
    }

    /// How much longer this takes than `other`: mean time, and in brackets mean processor time.
    pub fn over(&self, other: &Self) -> String {
        let ratio = |a: &[f64], b: &[f64]| mean(a) / mean(b);
        format!(
            "{:.2} ({:.2})",
            ratio(&self.wall, &other.wall),
            ratio(&self.processor, &other.processor)
        )
    }
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len() as f64
}

/// Seconds of processor time that this process has used.
pub fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
