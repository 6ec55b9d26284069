//! The recipe of a checkpoint, as its manifest carries it: with the files that it names, all that it takes to make the
//! checkpoint again.
//!
//! It holds the stages that the checkpoint follows from and no others, so that a change elsewhere in a recipe changes no
//! byte of it. A file outside the work folder, or one put into it by hand, is a source with a name. Settings write it
//! as `${name}`, and its path is recorded once, beside the stages.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The stages of a recipe that a checkpoint follows from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecipeRecord {
    /// Path of the checkpoint, relative to the work folder.
    pub output: String,
    /// Path of each source, relative to the folder of the manifest, with forward slashes. Once the checkpoint is published, it is
    /// `hf://ORG/NAME@COMMIT` for a source from the Hub, and the bare name for any other.
    pub sources: BTreeMap<String, String>,
    /// The stages in order; the last one wrote the checkpoint.
    pub stages: Vec<StageRecord>,
}

/// A stage of a recipe: its settings, its inputs, its outputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// Its name.
    pub name: String,
    /// The command: one of this program's, or `shell`.
    pub command: String,
    /// Settings of the command under the names that recipes use, each with its values.
    pub settings: BTreeMap<String, Vec<String>>,
    /// The file that its standard output was kept in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// The stages whose results it needs.
    pub needs: Vec<String>,
    /// SHA-256 of each file that it read, as seen from the work folder, or as `${source}/file`.
    pub inputs: BTreeMap<String, String>,
    /// SHA-256 of each file that it made, as seen from the work folder; none of the last stage, whose files the manifest
    /// itself lists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
}
