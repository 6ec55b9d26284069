//! Why the numbers of an architecture cannot be: one variant per broken rule.
//!
//! An architecture comes from a file, from flags, or from both, so that a fault has a key and no path.

/// What to do about a top-k of attention experts whose gates are sigmoids.
pub(crate) const ALL_ATTENTION_EXPERTS: &str = "leave --attention-top-k out, or pass soft";

/// A rule that the numbers of an architecture break.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchitectureFault {
    /// A number outside of its range.
    #[error("expected {least} to {most}, found {found}")]
    OutOfRange {
        /// The key of the number.
        key: &'static str,
        /// The least that it may be.
        least: u64,
        /// The most that it may be.
        most: u64,
        /// The number.
        found: u64,
    },
    /// Heads of queries that heads of keys cannot share evenly.
    #[error("expected a divisor of the {heads} heads, found {found}")]
    KvHeads {
        /// Heads of queries.
        heads: u64,
        /// Heads of keys and values.
        found: u64,
    },
    /// More tensors than a checkpoint can list.
    #[error("expected layers and experts that make at most {most} tensors, found {found}")]
    ManyTensors {
        /// The most tensors.
        most: u64,
        /// An upper bound of the tensors.
        found: u64,
    },
    /// More parameters than can be counted.
    #[error("expected a model of at most 2^57 parameters, found more")]
    ManyParameters,
    /// A gate for a shared expert that the mixture does not have.
    #[error("is true, but there is no shared expert: shared_expert_intermediate_size is not set")]
    NoSharedExpert,
    /// A factor on attention gates that are a softmax.
    #[error("is for sigmoid gates, but attention_gate is softmax")]
    ScaledSoftmax,
    /// A factor on attention gates that is none.
    #[error("expected a finite number above 0")]
    GateScale,
    /// Sigmoid attention gates without attention experts.
    #[error("is sigmoid, but there are no attention experts: attention_kv is merged")]
    GateWithoutExperts,
    /// Sigmoid attention gates of some experts.
    #[error("expected all {experts}, because attention_gate is sigmoid, found {found}")]
    SigmoidTopK {
        /// Attention experts.
        experts: u64,
        /// Attention experts that a token goes to.
        found: u64,
    },
    /// Sigmoid attention gates that are divided by their sum.
    #[error("expected false, because attention_gate is sigmoid, found true")]
    NormalisedSigmoid,
    /// A list with a layer beyond the last.
    #[error("expected layers from 0 to {}, found {found}", layers.saturating_sub(1))]
    NoLayer {
        /// The key of the list.
        key: &'static str,
        /// Layers of the model.
        layers: u64,
        /// The listed layer.
        found: u64,
    },
}

impl ArchitectureFault {
    /// The key that breaks the rule.
    pub fn key(&self) -> &'static str {
        match self {
            Self::OutOfRange { key, .. } | Self::NoLayer { key, .. } => key,
            Self::KvHeads { .. } => "num_key_value_heads",
            Self::ManyTensors { .. } => "num_hidden_layers",
            Self::ManyParameters => "hidden_size",
            Self::NoSharedExpert => "shared_expert_gate",
            Self::ScaledSoftmax | Self::GateScale => "attention_gate_scale",
            Self::GateWithoutExperts => "attention_gate",
            Self::SigmoidTopK { .. } => "num_attention_experts_per_tok",
            Self::NormalisedSigmoid => "norm_topk_prob_attention",
        }
    }
}
