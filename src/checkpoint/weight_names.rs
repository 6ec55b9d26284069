//! Names of weight files: which of a folder's hold its model, and numbers of shards.

use super::format;
use super::names::{PYTORCH, SINGLE};

/// The files of a folder that hold the weights of its model.
pub fn wanted_weights<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut weights: Vec<&str> = names.to_vec();
    weights.retain(|name| format::is_weight_file(name));
    // Pickles are the older copy of the same weights.
    if weights.iter().any(|name| !format::is_pytorch_file(name)) {
        weights.retain(|name| !format::is_pytorch_file(name));
    }
    // Some repositories carry a second copy of the weights in their vendor's layout beside the usual one.
    if weights.iter().any(|name| is_model_file(name)) {
        weights.retain(|name| is_model_file(name));
    }
    weights
}

/// `model.safetensors` or one shard of a set, or the same of PyTorch.
pub fn is_model_file(name: &str) -> bool {
    name == SINGLE
        || name == PYTORCH
        || ["model-", "pytorch_model-"]
            .iter()
            .any(|start| name.starts_with(start))
            && shard_number(name).is_some()
}

/// Whether model files are shards of sets of different sizes.
pub(crate) fn has_several_sets<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    let sizes = names.into_iter().filter(|name| is_model_file(name));
    let mut sizes = sizes.filter_map(|name| Some(shard_number(name)?.1));
    let first = sizes.next();
    sizes.any(|size| Some(size) != first)
}

/// `(2, 5)` for `…-00002-of-00005.safetensors`.
pub(super) fn shard_number(name: &str) -> Option<(u64, u64)> {
    let stem = name
        .strip_suffix(".safetensors")
        .or_else(|| name.strip_suffix(".bin"))?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (_, number) = stem.rsplit_once('-')?;
    Some((number.parse().ok()?, count.parse().ok()?))
}
