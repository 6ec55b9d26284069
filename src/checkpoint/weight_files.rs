//! Which files of a folder are the weights of its model.
//!
//! An index and its shards are checked against each other both ways. A missing shard is an error that names it.
//! Of two sets of shards the index chooses, and a note names the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::CheckpointError;
use super::names::{INDEX, PYTORCH, PYTORCH_INDEX, SINGLE};
use super::weight_names::{is_model_file, shard_number, wanted_weights};
use super::{foreign, format, json};
use crate::{Error, Result, notice};

/// The weight files of a folder.
pub(super) struct WeightFiles {
    /// Their names, sorted.
    pub(super) names: Vec<String>,
    /// Which tensor is in which file, where the folder says it.
    pub(super) index: Option<ShardIndex>,
}

impl WeightFiles {
    /// The weight files of a folder: the shards that its index lists, else one file or one complete set of shards.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let present = present_weights(folder)?;
        // The index of the format whose files are there; without any, the usual one names what is missing.
        let is_pytorch = present.iter().any(|name| format::is_pytorch_file(name));
        let mut index = folder.join(if is_pytorch { PYTORCH_INDEX } else { INDEX });
        if present.is_empty() && !index.exists() {
            index = folder.join(PYTORCH_INDEX);
        }
        if index.exists() {
            let index = ShardIndex::read(index)?;
            let names = index.chosen(folder, present)?;
            return Ok(Self {
                names,
                index: Some(index),
            });
        }

        match &present[..] {
            [] => return Err(foreign::folder(folder).unwrap_or_else(|| no_weights(folder))),
            [one] if one.starts_with("adapter_model") => {
                return Err(foreign::folder(folder).unwrap_or_else(|| no_weights(folder)));
            }
            [one] if shard_number(one).is_none() => {}
            several => complete_set(folder, several)?,
        }
        Ok(Self {
            names: present,
            index: None,
        })
    }
}

/// An index of shards (`model.safetensors.index.json`).
pub(super) struct ShardIndex {
    path: PathBuf,
    object: Map<String, Value>,
}

impl ShardIndex {
    fn read(path: PathBuf) -> Result<Self> {
        let object = json::read_object(&path)?;
        if !matches!(object.get("weight_map"), Some(Value::Object(_))) {
            return Err(CheckpointError::NoWeightMap { path }.into());
        }
        Ok(Self { path, object })
    }

    /// The file of each tensor.
    fn map(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.object
            .get("weight_map")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
    }

    /// Bytes of all tensors, where the index says them.
    pub(super) fn total_size(&self) -> Option<u64> {
        self.object.get("metadata")?.get("total_size")?.as_u64()
    }

    /// The shards to open, of those that are present.
    fn chosen(&self, folder: &Path, present: Vec<String>) -> Result<Vec<String>> {
        let shards = self.shards()?;
        let mut strays = present;
        strays.retain(|name| is_model_file(name) && !shards.contains(name.as_str()));
        if let Some(stray) = strays.first() {
            // As in transformers, the index chooses among sets of shards, but it does not come before a file of all weights.
            let complete = shards.iter().all(|shard| folder.join(shard).exists());
            if !complete || strays.iter().any(|name| name == SINGLE || name == PYTORCH) {
                let path = folder.join(stray);
                return Err(CheckpointError::Unlisted { path }.into());
            }
            notice::once(format!(
                "{}: does not list {}, which {} not read",
                self.path.display(),
                strays.join(", "),
                if strays.len() == 1 { "is" } else { "are" }
            ));
        }

        let missing = shards.iter().map(|shard| folder.join(shard));
        if let Some(path) = missing.into_iter().find(|path| !path.exists()) {
            return Err(CheckpointError::MissingShard { path }.into());
        }
        Ok(shards.into_iter().map(str::to_owned).collect())
    }

    /// The files that the index lists, each a plain name.
    fn shards(&self) -> Result<BTreeSet<&str>> {
        let mut shards = BTreeSet::new();
        for (tensor, file) in self.map() {
            let (path, key) = (self.path.clone(), format!("weight_map.{tensor}"));
            let Value::String(file) = file else {
                return Err(CheckpointError::NotAFileName { path, key }.into());
            };
            if file.contains(['/', '\\', '\0']) || file == ".." || file == "." || file.is_empty() {
                let found = file.clone();
                return Err(CheckpointError::OutsideFolder { path, key, found }.into());
            }
            shards.insert(file.as_str());
        }
        Ok(shards)
    }

    /// Refuses a tensor in another file than the index lists for it, and one that is listed but in no file.
    pub(super) fn compare(&self, folder: &Path, held: &BTreeMap<&str, &Path>) -> Result<()> {
        let listed: BTreeMap<&str, &str> = self
            .map()
            .filter_map(|(name, file)| Some((name.as_str(), file.as_str()?)))
            .collect();
        for (name, path) in held {
            let listed = listed.get(name);
            if listed.is_none_or(|file| folder.join(file) != *path) {
                return Err(CheckpointError::ListedElsewhere {
                    path: path.to_path_buf(),
                    tensor: (*name).to_owned(),
                    listed: listed.copied().unwrap_or("nowhere").to_owned(),
                }
                .into());
            }
        }
        match listed.iter().find(|(name, _)| !held.contains_key(*name)) {
            Some((name, file)) => Err(CheckpointError::NotHeld {
                path: folder.join(file),
                tensor: (*name).to_owned(),
            }
            .into()),
            None => Ok(()),
        }
    }
}

/// Weight files of a folder that we read, sorted by name.
fn present_weights(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    let wanted = wanted_weights(&names.iter().map(String::as_str).collect::<Vec<_>>());
    Ok(wanted.into_iter().map(str::to_owned).collect())
}

/// Refuses several weight files that are not the shards 1..=N of one set.
fn complete_set(folder: &Path, names: &[String]) -> Result<()> {
    if names.iter().any(|name| name.ends_with(".gguf"))
        && let Some(error) = foreign::folder(folder)
    {
        return Err(error);
    }
    let path = folder.to_path_buf();
    let all = || names.to_vec();
    let mut numbers = BTreeMap::new();
    for name in names {
        match shard_number(name) {
            Some((number, count)) => numbers.insert(number, (count, name)),
            None => {
                return Err(CheckpointError::SeveralModels {
                    path,
                    name: name.clone(),
                    names: all(),
                }
                .into());
            }
        };
    }
    let count = numbers.values().next().map_or(0, |(count, _)| *count);
    if let Some((_, (other, name))) = numbers.iter().find(|(_, (c, _))| *c != count) {
        return Err(CheckpointError::TwoSets {
            path,
            count,
            name: (*name).clone(),
            other: *other,
        }
        .into());
    }
    if numbers.len() != names.len() {
        let names = all();
        return Err(CheckpointError::RepeatedShard { path, names }.into());
    }
    match (1..=count).find(|number| !numbers.contains_key(number)) {
        Some(missing) => Err(CheckpointError::IncompleteSet {
            path,
            missing,
            count,
            names: all(),
        }
        .into()),
        None => Ok(()),
    }
}

fn no_weights(folder: &Path) -> Error {
    let path = folder.to_path_buf();
    CheckpointError::NoWeights { path }.into()
}
