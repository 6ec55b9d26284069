//! What can be wrong with a request to train, and what stops a step: one variant per broken rule, and what to do next.
//!
//! Errors of the folder of a run are in `run_error.rs`.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::checkpoint::Dtype;
use crate::error::ErrorPlace;

/// A rule that a request to train, or a step, breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    // ---- settings
    /// A number outside of its range.
    #[error("{flag}: expected {expected}, found {found}")]
    OutOfRange {
        /// The flag.
        flag: &'static str,
        /// Its range in words.
        expected: &'static str,
        /// The number.
        found: f64,
    },
    /// A warm-up beyond the end of the run.
    #[error("--warmup: {warmup} steps are more than the run's {steps}")]
    LongWarmup {
        /// Steps of the warm-up.
        warmup: u64,
        /// Steps of the run.
        steps: u64,
    },
    /// A decay that does not fit between the warm-up and the end.
    #[error(
        "--decay-steps: expected 1 to {most} steps between the warm-up and the end of the run, found {found}"
    )]
    DecaySteps {
        /// Steps after the warm-up.
        most: u64,
        /// Steps of the decay.
        found: u64,
    },
    /// More tokens than can be counted.
    #[error(
        "--steps, --batch, --accumulate, --seq: expected less than 2^63 tokens in all, found \
         {steps} x {batch} x {accumulate} x {seq}"
    )]
    ManyTokens {
        /// Steps of the run.
        steps: u64,
        /// Rows of a batch.
        batch: usize,
        /// Batches of a step.
        accumulate: usize,
        /// Tokens of a row.
        seq: usize,
    },
    /// Rows beyond the model's context.
    #[error("--seq: {seq} tokens are more than the model's context of {longest}")]
    LongRows {
        /// Tokens of a row.
        seq: usize,
        /// The model's context.
        longest: u64,
    },
    /// Tokens that the model has no embeddings for.
    #[error("{}: its tokens have a vocabulary of {found}, more than the model's {expected}", path.display())]
    LargeVocabulary {
        /// The token folder.
        path: PathBuf,
        /// The model's embeddings.
        expected: u64,
        /// The vocabulary of the tokens.
        found: u64,
    },

    // ---- which parameters train
    /// Routers without the bias that balances their experts.
    #[error("{}: --bias-balancing: its routers have no bias that takes part in the choice", path.display())]
    NoRouterBias {
        /// The model.
        path: PathBuf,
    },
    /// A word that holds no parameter.
    #[error("{flag} {word}: the model has no parameters of this kind")]
    NoParameters {
        /// The flag.
        flag: &'static str,
        /// The word.
        word: String,
    },
    /// Nothing trains.
    #[error("everything is frozen: no parameter is left to train")]
    AllFrozen,
    /// An expert that the model does not have.
    #[error(
        "{flag} {word}: the model does not have this expert; its experts are {}",
        listed(experts)
    )]
    NoExpert {
        /// The flag.
        flag: &'static str,
        /// The word.
        word: String,
        /// The names of the model's experts.
        experts: Vec<String>,
    },
    /// A pattern of names that cannot be read.
    #[error("{flag} {word}: is no pattern: {source}")]
    NotPattern {
        /// The flag.
        flag: &'static str,
        /// The word.
        word: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },
    /// A word that names nothing.
    #[error(
        "{flag} {word}: expected one of {}, `expert:NAME`, a role such as q or down, or a pattern of tensor names",
        groups.join(", ")
    )]
    UnknownWord {
        /// The flag.
        flag: &'static str,
        /// The word.
        word: String,
        /// Words for groups of parameters.
        groups: &'static [&'static str],
        /// The nearest word that names something.
        nearest: Option<String>,
    },

    // ---- steps
    /// Rows too short to predict anything.
    #[error("a step has no token to predict")]
    NothingToPredict,
    /// A step whose gradients cannot be used, which stops the run.
    #[error("step {step}: {reason}; its batch is {rows}")]
    Stopped {
        /// The step, from 1.
        step: u64,
        /// Why it has no update.
        reason: BadStep,
        /// Its rows, by domain.
        rows: String,
    },

    // ---- saving
    /// A tensor in blocks of a GGML type.
    #[error("{}: tensor `{tensor}`: is quantised, expected plain numbers", path.display())]
    Quantised {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of integers.
    #[error("tensor `{tensor}` is stored as {found}, expected a floating-point dtype")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: Dtype,
    },
    /// Weights with NaN or infinities.
    #[error("tensor `{tensor}`: element {element} is no finite number in {dtype}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The element, from 0.
        element: usize,
        /// The dtype of the output.
        dtype: Dtype,
    },
    /// JSON that cannot be written.
    #[error("{what} cannot be written: {source}")]
    NotWritten {
        /// What was to be written.
        what: &'static str,
        /// What the library says.
        source: serde_json::Error,
    },
}

/// Why a step has no update.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadStep {
    /// NaN or infinities.
    #[error("{what} is not finite")]
    NotFinite {
        /// The loss, or the norm of the gradients.
        what: &'static str,
    },
    /// No token of it carries loss.
    #[error("no token of it carries loss")]
    NoAnswer,
    /// A norm far above those before.
    #[error(
        "the norm of the gradients is {norm:.3e}, more than {factor} times the mean {mean:.3e}"
    )]
    Spike {
        /// The norm.
        norm: f64,
        /// The factor that is allowed.
        factor: f64,
        /// The running mean.
        mean: f64,
    },
}

/// The names, or “none”.
fn listed(names: &[String]) -> Cow<'static, str> {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ").into()
    }
}

impl TrainError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::LongWarmup { .. } => "shorten the warm-up or lengthen the run",
            Self::LargeVocabulary { .. } => "tokenize the texts with this model's tokenizer",
            Self::NoRouterBias { .. } => {
                "make the mixture with `bam-convert upcycle --router-bias choice`"
            }
            Self::NoParameters { .. } => "`bam-convert inspect DIR --tensors` lists them",
            Self::AllFrozen => "leave out a --freeze, or name more in --train",
            Self::UnknownWord { nearest, .. } => {
                let nearest = nearest.as_ref()?;
                return Some(format!("the nearest known word is `{nearest}`").into());
            }
            Self::NothingToPredict => {
                "pass longer rows (--seq) or more of them (--batch): no token of them carries loss"
            }
            Self::Stopped { .. } => {
                "pass --on-nan skip or --on-spike FACTOR:skip to continue without these steps, or a smaller --learning-rate"
            }
            Self::NotFinite { .. } => "train with a smaller --learning-rate",
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::LargeVocabulary { path, .. } | Self::NoRouterBias { path } => {
                ErrorPlace::of(path)
            }
            Self::Quantised { path, tensor } => ErrorPlace::of(path).with_tensor(tensor),
            _ => ErrorPlace::default(),
        }
    }
}
