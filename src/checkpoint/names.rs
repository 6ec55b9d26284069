//! Names of the files of a checkpoint that readers, writers and errors share.

/// The single weight file of an unsharded folder.
pub const SINGLE: &str = "model.safetensors";
/// The index of a sharded folder.
pub const INDEX: &str = "model.safetensors.index.json";
/// The single weight file of an unsharded folder of PyTorch.
pub const PYTORCH: &str = "pytorch_model.bin";
/// The index of a sharded folder of PyTorch.
pub const PYTORCH_INDEX: &str = "pytorch_model.bin.index.json";
/// The model card.
pub const CARD: &str = "README.md";
/// The manifest of a checkpoint folder.
pub const MANIFEST: &str = "bam-manifest.json";
/// The record of a token folder.
pub const TOKENS: &str = "header.json";

/// The file whose lock holds a folder that is being written.
pub(crate) const LOCK: &str = ".lock";
/// What the writer of a checkpoint resumes from.
pub(crate) const PROGRESS: &str = ".progress.json";
/// Where a folder that was pulled says what it came from.
pub(crate) const ORIGIN: &str = ".hub.json";
/// The folder in a work folder in which the runner of recipes keeps its records.
pub(crate) const RUN_RECORDS: &str = ".bam-run";
