//! One colour for each name, the same in every chart and table of the page.

use std::collections::BTreeMap;

use super::input::Input;
use crate::svg::{SeriesColour, series_colour};

/// Names of runs, evaluated models and experts with their colours.
#[derive(Debug)]
pub(super) struct Colours {
    numbers: BTreeMap<String, usize>,
}

impl Colours {
    /// Colours in the order in which the names come up on the page.
    pub(super) fn of(input: &Input) -> Self {
        let subjects = input.subjects.iter().map(|subject| &subject.name);
        let evaluated = input
            .evaluations
            .iter()
            .flat_map(|(_, found)| &found.models);
        let models = evaluated.clone().map(|model| &model.name);
        let experts = input.subjects.iter().flat_map(|subject| &subject.experts);
        let others = evaluated.flat_map(|model| &model.experts);
        let mut numbers = BTreeMap::new();
        for name in subjects.chain(models).chain(experts).chain(others) {
            let next = numbers.len();
            numbers.entry(name.clone()).or_insert(next);
        }
        Self { numbers }
    }

    /// The colour of a name in CSS. An expert without a name has the colour of its number.
    pub(super) fn css(&self, name: &str, number: usize) -> String {
        let number = self.numbers.get(name).copied().unwrap_or(number);
        match series_colour(number) {
            SeriesColour::Chosen(number) => format!("var(--c{number})"),
            SeriesColour::Further(colour) => colour,
        }
    }
}
