//! How far specialists have moved, as SVG: a heat map for each of them, and one for each pair of their directions.

use super::divergence::{Divergence, DivergenceRow, percent};
use crate::heat_map::{self, HeatBlock, HeatCell, HeatMap};
use crate::table;

impl Divergence {
    /// The heat maps.
    pub fn svg(&self) -> String {
        let roles = self.layer_roles();
        let moved = self.experts.iter().enumerate();
        let moved = moved.map(|(number, expert)| self.moved(&roles, number, &expert.name));
        let pairs = (0..self.total.pairs.len()).map(|number| self.together(&roles, number));
        heat_map::draw(&moved.chain(pairs).collect::<Vec<_>>())
    }

    /// How far one specialist has moved; the largest movement of all is the darkest.
    fn moved(&self, roles: &[&str], number: usize, name: &str) -> HeatMap {
        let all = self.layers.iter().flat_map(|row| &row.experts);
        let most = all.filter_map(|moved| moved.relative).fold(0.0, f64::max);
        let is_outside =
            |row: &&DivergenceRow| !roles.contains(&row.role.as_deref().unwrap_or_default());
        let outside = self.roles.iter().filter(is_outside).chain([&self.total]);
        let outside = outside.map(|row| {
            let role = row.role.as_deref().unwrap_or("all");
            format!("{role} {}", percent(row.experts[number].relative))
        });
        let cell = |relative: f64| HeatCell {
            share: relative / most.max(f64::MIN_POSITIVE),
            text: table::number(100.0 * relative),
        };
        self.heat_map(
            format!("{name}: ‖W − W₀‖ / ‖W₀‖ in %"),
            roles,
            |row| row.experts[number].relative.map(cell),
            outside.collect::<Vec<_>>().join(", "),
        )
    }

    /// Whether a pair of specialists has moved in the same direction.
    fn together(&self, roles: &[&str], number: usize) -> HeatMap {
        let pair = &self.total.pairs[number];
        let [a, b] = &pair.experts;
        let all = pair.cosine.map(|cosine| format!("all {cosine:.3}"));
        let cell = |cosine: f64| HeatCell {
            share: cosine,
            text: format!("{cosine:.2}"),
        };
        self.heat_map(
            format!("{a} and {b}: cosine of their changes"),
            roles,
            |row| row.pairs[number].cosine.map(cell),
            all.unwrap_or_default(),
        )
    }

    fn heat_map(
        &self,
        title: String,
        roles: &[&str],
        cell: impl Fn(&DivergenceRow) -> Option<HeatCell>,
        note: String,
    ) -> HeatMap {
        let (layers, cells): (Vec<u64>, _) = self.grid(roles, cell).into_iter().unzip();
        HeatMap {
            title,
            layers: layers.iter().map(u64::to_string).collect(),
            blocks: vec![HeatBlock {
                title: String::new(),
                columns: roles.iter().map(|role| abbreviated(role)).collect(),
                cells,
            }],
            note,
        }
    }
}

/// A role without its underscores, and with its long words cut.
fn abbreviated(role: &str) -> String {
    let words = ["norm", "attention", "feedforward"];
    let role = role.replace('_', " ");
    words
        .iter()
        .fold(role, |role, word| role.replace(word, &word[..4]))
}
