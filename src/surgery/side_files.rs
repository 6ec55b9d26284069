//! Files beside the weights: the model card, configurations, copies of the tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::execute::{Content, OutputFile};
use super::plan::Source;
use crate::Result;
use crate::card::ModelCard;
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::folder::{CARD, Checkpoint, TOKENIZER, companion_name};
use crate::family::{Config, both_spellings, drop_leftover, say_dtype};

/// Adds the model card to the files of an output. People edit cards, so the manifest has no hash of it.
pub fn add_card(files: &mut Vec<OutputFile>, card: &ModelCard) -> Result<()> {
    files.push(OutputFile {
        name: CARD.to_owned(),
        content: Content::Editable(card.text()?.into_bytes()),
    });
    Ok(())
}

/// Whether the files have the tokenizer that this program and transformers read.
pub fn has_tokenizer(files: &[OutputFile]) -> bool {
    files.iter().any(|file| file.name == TOKENIZER)
}

/// Names and paths of sources, as cards list them.
pub(super) fn named<'a>(sources: impl IntoIterator<Item = &'a Source>) -> Vec<(&'a str, &'a Path)> {
    let named = |source: &'a Source| (source.name.as_str(), source.checkpoint.path.as_path());
    sources.into_iter().map(named).collect()
}

/// A JSON file, indented as transformers writes them.
pub fn json_file(name: &str, object: &Map<String, Value>) -> OutputFile {
    // Maps with string keys and finite numbers always serialise.
    let mut text = serde_json::to_string_pretty(object).unwrap_or_default();
    text.push('\n');
    OutputFile {
        name: name.to_owned(),
        content: Content::Bytes(text.into_bytes()),
    }
}

/// The configuration of a checkpoint for its weights in another dtype, in both spellings, and notes about what it leaves out.
pub(super) fn recast(
    config: &Config,
    checkpoint: &Checkpoint,
    dtype: Option<Dtype>,
) -> Result<(Map<String, Value>, Vec<String>)> {
    let mut json = config.json.clone();
    let mut notes = config.say_assumptions(&mut json)?;
    notes.extend(drop_leftover(config, checkpoint, &mut json));
    if let Some(dtype) = dtype {
        say_dtype(&mut json, dtype);
    }
    both_spellings(&mut json);
    Ok((json, notes))
}

/// The code with which transformers loads a BAM checkpoint.
pub fn model_code() -> impl Iterator<Item = OutputFile> {
    let files = [
        (
            "configuration_bam.py",
            include_str!("transformers/configuration_bam.py"),
        ),
        (
            "modeling_bam.py",
            include_str!("transformers/modeling_bam.py"),
        ),
    ];
    files.into_iter().map(|(name, text)| OutputFile {
        name: name.to_owned(),
        content: Content::Bytes(text.as_bytes().to_vec()),
    })
}

/// Files copied byte for byte under their own names.
pub fn copies(paths: Vec<PathBuf>) -> impl Iterator<Item = OutputFile> {
    paths.into_iter().map(|path| OutputFile {
        name: companion_name(&path),
        content: Content::CopyOf(path),
    })
}
