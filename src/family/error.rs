//! What can be wrong with a model or its tensors: one variant per broken rule, and what to do next.
//!
//! Errors of a `config.json` are in `config_error.rs`, of a format file in `format_error.rs`, of GGUF in `gguf_error.rs`.

use std::borrow::Cow;
use std::path::PathBuf;

use super::architecture_fault::{ALL_ATTENTION_EXPERTS, ArchitectureFault};
use super::role::Role;
use crate::error::{ErrorPlace, nearest, one_of};

/// A rule that a model, its tensors or a request for a model break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FamilyError {
    // ---- requests
    /// The name of a family or target that is not known.
    #[error("expected {what}: {}; found `{found}`", one_of(known.iter().map(String::as_str)))]
    UnknownName {
        /// What the name is of, as in “a family”.
        what: &'static str,
        /// The name.
        found: String,
        /// The known names.
        known: Vec<String>,
    },
    /// Numbers that no model can have.
    #[error("{}: {fault}", fault.key())]
    Architecture {
        /// The broken rule.
        fault: ArchitectureFault,
    },
    /// A mixture with parts that a family has no place for.
    #[error("{target} cannot hold this mixture: {}", reasons.join("; "))]
    CannotHold {
        /// The family.
        target: String,
        /// The parts and what the family has instead, one reason each.
        reasons: Vec<String>,
    },
    /// A mixture with a number that the configuration of a family cannot say.
    #[error("{target} cannot hold this mixture: its config.json does not say {field}")]
    CannotSay {
        /// The family.
        target: String,
        /// The number and its value.
        field: String,
    },
    /// Tensors that a family has no name for.
    #[error("family `{family}` has no name for its `{role}` tensors")]
    NoTensorName {
        /// The family.
        family: String,
        /// The role of the tensors.
        role: Role,
    },
    /// More FLOPs than 64 bits hold.
    #[error("expected FLOPs below 2^64, found {found}; is the context right?")]
    ManyFlops {
        /// The FLOPs. In a box, because a `u128` would align every error to 16 bytes.
        found: Box<u128>,
    },
    /// Flags of attention experts for a method without them.
    #[error(
        "--kv and --attention-top-k are for attention experts, which --method {method} does not have"
    )]
    NoAttentionExperts {
        /// The method.
        method: &'static str,
    },
    /// An expert that the mixture does not have.
    #[error("{}: has no expert `{found}`; its experts are {}", path.display(), names.join(", "))]
    NoExpert {
        /// The mixture.
        path: PathBuf,
        /// The name or number.
        found: String,
        /// The names of the experts.
        names: Vec<String>,
    },

    // ---- tensors
    /// A tensor that the model needs and the checkpoint does not have.
    #[error("{}: tensor `{tensor}`: is missing", path.display())]
    NoTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The family of the model.
        family: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor `{tensor}`: has shape {found:?}, but config.json makes it {expected:?}", path.display())]
    WrongShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Box<[u64]>,
        /// The shape that follows from `config.json`.
        expected: Box<[u64]>,
    },
    /// A tensor that the model does not have.
    #[error(
        "{}: tensor `{tensor}`: is no tensor of the {family} model that config.json describes; it would be lost",
        path.display()
    )]
    UnknownTensor {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The family of the model.
        family: String,
    },
    /// A stored head that is not the embedding it is tied to.
    #[error(
        "{}: tensor `{tensor}`: differs from the input embedding, but config.json says tie_word_embeddings: true",
        path.display()
    )]
    UntiedHead {
        /// The file that holds the head.
        path: PathBuf,
        /// The head.
        tensor: String,
    },
    /// All experts of a layer in one tensor, where the names of tensors are recorded.
    #[error(
        "{}: holds all experts of a layer in one tensor, the layout of transformers 5; expected one tensor per expert",
        path.display()
    )]
    Fused {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A tensor of several experts that cannot be split evenly.
    #[error("{}: tensor `{tensor}`: its {length} bytes do not fall into {parts} parts", path.display())]
    UnevenParts {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its bytes.
        length: u64,
        /// Its parts.
        parts: u64,
    },
    /// A tensor by itself and as a part of another.
    #[error("{}: tensor `{tensor}`: is stored a second time, as a part of `{fused}`", path.display())]
    StoredTwice {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The tensor that holds it, too.
        fused: String,
    },

    // ---- other models
    /// Quantised weights where plain numbers are needed.
    #[error(
        "{}: tensor `{tensor}`: belongs to {} ({scheme}), expected plain floating-point numbers",
        path.display(),
        weight.as_ref().map_or_else(
            || "quantised weights".to_owned(),
            |weight| format!("the quantised `{weight}`"),
        )
    )]
    Quantised {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The weight that it belongs to, where that is another tensor.
        weight: Option<Box<str>>,
        /// The scheme.
        scheme: Box<str>,
        /// Where the numbers are needed.
        need: PlainNeed,
    },
    /// A model without a language head.
    #[error(
        "{}: tensor `{tensor}`: is missing: the model was saved without a language head, as embedding models are",
        path.display()
    )]
    NoHead {
        /// The checkpoint.
        path: PathBuf,
        /// The head.
        tensor: String,
    },
    /// A part of a multimodal model.
    #[error("{}: tensor `{tensor}`: belongs to a multimodal model, expected a language model alone", path.display())]
    Multimodal {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The head of another task.
    #[error("{}: tensor `{tensor}`: is the head of {kind}, expected the weights of a language model", path.display())]
    OtherHead {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The head.
        tensor: String,
        /// The kind of model, as in “a classifier”.
        kind: &'static str,
    },
    /// Names that begin otherwise than the family's.
    #[error(
        "{}: tensor `{tensor}`: expected the name `{expected}`, found {}", path.display(), found_prefix(ours, theirs)
    )]
    OtherPrefix {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its name in the family.
        expected: String,
        /// How names begin in the family.
        ours: Box<str>,
        /// How names begin in the checkpoint.
        theirs: Box<str>,
    },
}

/// What needs plain numbers instead of quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainNeed {
    /// A computation with the model.
    Compute,
    /// A conversion to another dtype.
    Cast,
}

/// Beginnings of names that a wrapper adds, and how to save the model without it.
const WRAPPERS: [(&str, &str); 6] = [
    (
        "module.",
        "DataParallel wraps the model so: save `model.module` instead",
    ),
    (
        "_orig_mod.",
        "torch.compile wraps the model so: save `model._orig_mod` instead",
    ),
    (
        "_fsdp_wrapped_module.",
        "FSDP wraps the model so: gather its full state dict before saving",
    ),
    (
        "base_model.model.",
        "PEFT wraps the model so: save what `merge_and_unload()` returns instead",
    ),
    (
        "language_model.",
        "this is the language part of a multimodal model: save it alone, with a config.json of its own",
    ),
    (
        "model.language_model.",
        "this is the language part of a multimodal model: save it alone, with a config.json of its own",
    ),
];

/// How the beginning of a name differs from the family's.
fn found_prefix(ours: &str, theirs: &str) -> String {
    match (ours, theirs) {
        (_, "") => format!("it without `{ours}`"),
        ("", _) => format!("`{theirs}` before it"),
        _ => format!("`{theirs}` in the place of `{ours}`"),
    }
}

/// How to save a model whose names begin otherwise than the family's.
fn prefix_hint(ours: &str, theirs: &str) -> Cow<'static, str> {
    if theirs.is_empty() {
        return "it was saved from a class without a head (`…Model`): load it as `…ForCausalLM` and save that, \
                unless transformers reports a new lm_head"
            .into();
    }
    match WRAPPERS.iter().find(|(prefix, _)| *prefix == theirs) {
        Some((_, advice)) => (*advice).into(),
        None => format!(
            "its names have `{theirs}` in the place of `{ours}`: save the language model alone, or describe its names in a file for --format"
        )
        .into(),
    }
}

impl FamilyError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::UnknownName { found, known, .. } => {
                let near = nearest(found, known.iter().map(String::as_str))?;
                return Some(format!("the nearest known one is `{near}`").into());
            }
            Self::CannotHold { .. } | Self::CannotSay { .. } => "the family `bam` holds it",
            Self::NoTensorName { .. } => {
                "name it in a format file and give that with --format FILE"
            }
            Self::NoExpert { found, names, .. } => {
                let near = nearest(found, names.iter().map(String::as_str))?;
                return Some(format!("did you mean `{near}`?").into());
            }
            Self::NoTensor { family, .. } => {
                let hint = format!(
                    "its config.json describes a {family} model that has this tensor; is the config the right one?"
                );
                return Some(hint.into());
            }
            Self::UnknownTensor { .. } => {
                "check the keys of config.json that switch tensors on, such as attention_bias and mlp_bias"
            }
            Self::UntiedHead { .. } => {
                "set tie_word_embeddings to false if the stored head is the right one, or remove the tensor"
            }
            Self::Fused { .. } => "`bam-convert convert DIR OUT --layout classic` takes them apart",
            Self::Quantised {
                need: PlainNeed::Compute,
                ..
            } => {
                "take the unquantised checkpoint of this model; or dequantise this one: in transformers, \
                 `model.dequantize()` and `save_pretrained` (MLX: `mlx_lm.convert --dequantize`)"
            }
            Self::Quantised {
                need: PlainNeed::Cast,
                ..
            } => {
                "convert without --dtype, which copies quantised weights as they are, or start from the unquantised checkpoint"
            }
            Self::NoHead { .. } => {
                "take the causal language model; if its head is the input embedding, set tie_word_embeddings to true in config.json"
            }
            Self::Multimodal { .. } => {
                "save its language model alone, with a config.json of its own: in transformers, `model.language_model`"
            }
            Self::OtherHead { .. } => {
                "use the language model that it was made from; its architectures name a class `…ForCausalLM`"
            }
            Self::OtherPrefix { ours, theirs, .. } => return Some(prefix_hint(ours, theirs)),
            Self::Architecture {
                fault: ArchitectureFault::SigmoidTopK { .. },
            } => ALL_ATTENTION_EXPERTS,
            Self::Architecture { .. }
            | Self::ManyFlops { .. }
            | Self::NoAttentionExperts { .. }
            | Self::WrongShape { .. }
            | Self::UnevenParts { .. }
            | Self::StoredTwice { .. } => return None,
        }))
    }

    /// The file or folder, and the tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NoExpert { path, .. } | Self::Fused { path } => ErrorPlace::of(path),
            Self::NoTensor { path, tensor, .. }
            | Self::WrongShape { path, tensor, .. }
            | Self::UnknownTensor { path, tensor, .. }
            | Self::UntiedHead { path, tensor }
            | Self::UnevenParts { path, tensor, .. }
            | Self::StoredTwice { path, tensor, .. }
            | Self::Quantised { path, tensor, .. }
            | Self::NoHead { path, tensor }
            | Self::Multimodal { path, tensor }
            | Self::OtherHead { path, tensor, .. }
            | Self::OtherPrefix { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
            Self::UnknownName { .. }
            | Self::Architecture { .. }
            | Self::CannotHold { .. }
            | Self::CannotSay { .. }
            | Self::NoTensorName { .. }
            | Self::ManyFlops { .. }
            | Self::NoAttentionExperts { .. } => ErrorPlace::default(),
        }
    }
}
