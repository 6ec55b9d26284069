//! How `diff` shows its result.

use std::path::Path;

use super::diff::{Diff, Single, TensorDiff};
use super::expert_pairs;
use crate::printable::printable;
use crate::table::{self, Align, counted};

/// Rows of changed tensors that the short table shows.
const SHOWN: usize = 20;

impl Diff {
    /// A summary, the rows by role and expert, and the tensors: all, or those that changed most.
    pub fn table(&self, all: bool) -> String {
        let shown = |path: &Path| printable(&path.to_string_lossy());
        let mut text = format!("a  {}\nb  {}\n", shown(&self.a), shown(&self.b));
        if !self.experts.is_empty() {
            text.push_str(&expert_pairs::lines(&self.experts));
        }
        let is_renamed = |tensor: &TensorDiff| tensor.name_b.is_some();
        if !self.mixture && self.experts.is_empty() && self.tensors.iter().any(is_renamed) {
            text.push_str(
                "the formats name tensors differently, so they are paired by role, layer and expert\n",
            );
        }
        let pairs = self.tensors.len();
        text.push_str(&format!(
            "\n{} of {} equal",
            self.equal_tensors,
            counted(pairs as u64, "tensor")
        ));
        for (singles, what) in [
            (&self.only_a, "only in a"),
            (&self.only_b, "only in b"),
            (&self.new, "new (routers)"),
        ] {
            if !singles.is_empty() {
                text.push_str(&format!(", {} {what}", singles.len()));
            }
        }
        text.push('\n');
        if self.equal {
            text.push_str("equal\n");
        }
        if !self.parts.is_empty()
            && self
                .parts
                .iter()
                .any(|part| part.equal < part.tensors || all || self.mixture)
        {
            text.push('\n');
            text.push_str(&self.parts_table());
        }
        let changed = pairs - self.equal_tensors;
        let shown = if all { pairs } else { changed.min(SHOWN) };
        if shown > 0 {
            text.push('\n');
            text.push_str(&tensors_table(&self.tensors[..shown]));
            if !all && changed > shown {
                text.push_str(&format!("… and {} more that differ\n", changed - shown));
            }
        }
        for (singles, what) in [
            (&self.only_a, "only in a"),
            (&self.only_b, "only in b"),
            (&self.new, "new"),
        ] {
            text.push_str(&singles_table(singles, what, all));
        }
        text
    }

    fn parts_table(&self) -> String {
        let columns = [
            ("expert", Align::Left),
            ("part", Align::Left),
            ("role", Align::Left),
            ("equal", Align::Right),
            ("relative", Align::Right),
            ("max abs", Align::Right),
        ];
        let rows = self.parts.iter().map(|part| {
            let expert = match (part.expert, &part.expert_name) {
                (Some(expert), Some(name)) => format!("{expert} {name}"),
                (Some(expert), None) => expert.to_string(),
                (None, _) if self.mixture => "shared".to_owned(),
                (None, _) => "-".to_owned(),
            };
            let equal = format!("{} of {}", part.equal, part.tensors);
            vec![
                expert,
                part.part.to_owned(),
                part.role.clone(),
                equal,
                percent(part.relative),
                table::number(part.max_abs),
            ]
        });
        table::render(&columns, rows)
    }
}

/// Tensors without a counterpart, all or the first ones.
fn singles_table(singles: &[Single], what: &str, all: bool) -> String {
    let shown = if all {
        singles.len()
    } else {
        singles.len().min(SHOWN)
    };
    let mut text = String::new();
    if shown > 0 {
        let columns = [
            (what, Align::Left),
            ("dtype", Align::Left),
            ("shape", Align::Left),
        ];
        let rows = singles[..shown]
            .iter()
            .map(|s| vec![s.name.clone(), s.dtype.clone(), format!("{:?}", s.shape)]);
        text.push('\n');
        text.push_str(&table::render(&columns, rows));
    }
    if singles.len() > shown {
        text.push_str(&format!("… and {} more {what}\n", singles.len() - shown));
    }
    text
}

fn tensors_table(tensors: &[TensorDiff]) -> String {
    let columns = [
        ("tensor", Align::Left),
        ("dtype", Align::Left),
        ("relative", Align::Right),
        ("changed", Align::Right),
        ("max abs", Align::Right),
        ("mean abs", Align::Right),
        ("cosine", Align::Right),
        ("note", Align::Left),
    ];
    let rows = tensors.iter().map(|tensor| {
        let dtype = if tensor.dtype_a == tensor.dtype_b {
            tensor.dtype_a.clone()
        } else {
            format!("{} → {}", tensor.dtype_a, tensor.dtype_b)
        };
        let mut row = vec![
            tensor.name_b.clone().unwrap_or_else(|| tensor.name.clone()),
            dtype,
        ];
        let mut notes = Vec::new();
        match &tensor.numbers {
            Some(n) => {
                row.extend([
                    percent(n.relative),
                    percent(Some(n.changed_fraction)),
                    table::number(n.max_abs),
                    table::number(n.mean_abs),
                ]);
                row.push(
                    n.cosine
                        .map_or("-".to_owned(), |cosine| format!("{cosine:.8}")),
                );
                if n.non_finite_a + n.non_finite_b > 0 {
                    notes.push(format!(
                        "not finite: {} in a, {} in b",
                        n.non_finite_a, n.non_finite_b
                    ));
                }
            }
            None => row.extend(std::iter::repeat_n("-".to_owned(), 5)),
        }
        if tensor.equal {
            notes.push("equal".to_owned());
        }
        if tensor.shape_a != tensor.shape_b {
            notes.push(format!("shape {:?} → {:?}", tensor.shape_a, tensor.shape_b));
        } else if !tensor.equal && tensor.numbers.is_none() {
            notes.push("bytes differ".to_owned());
        }
        row.push(notes.join("; "));
        row
    });
    table::render(&columns, rows)
}

/// A fraction in percent with three significant digits.
fn percent(fraction: Option<f64>) -> String {
    fraction.map_or("undefined".to_owned(), |fraction| {
        format!("{} %", table::number(100.0 * fraction))
    })
}
