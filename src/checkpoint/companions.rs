//! The files that go with the weights of a checkpoint and are copied byte for byte.
//!
//! They are the tokenizer, chat templates, what prepares other inputs, code of these, and the licence.

use std::path::{Path, PathBuf};

use super::{json, views};
use crate::{Error, Result, notice};

/// Files that describe a tokenizer or its use.
pub const COMPANIONS: [&str; 14] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
];

/// The folder of further chat templates, each under its name.
pub(super) const TEMPLATES: &str = "additional_chat_templates";

/// Beginnings of the names of code that tokenizers and processors need.
const CODE: [&str; 5] = [
    "tokenization_",
    "processing_",
    "image_processing_",
    "video_processing_",
    "feature_extraction_",
];

/// Beginnings of the names of licence files, in lower case.
const LICENCES: [&str; 5] = ["license", "licence", "notice", "copying", "use_policy"];

/// Whether a file of that name goes with the weights; `additional_chat_templates/NAME.jinja` is a name, too.
pub fn is_companion(name: &str) -> bool {
    if let Some(template) = name.strip_prefix(TEMPLATES) {
        return template.starts_with('/')
            && !template[1..].contains('/')
            && template.ends_with(".jinja");
    }
    let lower = name.to_lowercase();
    COMPANIONS.contains(&name)
        || name.ends_with("processor_config.json")
        || name.ends_with(".py") && CODE.iter().any(|start| name.starts_with(start))
        || LICENCES.iter().any(|start| lower.starts_with(start))
}

/// The files of a folder that go with its weights: [`COMPANIONS`] in their order, then the others by name.
///
/// # Errors
/// A folder that cannot be listed.
pub(super) fn present(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = COMPANIONS.iter().map(|name| folder.join(name)).collect();
    let mut others = Vec::new();
    for place in [folder.to_path_buf(), folder.join(TEMPLATES)] {
        if !place.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&place).map_err(|e| Error::io("list", &place, e))? {
            let path = entry.map_err(|e| Error::io("list", &place, e))?.path();
            let name = companion_name(&path);
            if is_companion(&name) && !COMPANIONS.contains(&name.as_str()) {
                others.push(path);
            }
        }
    }
    others.sort();
    paths.extend(others);
    paths.retain(|path| path.is_file());
    Ok(paths)
}

/// The files of a folder that go with its weights.
///
/// # Errors
/// A `generation_config.json` that no reader could use: a copy of it would be refused by whoever opens the output.
pub fn companions(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = present(folder)?;
    paths.iter().for_each(|path| note_link(folder, path));
    if let Some(path) = paths.first().filter(|path| path.ends_with(COMPANIONS[0])) {
        json::read_object(path)?;
    }
    Ok(paths)
}

/// Says so where a file is a link out of its checkpoint. The links of the Hub's cache lead to its own `blobs`.
fn note_link(folder: &Path, path: &Path) {
    if !path.is_symlink() || views::of(folder).is_some() {
        return;
    }
    let (Ok(folder), Ok(target)) = (folder.canonicalize(), path.canonicalize()) else {
        return;
    };
    let repository = folder.ancestors().nth(2);
    let is_blob = repository.is_some_and(|root| target.parent() == Some(&root.join("blobs")));
    if !is_blob && !target.starts_with(&folder) {
        let (path, target) = (path.display(), target.display());
        notice::once(format!(
            "{path}: is a link to {target}, and that file's content is taken"
        ));
    }
}

/// The name of a file in its checkpoint: its own name, or with the folder of further chat templates.
pub fn companion_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parent = path.parent().and_then(Path::file_name);
    if parent.is_some_and(|parent| parent == TEMPLATES) && name.ends_with(".jinja") {
        format!("{TEMPLATES}/{name}")
    } else {
        name.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_companions() {
        for name in [
            "tokenizer.json",
            "preprocessor_config.json",
            "video_preprocessor_config.json",
            "processor_config.json",
            "tokenization_mine.py",
            "image_processing_mine.py",
            "LICENSE",
            "LICENSE.md",
            "Notice.txt",
            "additional_chat_templates/tool_use.jinja",
        ] {
            assert!(is_companion(name), "{name}");
        }
        for name in [
            "model.safetensors",
            "modeling_mine.py",
            "additional_chat_templates",
            "additional_chat_templates/a/b.jinja",
            "additional_chat_templates/a.py",
            "additional_chat_templates.jinja",
        ] {
            assert!(!is_companion(name), "{name}");
        }
    }
}
