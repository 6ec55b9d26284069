//! Which files of a repository are wanted: what a checkpoint needs, or what patterns say.

use std::collections::BTreeSet;

use glob::Pattern;

use super::answer_error::HubAnswerError;
use super::request_error::HubRequestError;
use super::tree::{ContentHash, Snapshot};
use crate::Result;
use crate::checkpoint::adapter::ADAPTER_CONFIG;
use crate::checkpoint::folder::{CARD, INDEX, is_companion};
use crate::checkpoint::manifest::MANIFEST;
use crate::checkpoint::weight_names::wanted_weights;
use crate::error::nearest;

/// Files beside weights and tokenizer that belong to a checkpoint.
const BESIDE: [&str; 5] = ["config.json", ADAPTER_CONFIG, INDEX, MANIFEST, CARD];

/// Patterns of paths, in which `*` matches `/` too, as in Python.
#[derive(Clone, Debug, Default)]
pub struct FileSelection {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    /// Paths that are wanted as they are, without patterns.
    paths: BTreeSet<String>,
}

impl FileSelection {
    /// Reads patterns. Without a pattern to include, the selection is what a checkpoint needs.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let read = |patterns: &[String]| -> Result<Vec<Pattern>> {
            let read = |text: &String| {
                let pattern = Pattern::new(text).map_err(|e| HubRequestError::Pattern {
                    pattern: text.clone(),
                    problem: e.to_string(),
                })?;
                Ok(pattern)
            };
            patterns.iter().map(read).collect()
        };
        Ok(Self {
            include: read(include)?,
            exclude: read(exclude)?,
            paths: BTreeSet::new(),
        })
    }

    /// Selects files by their paths.
    pub(super) fn of_paths(paths: Vec<String>) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether the selection is what a checkpoint needs.
    pub(super) fn is_default(&self) -> bool {
        self.include.is_empty() && self.paths.is_empty()
    }

    /// The paths that are wanted, in order.
    ///
    /// # Errors
    /// A repository in which no weights can be read, or several models lie side by side; patterns that match nothing; a
    /// file of which the Hub tells no hash.
    pub fn choose<'a>(&self, snapshot: &'a Snapshot) -> Result<Vec<&'a str>> {
        let paths = || snapshot.files.keys().map(String::as_str);
        let included: Vec<&str> = if !self.paths.is_empty() {
            paths().filter(|path| self.paths.contains(*path)).collect()
        } else if self.include.is_empty() {
            needed(snapshot)?
        } else {
            let is_included = |path: &&str| matches_any(&self.include, path);
            paths().filter(is_included).collect()
        };
        let chosen: Vec<&str> = included
            .into_iter()
            .filter(|path| !matches_any(&self.exclude, path))
            .collect();
        if chosen.is_empty() {
            let wanted = self.include.first().map_or("", Pattern::as_str);
            return Err(HubRequestError::NothingSelected {
                place: snapshot.place(),
                nearest: nearest(wanted, paths()).map(str::to_owned),
            }
            .into());
        }
        let has_no_hash = |path: &&&str| snapshot.files[**path].hash == ContentHash::Unknown;
        if let Some(path) = chosen.iter().find(has_no_hash) {
            return Err(HubAnswerError::NoHash {
                place: snapshot.place(),
                path: (*path).to_owned(),
            }
            .into());
        }
        Ok(chosen)
    }
}

fn matches_any(patterns: &[Pattern], path: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(path))
}

/// What a checkpoint needs: configuration, tokenizer, weights, card, licence, and the code of its own model.
fn needed(snapshot: &Snapshot) -> Result<Vec<&str>> {
    let top: Vec<&str> = snapshot
        .files
        .keys()
        .map(String::as_str)
        .filter(|path| !path.contains('/'))
        .collect();
    let weights = wanted_weights(&top);
    let place = || snapshot.place();
    if weights.is_empty() {
        let is_pickle = |path: &&&str| {
            [".bin", ".pth", ".pt"]
                .iter()
                .any(|end| path.ends_with(end))
        };
        return Err(HubRequestError::NoWeights {
            place: place(),
            pickle: top.iter().find(is_pickle).map(|path| (*path).to_owned()),
        }
        .into());
    }
    if weights.len() > 1 && weights.iter().all(|path| path.ends_with(".gguf")) {
        return Err(HubRequestError::SeveralGguf {
            place: place(),
            paths: weights.iter().map(|path| (*path).to_owned()).collect(),
        }
        .into());
    }
    let is_needed = |path: &&str| {
        weights.contains(path)
            || BESIDE.contains(path)
            || is_companion(path)
            || ["configuration_", "modeling_"]
                .iter()
                .any(|start| path.starts_with(start) && path.ends_with(".py"))
    };
    // A path in a folder is a further chat template at most.
    let all = snapshot.files.keys().map(String::as_str);
    Ok(all
        .filter(|path| !path.contains('/') || is_companion(path))
        .filter(is_needed)
        .collect())
}
