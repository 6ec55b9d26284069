//! The recipe in a manifest against itself and against the manifest's sources.
//!
//! A stage must have read what the stages before it made, and the last stage must have read the sources of the
//! manifest. A recipe that was made up later, or whose hashes were changed, does not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::report::{FindingPlace, Running, ValidationReport};
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::{MANIFEST, Manifest, SourceRecord};
use crate::checkpoint::recipe::{RecipeRecord, StageRecord};
use crate::checkpoint::reference::pinned;
use crate::table;

/// Adds the row `recipe`, where the manifest has one.
pub(super) fn check(report: &mut ValidationReport, manifest: &Manifest) {
    let Some(recipe) = &manifest.recipe else {
        return;
    };
    let mut check = report.check("recipe");
    stages(&mut check, recipe);
    match recipe.stages.last() {
        Some(last) => {
            sources(&mut check, last, manifest);
            settings(&mut check, last, manifest);
        }
        None => check.fault(
            FindingPlace::key(MANIFEST, "recipe.stages"),
            "expected one stage at least, found none",
        ),
    }
    let inputs: usize = recipe.stages.iter().map(|stage| stage.inputs.len()).sum();
    let [stages, inputs] = [recipe.stages.len(), inputs].map(|count| count as u64);
    check.done(format!(
        "{}, {}",
        table::counted(stages, "stage"),
        table::counted(inputs, "input")
    ));
}

/// Names, what needs what, and files that one stage made and another read.
fn stages(check: &mut Running, recipe: &RecipeRecord) {
    let mut names = BTreeSet::new();
    let mut made: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for (number, stage) in recipe.stages.iter().enumerate() {
        let place = || FindingPlace::key(MANIFEST, &format!("recipe.stages.{number}"));
        let name = &stage.name;
        for needed in stage
            .needs
            .iter()
            .filter(|needed| !names.contains(needed.as_str()))
        {
            check.fault(
                place(),
                format!("stage `{name}` needs `{needed}`, which is no stage before it"),
            );
        }
        if !names.insert(name.as_str()) {
            check.fault(place(), format!("is a second stage `{name}`"));
        }
        for (path, sha256) in &stage.inputs {
            match made.get(path.as_str()) {
                // People edit the cards of checkpoints.
                Some((maker, made)) if made != sha256 && !is_card(path) => {
                    let problem = format!(
                        "stage `{name}` read {path} with SHA-256 {sha256}, but `{maker}` made {made}"
                    );
                    check.fault(place(), problem);
                }
                Some(_) => {}
                None => {
                    let source = path
                        .strip_prefix("${")
                        .and_then(|path| path.split_once('}'));
                    if !source.is_some_and(|(source, _)| recipe.sources.contains_key(source)) {
                        check.fault(
                            place(),
                            format!("stage `{name}` read {path}, which no stage made and no source holds"),
                        );
                    }
                }
            }
        }
        made.extend(
            stage
                .outputs
                .iter()
                .map(|(path, sha256)| (path.as_str(), (name.as_str(), sha256.as_str()))),
        );
    }
}

/// Whether a path is the card of a checkpoint that a stage made.
fn is_card(path: &str) -> bool {
    Path::new(path).file_name().is_some_and(|name| name == CARD)
}

/// The last stage must have read the source files of the manifest, by their names, unless it took them from the Hub at
/// the same commit.
fn sources(check: &mut Running, last: &StageRecord, manifest: &Manifest) {
    let mut read: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (path, sha256) in &last.inputs {
        let name = Path::new(path)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        read.entry(name).or_default().insert(sha256);
    }
    let is_pulled = |source: &&SourceRecord| match (&source.repository, &source.commit) {
        (Some(repository), Some(commit)) => {
            let reference = pinned(repository, commit);
            last.settings
                .values()
                .flatten()
                .any(|value| value.contains(&reference))
        }
        _ => false,
    };
    for source in manifest.sources.iter().filter(|source| !is_pulled(source)) {
        for file in &source.files {
            if read
                .get(&file.path)
                .is_some_and(|hashes| !hashes.contains(file.sha256.as_str()))
            {
                let problem = format!(
                    "stage `{}` read no {} with the SHA-256 {} that source `{}` has",
                    last.name, file.path, file.sha256, source.name
                );
                check.fault(FindingPlace::key(MANIFEST, "recipe"), problem);
            }
        }
    }
}

/// Numbers that stand in the recipe and among the settings must be the same.
fn settings(check: &mut Running, last: &StageRecord, manifest: &Manifest) {
    for (key, values) in &last.settings {
        let (Some(recorded), [value]) =
            (manifest.settings.get(&key.replace('-', "_")), &values[..])
        else {
            continue;
        };
        let (Some(recorded), Ok(value)) = (recorded.as_f64(), value.parse::<f64>()) else {
            continue;
        };
        if recorded != value {
            let problem = format!(
                "expected `{key}` of stage `{}` to be {recorded}, found {value}",
                last.name
            );
            check.fault(
                FindingPlace::key(MANIFEST, &format!("settings.{}", key.replace('-', "_"))),
                problem,
            );
        }
    }
}
