//! Where checkpoints come from, as their manifests tell, followed to the beginning.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::hashes::shortened;
use crate::Result;
use crate::checkpoint::Manifest;
use crate::checkpoint::filesystem::resolved;
use crate::checkpoint::reach::source_folder;

/// Sources of sources of … that are followed; a manifest that names itself would have no end.
const DEPTH: usize = 16;
/// What upcycling and branching call the model that all began with.
const SEED: &str = "seed";

/// A checkpoint and what it was made of.
#[derive(Debug, Serialize)]
pub(super) struct Ancestor {
    /// What its descendant calls it; the page's name at the root.
    pub(super) name: String,
    /// Its folder, as the manifest of its descendant has it.
    pub(super) path: String,
    /// How it was made; none without a manifest.
    pub(super) method: Option<String>,
    /// With what settings, hashes shortened.
    pub(super) settings: String,
    /// The settings in full, where that is another text.
    pub(super) settings_in_full: Option<String>,
    /// The SHA-256 of its first weight file, as its descendant recorded it.
    pub(super) sha256: Option<String>,
    pub(super) sources: Vec<Ancestor>,
}

/// The ancestors of a checkpoint.
pub(super) fn of(name: &str, folder: &Path) -> Result<Ancestor> {
    ancestor(
        name.to_owned(),
        folder.display().to_string(),
        folder,
        None,
        DEPTH,
    )
}

fn ancestor(
    name: String,
    path: String,
    folder: &Path,
    sha256: Option<String>,
    depth: usize,
) -> Result<Ancestor> {
    let manifest = if depth == 0 {
        None
    } else {
        Manifest::read(folder)?
    };
    let Some(manifest) = manifest else {
        return Ok(Ancestor {
            name,
            path,
            method: None,
            settings: String::new(),
            settings_in_full: None,
            sha256,
            sources: Vec::new(),
        });
    };
    let sources = manifest.sources.iter().map(|source| {
        let weights = source
            .files
            .iter()
            .find(|file| file.path.ends_with(".safetensors"));
        let sha256 = weights.map(|file| file.sha256.clone());
        let (name, path) = (source.name.clone(), source.path.clone());
        match source_folder(source, folder)? {
            Some(place) => ancestor(name, path, &place, sha256, depth - 1),
            None => Ok(Ancestor {
                name,
                path,
                method: None,
                settings: String::new(),
                settings_in_full: None,
                sha256,
                sources: Vec::new(),
            }),
        }
    });
    let settings = manifest
        .settings
        .iter()
        .map(|(key, value)| format!("{key} {}", plain(value)));
    let (settings, settings_in_full) = shortened(&settings.collect::<Vec<_>>().join(", "));
    Ok(Ancestor {
        name,
        path,
        settings,
        settings_in_full,
        method: Some(manifest.method),
        sha256,
        sources: sources.collect::<Result<_>>()?,
    })
}

/// A value of a configuration or of settings, as one would say it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| format!("{key}={}", plain(value)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    }
}

/// The folder of the seed that a checkpoint descends from, if its manifests lead to one: the first source that is
/// called seed, else the oldest ancestor.
pub(super) fn seed(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found = None;
    let mut current = folder.to_path_buf();
    for _ in 0..DEPTH {
        let Some(manifest) = Manifest::read(&current)? else {
            break;
        };
        let named = manifest.sources.iter().find(|source| source.name == SEED);
        let Some(source) = named.or_else(|| manifest.sources.first()) else {
            break;
        };
        let Some(next) = source_folder(source, &current)? else {
            break;
        };
        let next = resolved(&next)?;
        if !next.join("config.json").exists() {
            break;
        }
        found = Some(next.clone());
        if named.is_some() && !is_copy(&next)? {
            break;
        }
        current = next;
    }
    Ok(found)
}

/// Whether the folder is a branch: byte for byte the model it was made of.
fn is_copy(folder: &Path) -> Result<bool> {
    Ok(Manifest::read(folder)?.is_some_and(|manifest| manifest.method == "branch"))
}
