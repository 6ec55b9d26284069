//! Checkpoints of a run: folders like any other model, with a manifest that says where they come from. Checkpoints to
//! resume from also hold the state of the optimiser.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::engine::Counters;
use super::error::TrainError;
use super::parent::{CONFIG, Converted, PlainConfig, copied, hashed, opened};
use super::save_bytes::{Bytes, Source};
use super::state::State;
use crate::Result;
use crate::card::{
    CardModel, ModelCard, Relation, TrainingSummary, has_neutral_shared_expert, method_tags,
};
use crate::checkpoint::folder::{CARD, TOKENIZER, companion_name};
use crate::checkpoint::hash::{FileHash, sha256_file};
use crate::checkpoint::manifest::{
    DataRecord, EngineRecord, FORMAT_VERSION, Lineage, MANIFEST, Manifest, SourceRecord,
    TensorRecord, Tool, model_name,
};
use crate::checkpoint::output::{OutputFolder, check_free_space};
use crate::checkpoint::writer::{TensorLayout, WriteOptions, write_weights};
use crate::checkpoint::{Checkpoint, Expression};
use crate::family::{Architecture, expert_names};
use crate::markdown;

/// Where in the run the checkpoint is.
pub(super) const STATE: &str = "training-state.json";
/// Largest weight file in bytes, as everywhere.
const MAX_SHARD: u64 = 5_000_000_000;
/// Room for the manifest, the model card and headers, in bytes.
const ROOM: u64 = 1 << 20;
/// What an expression calls the checkpoint that training began with.
const PARENT: &str = "parent";

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
    /// Which engines took which steps; empty where our own trainer took all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) engines: Vec<EngineRecord>,
}

impl Position {
    /// The progress there.
    pub(super) fn counters(&self) -> Counters {
        Counters {
            step: self.step,
            updates: self.updates,
            tokens: self.tokens,
            norm_mean: self.norm_mean,
            norms: self.norms,
        }
    }
}

/// What a checkpoint of a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// To resume from: it has the state of the optimiser beside the weights.
    State,
    /// The output.
    Weights,
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

    /// The checkpoint that training began with.
    pub(super) fn parent(&self) -> &Checkpoint {
        &self.parent
    }

    /// Files of the checkpoint that training began with, or of the file that it was converted from.
    pub(super) fn parent_files(&self) -> &[FileHash] {
        match &self.converted {
            Some(converted) => &converted.files,
            None => &self.files,
        }
    }

    /// What the output does not take from the parent's configuration.
    pub(super) fn note(&self) -> Option<&str> {
        self.config.as_ref().map(|config| config.note.as_str())
    }

    /// Bytes that a checkpoint takes, at most.
    fn bytes(&self, state: &State, keeps: Keeps) -> u64 {
        let files: u64 = self.files.iter().map(|file| file.size).sum();
        let state = match keeps {
            Keeps::State => state.bytes_to_write(),
            Keeps::Weights => 0,
        };
        files + state + ROOM
    }

    /// Writes a checkpoint to `target`: complete, or absent. With `replaces`, it takes the place of an earlier one.
    pub(super) fn save(
        &self,
        target: &Path,
        state: &State,
        position: &Position,
        summary: TrainingSummary,
        keeps: Keeps,
        replaces: bool,
    ) -> Result<()> {
        check_free_space(target, self.bytes(state, keeps))?;
        self.parent.check_unchanged()?;
        let folder = OutputFolder::begin(target, replaces, &[&self.parent.path])?;
        let threads = rayon::current_num_threads();
        let options = WriteOptions {
            max_shard_size: MAX_SHARD,
            memory: (threads as u64) << 25,
            threads,
            fingerprint: None,
            progress: &|_| {},
        };
        let masters = state.masters()?;
        let (layouts, weights) = self.weights(&masters)?;
        let mut files = write_weights(&folder, &layouts, &weights, &options, &[])?.files;
        // The card looks at weights, and writing the state may move the files that hold them.
        let card = self.card(summary, &masters)?;
        if keeps == Keeps::State {
            files.extend(state.write(&folder, &options)?);
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
        folder.write(CARD, card.as_bytes())?;
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
        masters: &'a BTreeMap<&str, Source<'a>>,
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
                Some(source) => Source::Same(source),
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
        masters: &BTreeMap<&str, Source<'_>>,
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
                    let stored = || self.parent.tensors.get(name);
                    match masters.get(name) {
                        Some(source) => source.holds_zeros(),
                        None => stored().is_some_and(|entry| self.parent.holds_zeros(entry)),
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
        masters: &BTreeMap<&str, Source<'_>>,
        position: &Position,
        files: Vec<FileHash>,
        unhashed_files: Vec<String>,
    ) -> Result<Manifest> {
        let sources = match &self.converted {
            Some(converted) => converted.records(target)?,
            None => {
                let files = self.files.clone();
                vec![SourceRecord::of(PARENT, &self.parent.path, target, files)?]
            }
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
            sources,
            lineage: Some(Lineage {
                // The folder that was converted for this run is nowhere to be found later.
                parent_manifest: self.manifest.clone().filter(|_| self.converted.is_none()),
                step: position.step,
                tokens: position.tokens,
                data: self.data.clone(),
                engines: position.engines.clone(),
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

/// The float32 values of a parameter in the checkpoint in `folder`.
pub(super) fn stored_values(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = checkpoint.tensor(name)?;
    let mut values = vec![0f64; entry.elements() as usize];
    checkpoint.read_values(entry, 0, &mut values, &mut Vec::new())?;
    Ok(values.into_iter().map(|value| value as f32).collect())
}
