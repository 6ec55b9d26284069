//! Why a GGUF file cannot be read as a model, or a model not be written as one: one variant per broken rule, and what to do next.
//!
//! Missing keys, and values of another type or outside of their range, are in [`InputError`](crate::error::InputError).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::architecture::Architecture;
use super::role::Role;
use crate::error::ErrorPlace;

/// The key that says of which architecture a file is.
pub(super) const ARCHITECTURE: &str = "general.architecture";

/// The key of the tokens.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// The key of the kind of vocabulary.
pub(super) const MODEL: &str = "tokenizer.ggml.model";

/// The key that says how text is split into words.
pub(super) const PRE: &str = "tokenizer.ggml.pre";

/// The key of the merges.
pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// What to do with a model that llama.cpp would compute otherwise.
const ELSEWHERE: &str = "llama.cpp would compute other logits: run the Hugging Face folder";

/// A rule that a model in GGUF, or a model on its way into GGUF, breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufModelError {
    // ---- reading
    /// An architecture that is not read.
    #[error("{}: key `{ARCHITECTURE}`: is `{found}`, which is not read", path.display())]
    OtherArchitecture {
        /// The file.
        path: PathBuf,
        /// The architectures that are read.
        known: Vec<&'static str>,
        /// The architecture.
        found: String,
    },
    /// A file with experts of an architecture without, or the other way round.
    #[error("{}: key `{ARCHITECTURE}`: {}", path.display(), if *has_experts {
        "is of models without experts, but this file has some"
    } else {
        "is of models with experts, but this file has none"
    })]
    OtherExperts {
        /// The file.
        path: PathBuf,
        /// Whether the file has experts.
        has_experts: bool,
    },
    /// A tensor that the architecture does not have.
    #[error("{}: tensor `{tensor}`: is no tensor of a {architecture} model", path.display())]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: String,
    },
    /// A tensor of another shape than the metadata says.
    #[error("{}: tensor `{tensor}`: expected shape {expected:?} from the metadata, found {found:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that follows from the metadata.
        expected: Box<[u64]>,
        /// Its shape.
        found: Box<[u64]>,
    },
    /// A bias that is not there, though transformers would expect it.
    #[error(
        "{}: tensor `{tensor}`: is missing{}",
        path.display(),
        present.as_ref().map_or_else(
            || format!("; a Hugging Face {family} has a bias there"),
            |present| format!(" though `{present}` is there; a Hugging Face {family} has a bias beside each or none"),
        )
    )]
    NoBias {
        /// The file.
        path: PathBuf,
        /// The bias.
        tensor: String,
        /// A bias that is there and belongs to the same module.
        present: Option<String>,
        /// The family.
        family: Box<str>,
    },

    // ---- rotary positions
    /// Another number of frequency factors than a head has frequencies.
    #[error(
        "{}: tensor `{tensor}`: expected shape [{expected}], half the head dimension, found [{found}]", path.display()
    )]
    FactorsShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Frequencies of a head.
        expected: u64,
        /// Factors in the tensor.
        found: usize,
    },
    /// Frequency factors beside another scaling.
    #[error(
        "{}: tensor `{tensor}`: scales the rotary embedding, and so does `{key}` = `{kind}`; expected one of them",
        path.display()
    )]
    TwoScalings {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The key of the other scaling.
        key: String,
        /// Its kind.
        kind: String,
    },
    /// Frequency factors of a scaling that is not known.
    #[error(
        "{}: tensor `{tensor}`: holds frequency factors that are no `llama3` scaling with low and high frequency factors 1 and 4",
        path.display()
    )]
    UnknownFactors {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A setting of YaRN that transformers does not have.
    #[error("{}: key `{key}`: is no setting of YaRN that transformers has", path.display())]
    UnknownYarn {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },

    // ---- vocabularies that are read
    /// A file without tokens.
    #[error("{}: key `{TOKENS}`: is missing or empty; expected the vocabulary", path.display())]
    NoVocabulary {
        /// The file.
        path: PathBuf,
    },
    /// A token with two ids.
    #[error("{}: key `{TOKENS}`: expected each token once, found {token:?} as id {first} and id {second}", path.display())]
    RepeatedToken {
        /// The file.
        path: PathBuf,
        /// The beginning of the token.
        token: String,
        /// Its first id.
        first: usize,
        /// Its second id.
        second: usize,
    },
    /// A kind of vocabulary that is not read.
    #[error("{}: key `{MODEL}`: expected `gpt2` or `llama`, found `{found}`", path.display())]
    UnknownVocabulary {
        /// The file.
        path: PathBuf,
        /// The kind.
        found: String,
    },
    /// A split into words that is not known.
    #[error("{}: key `{PRE}`: expected one of {}, found `{found}`", path.display(), known.join(", "))]
    UnknownSplit {
        /// The file.
        path: PathBuf,
        /// The known names of splits.
        known: Vec<&'static str>,
        /// The name.
        found: String,
    },
    /// A merge of anything but two tokens.
    #[error(
        "{}: key `{MERGES}`: merge {index}: expected two tokens whose union is a token, found {found:?}", path.display()
    )]
    Merge {
        /// The file.
        path: PathBuf,
        /// The merge, from 0.
        index: usize,
        /// Its beginning.
        found: String,
    },
    /// A file of the tokenizer that cannot be written as JSON.
    #[error("{name}: {problem}")]
    TokenizerFile {
        /// The file.
        name: &'static str,
        /// What the writer says.
        problem: String,
    },

    // ---- vocabularies that are written
    /// A tokenizer of another form than `tokenizer.json`.
    #[error("{}: is no tokenizer.json, from which a GGUF vocabulary is made", path.display())]
    SlowTokenizer {
        /// The file of the tokenizer.
        path: PathBuf,
    },
    /// A split into words that llama.cpp has no name for.
    #[error(
        "{}: key `pre_tokenizer`: splits text in a way that llama.cpp has no name for, as far as known here",
        path.display()
    )]
    UnnamedSplit {
        /// The `tokenizer.json`.
        path: PathBuf,
    },
    /// Tokens around a text that a GGUF file cannot say.
    #[error(
        "{}: key `post_processor`: has a {kind} that adds other tokens than the first and the last of a text (bos, eos), which a GGUF file cannot say",
        path.display()
    )]
    AddsOthers {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The type of the step.
        kind: String,
    },

    // ---- writing
    /// A family that llama.cpp has no names for.
    #[error("the family {family} has no GGUF names")]
    NoNames {
        /// The family.
        family: String,
    },
    /// A number that an architecture has no metadata key for.
    #[error("the GGUF architecture `{architecture}` has no key for `{field}`")]
    NoKey {
        /// The architecture.
        architecture: String,
        /// The number.
        field: &'static str,
    },
    /// A tensor that GGUF has no place for.
    #[error("`{role}` tensors such as `{tensor}` have no place in GGUF")]
    NoTensorName {
        /// The role of the tensor.
        role: Role,
        /// The tensor.
        tensor: String,
    },
    /// A model of a family that has no section `gguf`.
    #[error("{}: {family} models are not written as GGUF", path.display())]
    NotWritten {
        /// The folder of the model.
        path: PathBuf,
        /// The family of the model.
        family: Box<str>,
        /// The families that are written.
        known: Vec<String>,
    },
    /// A model that llama.cpp would compute otherwise.
    #[error(
        "{}: the GGUF architecture `{architecture}` cannot hold this {family} model: {}", path.display(), reasons.join("; ")
    )]
    CannotHold {
        /// The folder of the model.
        path: PathBuf,
        /// The architecture.
        architecture: Box<str>,
        /// The family of the model.
        family: Box<str>,
        /// What the architecture has instead, one reason each.
        reasons: Vec<String>,
    },
}

impl GgufModelError {
    /// Refuses the model in the folder `path` for these reasons; with none of them it can be written.
    pub(super) fn of_reasons(
        path: &Path,
        architecture: &str,
        model: &Architecture,
        reasons: Vec<String>,
    ) -> crate::Result<()> {
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Self::CannotHold {
            path: path.to_path_buf(),
            architecture: architecture.into(),
            family: model.family.as_str().into(),
            reasons,
        }
        .into())
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::OtherArchitecture { known, .. } => {
                return Some(
                    format!(
                        "take the model's safetensors, or load the file in transformers with gguf_file=… and save it with save_pretrained; \
                         `bam-convert inspect` shows what it holds; architectures that are read: {}",
                        known.join(", ")
                    )
                    .into(),
                );
            }
            Self::UnknownTensor { .. } => {
                "the model has parts that its architecture does not have: take its safetensors"
            }
            Self::UnknownFactors { .. } => {
                "take config.json from the original model: a GGUF file does not say which scaling has these factors"
            }
            Self::UnknownVocabulary { .. } => "take tokenizer.json from the original model",
            Self::UnknownSplit { .. } => {
                "how this vocabulary splits text is not known: take tokenizer.json from the original model"
            }
            Self::SlowTokenizer { .. } => "save the tokenizer with transformers as a fast one",
            Self::NoNames { .. } => "say them in a section `gguf` of its format file",
            Self::NoKey { .. } => "name it under `gguf.keys` of the format file",
            Self::NotWritten { known, .. } => {
                return Some(format!("families that are written: {}", known.join(", ")).into());
            }
            Self::CannotHold { .. } => ELSEWHERE,
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        let (path, key) = match self {
            Self::OtherArchitecture { path, .. } | Self::OtherExperts { path, .. } => {
                (path, ARCHITECTURE)
            }
            Self::NoVocabulary { path } | Self::RepeatedToken { path, .. } => (path, TOKENS),
            Self::UnknownVocabulary { path, .. } => (path, MODEL),
            Self::UnknownSplit { path, .. } => (path, PRE),
            Self::Merge { path, .. } => (path, MERGES),
            Self::UnnamedSplit { path } => (path, "pre_tokenizer"),
            Self::AddsOthers { path, .. } => (path, "post_processor"),
            Self::UnknownYarn { path, key } => (path, key.as_str()),
            Self::UnknownTensor { path, tensor, .. }
            | Self::WrongShape { path, tensor, .. }
            | Self::NoBias { path, tensor, .. }
            | Self::FactorsShape { path, tensor, .. }
            | Self::TwoScalings { path, tensor, .. }
            | Self::UnknownFactors { path, tensor } => {
                return ErrorPlace::of(path).with_tensor(tensor);
            }
            Self::SlowTokenizer { path }
            | Self::NotWritten { path, .. }
            | Self::CannotHold { path, .. } => {
                return ErrorPlace::of(path);
            }
            Self::TokenizerFile { .. }
            | Self::NoNames { .. }
            | Self::NoKey { .. }
            | Self::NoTensorName { .. } => return ErrorPlace::default(),
        };
        ErrorPlace::of(path).with_key(key)
    }
}
