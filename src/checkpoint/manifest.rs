//! `bam-manifest.json`: what makes an export checkable by anyone, later, offline.
//!
//! It holds no times, host names or absolute paths, so equal runs make equal bytes. Its JSON schema
//! is `docs/manifest.schema.json`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::CheckpointError;
use super::expression::Expression;
use super::filesystem::resolved;
use super::hash::{FileHash, sha256_file};
use super::json;
use super::names::{CARD, ORIGIN};
use super::recipe::RecipeRecord;
use super::reference::pinned;
use super::version;
use crate::Result;

pub use super::names::MANIFEST;

/// Version of the format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The record of how a checkpoint was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: 1.
    pub format_version: u32,
    /// The program that wrote it.
    pub tool: Tool,
    /// The command or method: `bam`, `btx`, `branch`, `merge`, `convert`, `init`, `train`.
    pub method: String,
    /// Settings of the method, under the names of the command line.
    pub settings: Map<String, Value>,
    /// Where the tensors came from, in the order of averages.
    pub sources: Vec<SourceRecord>,
    /// What a trained checkpoint was trained on, and how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// The stages of the recipe that it follows from, where `run` made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<RecipeRecord>,
    /// Every weight, configuration and tokenizer file of the output.
    pub files: Vec<FileHash>,
    /// Files of the output that are listed only: people edit model cards.
    pub unhashed_files: Vec<String>,
    /// Every tensor of the output by name.
    pub tensors: BTreeMap<String, TensorRecord>,
}

/// The program that wrote a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `bam-convert`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Tool {
    /// This program.
    pub fn this() -> Self {
        Self {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A checkpoint or file that tensors came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Name that expressions use.
    pub name: String,
    /// Path relative to the folder of the manifest, with forward slashes; `hf://ORG/NAME@COMMIT` of a source in a Hub's cache.
    pub path: String,
    /// Repository on the Hub, where the source came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Commit of that repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Every file of it that was read.
    pub files: Vec<FileHash>,
}

impl SourceRecord {
    /// Of a checkpoint or file at `root` that an output at `output` is made of. A source in a Hub's cache has its
    /// repository and commit for a path: the cache is somewhere else on every machine.
    pub fn of(name: &str, root: &Path, output: &Path, files: Vec<FileHash>) -> Result<Self> {
        let (repository, commit) = Origin::of(root, &files).unzip();
        let path = match hub_origin(root) {
            Some((repository, commit)) => pinned(&repository, &commit),
            None => relative_to(root, output)?,
        };
        Ok(Self {
            name: name.to_owned(),
            path,
            repository,
            commit,
            files,
        })
    }

    /// Whether it is a file that the output keeps, in the folder of the manifest.
    pub fn is_kept(&self) -> bool {
        let is_name = !self.path.contains('/') && self.path != "." && self.path != "..";
        is_name && self.files.iter().any(|file| file.path == self.path)
    }

    /// The last part of its path, as seen from the `folder` of the manifest; its name where it has none.
    pub fn bare_name(&self, folder: &Path) -> String {
        bare_name(&folder.join(&self.path), &self.name)
    }
}

/// The last part of a path; `name` where it has none.
fn bare_name(path: &Path, name: &str) -> String {
    let found = path.canonicalize();
    let last = found.as_deref().unwrap_or(path).file_name();
    last.map_or_else(
        || name.to_owned(),
        |last| last.to_string_lossy().into_owned(),
    )
}

/// How a trained checkpoint follows from the one that training began with, which is the first source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// SHA-256 of the manifest of the checkpoint that training began with, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_manifest: Option<String>,
    /// Steps taken.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// What they were taken from.
    pub data: Vec<DataRecord>,
    /// Which engines took which steps, in order; empty where this program's trainer took all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineRecord>,
}

/// Steps of a run that one engine took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineRecord {
    /// `native` or `torch`.
    pub engine: String,
    /// The first of these steps, from 1.
    pub first_step: u64,
    /// The last of them.
    pub last_step: u64,
    /// Version of PyTorch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
    /// Processes that computed together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u64>,
    /// The device of each process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// SHA-256 of each program that PyTorch ran.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub code: BTreeMap<String, String>,
}

/// One domain of a mixture of token folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    /// Name of the domain.
    pub name: String,
    /// Its weight in the mixture.
    pub weight: f64,
    /// SHA-256 of its token folder's header, which holds the hash of every shard.
    pub sha256: String,
}

/// How one output tensor was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// Stored dtype, as in safetensors headers.
    #[schemars(with = "String")]
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// What the values are.
    pub expression: Expression,
}

impl Manifest {
    /// Reads the manifest of a checkpoint folder; `None` where it has none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let object = json::read_object(&path)?;
        let key = "format_version";
        version::check(&path, key, object.get(key), u64::from(FORMAT_VERSION))?;
        let manifest = serde_json::from_value(Value::Object(object)).map_err(|e| {
            CheckpointError::NotManifest {
                path,
                problem: e.to_string(),
            }
        })?;
        Ok(Some(manifest))
    }

    /// The same for anyone elsewhere. Repositories replace local paths, and bare names the paths of folders that are on no Hub.
    /// The card is among the files that are listed only. `folder` is where the manifest was read.
    #[must_use]
    pub fn published(mut self, folder: &Path) -> Self {
        for source in &mut self.sources {
            source.path = match (&source.repository, &source.commit) {
                (Some(repository), Some(commit)) => pinned(repository, commit),
                _ => source.bare_name(folder),
            };
        }
        for (name, place) in self
            .recipe
            .iter_mut()
            .flat_map(|recipe| &mut recipe.sources)
        {
            let found = folder.join(&place);
            *place = match Origin::of(&found, &[]) {
                Some((repository, commit)) => pinned(&repository, &commit),
                None => bare_name(&found, name),
            };
        }
        if !self.unhashed_files.iter().any(|name| name == CARD) {
            self.unhashed_files.push(CARD.to_owned());
        }
        self
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Maps with string keys and finite numbers always serialise.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text.into_bytes()
    }
}

/// `path` as seen from `folder`, links followed in both, so that the operating system finds it from there.
pub fn relative_to(path: &Path, folder: &Path) -> Result<String> {
    let (path, folder) = (resolved(path)?, resolved(folder)?);
    let shared = path
        .components()
        .zip(folder.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = folder.components().skip(shared).map(|_| "..".to_owned());
    let down = path
        .components()
        .skip(shared)
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    let parts: Vec<String> = up.chain(down).collect();
    Ok(if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join("/")
    })
}

/// Where a folder that was pulled from the Hub came from: `.hub.json` in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit.
    pub commit: String,
    /// What was pulled.
    pub files: Vec<FileHash>,
}

impl Origin {
    /// The content of its file.
    pub fn text(&self) -> String {
        // Strings and numbers always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Reads the origin of a folder that was pulled; `None` where the folder has none that can be read.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&json::read_bytes(&folder.join(ORIGIN)).ok()?).ok()
    }

    /// Repository and commit of a folder that is in a Hub cache, or was pulled and has not been changed since. It has not been
    /// changed if each of `files` is a file that was pulled.
    pub fn of(folder: &Path, files: &[FileHash]) -> Option<(String, String)> {
        if let Some(cached) = hub_origin(folder) {
            return Some(cached);
        }
        let origin = Self::read(folder)?;
        files
            .iter()
            .all(|file| origin.files.contains(file))
            .then_some((origin.repository, origin.commit))
    }
}

/// What to call a model: the last part of its repository's name where it came from the Hub, of its path otherwise.
pub fn model_name(path: &Path) -> String {
    match Origin::of(path, &[]) {
        Some((repository, _)) => repository.rsplit('/').next().unwrap_or_default().to_owned(),
        None => path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned(),
    }
}

/// SHA-256 of the manifest of a folder; `None` where it has none.
///
/// # Errors
/// A manifest that cannot be read.
pub fn manifest_hash(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(MANIFEST);
    let hash = path.exists().then(|| sha256_file(&path)).transpose()?;
    Ok(hash.map(|(sha256, _)| sha256))
}

/// Whether a folder is in a Hub cache, where nothing may be changed.
pub fn is_cached(folder: &Path) -> bool {
    hub_origin(folder).is_some()
}

/// Repository and commit of a folder inside a Hub cache: `models--ORG--NAME/snapshots/COMMIT`.
fn hub_origin(folder: &Path) -> Option<(String, String)> {
    let absolute = std::path::absolute(folder).ok()?;
    let mut names = absolute
        .components()
        .rev()
        .filter_map(|part| part.as_os_str().to_str());
    let (commit, snapshots, cached) = (names.next()?, names.next()?, names.next()?);
    let repository = cached.strip_prefix("models--")?.replace("--", "/");
    (snapshots == "snapshots").then(|| (repository, commit.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_recorded_as_seen_from_the_output() {
        let seen = |path, folder| relative_to(Path::new(path), Path::new(folder)).unwrap();
        assert_eq!(seen("/a/seed", "/a/out"), "../seed");
        assert_eq!(seen("/a/seed", "/a/runs/out"), "../../seed");
        assert_eq!(seen("seed", "out"), "../seed");
        assert_eq!(seen("/a", "/a"), ".");
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(work.path().join("far/away")).unwrap();
        std::os::unix::fs::symlink(work.path().join("far/away"), work.path().join("near")).unwrap();
        assert_eq!(
            relative_to(&work.path().join("seed"), &work.path().join("near/out")).unwrap(),
            "../../../seed"
        );
    }

    #[test]
    fn a_hub_cache_folder_tells_its_repository_and_commit() {
        let origin = hub_origin(Path::new("/c/models--org--name/snapshots/0123abc"));
        assert_eq!(origin, Some(("org/name".to_owned(), "0123abc".to_owned())));
        assert_eq!(hub_origin(Path::new("/c/seed")), None);
    }
}
