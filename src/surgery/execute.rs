//! Carrying out a plan: weights, the files beside them, the manifest, all or nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::evaluate::Evaluator;
use super::plan::{Plan, Source};
use super::plan_error::PlanError;
use crate::checkpoint::adapter::ADAPTER_CONFIG;
use crate::checkpoint::folder::companion_name;
use crate::checkpoint::hash::{FileHash, sha256, sha256_source};
use crate::checkpoint::manifest::{
    FORMAT_VERSION, MANIFEST, Manifest, SourceRecord, TensorRecord, Tool,
};
use crate::checkpoint::output::{OutputFolder, check_free_space, check_target};
use crate::checkpoint::source_file::{SourceFile, Stamp, stamp_of};
use crate::checkpoint::writer::{WriteOptions, write_weights};
use crate::checkpoint::{Checkpoint, adapter_name, known_hashes, outline, views};
use crate::{Result, threads};

/// A file beside the weights of an output.
#[derive(Clone, Debug)]
pub struct OutputFile {
    /// Name in the output folder.
    pub name: String,
    /// Its content.
    pub content: Content,
}

/// What an output file holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes; their hash is recorded.
    Bytes(Vec<u8>),
    /// These bytes; the file is listed without a hash, because people edit it.
    Editable(Vec<u8>),
    /// The bytes of another file.
    CopyOf(PathBuf),
}

impl OutputFile {
    /// Its length in bytes.
    pub fn length(&self) -> Result<u64> {
        match &self.content {
            Content::Bytes(bytes) | Content::Editable(bytes) => Ok(bytes.len() as u64),
            Content::CopyOf(path) => stamp_of(path).map(|stamp| stamp.length),
        }
    }
}

/// Where and how to write.
pub struct Target<'a> {
    /// Folder to make.
    pub folder: &'a Path,
    /// Whether an existing checkpoint there is replaced.
    pub force: bool,
    /// Largest shard in bytes.
    pub max_shard_size: u64,
    /// Working memory in bytes.
    pub memory: u64,
    /// Worker threads.
    pub threads: usize,
    /// Whether sources are hashed that have not changed since they were hashed before.
    pub rehash: bool,
    /// Called with each number of bytes written or hashed; [`work_length`] is their sum.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Working memory in bytes, unless a caller has another number: the default of `--memory`.
pub const WORKING_MEMORY: u64 = 128 << 20;

/// The default of `--max-shard-size`.
const MAX_SHARD_SIZE: u64 = 5_000_000_000;

impl<'a> Target<'a> {
    /// The new folder `folder`, written with the defaults of the command line: shards of 5 GB, 128 MiB of memory, a
    /// thread for each core.
    pub fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            force: false,
            max_shard_size: MAX_SHARD_SIZE,
            memory: WORKING_MEMORY,
            threads: threads::cores(),
            rehash: false,
            progress: &|_| {},
        }
    }
}

/// Room beside the weights that configuration, tokenizer copies and manifest may take, in bytes.
const ROOM_FOR_SMALL_FILES: u64 = 64 << 20;

/// Bytes that [`execute`] will write or hash.
pub fn work_length(plan: &Plan) -> u64 {
    plan.data_length() + weight_files(plan).map(SourceFile::len).sum::<u64>()
}

fn weight_files(plan: &Plan) -> impl Iterator<Item = &SourceFile> {
    plan.sources
        .iter()
        .flat_map(|source| source.checkpoint.all_files())
}

/// Every path that a plan reads.
fn source_paths(plan: &Plan) -> Vec<PathBuf> {
    plan.sources
        .iter()
        .flat_map(|source| views::places(&source.checkpoint.path))
        .collect()
}

fn borrowed(paths: &[PathBuf]) -> Vec<&Path> {
    paths.iter().map(PathBuf::as_path).collect()
}

/// Refuses a plan whose shapes, dtypes or sources do not fit together; reads no data.
pub fn check_plan(plan: &Plan) -> Result<()> {
    Evaluator::new(&plan.tensors, &plan.sources).map(drop)
}

/// Refuses a target that cannot be written now: it exists, overlaps a source, or the disk is too full.
pub fn check_place(plan: &Plan, folder: &Path, force: bool) -> Result<()> {
    check_target(folder, force, &borrowed(&source_paths(plan)))?;
    check_free_space(folder, plan.data_length() + ROOM_FOR_SMALL_FILES)
}

/// Writes the output of a plan with its side files and manifest.
///
/// # Errors
/// The output exists, a source changes meanwhile, or the disk is full. The folder is then as it was before.
pub fn execute(plan: &Plan, files: &[OutputFile], target: &Target) -> Result<Manifest> {
    check_place(plan, target.folder, target.force)?;
    let evaluator =
        Evaluator::new(&plan.tensors, &plan.sources)?.carrying_non_finite(plan.carries_non_finite);
    let folder = OutputFolder::begin(target.folder, target.force, &borrowed(&source_paths(plan)))?;
    let options = WriteOptions {
        max_shard_size: target.max_shard_size,
        memory: target.memory,
        threads: target.threads,
        fingerprint: Some(fingerprint(plan, target)?),
        progress: target.progress,
    };
    let known = |file: &SourceFile| {
        if target.rehash {
            None
        } else {
            known_hashes::lookup(file)
        }
    };
    let known: Vec<Option<String>> = weight_files(plan).map(known).collect();
    let unknown: Vec<&SourceFile> = weight_files(plan)
        .zip(&known)
        .filter(|(_, hash)| hash.is_none())
        .map(|(file, _)| file)
        .collect();
    let skipped = weight_files(plan)
        .zip(&known)
        .filter(|(_, hash)| hash.is_some())
        .map(|(file, _)| file.len());
    (target.progress)(skipped.sum());
    let written = write_weights(&folder, &plan.layouts(), &evaluator, &options, &unknown)?;
    let mut fresh = written.hashes.iter();
    let mut hashes = known
        .into_iter()
        .map(|hash| hash.or_else(|| fresh.next().cloned()).unwrap_or_default());
    let mut sources = Vec::with_capacity(plan.sources.len());
    for source in &plan.sources {
        let weights = hashes
            .by_ref()
            .take(source.checkpoint.all_files().count())
            .collect();
        sources.extend(record_source(source, weights, target.folder)?);
    }
    unknown
        .iter()
        .zip(&written.hashes)
        .for_each(|(file, hash)| known_hashes::remember(file, hash));
    finish(folder, plan, sources, written.files, files)
}

/// Writes the side files and the manifest, and moves the folder to its place.
pub fn finish(
    folder: OutputFolder,
    plan: &Plan,
    sources: Vec<SourceRecord>,
    mut hashed: Vec<FileHash>,
    files: &[OutputFile],
) -> Result<Manifest> {
    let mut unhashed_files = Vec::new();
    for file in files {
        match &file.content {
            Content::Bytes(bytes) => hashed.push(folder.write(&file.name, bytes)?),
            Content::CopyOf(path) => hashed.push(folder.copy(path, &file.name, false)?),
            Content::Editable(bytes) => {
                folder.write(&file.name, bytes)?;
                unhashed_files.push(file.name.clone());
            }
        }
    }
    hashed.sort();
    // After their last use, so that everything computed, copied and recorded comes from the same files.
    plan.sources
        .iter()
        .try_for_each(|source| source.checkpoint.check_unchanged())?;
    let tensors = plan.tensors.iter().map(|tensor| {
        let (layout, expression) = (&tensor.layout, tensor.expression.clone());
        (
            layout.name.clone(),
            TensorRecord {
                dtype: layout.dtype,
                shape: layout.shape.clone(),
                expression,
            },
        )
    });
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        tool: Tool::this(),
        method: plan.method.clone(),
        settings: plan.settings.clone(),
        sources,
        lineage: None,
        recipe: None,
        files: hashed,
        unhashed_files,
        tensors: tensors.collect::<BTreeMap<_, _>>(),
    };
    folder.write(MANIFEST, &manifest.to_bytes())?;
    folder.commit()?;
    Ok(manifest)
}

/// The manifest's records of a source and its adapters, given the hashes of their weight files.
pub fn record_source(
    source: &Source,
    weights: Vec<String>,
    output: &Path,
) -> Result<Vec<SourceRecord>> {
    let root = &source.checkpoint.place();
    let mut weights = weights.into_iter();
    let mut files = hashes_of(&source.checkpoint, &mut weights);
    for path in &source.side_files {
        let (sha256, size) = crate::checkpoint::hash::sha256_file(path)?;
        files.push(FileHash {
            path: companion_name(path),
            size,
            sha256,
        });
    }
    files.sort();
    files.dedup();
    let mut record = SourceRecord::of(&source.name, root, output, files)?;
    if source.kept {
        record.path = name_of(root);
    }
    let mut records = vec![record];
    for (number, adapter) in source.checkpoint.adapters().iter().enumerate() {
        let mut files = hashes_of(adapter, &mut weights);
        let config = adapter.path.join(ADAPTER_CONFIG);
        let (sha256, size) = crate::checkpoint::hash::sha256_file(&config)?;
        files.push(FileHash {
            path: name_of(&config),
            size,
            sha256,
        });
        files.sort();
        let name = adapter_name(&source.name, number);
        records.push(SourceRecord::of(&name, &adapter.path, output, files)?);
    }
    Ok(records)
}

/// The weight files of a checkpoint with the next of `hashes`.
fn hashes_of(checkpoint: &Checkpoint, hashes: &mut impl Iterator<Item = String>) -> Vec<FileHash> {
    let files = checkpoint.files.iter().zip(hashes);
    let files = files.map(|(file, sha256)| FileHash {
        path: name_of(file.path()),
        size: file.len(),
        sha256,
    });
    files.collect()
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Makes the outline of a plan's output in `folder`; its bytes, but for the manifest.
pub fn outline(
    plan: &Plan,
    files: &[OutputFile],
    folder: &Path,
    max_shard_size: u64,
) -> Result<u64> {
    let mut bytes = outline::weights(folder, &plan.layouts(), max_shard_size)?;
    for file in files {
        match &file.content {
            Content::Bytes(content) | Content::Editable(content) => {
                outline::file(folder, &file.name, content)?;
            }
            Content::CopyOf(path) => outline::copy(path, &folder.join(&file.name))?,
        }
        bytes += file.length()?;
    }
    Ok(bytes)
}

/// Identity of the work: equal for a run that may resume what another has left.
fn fingerprint(plan: &Plan, target: &Target) -> Result<String> {
    #[derive(Serialize)]
    struct Work<'a> {
        version: &'static str,
        max_shard_size: u64,
        sources: Vec<(&'a str, &'a Path, Stamp)>,
        /// Hashes of sources that were made for this run, and lie elsewhere in the next.
        kept: Vec<String>,
        tensors: Vec<(
            &'a str,
            String,
            &'a [u64],
            &'a crate::checkpoint::Expression,
        )>,
    }
    let kept = plan
        .sources
        .iter()
        .filter(|source| source.kept)
        .flat_map(|source| source.checkpoint.all_files());
    let work = Work {
        version: env!("CARGO_PKG_VERSION"),
        max_shard_size: target.max_shard_size,
        sources: plan
            .sources
            .iter()
            .filter(|source| !source.kept)
            .flat_map(|source| {
                source
                    .checkpoint
                    .all_files()
                    .map(|file| (source.name.as_str(), file.path(), file.stamp()))
            })
            .collect(),
        kept: kept.map(sha256_source).collect::<Result<_>>()?,
        tensors: plan
            .tensors
            .iter()
            .map(|tensor| {
                let layout = &tensor.layout;
                (
                    layout.name.as_str(),
                    layout.dtype.to_string(),
                    &layout.shape[..],
                    &tensor.expression,
                )
            })
            .collect(),
    };
    let text = serde_json::to_vec(&work).map_err(|error| PlanError::NotJson { error })?;
    Ok(sha256(&text))
}
