//! Slices of a merge: layers of the output that are made of a range of layers of some models.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::error::SurgeryError;
use super::merging::Parameters;
use super::model::Model;
use crate::Result;
use crate::family::{Architecture, Config, Layers, Role, TensorSpec};

/// Layers of the output, and what they are made of.
#[derive(Clone, Debug)]
pub struct MergeSlice {
    /// The models, each with as many layers as any other.
    pub sources: Vec<SliceSource>,
    /// Number of the model that the method starts from; the base of the merge if absent.
    pub base: Option<usize>,
    /// Parameters of the slice as a whole.
    pub parameters: Parameters,
}

/// Layers of one model.
#[derive(Clone, Debug)]
pub struct SliceSource {
    /// Number of the model.
    pub model: usize,
    /// Its layers, counted from 0.
    pub layers: Range<u64>,
    /// Parameters of these layers.
    pub parameters: Parameters,
}

impl MergeSlice {
    /// Number of layers.
    pub(super) fn length(&self) -> u64 {
        let first = self.sources.first();
        first.map_or(0, |source| {
            source.layers.end.saturating_sub(source.layers.start)
        })
    }

    /// Where a layer of the slice is in it: 0 for the first, 1 for the last. The only one is the last, as in mergekit.
    pub(super) fn position(&self, layer: u64) -> f64 {
        match self.length().saturating_sub(1) {
            0 => 1.0,
            last => layer as f64 / last as f64,
        }
    }
}

/// Refuses slices without sources or with a model twice, ranges of layers that a model does not have, and ranges of several
/// lengths.
pub(super) fn check(slices: &[MergeSlice], architecture: &Architecture) -> Result<()> {
    for (number, slice) in slices.iter().enumerate() {
        for (place, source) in slice.sources.iter().enumerate() {
            let before = &slice.sources[..place];
            if before.iter().any(|other| other.model == source.model) {
                return Err(SurgeryError::RepeatedModel {
                    slice: number + 1,
                    model: source.model + 1,
                }
                .into());
            }
            let Range { start, end } = source.layers;
            if start >= end || end > architecture.num_layers {
                return Err(SurgeryError::SliceLayers {
                    slice: number + 1,
                    found: [start, end],
                    layers: architecture.num_layers,
                }
                .into());
            }
            if end - start != slice.length() {
                return Err(SurgeryError::SliceLengths {
                    slice: number + 1,
                    found: end - start,
                    expected: slice.length(),
                }
                .into());
            }
        }
        if slice.sources.is_empty() {
            return Err(SurgeryError::EmptySlice { slice: number + 1 }.into());
        }
    }
    Ok(())
}

/// Keys of a configuration that say the number of layers.
const COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// Keys of a configuration that list something for each layer.
const LISTS: [&str; 3] = ["layer_types", "mlp_layer_types", "no_rope_layers"];

/// The configuration and the architecture of the output, with the layers that `slices` name.
///
/// # Errors
/// Layers of different kinds in one slice, and orders of kinds that the configuration cannot say.
pub(super) fn stacked(base: &Model, slices: &[MergeSlice]) -> Result<(Config, Architecture)> {
    let (config, architecture) = (&base.config, &base.architecture);
    let mut layers = Vec::new();
    for (number, slice) in slices.iter().enumerate() {
        for layer in 0..slice.length() {
            let of_sources = slice
                .sources
                .iter()
                .map(|source| source.layers.start + layer);
            let mut kinds = of_sources.clone().map(|layer| kind(architecture, layer));
            let first = kinds.next();
            if kinds.any(|kind| Some(kind) != first) {
                return Err(SurgeryError::SliceKinds { slice: number + 1 }.into());
            }
            layers.extend(of_sources.take(1));
        }
    }
    if layers.iter().copied().eq(0..architecture.num_layers) {
        return Ok((config.clone(), architecture.clone()));
    }
    let stacked = Config::from_json(&config.path, restacked(&config.json, architecture, &layers));
    let (expected, found) = (ordered(architecture, &layers), Architecture::of(&stacked)?);
    let mut pairs = expected.meaning().into_iter().zip(found.meaning());
    let differs = pairs.find(|((_, expected), (_, found))| expected != found);
    let key = differs.map(|((key, _), _)| key);
    match key.or((expected.mixture != found.mixture).then_some("layers with experts")) {
        Some(key) => Err(SurgeryError::SliceOrder {
            path: config.path.clone(),
            key,
        }
        .into()),
        None => Ok((stacked, found)),
    }
}

/// What a layer differs from others in: window, rotation, experts.
fn kind(architecture: &Architecture, layer: u64) -> [bool; 4] {
    let mixture = architecture.mixture.as_ref();
    [
        architecture.window_layers.contains(layer),
        architecture.rope_layers.contains(layer),
        mixture.is_some_and(|mixture| mixture.moe_layers.contains(layer)),
        mixture.is_some_and(|mixture| mixture.attention_moe_layers.contains(layer)),
    ]
}

/// An architecture with these layers of it, in this order.
fn ordered(architecture: &Architecture, layers: &[u64]) -> Architecture {
    let ordered = |of: &Layers| {
        let mask: Vec<bool> = layers.iter().map(|layer| of.contains(*layer)).collect();
        Layers::of(&mask)
    };
    let mut made = Architecture {
        num_layers: layers.len() as u64,
        window_layers: ordered(&architecture.window_layers),
        rope_layers: ordered(&architecture.rope_layers),
        ..architecture.clone()
    };
    if let Some(mixture) = &mut made.mixture {
        mixture.moe_layers = ordered(&mixture.moe_layers);
        mixture.attention_moe_layers = ordered(&mixture.attention_moe_layers);
    }
    made
}

/// A `config.json` with another number of layers, and its lists in their order.
fn restacked(
    json: &Map<String, Value>,
    architecture: &Architecture,
    layers: &[u64],
) -> Map<String, Value> {
    let mut json = json.clone();
    for (key, value) in &mut json {
        if COUNTS.contains(&key.as_str()) && *value == json!(architecture.num_layers) {
            *value = json!(layers.len());
        }
        if let (true, Value::Array(list)) = (LISTS.contains(&key.as_str()), value) {
            let entries = layers
                .iter()
                .map(|layer| list.get(*layer as usize).cloned());
            if let Some(entries) = entries.collect::<Option<Vec<Value>>>() {
                *list = entries;
            }
        }
    }
    json
}

/// The tensors of the output that belong to slice number `number`, whose layers begin at `start`. The embedding belongs to the
/// first slice, the final norm and the head to the last.
pub(super) fn of_slice<'a>(
    specs: &'a [TensorSpec],
    slices: &[MergeSlice],
    number: usize,
    start: u64,
) -> impl Iterator<Item = &'a TensorSpec> {
    let end = start + slices[number].length();
    let (is_first, is_last) = (number == 0, number + 1 == slices.len());
    specs
        .iter()
        .filter(move |spec| match (spec.layer, spec.role) {
            (Some(layer), _) => (start..end).contains(&layer),
            (None, Role::Embedding) => is_first,
            (None, _) => is_last,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_placed_from_0_to_1_and_a_single_one_is_last() {
        let slice = |layers| MergeSlice {
            sources: vec![SliceSource {
                model: 0,
                layers,
                parameters: Parameters::new(),
            }],
            base: None,
            parameters: Parameters::new(),
        };
        let found = [0, 1, 2].map(|layer| slice(4..7).position(layer));
        assert_eq!(found, [0.0, 0.5, 1.0]);
        assert_eq!(slice(4..5).position(0), 1.0);
    }
}
