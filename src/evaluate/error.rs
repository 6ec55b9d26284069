//! Why an evaluation cannot be made of its inputs: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::error::{ErrorPlace, nearest};
use crate::family::ALL_ATTENTION_EXPERTS;

/// A rule that texts, tasks, prompts or logits break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    // ---- texts
    /// A window that scores nothing.
    #[error("expected a context of 2 tokens or more, found {found}")]
    Context {
        /// Tokens of a window.
        found: usize,
    },
    /// Windows beyond a model's context.
    #[error("{}: has a context of {longest} tokens, less than the {context} of --context", path.display())]
    LongWindows {
        /// The model.
        path: PathBuf,
        /// Tokens of a window.
        context: usize,
        /// The model's context.
        longest: u64,
    },
    /// Files without text.
    #[error("{}: expected text, found none", path.display())]
    NoText {
        /// The file or folder.
        path: PathBuf,
    },
    /// Texts without two tokens in a row, or conversations without an answer.
    #[error("{}: expected texts of at least two tokens, or answers, found none", path.display())]
    NoWindow {
        /// The file or folder.
        path: PathBuf,
    },
    /// A token folder without a validation split.
    #[error("{}: has no validation split to evaluate on", path.display())]
    NoValidation {
        /// The token folder.
        path: PathBuf,
    },
    /// A model whose logits are not finite.
    #[error("{}: its logits are not finite: NaN or infinity among them", path.display())]
    LogitsNotFinite {
        /// The model.
        path: PathBuf,
    },
    /// Other attention experts are asked for, but the model has none.
    #[error("{}: has no attention experts, so there is no top-k of them", path.display())]
    NoAttentionExperts {
        /// The model.
        path: PathBuf,
    },
    /// Some attention experts are asked for, but their gates are sigmoids.
    #[error("{}: attention_gate is sigmoid, so there is no top-k of attention experts", path.display())]
    SigmoidTopK {
        /// The model.
        path: PathBuf,
    },
    /// A file that is no result of `eval --json`.
    #[error("{}: expected the result of an evaluation: {problem}", path.display())]
    NotAResult {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// A file for a table whose name does not say its form.
    #[error("{}: expected a name that ends in .md, .csv or .tex", path.display())]
    TableEnding {
        /// The file.
        path: PathBuf,
    },
    /// A model that reads a domain as other tokens than the first model does.
    #[error("{}: its tokens of `{domain}` differ from the tokens of {}", path.display(), other.display())]
    TokensDiffer {
        /// The tokenizer.
        path: PathBuf,
        /// The domain.
        domain: String,
        /// The first model.
        other: PathBuf,
    },

    // ---- tasks
    /// A task without examples.
    #[error("{}: expected examples, found none", path.display())]
    NoExamples {
        /// The task.
        path: PathBuf,
    },
    /// A task with too few examples for the prompts.
    #[error("{}: {examples} examples are too few for {shots} shots", path.display())]
    FewExamples {
        /// The task.
        path: PathBuf,
        /// Its examples.
        examples: usize,
        /// Examples before each question.
        shots: usize,
    },
    /// An example with a value of another kind than a task has.
    #[error("{}: key `{key}`: line {line}: expected {expected}", path.display())]
    Example {
        /// The task.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The line, from 1.
        line: usize,
        /// What the key may hold.
        expected: Cow<'static, str>,
    },
    /// A prompt or a choice without tokens.
    #[error(
        "{}: expected a prompt and choices of at least one token each, found `{prompt}`", path.display()
    )]
    EmptyChoice {
        /// The task.
        path: PathBuf,
        /// The prompt.
        prompt: String,
    },

    // ---- logits
    /// A dump of another shape.
    #[error("{}: tensor `{tensor}`: expected a shape [seq, vocab], found {found:?}", path.display())]
    LogitsShape {
        /// The dump.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// Its shape.
        found: Vec<u64>,
    },
    /// A dump without elements.
    #[error("{}: tensor `{tensor}`: is empty", path.display())]
    LogitsEmpty {
        /// The dump.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
    },
    /// A dump with NaN or infinity.
    #[error("{}: tensor `{tensor}`: element {element} is {value}", path.display())]
    LogitNotFinite {
        /// The dump.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// The first element that is not finite.
        element: usize,
        /// Its value.
        value: f64,
    },
    /// Logits of different shapes.
    #[error(
        "{}: its logits have shape {found:?}, but the logits of {} have {expected:?}", path.display(), other.display()
    )]
    LogitsDiffer {
        /// The second model or dump.
        path: PathBuf,
        /// The shape of its logits.
        found: [usize; 2],
        /// The first model or dump.
        other: PathBuf,
        /// The shape of its logits.
        expected: [usize; 2],
    },
    /// A file that is no list of token ids.
    #[error("{}: expected a JSON array of token ids: {problem}", path.display())]
    NotTokens {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// An empty list of token ids.
    #[error("{}: expected at least one token id, found none", path.display())]
    NoTokens {
        /// The file.
        path: PathBuf,
    },

    // ---- router rows from prompts
    /// An expert without positive prompts.
    #[error("{}: has no positive_prompts for `{name}`, expected at least one", path.display())]
    NoPositivePrompts {
        /// The file of prompts.
        path: PathBuf,
        /// The expert.
        name: String,
    },
    /// Two experts with the same prompts.
    #[error("{}: has the same prompts for `{first}` and `{second}`: their rows would tie", path.display())]
    SamePrompts {
        /// The file of prompts.
        path: PathBuf,
        /// An expert.
        first: String,
        /// Another expert.
        second: String,
    },
    /// Prompts for an expert that the mixture does not have.
    #[error("{}: has prompts for `{name}`, but the experts are {}", path.display(), experts.join(", "))]
    UnknownExpert {
        /// The file of prompts.
        path: PathBuf,
        /// The name.
        name: String,
        /// The experts of the mixture.
        experts: Vec<String>,
    },
    /// Prompts for one expert twice.
    #[error("{}: has `{name}` twice, expected each expert once", path.display())]
    RepeatedExpert {
        /// The file of prompts.
        path: PathBuf,
        /// The expert.
        name: String,
    },
    /// An expert without prompts.
    #[error("{}: has no prompts for the expert `{name}`", path.display())]
    NoPrompts {
        /// The file of prompts.
        path: PathBuf,
        /// The expert.
        name: String,
    },
    /// A gate mode of mergekit that does not use prompts.
    #[error("{}: key `gate_mode`: is `{mode}`, expected one that makes rows of prompts", path.display())]
    GateMode {
        /// The file of mergekit.
        path: PathBuf,
        /// The mode.
        mode: String,
    },
    /// More or fewer experts than the mixture has.
    #[error(
        "{}: has {found} experts, but the mixture has {}: {}", path.display(), experts.len(), experts.join(", ")
    )]
    ExpertCount {
        /// The file of mergekit.
        path: PathBuf,
        /// Experts of the file.
        found: usize,
        /// Experts of the mixture.
        experts: Vec<String>,
    },
    /// A prompt without tokens.
    #[error("{}: holds an empty prompt, expected text", path.display())]
    EmptyPrompt {
        /// The file of prompts.
        path: PathBuf,
    },
    /// Prompts whose row has no direction.
    #[error("{}: gives the expert `{name}` a row of length {length} in layer {layer}", path.display())]
    RowLength {
        /// The file of prompts.
        path: PathBuf,
        /// The expert.
        name: String,
        /// Length of the row.
        length: f64,
        /// The layer.
        layer: usize,
    },
}

impl EvaluateError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::LongWindows { longest, .. } => {
                return Some(format!("pass --context {longest} or less").into());
            }
            Self::NoValidation { .. } => "tokenize with --validation, or name the texts themselves",
            Self::LogitsNotFinite { .. } => {
                "`bam-convert validate` names the tensors that hold NaN or infinity"
            }
            Self::NotAResult { .. } => "write one with `bam-convert eval … --json > FILE.json`",
            Self::TokensDiffer { .. } => {
                "perplexities of different tokens cannot be compared: evaluate the models apart, and compare bits per byte"
            }
            Self::LogitsDiffer { .. } => {
                "only models of one vocabulary, on the same tokens, can be compared"
            }
            Self::UnknownExpert { name, experts, .. } => {
                let near = nearest(name, experts.iter().map(String::as_str))?;
                return Some(format!("did you mean `{near}`?").into());
            }
            Self::NoPrompts { .. } => {
                "`seed` is the seed itself, expert 0; --no-seed-expert leaves it out"
            }
            Self::ExpertCount { .. } => {
                "rows are given in the order of the experts; with experts of your own, pass --router too"
            }
            Self::EmptyPrompt { .. } => "each prompt needs at least one token",
            Self::RowLength { .. } => {
                "positive and negative prompts must differ, and the model's weights be finite"
            }
            Self::SigmoidTopK { .. } => ALL_ATTENTION_EXPERTS,
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Context { .. } => ErrorPlace::default(),
            Self::Example { path, key, .. } => ErrorPlace::of(path).with_key(key),
            Self::GateMode { path, .. } => ErrorPlace::of(path).with_key("gate_mode"),
            Self::LogitsShape { path, tensor, .. }
            | Self::LogitsEmpty { path, tensor }
            | Self::LogitNotFinite { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
            Self::NoText { path }
            | Self::NoWindow { path }
            | Self::NoValidation { path }
            | Self::LongWindows { path, .. }
            | Self::LogitsNotFinite { path }
            | Self::NoAttentionExperts { path }
            | Self::SigmoidTopK { path }
            | Self::NotAResult { path, .. }
            | Self::TableEnding { path }
            | Self::TokensDiffer { path, .. }
            | Self::NoExamples { path }
            | Self::FewExamples { path, .. }
            | Self::EmptyChoice { path, .. }
            | Self::LogitsDiffer { path, .. }
            | Self::NotTokens { path, .. }
            | Self::NoTokens { path }
            | Self::NoPositivePrompts { path, .. }
            | Self::SamePrompts { path, .. }
            | Self::UnknownExpert { path, .. }
            | Self::RepeatedExpert { path, .. }
            | Self::NoPrompts { path, .. }
            | Self::ExpertCount { path, .. }
            | Self::EmptyPrompt { path }
            | Self::RowLength { path, .. } => ErrorPlace::of(path),
        }
    }
}
