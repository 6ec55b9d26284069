//! What a configuration file of mergekit can ask for that bam-convert does not do.

use std::borrow::Cow;
use std::path::PathBuf;

use super::names::{FLOATS, GATE_MODES, METHODS, OTHER_METHODS};
use crate::error::{ErrorPlace, Location, nearest, one_of};

/// A rule that a configuration file breaks, with the line of the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergekitError {
    /// A merge method of mergekit that bam-convert does not have.
    #[error(
        "{at}: key `merge_method`: found `{found}`, which only mergekit runs; expected {}",
        one_of(METHODS)
    )]
    OtherMethod {
        /// Where the method is named.
        at: Location,
        /// The method.
        found: String,
    },
    /// A merge method that mergekit does not have either.
    #[error(
        "{at}: key `merge_method`: found `{found}`, expected {}",
        one_of(METHODS)
    )]
    UnknownMethod {
        /// Where the method is named.
        at: Location,
        /// The method.
        found: String,
    },
    /// A merge of parts of models.
    #[error("{at}: key `{key}`: is not supported, expected `models` or `slices`")]
    PartsOfModels {
        /// Where the key is.
        at: Location,
        /// `modules`.
        key: &'static str,
    },
    /// Whole models and slices of models in one file.
    #[error("{at}: key `slices`: is there beside `models`, expected one of both")]
    ModelsAndSlices {
        /// Where the slices are.
        at: Location,
    },
    /// A slice that starts from a model which it has no layers of.
    #[error("{at}: key `base_model`: is none of the models of its slice, expected one of them")]
    SliceBase {
        /// Where the base is named.
        at: Location,
    },
    /// A weight of a slice that is declared by mergekit and has no effect there.
    #[error("{at}: key `residual_weight`: is not supported")]
    ResidualWeight {
        /// Where it is.
        at: Location,
    },
    /// Another tokenizer or chat template than the base model's.
    #[error(
        "{at}: key `{key}`: is not supported: the output has the base model's tokenizer and chat template as they are"
    )]
    OwnTokenizer {
        /// Where the key is.
        at: Location,
        /// `tokenizer` or `chat_template`.
        key: &'static str,
    },
    /// A tokenizer from elsewhere than the base model.
    #[error(
        "{at}: key `tokenizer_source`: expected `base`, the one that is supported, found `{found}`"
    )]
    TokenizerSource {
        /// Where the key is.
        at: Location,
        /// The source.
        found: String,
    },
    /// A list that must not be empty.
    #[error("{at}: key `{key}`: is empty, expected at least one {item}")]
    EmptyList {
        /// Where the list is.
        at: Location,
        /// The key of the list.
        key: &'static str,
        /// What the list holds.
        item: &'static str,
    },
    /// A value that no parameter has.
    #[error("{at}: key `{key}`: {problem}")]
    Parameter {
        /// Where the value is.
        at: Location,
        /// The parameter.
        key: String,
        /// What was expected and found.
        problem: String,
    },
    /// A model without a weight.
    #[error(
        "{at}: key `weight`: is missing: expected `parameters: {{weight: NUMBER}}` at each model"
    )]
    NoWeight {
        /// Where the model is named.
        at: Location,
    },
    /// A file where the folder of a model is expected.
    #[error(
        "{at}: key `{key}`: `{}` is a file, expected a folder with config.json and weights", path.display()
    )]
    FileAsModel {
        /// Where the model is named.
        at: Location,
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A model that is not there.
    #[error("{at}: key `{key}`: there is no folder `{}`", path.display())]
    NoFolder {
        /// Where the model is named.
        at: Location,
        /// The key.
        key: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// A dtype that torch does not have, or that holds no floating-point numbers.
    #[error("{at}: key `{key}`: expected one of {}, found `{found}`", FLOATS.join(", "))]
    Dtype {
        /// Where the dtype is named.
        at: Location,
        /// The key.
        key: &'static str,
        /// The name.
        found: String,
    },
    /// The shared expert is a model that is not otherwise part of the mixture.
    #[error(
        "{at}: key `shared_experts`: is neither base_model nor among the experts, expected one of them"
    )]
    SharedExpert {
        /// Where the model is named.
        at: Location,
    },
    /// More than one shared expert.
    #[error("{at}: key `shared_experts`: expected at most one, found {found}")]
    SharedExperts {
        /// Where the list is.
        at: Location,
        /// Experts in the list.
        found: usize,
    },
    /// An output that mergekit does not have.
    #[error("{at}: key `architecture`: expected the beginning of {}, found `{found}`", one_of(known.iter().copied()))]
    UnknownArchitecture {
        /// Where the key is.
        at: Location,
        /// The names of mergekit's outputs.
        known: Vec<&'static str>,
        /// The name.
        found: String,
    },
    /// The output that mergekit would choose is DeepSeek-MoE.
    #[error(
        "{at}: key `{key}`: asks for DeepSeek-MoE, which runs only with code from the Hub and is not written here"
    )]
    DeepSeek {
        /// Where the key is.
        at: Location,
        /// `architecture`, `shared_experts` or `base_model`.
        key: &'static str,
        /// An `architecture` that holds the same experts.
        instead: &'static str,
    },
    /// No output holds the experts.
    #[error(
        "{at}: key `{key}`: no output holds experts of `{family}` models beside {shared} shared expert(s)"
    )]
    NoOutput {
        /// Where the key is.
        at: Location,
        /// `architecture`, `shared_experts` or `base_model`.
        key: &'static str,
        /// The family of the models.
        family: String,
        /// Shared experts.
        shared: usize,
    },
    /// Experts per token out of range.
    #[error(
        "{at}: key `experts_per_token`: expected 1 to {experts}, the number of experts, found {found}"
    )]
    ExpertsPerToken {
        /// Where the key is.
        at: Location,
        /// Experts of the mixture.
        experts: u64,
        /// The value.
        found: u64,
    },
    /// An expert without prompts in a mode that needs some.
    #[error(
        "{at}: key `positive_prompts`: has no prompts, from which gate_mode `{mode}` makes an expert's router row"
    )]
    NoPrompts {
        /// Where the expert is named.
        at: Location,
        /// The gate mode.
        mode: String,
    },
    /// A gate mode that mergekit does not have.
    #[error(
        "{at}: key `gate_mode`: expected {}, found `{found}`",
        one_of(GATE_MODES)
    )]
    GateMode {
        /// Where the key is.
        at: Location,
        /// The mode.
        found: String,
    },
}

impl MergekitError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let near = |found: &str, known: &[&'static str]| {
            let name = nearest(found, known.iter().copied())?;
            Some(format!("the nearest is `{name}`").into())
        };
        Some(Cow::Borrowed(match self {
            Self::OtherMethod { .. } => {
                "run the file with mergekit-yaml, then give its output to bam-convert"
            }
            Self::UnknownMethod { found, .. } => {
                let near = nearest(found, OTHER_METHODS.into_iter().chain(METHODS))?;
                return Some(format!("the nearest method of mergekit is `{near}`").into());
            }
            Self::OwnTokenizer { .. } | Self::ResidualWeight { .. } => "leave it out",
            Self::SliceBase { .. } => "add its layers to `sources`",
            Self::TokenizerSource { .. } => {
                "models must share a tokenizer: embeddings are averaged by token id"
            }
            Self::NoWeight { .. } => "or one for all, in `parameters` at the top",
            Self::NoFolder { .. } => {
                "paths are relative to the current folder; write a repository of the Hub as org/name"
            }
            Self::Dtype { found, .. } => {
                return near(found.strip_prefix("torch.").unwrap_or(found), &FLOATS);
            }
            Self::SharedExpert { .. } => "list the model as an expert too",
            Self::DeepSeek { instead, .. } => {
                let hint = format!("say `architecture: {instead}`, which holds the same experts");
                return Some(hint.into());
            }
            Self::NoOutput { .. } => {
                "mixtral holds llama and mistral, qwen2_moe these and qwen2 beside one shared expert, qwen3_moe qwen3"
            }
            Self::NoPrompts { .. } => "give each expert positive_prompts, or say gate_mode: random",
            Self::GateMode { found, .. } => return near(found, &GATE_MODES),
            Self::PartsOfModels { .. }
            | Self::ModelsAndSlices { .. }
            | Self::EmptyList { .. }
            | Self::Parameter { .. }
            | Self::FileAsModel { .. }
            | Self::SharedExperts { .. }
            | Self::UnknownArchitecture { .. }
            | Self::ExpertsPerToken { .. } => return None,
        }))
    }

    /// The key and its line.
    pub fn place(&self) -> ErrorPlace<'_> {
        let (at, key) = match self {
            Self::OtherMethod { at, .. } | Self::UnknownMethod { at, .. } => (at, "merge_method"),
            Self::PartsOfModels { at, key }
            | Self::OwnTokenizer { at, key }
            | Self::EmptyList { at, key, .. }
            | Self::FileAsModel { at, key, .. }
            | Self::NoFolder { at, key, .. }
            | Self::Dtype { at, key, .. }
            | Self::DeepSeek { at, key, .. }
            | Self::NoOutput { at, key, .. } => (at, *key),
            Self::TokenizerSource { at, .. } => (at, "tokenizer_source"),
            Self::ModelsAndSlices { at } => (at, "slices"),
            Self::SliceBase { at } => (at, "base_model"),
            Self::ResidualWeight { at } => (at, "residual_weight"),
            Self::Parameter { at, key, .. } => (at, key.as_str()),
            Self::NoWeight { at } => (at, "weight"),
            Self::SharedExpert { at } | Self::SharedExperts { at, .. } => (at, "shared_experts"),
            Self::UnknownArchitecture { at, .. } => (at, "architecture"),
            Self::ExpertsPerToken { at, .. } => (at, "experts_per_token"),
            Self::NoPrompts { at, .. } => (at, "positive_prompts"),
            Self::GateMode { at, .. } => (at, "gate_mode"),
        };
        ErrorPlace::of(at).with_key(key)
    }
}
