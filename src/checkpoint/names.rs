//! Names of the files of a checkpoint that readers, writers and errors share.

/// The single weight file of an unsharded folder.
pub const SINGLE: &str = "model.safetensors";
/// The index of a sharded folder.
pub const INDEX: &str = "model.safetensors.index.json";
/// The model card.
pub const CARD: &str = "README.md";
/// The manifest of a checkpoint folder.
pub const MANIFEST: &str = "bam-manifest.json";
/// The record of a token folder.
pub const TOKENS: &str = "header.json";
