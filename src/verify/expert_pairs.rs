//! Tensors of two checkpoints paired by what they are, and experts of two mixtures by their names: their order says nothing
//! about what they are.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::pairs::{Pair, Pairing, Side};
use crate::checkpoint::TensorEntry;
use crate::family::{Place, TensorSpec};
use crate::printable::printable;

/// An expert, and its number in each of two mixtures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertPair {
    /// Its name.
    pub name: String,
    /// Its number in a; none where a lacks it.
    pub a: Option<u64>,
    /// Its number in b; none where b lacks it.
    pub b: Option<u64>,
}

/// The experts of two mixtures by their names; none where numbers pair them as well, or where a name is not known.
///
/// Experts of one name, such as copies of a seed, are paired in their order.
pub(super) fn by_name(a: &Side, b: &Side) -> Option<Vec<ExpertPair>> {
    let (left, right) = (numbered(&a.experts), numbered(&b.experts));
    if a.experts == b.experts || !left.keys().any(|expert| right.contains_key(expert)) {
        return None;
    }
    let mut pairs: Vec<ExpertPair> = left
        .iter()
        .map(|(expert, number)| ExpertPair {
            name: expert.0.to_owned(),
            a: Some(*number),
            b: right.get(expert).copied(),
        })
        .collect();
    pairs.sort_by_key(|pair| pair.a);
    let mut others: Vec<ExpertPair> = right
        .iter()
        .filter(|(expert, _)| !left.contains_key(*expert))
        .map(|(expert, number)| ExpertPair {
            name: expert.0.to_owned(),
            a: None,
            b: Some(*number),
        })
        .collect();
    others.sort_by_key(|pair| pair.b);
    pairs.extend(others);
    Some(pairs)
}

/// The number of each expert, by its name and how many of that name come before it.
fn numbered(names: &[String]) -> BTreeMap<(&str, usize), u64> {
    let mut numbers = BTreeMap::new();
    for (number, name) in names.iter().enumerate() {
        let before = names[..number]
            .iter()
            .filter(|other| *other == name)
            .count();
        numbers.insert((name.as_str(), before), number as u64);
    }
    numbers
}

/// Takes routers apart, so that each expert has its row, called `NAME[EXPERT]`.
pub(super) fn split_routers(side: &mut Side) {
    let mut specs = Vec::with_capacity(side.specs.len());
    for spec in std::mem::take(&mut side.specs) {
        let tensors = &mut side.checkpoint.tensors;
        let parts = tensors.get(&spec.name).and_then(|entry| rows(&spec, entry));
        let Some(parts) = parts else {
            specs.push(spec);
            continue;
        };
        tensors.remove(&spec.name);
        for (expert, entry) in (0..).zip(parts) {
            let name = format!("{}[{expert}]", spec.name);
            specs.push(TensorSpec {
                name: name.clone(),
                shape: entry.shape.clone(),
                expert: Some(expert),
                ..spec
            });
            tensors.insert(name, entry);
        }
    }
    side.specs = specs;
}

/// The rows of a router; none for other tensors, and for rows that do not end with a byte.
fn rows(spec: &TensorSpec, entry: &TensorEntry) -> Option<Vec<TensorEntry>> {
    let (experts, row) = entry.shape.split_first()?;
    let is_whole = *experts > 0 && entry.length.is_multiple_of(*experts);
    if !spec.role.is_router() || entry.shape != spec.shape || !is_whole {
        return None;
    }
    let length = entry.length / experts;
    let row = |expert| TensorEntry {
        shape: [&[1], row].concat(),
        offset: entry.offset + expert * length,
        length,
        ..entry.clone()
    };
    Some((0..*experts).map(row).collect())
}

/// Pairs by what tensors are, and by name what no configuration describes. What belongs to an expert of a is paired with the
/// expert of b that has its name, or its number where no names are given.
pub(super) fn pairing(a: &Side, b: &Side, experts: &[ExpertPair]) -> Pairing {
    let numbers: BTreeMap<u64, u64> = experts
        .iter()
        .filter_map(|pair| Some((pair.a?, pair.b?)))
        .collect();
    let of_b = b
        .specs
        .iter()
        .map(|spec| (spec.place(), spec.name.as_str()));
    let of_b: BTreeMap<Place, &str> = of_b.collect();
    let of_a: BTreeMap<&str, &TensorSpec> = a
        .specs
        .iter()
        .map(|spec| (spec.name.as_str(), spec))
        .collect();

    let mut left: BTreeSet<&str> = b.checkpoint.tensors.keys().map(String::as_str).collect();
    let mut pairing = Pairing::default();
    for name in a.checkpoint.tensors.keys() {
        let spec = of_a.get(name.as_str());
        let other = match spec.map(|spec| (spec.place(), spec.expert)) {
            Some(((role, bias, layer, _), Some(expert))) if !experts.is_empty() => numbers
                .get(&expert)
                .and_then(|number| of_b.get(&(role, bias, layer, Some(*number))).copied()),
            Some((place, _)) => of_b.get(&place).copied().or(Some(name.as_str())),
            None => Some(name.as_str()),
        };
        match other.filter(|other| left.remove(*other)) {
            Some(other) => pairing.pairs.push(Pair {
                a: name.clone(),
                b: other.to_owned(),
                group: spec.map(|spec| (*spec).into()),
            }),
            None => pairing.only_a.push(name.clone()),
        }
    }
    pairing.only_b = left.into_iter().map(str::to_owned).collect();
    pairing
}

/// The lines that say which experts are compared, and which are not.
pub(super) fn lines(pairs: &[ExpertPair]) -> String {
    let both = pairs.iter().filter_map(|pair| {
        let (a, b) = (pair.a?, pair.b?);
        Some(format!("{} {a} = {b}", printable(&pair.name)))
    });
    let both: Vec<String> = both.collect();
    let only = |number: fn(&ExpertPair) -> Option<u64>, other: fn(&ExpertPair) -> Option<u64>| {
        let alone = pairs.iter().filter(|pair| other(pair).is_none());
        let named =
            alone.filter_map(|pair| Some(format!("{} {}", printable(&pair.name), number(pair)?)));
        named.collect::<Vec<String>>()
    };
    let sentences = [
        ("experts by name, numbers in a = b", both),
        ("experts only in a", only(|pair| pair.a, |pair| pair.b)),
        ("experts only in b", only(|pair| pair.b, |pair| pair.a)),
    ];
    let filled = sentences.iter().filter(|(_, experts)| !experts.is_empty());
    filled
        .map(|(what, experts)| format!("{what}: {}\n", experts.join(", ")))
        .collect()
}
