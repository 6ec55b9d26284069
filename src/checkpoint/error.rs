//! What can be wrong with the files of a checkpoint, and with the place of an output: one variant per broken rule.
//!
//! Errors of a safetensors header are in `header_error.rs`, inputs that are no checkpoint in `foreign_error.rs`.

use std::borrow::Cow;
use std::path::PathBuf;

use super::ggml::GgmlError;
use super::names::{INDEX, MANIFEST, SINGLE, TOKENS};
use crate::error::{ErrorPlace, Location};

/// A rule that a file of a checkpoint or an output breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    // ---- files
    /// A folder, a pipe or a device where a file is expected.
    #[error("{}: expected a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// A file that changed while it was read.
    #[error("{}: changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that a record lists and that is not there.
    #[error("{}: is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A record that lists something other than a file of its folder.
    #[error("{}: its record lists `{found}`, expected the name of a file in this folder", path.display())]
    RecordedPath {
        /// The folder.
        path: PathBuf,
        /// What the record lists.
        found: String,
    },
    /// A file of another length than recorded.
    #[error("{}: expected {expected} bytes, found {found}", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The recorded length.
        expected: u64,
        /// Its length.
        found: u64,
    },
    /// A file of another content than recorded.
    #[error("{}: expected SHA-256 {expected}, found {found}", path.display())]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// The recorded hash.
        expected: String,
        /// Its hash.
        found: String,
    },
    /// A text file that is too large to read whole.
    #[error("{}: expected at most {limit} bytes, found {found}", path.display())]
    LargeFile {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
        /// Its length.
        found: u64,
    },
    /// A text file that is not UTF-8.
    #[error("{}: expected UTF-8: {problem}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file that is not JSON.
    #[error("{}: expected JSON: {problem}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// JSON that is stricter here: a repeated key, or too many values.
    #[error("{}: {problem}", path.display())]
    StrictJson {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// A number that only Python's `json` module writes.
    #[error("{}: line {line}: JSON has no {word}, which Python's json module writes all the same", path.display())]
    PythonNumber {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// `NaN`, `Infinity` or `-Infinity`.
        word: &'static str,
    },
    /// JSON whose top level is no object.
    #[error("{}: expected a JSON object, found {found}", path.display())]
    NotObject {
        /// The file.
        path: PathBuf,
        /// The top level, in words.
        found: String,
    },
    /// A YAML file that does not follow its format.
    #[error("{}: {problem}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// A format version that this program does not read.
    #[error("{at}: key `{key}`: expected {expected}, found {found}")]
    Version {
        /// The file, and where in it.
        at: Location,
        /// The key of the version.
        key: &'static str,
        /// The version that this program reads.
        expected: u64,
        /// The value of the key, in words.
        found: String,
        /// Whether a newer program wrote the file.
        is_newer: bool,
    },
    /// A file that is no manifest.
    #[error("{}: not a manifest: {problem}", path.display())]
    NotManifest {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },

    // ---- weights
    /// A folder without weights.
    #[error("{}: no weights: expected {SINGLE}, {INDEX} with its shards, or one .gguf file", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A tensor that the checkpoint does not have.
    #[error("{}: tensor `{tensor}`: is missing", path.display())]
    NoTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name that is nearest.
        nearest: Option<String>,
    },
    /// A tensor in two files.
    #[error("{}: tensor `{tensor}`: is in {} too; expected each name in one file", path.display(), other.display())]
    RepeatedTensor {
        /// A file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The other file.
        other: PathBuf,
    },
    /// Values of a dtype that holds no real numbers.
    #[error("{}: expected a dtype that holds real numbers, found {dtype}", path.display())]
    NotNumbers {
        /// The file.
        path: PathBuf,
        /// The dtype.
        dtype: super::Dtype,
    },
    /// A quantised tensor that cannot be decoded.
    #[error("{}: {error}", path.display())]
    NotDequantised {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: GgmlError,
    },
    /// An index without the map of its tensors.
    #[error("{}: key `weight_map`: expected an object of tensor names and file names", path.display())]
    NoWeightMap {
        /// The index.
        path: PathBuf,
    },
    /// An index with something other than the name of a file.
    #[error("{}: key `{key}`: expected a file name", path.display())]
    NotAFileName {
        /// The index.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// An index that points out of its folder.
    #[error("{}: key `{key}`: expected the name of a file in this folder, found \"{found}\"", path.display())]
    OutsideFolder {
        /// The index.
        path: PathBuf,
        /// The key.
        key: String,
        /// The name.
        found: String,
    },
    /// A weight file that the index does not list.
    #[error("{}: is not listed in {INDEX}, which names other files", path.display())]
    Unlisted {
        /// The file.
        path: PathBuf,
    },
    /// A shard that the index lists and that is not there.
    #[error("{}: this shard is missing, but {INDEX} lists it", path.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
    },
    /// A tensor that the index lists in another file.
    #[error("{}: tensor `{tensor}`: is in this file, but {INDEX} lists it in {listed}", path.display())]
    ListedElsewhere {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file in the index.
        listed: String,
    },
    /// A tensor that the index lists and that its file does not hold.
    #[error("{}: tensor `{tensor}`: is missing from this file, but {INDEX} lists it", path.display())]
    NotHeld {
        /// The file in the index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Several weight files that are not one set.
    #[error("{}: expected one model, found {name} beside other weight files: {}", path.display(), names.join(", "))]
    SeveralModels {
        /// The folder.
        path: PathBuf,
        /// A file that is no shard.
        name: String,
        /// All weight files.
        names: Vec<String>,
    },
    /// Shards of two sets.
    #[error("{}: expected shards of one set of {count}, found {name} of a set of {other}", path.display())]
    TwoSets {
        /// The folder.
        path: PathBuf,
        /// Shards of the first set.
        count: u64,
        /// A shard of another set.
        name: String,
        /// Shards of that set.
        other: u64,
    },
    /// A shard twice.
    #[error("{}: expected each shard once, found {}", path.display(), names.join(", "))]
    RepeatedShard {
        /// The folder.
        path: PathBuf,
        /// All weight files.
        names: Vec<String>,
    },
    /// A set without one of its shards.
    #[error("{}: shard {missing} of {count} is missing; found {}", path.display(), names.join(", "))]
    IncompleteSet {
        /// The folder.
        path: PathBuf,
        /// Number of the shard.
        missing: u64,
        /// Shards of the set.
        count: u64,
        /// All weight files.
        names: Vec<String>,
    },

    // ---- outputs
    /// A path that names no folder.
    #[error("{}: expected the name of a folder to make", path.display())]
    NoFolderName {
        /// The path.
        path: PathBuf,
    },
    /// A path that names no file.
    #[error("{}: expected the name of a file to write", path.display())]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// An output in a source, or a source in the output.
    #[error("{}: the output and the source {} overlap", path.display(), source_path.display())]
    Overlap {
        /// The output.
        path: PathBuf,
        /// The source.
        source_path: PathBuf,
    },
    /// An output that is there.
    #[error("{}: exists already", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// An output file of another kind.
    #[error("{}: exists already, and is no {kind}", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// The kind that may be replaced.
        kind: String,
    },
    /// Something where the folder of a run should be.
    #[error("{}: is in the way: expected the folder of a run, or nothing", path.display())]
    RunInTheWay {
        /// What is there.
        path: PathBuf,
    },
    /// Something where a partial file should be.
    #[error("{}: is in the way: expected a file, or nothing", path.display())]
    FileInTheWay {
        /// What is there.
        path: PathBuf,
    },
    /// An output that another run writes.
    #[error("{}: another run is writing this output", path.display())]
    Busy {
        /// The output.
        path: PathBuf,
    },
    /// An output with files that bam-convert did not make.
    #[error(
        "{}: holds files that bam-convert did not make there: {others}; --force replaces only what the records in the folder list",
        path.display()
    )]
    OtherFiles {
        /// The output.
        path: PathBuf,
        /// Some of the files.
        others: String,
    },
    /// An output without a record of ours.
    #[error(
        "{}: exists and is neither a checkpoint nor a token folder that bam-convert made (no {MANIFEST}, no {TOKENS}), so --force does not replace it",
        path.display()
    )]
    NoRecord {
        /// The output.
        path: PathBuf,
    },
    /// Too little memory for the threads.
    #[error("--memory of {memory} bytes is too little for {threads} threads")]
    LittleMemory {
        /// Bytes of memory.
        memory: u64,
        /// The threads.
        threads: u64,
        /// The least memory in MiB.
        least: u64,
    },
    /// A text that names no repository of models.
    #[error("`{text}`: {problem}")]
    Reference {
        /// The text.
        text: String,
        /// What was expected.
        problem: &'static str,
    },
    /// A number that a GGUF key cannot hold.
    #[error("{value} does not fit the GGUF key `{key}`, which has 32 bits")]
    LargeGgufNumber {
        /// The number.
        value: u64,
        /// The key.
        key: String,
    },
}

impl CheckpointError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        const SHARD: &str = "copy or download the missing shard";
        Some(Cow::Borrowed(match self {
            Self::Changed { .. } => "wait until nothing writes to it, then run the command again",
            Self::PythonNumber { .. } => {
                "replace it by a finite number or null; `json.dump(…, allow_nan=False)` never writes it"
            }
            Self::Version { is_newer: true, .. } => {
                let own = env!("CARGO_PKG_VERSION");
                let hint = format!(
                    "a newer program wrote it: update bam-convert, which is version {own} here"
                );
                return Some(hint.into());
            }
            Self::Version { .. } => {
                "make it again, or use the version of bam-convert that wrote it"
            }
            Self::NoTensor { nearest, .. } => {
                let name = nearest.as_ref()?;
                return Some(format!("the nearest name in this checkpoint is `{name}`").into());
            }
            Self::OutsideFolder { .. } => "an index must not point outside its folder",
            Self::Unlisted { .. } => {
                "remove the stale one of the two, so that only one model is in the folder"
            }
            Self::MissingShard { .. } | Self::IncompleteSet { .. } => SHARD,
            Self::SeveralModels { .. } | Self::TwoSets { .. } | Self::RepeatedShard { .. } => {
                "keep one model in the folder, or add its model.safetensors.index.json"
            }
            Self::Overlap { .. } => "choose an output outside every source",
            Self::Exists { .. } => "choose another --out, or pass --force to replace it",
            Self::OtherKind { .. } => "choose another output",
            Self::RunInTheWay { .. } => "remove it, or choose another --out",
            Self::FileInTheWay { .. } => "remove it, or choose another output",
            Self::Busy { .. } => "wait for it to end, or choose another output",
            Self::OtherFiles { .. } => "move them to another folder, or choose another output",
            Self::NoRecord { .. } => "choose another output, or remove it yourself",
            Self::LittleMemory { least, .. } => {
                let hint = format!("pass --memory {least}MiB or more, or fewer --threads");
                return Some(hint.into());
            }
            Self::Reference { .. } => {
                "a repository is named as in hf://org/name, a revision of it as in hf://org/name@main"
            }
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Version { at, key, .. } => ErrorPlace::of(at).with_key(key),
            Self::NoWeightMap { path } => ErrorPlace::of(path).with_key("weight_map"),
            Self::NotAFileName { path, key } | Self::OutsideFolder { path, key, .. } => {
                ErrorPlace::of(path).with_key(key)
            }
            Self::NoTensor { path, tensor, .. }
            | Self::RepeatedTensor { path, tensor, .. }
            | Self::ListedElsewhere { path, tensor, .. }
            | Self::NotHeld { path, tensor } => ErrorPlace::of(path).with_tensor(tensor),
            Self::NotRegular { path }
            | Self::Changed { path }
            | Self::Missing { path }
            | Self::RecordedPath { path, .. }
            | Self::WrongLength { path, .. }
            | Self::WrongHash { path, .. }
            | Self::LargeFile { path, .. }
            | Self::NotUtf8 { path, .. }
            | Self::NotJson { path, .. }
            | Self::StrictJson { path, .. }
            | Self::PythonNumber { path, .. }
            | Self::NotObject { path, .. }
            | Self::Yaml { path, .. }
            | Self::NotManifest { path, .. }
            | Self::NoWeights { path }
            | Self::NotNumbers { path, .. }
            | Self::NotDequantised { path, .. }
            | Self::Unlisted { path }
            | Self::MissingShard { path }
            | Self::SeveralModels { path, .. }
            | Self::TwoSets { path, .. }
            | Self::RepeatedShard { path, .. }
            | Self::IncompleteSet { path, .. }
            | Self::NoFolderName { path }
            | Self::NoFileName { path }
            | Self::Overlap { path, .. }
            | Self::Exists { path }
            | Self::OtherKind { path, .. }
            | Self::RunInTheWay { path }
            | Self::FileInTheWay { path }
            | Self::Busy { path }
            | Self::OtherFiles { path, .. }
            | Self::NoRecord { path } => ErrorPlace::of(path),
            Self::LittleMemory { .. } | Self::Reference { .. } | Self::LargeGgufNumber { .. } => {
                ErrorPlace::default()
            }
        }
    }
}
