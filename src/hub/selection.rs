//! Which files of a repository are wanted: what a checkpoint needs, or what patterns say.

use glob::Pattern;

use super::tree::{ContentHash, Snapshot};
use crate::checkpoint::folder::{CARD, COMPANIONS, INDEX, wanted_weights};
use crate::checkpoint::manifest::MANIFEST;
use crate::error::{HubFault, nearest};
use crate::{Error, Result};

/// Files beside weights and tokenizer that belong to a checkpoint.
const BESIDE: [&str; 4] = ["config.json", INDEX, MANIFEST, CARD];

/// Patterns of paths, in which `*` matches `/` too, as in Python.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Selection {
    /// Reads patterns; without any to include, what a checkpoint needs is meant.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let read = |patterns: &[String]| -> Result<Vec<Pattern>> {
            let read = |text: &String| {
                Pattern::new(text).map_err(|e| {
                    Error::usage(format!("expected a pattern of paths, found `{text}`: {e}"))
                })
            };
            patterns.iter().map(read).collect()
        };
        Ok(Self {
            include: read(include)?,
            exclude: read(exclude)?,
        })
    }

    /// The paths that are wanted, in order.
    ///
    /// # Errors
    /// A repository in which no weights can be read, or several models lie side by side; patterns that match nothing; a
    /// file of which the Hub tells no hash.
    pub fn choose<'a>(&self, snapshot: &'a Snapshot) -> Result<Vec<&'a str>> {
        let paths = || snapshot.files.keys().map(String::as_str);
        let chosen: Vec<&str> = match self.include.is_empty() {
            false => paths()
                .filter(|path| matches_any(&self.include, path))
                .collect(),
            true => needed(snapshot)?,
        };
        let chosen: Vec<&str> = chosen
            .into_iter()
            .filter(|path| !matches_any(&self.exclude, path))
            .collect();
        if chosen.is_empty() {
            let error = Error::usage(format!(
                "{}: no file matches what is included and not excluded",
                snapshot.place()
            ));
            let wanted = self.include.first().map_or("", Pattern::as_str);
            return Err(match nearest(wanted, paths()) {
                Some(path) => error.with_hint(format!("the nearest path there is `{path}`")),
                None => error.with_hint("--dry-run without patterns lists what would be pulled"),
            });
        }
        if let Some(path) = chosen
            .iter()
            .find(|path| snapshot.files[**path].hash == ContentHash::Unknown)
        {
            let problem = format!(
                "expected the hash of `{path}` in the list of files or in its ETag, found none"
            );
            return Err(Error::hub(snapshot.place(), HubFault::Answer, problem).with_hint(
                "what cannot be checked is not pulled: leave it out with --exclude, or pull from a Hub that tells hashes",
            ));
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
    let refused = |problem: String| Error::usage(format!("{}: {problem}", snapshot.place()));
    let list = "name files with --include; --include '*' --dry-run lists them all";
    if weights.is_empty() {
        let pickles = top
            .iter()
            .find(|path| path.ends_with(".bin") || path.ends_with(".pth") || path.ends_with(".pt"));
        let found = pickles.map_or("none".to_owned(), |path| format!("{path}, a pickle"));
        return Err(refused(format!(
            "expected weights as safetensors or GGUF, found {found}"
        ))
        .with_hint(list));
    }
    if weights.len() > 1 && weights.iter().all(|path| path.ends_with(".gguf")) {
        return Err(refused(format!(
            "expected one GGUF file, found {}",
            weights.join(", ")
        ))
        .with_hint(list));
    }
    let is_needed = |path: &&str| {
        weights.contains(path)
            || BESIDE.contains(path)
            || COMPANIONS.contains(path)
            || ["configuration_", "modeling_"]
                .iter()
                .any(|start| path.starts_with(start) && path.ends_with(".py"))
            || ["license", "licence", "notice"]
                .iter()
                .any(|start| path.to_lowercase().starts_with(start))
    };
    Ok(top.into_iter().filter(is_needed).collect())
}
