//! What the experts of a mixture are called.

use std::path::Path;

use serde_json::Value;

use super::architecture::Architecture;
use super::config::Config;
use super::error::FamilyError;
use crate::Result;
use crate::checkpoint::Manifest;

/// Names of the feed-forward experts of the checkpoint in `folder`, as its configuration or its manifest tells them, else
/// their numbers; none if dense.
pub fn expert_names(folder: &Path, architecture: &Architecture) -> Result<Vec<String>> {
    let Some(mixture) = &architecture.mixture else {
        return Ok(Vec::new());
    };
    let experts = mixture.num_experts as usize;
    let listed = |names: Option<&Value>| {
        let names: Vec<String> = names?
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        Some(names).filter(|names| names.len() == experts)
    };
    if let Some(names) = listed(Config::read(folder)?.json.get("expert_names")) {
        return Ok(names);
    }
    let recorded =
        Manifest::read(folder)?.and_then(|manifest| listed(manifest.settings.get("experts")));
    Ok(recorded.unwrap_or_else(|| (0..experts).map(|expert| expert.to_string()).collect()))
}

/// The experts that are called `wanted`, or the one of that number; `folder` only names the place in errors.
pub fn find_experts(folder: &Path, names: &[String], wanted: &str) -> Result<Vec<usize>> {
    let found: Vec<usize> = (0..names.len())
        .filter(|expert| names[*expert] == wanted)
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if let Some(expert) = wanted
        .parse::<usize>()
        .ok()
        .filter(|expert| *expert < names.len())
    {
        return Ok(vec![expert]);
    }
    Err(FamilyError::NoExpert {
        path: folder.to_path_buf(),
        found: wanted.to_owned(),
        names: names.to_vec(),
    }
    .into())
}
