//! The checkpoint that training begins with: its files, and what it was converted from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::TrainError;
use crate::checkpoint::folder::{companion_name, companions, existing};
use crate::checkpoint::hash::{FileHash, sha256_file};
use crate::checkpoint::manifest::{Manifest, SourceRecord, TensorRecord};
use crate::checkpoint::{Checkpoint, views};
use crate::family::{Architecture, Config, drop_leftover};
use crate::{Error, Result};

/// The file of the configuration.
pub(super) const CONFIG: &str = "config.json";

/// The checkpoint that training begins with.
pub(super) fn opened(folder: &Path, architecture: &Architecture) -> Result<Checkpoint> {
    let parent = Checkpoint::open(folder)?;
    architecture.refuse_fused(&parent)?;
    let parent = architecture.as_read(parent)?;
    architecture.match_tensors(&architecture.tensors()?, &parent)?;
    // It would keep the values that it has now, while the embedding trains.
    architecture.without_second_head(parent)
}

/// The files of the checkpoint in `folder` that a run depends on, or of the file `origin` that it was converted from.
pub(super) fn parent_files(
    folder: &Path,
    origin: Option<&Path>,
    architecture: &Architecture,
) -> Result<Vec<FileHash>> {
    match origin {
        Some(origin) if views::of(origin).is_some() => {
            let converted = Converted::of(folder, Some(origin))?;
            Ok(converted.map_or_else(Vec::new, |converted| converted.files))
        }
        Some(origin) => Ok(vec![hash_of(origin)?]),
        None => hashed(&opened(folder, architecture)?, folder),
    }
}

/// The files of a checkpoint, with those that go with its weights, sorted.
pub(super) fn hashed(checkpoint: &Checkpoint, folder: &Path) -> Result<Vec<FileHash>> {
    let weights = checkpoint.files.iter();
    let mut paths: Vec<PathBuf> = weights.map(|file| file.path().to_path_buf()).collect();
    paths.extend(copied(folder)?);
    let mut files: Vec<FileHash> = paths
        .iter()
        .map(|path| hash_of(path))
        .collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

fn hash_of(path: &Path) -> Result<FileHash> {
    let (sha256, size) = sha256_file(path)?;
    let path = companion_name(path);
    Ok(FileHash { path, size, sha256 })
}

/// Files that go with the weights: configuration, tokenizer, and the code that transformers loads.
pub(super) fn copied(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = existing(folder, &[CONFIG]);
    paths.extend(companions(folder)?);
    let mut code = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let path = entry.map_err(|e| Error::io("list", folder, e))?.path();
        let is_code = path.extension().is_some_and(|extension| extension == "py");
        if is_code && path.is_file() && !paths.contains(&path) {
            code.push(path);
        }
    }
    code.sort();
    paths.extend(code);
    Ok(paths)
}

/// A configuration to write in the place of one that describes plain weights as quantised ones.
pub(super) struct PlainConfig {
    /// The file.
    pub(super) text: Vec<u8>,
    /// What it leaves out.
    pub(super) note: String,
}

impl PlainConfig {
    /// The one for the checkpoint in `folder`, where it needs one.
    pub(super) fn of(folder: &Path, checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let config = Config::read(folder)?;
        let mut json = config.json.clone();
        let Some(note) = drop_leftover(&config, checkpoint, &mut json) else {
            return Ok(None);
        };
        let what = "the configuration of the model";
        let mut text = serde_json::to_vec_pretty(&json)
            .map_err(|source| TrainError::NotWritten { what, source })?;
        text.push(b'\n');
        Ok(Some(Self { text, note }))
    }
}

/// How the checkpoint that training begins with follows from the file that it was converted from, or from a base with
/// adapters.
pub(super) struct Converted {
    pub(super) origin: PathBuf,
    /// What it was converted from, as its manifest has it.
    sources: Vec<SourceRecord>,
    /// The files of these.
    pub(super) files: Vec<FileHash>,
    pub(super) tensors: BTreeMap<String, TensorRecord>,
}

impl Converted {
    /// The record of a folder that was converted from `origin`; none without an origin.
    pub(super) fn of(folder: &Path, origin: Option<&Path>) -> Result<Option<Self>> {
        let (Some(origin), Some(manifest)) = (origin, Manifest::read(folder)?) else {
            return Ok(None);
        };
        let sources = manifest.sources;
        let files = sources.iter().flat_map(|source| source.files.clone());
        Ok(Some(Self {
            origin: origin.to_path_buf(),
            files: files.collect(),
            sources,
            tensors: manifest.tensors,
        }))
    }

    /// The records of what it was converted from, for the manifest of `output`.
    pub(super) fn records(&self, output: &Path) -> Result<Vec<SourceRecord>> {
        let places = views::places(&self.origin);
        let records = self.sources.iter().zip(&places);
        records
            .map(|(source, place)| {
                SourceRecord::of(&source.name, place, output, source.files.clone())
            })
            .collect()
    }
}
