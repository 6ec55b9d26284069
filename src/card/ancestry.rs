//! What the sources of a model were made of themselves, as their manifests say it.

use std::path::Path;

use serde_json::Value;

use super::source::{MOST_FOLDERS, folders_of};
use crate::checkpoint::manifest::{Manifest, model_name};
use crate::markdown;
use crate::table::{self, Align};

/// The tag of a model that is made of several models.
const MERGE: &str = "merge";

/// A table of the models that these were made of, near ones first; nothing where no manifest says it.
pub(super) fn table<'a>(models: impl Iterator<Item = &'a Path>) -> String {
    let mut places: Vec<_> = models.map(Path::to_path_buf).collect();
    let (mut rows, mut next) = (Vec::new(), 0);
    while let Some(folder) = places.get(next).cloned() {
        next += 1;
        // A manifest that cannot be read says nothing; whoever needs it says why.
        let Some(manifest) = Manifest::read(&folder).ok().flatten() else {
            continue;
        };
        rows.push(row(&folder, &manifest));
        for place in folders_of(&manifest, &folder) {
            if places.len() < MOST_FOLDERS && !places.contains(&place) {
                places.push(place);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let columns = ["model", "was made with", "of"].map(|title| (title, Align::Left));
    format!("\n{}", markdown::table(&columns, &rows))
}

fn row(folder: &Path, manifest: &Manifest) -> Vec<String> {
    let mut how = markdown::code(&manifest.method);
    if let Some(lineage) = &manifest.lineage {
        let data = lineage.data.iter().map(|data| markdown::text(&data.name));
        how.push_str(&format!(
            ", {} on {} tokens of {}",
            table::counted(lineage.step, "step"),
            table::grouped(lineage.tokens),
            data.collect::<Vec<_>>().join(", ")
        ));
    }
    let sources = manifest.sources.iter().map(|source| {
        let place = || source.bare_name(folder);
        let of = source.repository.clone().unwrap_or_else(place);
        if of == source.name {
            markdown::text(&of)
        } else {
            markdown::text(&format!("{of} ({})", source.name))
        }
    });
    let sources: Vec<String> = sources.collect();
    vec![
        markdown::text(&model_name(folder)),
        how,
        if sources.is_empty() {
            "nothing".to_owned()
        } else {
            sources.join(", ")
        },
    ]
}

/// The tags of the surgery that a model comes from, through steps that leave it the same kind of model.
pub fn method_tags(model: &Path) -> Vec<String> {
    let mut place = model.to_path_buf();
    for _ in 0..MOST_FOLDERS {
        let Some(manifest) = Manifest::read(&place).ok().flatten() else {
            break;
        };
        let is_upcycling = manifest.settings.get("method").and_then(Value::as_str)
            == Some(manifest.method.as_str());
        if is_upcycling || manifest.method == MERGE {
            let merged = (manifest.sources.len() > 1).then(|| MERGE.to_owned());
            let mut tags: Vec<String> = merged.into_iter().collect();
            tags.extend(is_upcycling.then_some(manifest.method));
            return tags;
        }
        let Some(next) = folders_of(&manifest, &place).into_iter().next() else {
            break;
        };
        place = next;
    }
    Vec::new()
}
