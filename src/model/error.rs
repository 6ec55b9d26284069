//! What can be wrong with a request to a model: one variant per broken rule, and what to do next.
//!
//! Errors of tokenizers are in `tokenizer_error.rs`, and errors of chat templates in `chat/error.rs`.

use std::borrow::Cow;
use std::path::PathBuf;

use candle_core::DType;

use crate::checkpoint::{Dtype, Encoding};
use crate::error::ErrorPlace;
use crate::family::{ALL_ATTENTION_EXPERTS, Role};

/// A rule that a request to load, run or sample a model breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    // ---- loading
    /// Trainable parameters without the mode that makes gradients.
    #[error("a model with trainable parameters needs Mode::Train: inference has no gradients")]
    TrainableInference,
    /// A dtype that no model computes in.
    #[error("expected to compute in f64, f32, f16 or bf16, found {found:?}")]
    ComputeDtype {
        /// The dtype.
        found: DType,
    },
    /// A tensor of the model is not there.
    #[error("{}: tensor `{tensor}`: is missing", path.display())]
    MissingTensor {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error(
        "{}: tensor `{tensor}`: has shape {found:?}, but config.json makes it {expected:?}", path.display()
    )]
    TensorShape {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape by the configuration.
        expected: Vec<u64>,
        /// The shape of the tensor.
        found: Vec<usize>,
    },
    /// A tensor that the configuration does not describe.
    #[error("{}: tensor `{tensor}`: is no tensor of the model that config.json describes", path.display())]
    UnknownTensor {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A request to train a tensor that the model lacks.
    #[error("{}: tensor `{tensor}`: is to be trained, but is no tensor of the model", path.display())]
    NotTrainable {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor in blocks of a GGML type.
    #[error("{}: tensor `{tensor}`: is {found}, expected a floating-point dtype", path.display())]
    Quantised {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How it is stored.
        found: Encoding,
    },
    /// A tensor of integers, or of a packed dtype.
    #[error("{}: tensor `{tensor}`: is stored as {found}, expected a floating-point dtype", path.display())]
    NotFloat {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: Dtype,
    },
    /// A module lacks the tensor of a role.
    #[error("{}: has no `{role}` tensor{}", path.display(), in_layer(*layer, *expert))]
    NoRoleTensor {
        /// The model.
        path: PathBuf,
        /// The role.
        role: Role,
        /// The layer of the module, for a module in a layer.
        layer: Option<u64>,
        /// The expert, for a module of an expert.
        expert: Option<u64>,
    },
    /// A rotary scaling without one of its values.
    #[error("{}: key `{key}`: expected a value, but the key is missing", path.display())]
    NoRopeValue {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
    },

    // ---- a pass
    /// A model that was loaded for inference cannot make gradients.
    #[error("a model loaded for inference has no backward pass")]
    NoBackwardPass,
    /// A cache is for inference only.
    #[error(
        "a pass with a cache has no backward pass: load the model without trainable parameters"
    )]
    CacheInTraining,
    /// Token ids of another rank than two.
    #[error("expected token ids [batch, seq], found {found:?}")]
    TokenShape {
        /// The shape.
        found: Vec<usize>,
    },
    /// Token ids of another dtype.
    #[error("expected token ids of dtype u32, found {found:?}")]
    TokenDtype {
        /// The dtype.
        found: DType,
    },
    /// A pass over nothing.
    #[error("expected at least one token, found none")]
    NoTokens,
    /// A token id without embedding.
    #[error("token id {id} is outside the model's vocabulary of {vocab_size}")]
    TokenOutside {
        /// The id.
        id: u32,
        /// The model's embeddings.
        vocab_size: u64,
    },
    /// Padding of another number of rows.
    #[error("expected the padding of {expected} rows, found {found}")]
    PaddingRows {
        /// Rows of the tokens.
        expected: usize,
        /// Rows of the padding.
        found: usize,
    },
    /// Padding after the first pass with a cache.
    #[error("padding belongs to the first tokens, but the cache has seen some already")]
    LatePadding,
    /// A cache of another batch.
    #[error("the cache holds {found} rows of another pass, expected {expected}")]
    OtherCache {
        /// Rows of the tokens.
        expected: usize,
        /// Rows of the cache.
        found: usize,
    },
    /// More positions than the model has.
    #[error("{positions} positions are more than the model's context of {longest}")]
    LongContext {
        /// Positions of the pass.
        positions: usize,
        /// The model's context.
        longest: u64,
    },
    /// Document numbers of another shape than the tokens.
    #[error("expected the documents of {rows} rows of {tokens} tokens")]
    DocumentShape {
        /// Rows of the tokens.
        rows: usize,
        /// Tokens of a row.
        tokens: usize,
    },
    /// Documents in one row cannot be continued.
    #[error("documents are for a pass without cache")]
    DocumentsWithCache,
    /// A layer that the model does not have.
    #[error("the model has {layers} layers, found layer {found}")]
    NoLayer {
        /// Layers of the model.
        layers: usize,
        /// The layer, from 0.
        found: usize,
    },
    /// Changes of the routing of a model without router.
    #[error("routing cannot be changed: the model is dense")]
    DenseRouting,
    /// An expert that the mixture does not have.
    #[error("expected experts from 0 to {last}, found {found}")]
    NoExpert {
        /// The last expert.
        last: usize,
        /// The expert.
        found: usize,
    },
    /// No expert is left to route to.
    #[error("every expert is dropped; expected at least one to be left")]
    AllDropped,
    /// A top-k beyond the number of experts.
    #[error("expected a {what} of 1 to {most}, found {found}")]
    TopK {
        /// The top-k of the feed-forward routers, or of the attention routers.
        what: &'static str,
        /// The number of experts.
        most: usize,
        /// The top-k.
        found: usize,
    },
    /// A top-k of attention experts whose gates are sigmoids.
    #[error(
        "expected no attention top-k: attention_gate is sigmoid, so that every token goes to all experts"
    )]
    SigmoidTopK,
    /// Logits with NaN or infinities.
    #[error("{}: its logits are not finite: NaN or infinity among them", path.display())]
    NotFinite {
        /// The model.
        path: PathBuf,
    },

    // ---- generation
    /// Nothing to continue.
    #[error("expected at least one prompt, found none")]
    NoPrompts,
    /// A prompt without tokens.
    #[error("{} has no tokens: there is nothing to continue", prompt_name(*number))]
    EmptyPrompt {
        /// The prompt's number from 1, where there are several.
        number: Option<usize>,
    },
    /// A prompt that leaves no room for the new tokens.
    #[error(
        "{} of {length} tokens and {new} new ones are more than the model's context of {context}",
        prompt_name(*number)
    )]
    LongPrompt {
        /// The prompt's number from 1, where there are several.
        number: Option<usize>,
        /// Its tokens.
        length: usize,
        /// The new tokens that were asked for.
        new: usize,
        /// The model's context.
        context: u64,
    },
    /// The key of the ids that end a text holds anything else.
    #[error("{}: key `{key}`: expected a token id or a list of them", path.display())]
    EndOfText {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A number of the sampling outside of its range.
    #[error("expected a {what} {expected}, found {found}")]
    Sampling {
        /// The number, as in “repetition penalty”.
        what: &'static str,
        /// Its range, as in “above 0”.
        expected: &'static str,
        /// The number.
        found: f64,
    },
    /// Logits with NaN or infinities, from which no token can be drawn.
    #[error("{}: its logits after {tokens} tokens are not finite: NaN or infinity", path.display())]
    NotFiniteAfter {
        /// The model.
        path: PathBuf,
        /// Tokens of the prompt and of the text so far.
        tokens: usize,
    },
}

/// The place of a module in the model, for a message.
fn in_layer(layer: Option<u64>, expert: Option<u64>) -> String {
    match (layer, expert) {
        (None, _) => String::new(),
        (Some(layer), None) => format!(" in layer {layer}"),
        (Some(layer), Some(expert)) => format!(" in layer {layer}, expert {expert}"),
    }
}

/// The words for a prompt in a message.
fn prompt_name(number: Option<usize>) -> Cow<'static, str> {
    match number {
        Some(number) => format!("prompt {number}").into(),
        None => "the prompt".into(),
    }
}

impl ModelError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NotFloat { .. } => {
                "`bam-convert convert --dtype bf16` makes a checkpoint of ordinary floats"
            }
            Self::NoBackwardPass => "load it with Mode::Train",
            Self::TokenOutside { .. } => "is the tokenizer the one of this model?",
            Self::LongContext { .. } => "shorten the text; max_position_embeddings is the limit",
            Self::NotFinite { .. } => {
                "`bam-convert inspect` shows the tensors; look for NaN in the weights"
            }
            Self::NotFiniteAfter { .. } => {
                "`bam-convert validate` names the tensors that hold NaN or infinity"
            }
            Self::LongPrompt {
                length, context, ..
            } => match context.saturating_sub(*length as u64) {
                0 => "shorten the prompt; max_position_embeddings is the limit",
                room => {
                    let hint = format!("ask for at most {room} new tokens, or shorten the prompt");
                    return Some(hint.into());
                }
            },
            Self::SigmoidTopK => ALL_ATTENTION_EXPERTS,
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::MissingTensor { path, tensor }
            | Self::TensorShape { path, tensor, .. }
            | Self::UnknownTensor { path, tensor }
            | Self::NotTrainable { path, tensor }
            | Self::Quantised { path, tensor, .. }
            | Self::NotFloat { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
            Self::NoRopeValue { path, key } => ErrorPlace::of(path).with_key(key),
            Self::EndOfText { path, key } => ErrorPlace::of(path).with_key(key),
            Self::NoRoleTensor { path, .. }
            | Self::NotFinite { path }
            | Self::NotFiniteAfter { path, .. } => ErrorPlace::of(path),
            _ => ErrorPlace::default(),
        }
    }
}
