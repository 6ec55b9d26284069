//! FP8 weights as plain numbers: which scale belongs to which weight, and how large its blocks are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::export_error::ExportError;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::{Checkpoint, Encoding, Expression, TensorEntry, json};
use crate::family::quantised;

/// Ends of the names of scales, in the place of `weight`; the first that is there.
const SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];
/// What has scales that say how an engine rounds activations and caches, which plain weights do without: `NAME_scale` or
/// `NAME_scale_inv`.
const OTHER_SCALES: [&str; 10] = [
    "input",
    "activation",
    "output",
    "q",
    "k",
    "v",
    "kv",
    "k_cache",
    "v_cache",
    "kv_cache",
];

/// The scales of a checkpoint with FP8 weights.
pub(super) struct Fp8 {
    /// By weight.
    weights: BTreeMap<String, Scale>,
    /// Tensors that plain weights do without.
    scales: BTreeSet<String>,
}

/// The scale of a weight.
struct Scale {
    tensor: String,
    /// Rows and columns of its blocks.
    block: [u64; 2],
}

impl Fp8 {
    /// The scales of `checkpoint`; `None` where any weight is quantised in another way.
    ///
    /// # Errors
    /// Scales whose blocks the configuration does not say, or says otherwise.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let (mut weights, mut scales) = (BTreeMap::new(), BTreeSet::new());
        let tensors = &checkpoint.tensors;
        for (name, entry) in tensors {
            if !is_fp8(entry) {
                if is_packed(name, entry) {
                    return Ok(None);
                }
                if is_other_scale(name) {
                    scales.insert(name.clone());
                }
                continue;
            }
            let Some(module) = name.strip_suffix("weight") else {
                return Ok(None);
            };
            let own = SCALES.map(|scale| format!("{module}{scale}"));
            let scale = own.into_iter().find(|name| tensors.contains_key(name));
            let has_zero = tensors.contains_key(&format!("{name}_zero_point"));
            // Whole numbers are exponents, or something else again.
            let scale = scale.filter(|scale| tensors.get(scale).is_some_and(is_scale_of_floats));
            let (Some(tensor), [_, _], false) = (scale, &entry.shape[..], has_zero) else {
                return Ok(None);
            };
            let block = block_of(checkpoint, name, entry, &tensor)?;
            scales.insert(tensor.clone());
            weights.insert(name.clone(), Scale { tensor, block });
        }
        Ok((!weights.is_empty()).then_some(Self { weights, scales }))
    }

    /// Whether a tensor is a scale, which plain weights do without.
    pub(super) fn is_scale(&self, name: &str) -> bool {
        self.scales.contains(name)
    }

    /// The expression of a weight of `source`; `None` of every other tensor.
    pub(super) fn expression(&self, source: &str, name: &str) -> Option<Expression> {
        let scale = self.weights.get(name)?;
        Some(Expression::BlockScaled {
            source: source.to_owned(),
            tensor: name.to_owned(),
            scale: scale.tensor.clone(),
            block: scale.block,
        })
    }
}

fn is_fp8(entry: &TensorEntry) -> bool {
    let stored = entry.encoding.plain();
    stored.is_some_and(|stored| {
        matches!(
            stored,
            Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ
        )
    })
}

/// Whether a tensor of scales holds numbers to multiply by.
pub(super) fn is_scale_of_floats(entry: &TensorEntry) -> bool {
    let is_number = |stored| dtype::is_float(stored) || stored == Dtype::F8_E8M0;
    matches!(entry.encoding, Encoding::Plain(stored) if is_number(stored))
}

fn is_other_scale(name: &str) -> bool {
    let last = name.rsplit_once('.').map_or("", |(_, last)| last);
    let of = last.strip_suffix("_inv").unwrap_or(last);
    let of = of.strip_suffix("_scale");
    of.is_some_and(|of| OTHER_SCALES.contains(&of))
}

/// Whether a tensor holds a matrix of values that are no numbers of their own.
fn is_packed(name: &str, entry: &TensorEntry) -> bool {
    let is_scale = SCALES.iter().any(|scale| name.ends_with(scale));
    !is_scale && entry.shape.len() > 1 && quantised::is_packed(entry)
}

/// Rows and columns of the blocks of a weight.
fn block_of(
    checkpoint: &Checkpoint,
    name: &str,
    entry: &TensorEntry,
    scale: &str,
) -> Result<[u64; 2]> {
    let found = checkpoint.tensor(scale)?;
    let [rows, columns] = entry.shape[..] else {
        return Ok([1, 1]);
    };
    match found.shape[..] {
        [] | [1] | [1, 1] => return Ok([rows, columns].map(|extent| extent.max(1))),
        [all] | [all, 1] if all == rows => return Ok([1, columns.max(1)]),
        _ => {}
    }
    let said = said(checkpoint);
    let fits =
        |[high, wide]: &[u64; 2]| found.shape == [rows.div_ceil(*high), columns.div_ceil(*wide)];
    let said = said.filter(|block| !block.contains(&0) && fits(block));
    Ok(said.ok_or_else(|| ExportError::Scales {
        path: checkpoint.files[found.file].path().to_path_buf(),
        tensor: scale.to_owned(),
        found: found.shape.as_slice().into(),
        weight: name.to_owned(),
    })?)
}

/// The size of blocks that `config.json` says. Shapes do not say it, as the last blocks may be cut.
fn said(checkpoint: &Checkpoint) -> Option<[u64; 2]> {
    let config = json::read_object(&checkpoint.folder()?.join("config.json")).ok()?;
    let said = quantised::settings(&config)?;
    let block = said.get("weight_block_size").or_else(|| {
        let mut groups = said.get("config_groups")?.as_object()?.values();
        groups.find_map(|group| group.get("weights")?.get("block_structure"))
    })?;
    let extents = block.as_array()?.iter().map(Value::as_u64);
    let extents: Vec<u64> = extents.collect::<Option<_>>()?;
    extents.try_into().ok()
}

/// Removes what a configuration says of quantised weights.
pub(super) fn forget(config: &mut Map<String, Value>) {
    for key in quantised::KEYS {
        config.shift_remove(key);
        if let Some(Value::Object(text)) = config.get_mut(quantised::TEXT) {
            text.shift_remove(key);
        }
    }
}
