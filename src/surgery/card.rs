//! Files beside the weights: the model card, configurations, copies of the tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::execute::{Content, OutputFile};
use crate::checkpoint::manifest::{MANIFEST, hub_origin};

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
    /// The text of `README.md`.
    pub fn text(&self) -> String {
        let base = |path: &Path| match hub_origin(path) {
            Some((repository, _)) => repository,
            None => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        };
        let list =
            |items: &mut dyn Iterator<Item = String>| items.map(|item| format!("- {item}\n")).collect::<String>();
        let bases = list(&mut self.sources.iter().map(|(_, path)| Value::String(base(path)).to_string()));
        let tags = list(&mut self.tags.iter().map(|tag| (*tag).to_owned()));
        let rows = |rows: &mut dyn Iterator<Item = (String, String)>| {
            rows.map(|(a, b)| format!("| {a} | {b} |\n")).collect::<String>()
        };
        let sources = rows(&mut self.sources.iter().map(|(name, path)| ((*name).to_owned(), base(path))));
        let settings = rows(&mut self.settings.iter().map(|(key, value)| (format!("`{key}`"), format!("`{value}`"))));
        format!(
            "---\nlibrary_name: transformers\nbase_model:\n{bases}base_model_relation: merge\ntags:\n{tags}---\n\n\
             # {}\n\n{}\n\nMade by bam-convert {}. `{MANIFEST}` records how each tensor was made and the SHA-256 of every\n\
             file; `bam-convert validate DIR --against` checks both.\n\n\
             | source | model |\n|---|---|\n{sources}\n| setting | value |\n|---|---|\n{settings}",
            self.title,
            self.about,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// A JSON file, indented as transformers writes them.
pub fn json_file(name: &str, object: &Map<String, Value>) -> OutputFile {
    // Maps with string keys and finite numbers always serialise.
    let mut text = serde_json::to_string_pretty(object).unwrap_or_default();
    text.push('\n');
    OutputFile { name: name.to_owned(), content: Content::Bytes(text.into_bytes()) }
}

/// The code with which transformers loads a BAM checkpoint.
pub fn model_code() -> impl Iterator<Item = OutputFile> {
    let files = [
        ("configuration_bam.py", include_str!("transformers/configuration_bam.py")),
        ("modeling_bam.py", include_str!("transformers/modeling_bam.py")),
    ];
    files
        .into_iter()
        .map(|(name, text)| OutputFile { name: name.to_owned(), content: Content::Bytes(text.as_bytes().to_vec()) })
}

/// Files copied byte for byte under their own names.
pub fn copies(paths: Vec<PathBuf>) -> impl Iterator<Item = OutputFile> {
    paths.into_iter().map(|path| OutputFile {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        content: Content::CopyOf(path),
    })
}
