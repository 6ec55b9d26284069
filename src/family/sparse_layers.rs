//! Which layers of a mixture have experts, as the configurations of other families say it.

use serde_json::Value;

use super::architecture::Architecture;
use super::config::{Config, Found};
use super::keys::{Field, Keys};
use crate::Result;

/// Whether each layer has experts.
pub(super) fn sparse_layers(config: &Config, num_layers: u64, keys: &Keys) -> Result<Vec<bool>> {
    if let Found::Value(name, value) = config.lookup(&keys[Field::SparseLayerTypes])? {
        return layer_types(config, name, value, num_layers);
    }
    for (field, expected) in [
        (Field::SparseStep, "a positive integer"),
        (Field::FirstSparseLayer, LAYER),
        (Field::LastSparseLayer, LAYER),
    ] {
        config.not_null(&keys[field], expected)?;
    }
    let step = config.count(&keys[Field::SparseStep])?.unwrap_or(1);
    let first = config.index(&keys[Field::FirstSparseLayer])?.unwrap_or(0);
    let first = first.max(dense_prefix(config, keys)?);
    let last = last(config, keys)?.unwrap_or(u64::MAX);
    let mut sparse: Vec<bool> = (0..num_layers)
        .map(|layer| (layer + 1).is_multiple_of(step) && layer >= first && layer <= last)
        .collect();

    if let Some(name) = keys[Field::DenseLayers].name()
        && let Found::Value(name, value) = config.find([name])?
    {
        let wrong = || config.wrong(name, "a list of layers", value);
        for layer in value.as_array().ok_or_else(wrong)? {
            // A list may name layers beyond the last.
            if let Some(sparse) = sparse.get_mut(layer.as_u64().ok_or_else(wrong)? as usize) {
                *sparse = false;
            }
        }
    }
    Ok(sparse)
}

/// How many of the first layers have no experts, where no list of layers says so.
pub(super) fn dense_prefix(config: &Config, keys: &Keys) -> Result<u64> {
    Ok(config.index(&keys[Field::DensePrefix])?.unwrap_or(0))
}

const LAYER: &str = "the number of a layer";

/// The last layer that may have experts; none where that is the last one.
fn last(config: &Config, keys: &Keys) -> Result<Option<u64>> {
    match config.lookup(&keys[Field::LastSparseLayer])? {
        Found::Absent | Found::Null => Ok(None),
        Found::Value(_, value) if value.as_i64() == Some(-1) => Ok(None),
        Found::Value(name, value) => {
            let expected = "the number of a layer, or -1 for the last";
            let layer = value.as_u64();
            layer
                .map(Some)
                .ok_or_else(|| config.wrong(name, expected, value))
        }
    }
}

/// The layers that a list of kinds calls sparse. It may be longer than the model.
fn layer_types(config: &Config, name: &str, value: &Value, num_layers: u64) -> Result<Vec<bool>> {
    let Some(kinds) = value.as_array() else {
        return Err(config.wrong(name, "a list with one entry for each layer", value));
    };
    if (kinds.len() as u64) < num_layers {
        let expected = format!("one entry for each of {num_layers} layers");
        return Err(config.unexpected(name, expected, kinds.len()));
    }
    let is_sparse = |kind: &Value| match kind.as_str() {
        Some("sparse") => Ok(true),
        Some("dense") => Ok(false),
        _ => Err(config.unexpected(name, "`sparse` or `dense`", kind)),
    };
    kinds
        .iter()
        .take(num_layers as usize)
        .map(is_sparse)
        .collect()
}

/// Whether all layers without experts and without the window rotate queries and keys.
pub(super) fn forces_rotation(of: &Architecture) -> bool {
    let experts = of.mixture.as_ref().map(|mixture| &mixture.moe_layers);
    let windows = of.sliding_window.map(|_| &of.window_layers);
    (0..of.num_layers)
        .filter(|layer| experts.is_some_and(|layers| !layers.contains(*layer)))
        .filter(|layer| windows.is_none_or(|layers| !layers.contains(*layer)))
        .all(|layer| of.rope_layers.contains(layer))
}

/// A range of layers of which each `step`-th has experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SparseRange {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) step: u64,
}

impl SparseRange {
    /// The range that means exactly the layers whose flag is set, if there is one.
    pub(super) fn of(sparse: &[bool]) -> Option<Self> {
        let layers: Vec<u64> = (0..)
            .zip(sparse)
            .filter(|(_, sparse)| **sparse)
            .map(|(layer, _)| layer)
            .collect();
        let step = match layers[..] {
            [first, second, ..] => second - first,
            _ => 1,
        };
        let range = Self {
            first: *layers.first()?,
            last: *layers.last()?,
            step,
        };
        let is_in = |layer: u64| {
            (layer + 1).is_multiple_of(step) && layer >= range.first && layer <= range.last
        };
        (0..)
            .zip(sparse)
            .all(|(layer, sparse)| is_in(layer) == *sparse)
            .then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_means_its_layers_or_is_none() {
        let of = |layers: &str| {
            let sparse: Vec<bool> = layers.chars().map(|layer| layer == 'x').collect();
            SparseRange::of(&sparse).map(|range| (range.first, range.last, range.step))
        };
        assert_eq!(of("xxx"), Some((0, 2, 1)));
        assert_eq!(of(".xx."), Some((1, 2, 1)));
        assert_eq!(of("...x"), Some((3, 3, 1)));
        assert_eq!(of(".x.x.."), Some((1, 3, 2)));
        // Every second layer, counted from the wrong one.
        assert_eq!(of("x.x."), None);
        assert_eq!(of("xx.x"), None);
        assert_eq!(of("...."), None);
    }
}
