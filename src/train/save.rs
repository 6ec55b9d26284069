//! Checkpoints of a run: folders like any other model, with a manifest that says where they come from. Checkpoints to
//! resume from also hold the state of the optimiser.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::TrainError;
use super::parameters::Parameters;
use super::parent::{CONFIG, Converted, PlainConfig, copied, hashed, opened};
use crate::card::{
    CardModel, ModelCard, Relation, TrainingSummary, has_neutral_shared_expert, holds_zeros,
    method_tags,
};
use crate::checkpoint::folder::{CARD, TOKENIZER, companion_name};
use crate::checkpoint::hash::{FileHash, sha256_file};
use crate::checkpoint::manifest::{
    DataRecord, FORMAT_VERSION, Lineage, MANIFEST, Manifest, SourceRecord, TensorRecord, Tool,
    model_name,
};
use crate::checkpoint::output::{OutputFolder, check_free_space};
use crate::checkpoint::writer::{
    TensorBytes, TensorLayout, WriteOptions, write_file, write_weights,
};
use crate::checkpoint::{Checkpoint, Expression, TensorEntry, dtype};
use crate::family::{Architecture, expert_names};
use crate::markdown;
use crate::model::{HostValues, OptimiserState, StatePart};
use crate::{Error, Result};

/// Tensors of the optimiser beside the weights.
pub(super) const STATE_TENSORS: &str = "training-state.safetensors";
/// Where in the run the checkpoint is.
pub(super) const STATE: &str = "training-state.json";
/// Largest weight file in bytes, as everywhere.
const MAX_SHARD: u64 = 5_000_000_000;
/// Room for the manifest, the model card and headers, in bytes.
const ROOM: u64 = 1 << 20;
/// What an expression calls the checkpoint that training began with.
const PARENT: &str = "parent";
/// Bytes of a trained parameter's master weight and moments.
pub(super) const STATE_BYTES: u64 = 12;

/// Where in the run a checkpoint is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    pub(super) format_version: u32,
    /// Steps taken.
    pub(super) step: u64,
    /// Number of the next row.
    pub(super) row: u64,
    /// Updates made: steps without those skipped.
    pub(super) updates: u64,
    /// Tokens predicted.
    pub(super) tokens: u64,
    /// Running mean of the gradients' norm, and its number of terms.
    pub(super) norm_mean: f64,
    pub(super) norms: u64,
    pub(super) settings: Map<String, Value>,
    /// Files of the checkpoint that training began with.
    pub(super) parent: Vec<FileHash>,
}

/// What all checkpoints of a run have in common.
pub(super) struct Saver {
    parent: Checkpoint,
    files: Vec<FileHash>,
    manifest: Option<String>,
    config: Option<PlainConfig>,
    converted: Option<Converted>,
    data: Vec<DataRecord>,
    settings: Map<String, Value>,
    architecture: Architecture,
    experts: Vec<String>,
}

impl Saver {
    /// Opens the checkpoint that training begins with, and hashes its files. With `origin`, the folder was converted from
    /// that file.
    pub(super) fn open(
        (folder, origin): (&Path, Option<&Path>),
        architecture: &Architecture,
        data: Vec<DataRecord>,
        settings: Map<String, Value>,
    ) -> Result<Self> {
        let parent = opened(folder, architecture)?;
        let files = hashed(&parent, folder)?;
        let config = PlainConfig::of(folder, &parent)?;
        let manifest = folder.join(MANIFEST);
        let manifest = manifest
            .exists()
            .then(|| sha256_file(&manifest))
            .transpose()?
            .map(|(sha256, _)| sha256);
        Ok(Self {
            parent,
            files,
            manifest,
            config,
            converted: Converted::of(folder, origin)?,
            data,
            settings,
            experts: expert_names(folder, architecture)?,
            architecture: architecture.clone(),
        })
    }

    /// Files of the checkpoint that training began with, or of the file that it was converted from.
    pub(super) fn parent_files(&self) -> &[FileHash] {
        match &self.converted {
            Some(converted) => &converted.source.files,
            None => &self.files,
        }
    }

    /// What the output does not take from the parent's configuration.
    pub(super) fn note(&self) -> Option<&str> {
        self.config.as_ref().map(|config| config.note.as_str())
    }

    /// Bytes that a checkpoint takes, at most.
    fn bytes(&self, parameters: &Parameters, with_state: bool) -> u64 {
        let state: u64 = parameters
            .all
            .iter()
            .map(|parameter| STATE_BYTES * parameter.var.elem_count() as u64)
            .sum();
        let files: u64 = self.files.iter().map(|file| file.size).sum();
        files + if with_state { state } else { 0 } + ROOM
    }

    /// Writes a checkpoint to `target`: complete, or absent.
    pub(super) fn save(
        &self,
        target: &Path,
        parameters: &Parameters,
        states: &[Box<dyn OptimiserState>],
        position: &Position,
        summary: TrainingSummary,
        (with_state, force): (bool, bool),
    ) -> Result<()> {
        check_free_space(target, self.bytes(parameters, with_state))?;
        self.parent.check_unchanged()?;
        let folder = OutputFolder::begin(target, force, &[&self.parent.path])?;
        let threads = rayon::current_num_threads();
        let options = WriteOptions {
            max_shard_size: MAX_SHARD,
            memory: (threads as u64) << 25,
            threads,
            fingerprint: None,
            progress: &|_| {},
        };
        let failed = |e| Error::compute("read the parameters", e);
        let mut masters = BTreeMap::new();
        for (parameter, state) in parameters.all.iter().zip(states) {
            masters.insert(
                parameter.spec.name.as_str(),
                state.download(StatePart::Master).map_err(failed)?,
            );
        }
        let (layouts, weights) = self.weights(&masters)?;
        let mut files = write_weights(&folder, &layouts, &weights, &options, &[])?.files;
        if with_state {
            let (layouts, tensors) = optimiser(parameters, states).map_err(failed)?;
            files.extend(write_file(
                &folder,
                STATE_TENSORS,
                &layouts,
                &tensors,
                &options,
            )?);
            let what = "the state of the run";
            let mut text = serde_json::to_vec_pretty(position)
                .map_err(|source| TrainError::NotWritten { what, source })?;
            text.push(b'\n');
            files.push(folder.write(STATE, &text)?);
        }
        for path in copied(&self.parent.path)? {
            let name = companion_name(&path);
            let written = match &self.config {
                Some(config) if name == CONFIG => folder.write(&name, &config.text)?,
                _ => folder.copy(&path, &name, false)?,
            };
            files.push(written);
        }
        folder.write(CARD, self.card(summary, &masters)?.as_bytes())?;
        let unhashed_files = vec![CARD.to_owned()];
        files.sort();
        let manifest =
            self.manifest(target, &layouts, &masters, position, files, unhashed_files)?;
        folder.write(MANIFEST, &manifest.to_bytes())?;
        folder.commit()
    }

    /// Every tensor of the parent: the trained ones as they are now, rounded once to the parent's dtype; the others byte
    /// for byte.
    fn weights<'a>(
        &'a self,
        masters: &'a BTreeMap<&str, HostValues<'a>>,
    ) -> Result<(Vec<TensorLayout>, Bytes<'a>)> {
        let (mut layouts, mut sources) = (Vec::new(), Vec::new());
        let fused = self.parent.fused();
        for (name, entry) in self.parent.stored() {
            let Some(stored) = entry.encoding.plain() else {
                return Err(TrainError::Quantised {
                    path: self.parent.path.clone(),
                    tensor: name.to_owned(),
                }
                .into());
            };
            layouts.push(TensorLayout {
                name: name.to_owned(),
                dtype: stored,
                shape: entry.shape.clone(),
            });
            let source = |name: &str, entry| match masters.get(name) {
                Some(values) => Source::Values(values),
                None => Source::File(&self.parent, entry),
            };
            sources.push(match fused.get(name) {
                Some(parts) => {
                    let parts = parts.iter().map(|(part, length)| {
                        Ok((*length, source(part, self.parent.tensor(part)?)))
                    });
                    Source::Parts(parts.collect::<Result<_>>()?)
                }
                None => source(name, entry),
            });
        }
        let bytes = Bytes {
            layouts: layouts.clone(),
            sources,
        };
        Ok((layouts, bytes))
    }

    /// The card of a trained model: the parent's text is about another model, so it is not kept.
    fn card(
        &self,
        summary: TrainingSummary,
        masters: &BTreeMap<&str, HostValues<'_>>,
    ) -> Result<String> {
        // A file that was converted for this run is the model that people know.
        let converted = self.converted.as_ref();
        let parent = converted.map_or(&self.parent.path, |converted| &converted.origin);
        // The section on training has the domains in words.
        let mut settings = self.settings.clone();
        settings.shift_remove("data");
        let notes: Vec<String> = self.note().map(str::to_owned).into_iter().collect();
        let is_mixture = self.architecture.mixture.is_some();
        let made_by = if is_mixture {
            method_tags(parent)
        } else {
            Vec::new()
        };
        let mut tags: Vec<&str> = is_mixture.then_some("moe").into_iter().collect();
        tags.extend(made_by.iter().map(String::as_str));
        let card = ModelCard {
            title: if is_mixture {
                "Trained mixture of experts"
            } else {
                "Trained model"
            },
            about: format!(
                "Trained further from {}{}.",
                markdown::text(&model_name(parent)),
                made_by.last().map_or_else(String::new, |method| format!(
                    ", a mixture made with {}",
                    markdown::code(method)
                ))
            ),
            tags: &tags,
            relation: Some(Relation::Finetune),
            sources: vec![(PARENT, parent)],
            settings: &settings,
            model: Some(CardModel {
                architecture: &self.architecture,
                experts: self.experts.clone(),
                has_tokenizer: self.parent.path.join(TOKENIZER).exists(),
                has_neutral_shared_expert: has_neutral_shared_expert(&self.architecture, |name| {
                    match masters.get(name) {
                        Some(values) => values.iter().all(|value| *value == 0.0),
                        None => holds_zeros(&self.parent, name),
                    }
                })?,
            }),
            training: Some(summary),
            copy_of: None,
            notes: &notes,
            prompts: &[],
        };
        card.text()
    }

    fn manifest(
        &self,
        target: &Path,
        layouts: &[TensorLayout],
        masters: &BTreeMap<&str, HostValues<'_>>,
        position: &Position,
        files: Vec<FileHash>,
        unhashed_files: Vec<String>,
    ) -> Result<Manifest> {
        let source = match &self.converted {
            Some(Converted { origin, source, .. }) => {
                SourceRecord::of(&source.name, origin, target, source.files.clone())?
            }
            None => SourceRecord::of(PARENT, &self.parent.path, target, self.files.clone())?,
        };
        let fused = self.parent.fused();
        let tensors = layouts.iter().map(|layout| {
            let copy = self.untrained(&layout.name);
            let mut parts = fused.get(layout.name.as_str()).into_iter().flatten();
            let is_trained = masters.contains_key(layout.name.as_str())
                || parts.any(|(part, _)| masters.contains_key(part));
            let expression = if is_trained {
                Expression::Trained { of: Box::new(copy) }
            } else {
                copy
            };
            let record = TensorRecord {
                dtype: layout.dtype,
                shape: layout.shape.clone(),
                expression,
            };
            (layout.name.clone(), record)
        });
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            tool: Tool::this(),
            method: "train".to_owned(),
            settings: self.settings.clone(),
            sources: vec![source],
            lineage: Some(Lineage {
                // The folder that was converted for this run is nowhere to be found later.
                parent_manifest: self.manifest.clone().filter(|_| self.converted.is_none()),
                step: position.step,
                tokens: position.tokens,
                data: self.data.clone(),
            }),
            recipe: None,
            files,
            unhashed_files,
            tensors: tensors.collect(),
        })
    }
}

impl Saver {
    /// How a tensor follows from the source where training does not change it.
    fn untrained(&self, name: &str) -> Expression {
        let converted = self.converted.as_ref();
        let record = converted.and_then(|converted| converted.tensors.get(name));
        record.map_or_else(
            || Expression::copy(PARENT, name),
            |record| record.expression.clone(),
        )
    }
}

/// Where the bytes of tensors come from.
struct Bytes<'a> {
    layouts: Vec<TensorLayout>,
    sources: Vec<Source<'a>>,
}

enum Source<'a> {
    /// A tensor of a file, in its own dtype.
    File(&'a Checkpoint, &'a TensorEntry),
    /// Numbers to round.
    Values(&'a [f32]),
    /// Numbers to write as they are.
    Held(HostValues<'a>),
    /// In turn so many bytes of each of these.
    Parts(Vec<(u64, Source<'a>)>),
}

impl TensorBytes for Bytes<'_> {
    type Scratch = Vec<f64>;

    fn fill(
        &self,
        tensor: usize,
        start: u64,
        out: &mut [u8],
        scratch: &mut Vec<f64>,
    ) -> Result<()> {
        self.sources[tensor].fill(&self.layouts[tensor], start, out, scratch)
    }
}

impl Source<'_> {
    /// The bytes from `start` on, in the dtype of `layout`.
    fn fill(
        &self,
        layout: &TensorLayout,
        start: u64,
        out: &mut [u8],
        scratch: &mut Vec<f64>,
    ) -> Result<()> {
        let values: &[f32] = match self {
            Source::File(checkpoint, entry) => return checkpoint.read_bytes(entry, start, out),
            Source::Values(values) => values,
            Source::Held(values) => values,
            Source::Parts(parts) => return fill_in_turn(parts, layout, start, out, scratch),
        };
        let size = layout.dtype.bitsize() / 8;
        let first = start as usize / size;
        let values = &values[first..first + out.len() / size];
        if layout.dtype == Dtype::F32 {
            out.chunks_exact_mut(4)
                .zip(values)
                .for_each(|(out, value)| out.copy_from_slice(&value.to_le_bytes()));
        } else {
            scratch.clear();
            scratch.extend(values.iter().map(|value| f64::from(*value)));
            if !dtype::encode(layout.dtype, scratch, out) {
                return Err(TrainError::NotFloat {
                    tensor: layout.name.clone(),
                    found: layout.dtype,
                }
                .into());
            }
        }
        match dtype::first_non_finite(layout.dtype, out) {
            None => Ok(()),
            Some(element) => Err(TrainError::NotFinite {
                tensor: layout.name.clone(),
                element: first + element,
                dtype: layout.dtype,
            }
            .into()),
        }
    }
}

/// The bytes from `start` on of parts that take turns.
fn fill_in_turn(
    parts: &[(u64, Source)],
    layout: &TensorLayout,
    start: u64,
    out: &mut [u8],
    scratch: &mut Vec<f64>,
) -> Result<()> {
    let total: u64 = parts.iter().map(|(length, _)| length).sum();
    let (mut position, mut rest) = (start, out);
    while !rest.is_empty() {
        let (turn, mut within) = (position / total, position % total);
        let mut part = 0;
        while within >= parts[part].0 {
            within -= parts[part].0;
            part += 1;
        }
        let (length, source) = &parts[part];
        let count = (length - within).min(rest.len() as u64);
        let (piece, others) = rest.split_at_mut(count as usize);
        source.fill(layout, turn * length + within, piece, scratch)?;
        (position, rest) = (position + count, others);
    }
    Ok(())
}

/// Master weights and moments, under `master.`, `first.` and `second.` with the parameter's name.
fn optimiser<'a>(
    parameters: &Parameters,
    states: &'a [Box<dyn OptimiserState>],
) -> candle_core::Result<(Vec<TensorLayout>, Bytes<'a>)> {
    let (mut layouts, mut sources) = (Vec::new(), Vec::new());
    for (parameter, state) in parameters.all.iter().zip(states) {
        for (part, prefix) in PARTS {
            let (name, shape) = (
                format!("{prefix}.{}", parameter.spec.name),
                parameter.spec.shape.clone(),
            );
            layouts.push(TensorLayout {
                name,
                dtype: Dtype::F32,
                shape,
            });
            sources.push(Source::Held(state.download(part)?));
        }
    }
    Ok((layouts.clone(), Bytes { layouts, sources }))
}

/// What the state of a parameter is made of, and what tensors of it are called.
pub(super) const PARTS: [(StatePart, &str); 3] = [
    (StatePart::Master, "master"),
    (StatePart::First, "first"),
    (StatePart::Second, "second"),
];

/// The float32 values of a parameter in the checkpoint in `folder`.
pub(super) fn stored_values(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = checkpoint.tensor(name)?;
    let mut values = vec![0f64; entry.elements() as usize];
    checkpoint.read_values(entry, 0, &mut values, &mut Vec::new())?;
    Ok(values.into_iter().map(|value| value as f32).collect())
}
