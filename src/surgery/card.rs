//! Files beside the weights: the model card, configurations, copies of the tokenizer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::execute::{Content, OutputFile};
use super::licence::{self, Licences};
use crate::checkpoint::folder::{CARD, companion_name};
use crate::checkpoint::manifest::{MANIFEST, Origin};
use crate::markdown;
use crate::printable::printable_json;
use crate::table::Align;

/// What a model card says.
pub struct Card<'a> {
    /// Heading.
    pub title: &'a str,
    /// First paragraph.
    pub about: &'a str,
    /// Tags on the Hub.
    pub tags: &'a [&'a str],
    /// Names and paths of the models it was made from.
    pub sources: Vec<(&'a str, &'a Path)>,
    /// Settings as the manifest records them.
    pub settings: &'a Map<String, Value>,
}

impl Card<'_> {
    /// `README.md`.
    pub fn file(&self) -> OutputFile {
        OutputFile {
            name: CARD.to_owned(),
            content: Content::Editable(self.text().into_bytes()),
        }
    }

    /// The text of `README.md`, with the licences of the sources in its front matter and their conflicts in words.
    fn text(&self) -> String {
        let licences = Licences::of(self.sources.iter().copied());
        let list = |items: &mut dyn Iterator<Item = String>| {
            items.map(|item| format!("- {item}\n")).collect::<String>()
        };
        let mut bases: Vec<String> = self
            .sources
            .iter()
            .map(|(_, path)| base_model(path))
            .collect();
        let mut seen = BTreeSet::new();
        bases.retain(|base| seen.insert(base.clone()));
        let bases = list(&mut bases.into_iter().map(|base| quoted(&base)));
        let tags = list(&mut self.tags.iter().map(|tag| (*tag).to_owned()));
        let sources: Vec<_> = self
            .sources
            .iter()
            .map(|(name, path)| {
                let licence = licences.of_source(name);
                [*name, &own_name(path), &licence]
                    .map(markdown::text)
                    .to_vec()
            })
            .collect();
        let columns = ["source", "model", "licence"].map(|title| (title, Align::Left));
        let sources = markdown::table(&columns, &sources);
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|(key, value)| vec![markdown::code(key), markdown::code(&value.to_string())])
            .collect();
        let columns = ["setting", "value"].map(|title| (title, Align::Left));
        let settings = markdown::table(&columns, &settings);
        let conflicts = licences.conflicts();
        let conflicts = list(&mut conflicts.iter().map(|conflict| markdown::text(conflict)));
        let conflicts = if conflicts.is_empty() {
            conflicts
        } else {
            format!("\n{conflicts}")
        };
        format!(
            "---\nlibrary_name: transformers\n{}base_model:\n{bases}base_model_relation: merge\ntags:\n{tags}---\n\n\
             # {}\n\n{}\n\nMade by bam-convert {}. `{MANIFEST}` records how each tensor was made and the SHA-256 of every\n\
             file; `bam-convert validate DIR --against` checks both.\n\n\
             {sources}{conflicts}\n{settings}",
            licences.front_matter(),
            markdown::text(self.title),
            self.about,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// A text for the front matter: JSON is YAML, which may not hold controls.
pub(super) fn quoted(text: &str) -> String {
    printable_json(&Value::from(text).to_string())
}

/// A model's repository on the Hub, or the name of its folder.
fn own_name(path: &Path) -> String {
    match Origin::of(path, &[]) {
        Some((repository, _)) => repository,
        None => path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned(),
    }
}

/// The repository of a model, or of the nearest one that it was made of; its own name where none is known.
fn base_model(path: &Path) -> String {
    let hub = licence::lineage(path)
        .iter()
        .find_map(|folder| Origin::of(folder, &[]));
    hub.map_or_else(|| own_name(path), |(repository, _)| repository)
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
