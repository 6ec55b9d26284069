//! The modules of a layer as a model holds them: which parameters they have, and what they compute.
//!
//! Modules hold numbers and settings only. The [backend](super::backend) decides how to compute them.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::params::Value;
use super::stored::StoredMatrix;
use crate::family::{Activation, NormType};

/// A matrix `[out, in]`.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// A trainable parameter.
    Variable(Tensor),
    /// A tensor without gradient.
    Frozen(Tensor),
    /// bfloat16 in the pages of a file.
    Stored(Arc<StoredMatrix>),
}

impl Matrix {
    pub(super) fn new(value: &Value) -> Self {
        match value {
            Value::Variable(var) => Self::Variable(var.as_tensor().clone()),
            Value::Frozen(tensor) => Self::Frozen(tensor.clone()),
            Value::Stored(stored) => Self::Stored(Arc::clone(stored)),
        }
    }

    pub(super) fn rows(&self) -> Result<usize> {
        match self {
            Self::Variable(weight) | Self::Frozen(weight) => weight.dim(0),
            Self::Stored(stored) => Ok(stored.rows()),
        }
    }

    /// The tensor, unless the matrix stays in its file.
    pub(super) fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Variable(weight) | Self::Frozen(weight) => Ok(weight),
            Self::Stored(_) => candle_core::bail!("expected a tensor, found a stored matrix"),
        }
    }

    fn is_trained(&self) -> bool {
        matches!(self, Self::Variable(_))
    }

    pub(super) fn stored(&self) -> Option<&StoredMatrix> {
        match self {
            Self::Stored(stored) => Some(stored),
            Self::Variable(_) | Self::Frozen(_) => None,
        }
    }
}

/// A projection.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    fn is_trained(&self) -> bool {
        self.weight.is_trained() || self.bias.as_ref().is_some_and(Tensor::is_variable)
    }
}

/// The output embedding `[vocab, hidden]`.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) weight: Matrix,
    /// `[vocab]`.
    pub(super) bias: Option<Tensor>,
    /// Factor on the logits, the bias included.
    pub(super) scale: Option<f64>,
    /// Bound of the logits after it: `c · tanh(logit / c)`.
    pub(super) soft_cap: Option<f64>,
}

/// Root-mean-square or layer norm over the last dimension.
///
/// The weight is `[size]`, or `[heads, size]` where each head has its own. Statistics are in float32 at least.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) kind: NormType,
    pub(super) weight: Tensor,
    /// In the shape of the weight.
    pub(super) bias: Option<Tensor>,
    /// Whether the norm multiplies by one plus its weight.
    pub(super) offset: bool,
    pub(super) eps: f64,
}

impl Norm {
    pub(super) fn is_trained(&self) -> bool {
        self.weight.is_variable() || self.bias.as_ref().is_some_and(Tensor::is_variable)
    }
}

/// The bias `[experts]` of a router.
#[derive(Debug, Clone)]
pub(super) enum Bias {
    None,
    /// Added to the logits.
    Logits(Tensor),
    /// Added to the gates where the largest are chosen; has no gradient.
    Choice(Tensor),
}

/// How the logits of a router become gates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Gates {
    /// A softmax over all experts, then the `top_k` largest (BAM, sections 3.3 and 3.4).
    Softmax,
    /// For each expert the sigmoid of its own logit, times a factor. Every token goes to all experts.
    Sigmoid {
        /// The factor.
        scale: f64,
    },
}

/// A router with its weight `[experts, hidden]`.
#[derive(Debug, Clone)]
pub(super) struct Router {
    pub(super) weight: Matrix,
    pub(super) bias: Bias,
    pub(super) gates: Gates,
    pub(super) experts: usize,
    pub(super) top_k: usize,
    /// Whether the chosen gates are divided by their sum.
    pub(super) normalise: bool,
}

impl Router {
    fn is_trained(&self) -> bool {
        let bias = match &self.bias {
            Bias::Logits(bias) => bias.is_variable(),
            Bias::None | Bias::Choice(_) => false,
        };
        self.weight.is_trained() || bias
    }
}

/// Query and output projection of one attention expert, or of the ordinary attention.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) q: Linear,
    pub(super) o: Linear,
    /// Multiplies the output, in experts with adapters.
    pub(super) adapter: Option<Matrix>,
    pub(super) q_norm: Option<Norm>,
}

/// Keys and values of one attention expert, or of all of them.
#[derive(Debug, Clone)]
pub(super) struct KeyValue {
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) k_norm: Option<Norm>,
}

/// How a layer rotates queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerRotation {
    /// Not at all.
    None,
    /// As layers that see all positions.
    Full,
    /// As layers with a window, in a model where that is another rotation.
    Window,
}

/// Attention, ordinary or of experts (BAM, section 3.4).
///
/// Experts run as one attention with `E` times the query heads, over `E` times the key heads, or over the seed's own where
/// keys and values are shared. The gate of each token and expert weights the expert's heads, and the output projections
/// stand side by side. This equals the sum of `E` attentions, each weighted after its output projection.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    /// One per expert; one where attention is ordinary.
    pub(super) heads: Vec<Heads>,
    /// One per expert; one where it is shared or attention is ordinary.
    pub(super) key_values: Vec<KeyValue>,
    /// The router of the experts.
    pub(super) router: Option<Router>,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Positions that a query sees, its own included.
    pub(super) window: Option<usize>,
    /// How queries and keys rotate.
    pub(super) rotation: LayerRotation,
    /// Largest magnitude of queries, keys and values, where limited.
    pub(super) clip: Option<f64>,
    /// Factor on scores, where it is not one divided by the root of `head_dim`.
    pub(super) scale: Option<f64>,
    /// Bound of the scores after it: `c · tanh(score / c)`.
    pub(super) soft_cap: Option<f64>,
    /// Whether queries and keys are normalised after their rotation.
    pub(super) norm_after_rotation: bool,
}

impl Attention {
    /// Whether any of its parameters is trained.
    pub(super) fn is_trained(&self) -> bool {
        let norm = |norm: &Option<Norm>| norm.as_ref().is_some_and(Norm::is_trained);
        let heads = |Heads {
                         q,
                         o,
                         adapter,
                         q_norm,
                     }: &Heads| {
            let adapter = adapter.as_ref().is_some_and(Matrix::is_trained);
            q.is_trained() || o.is_trained() || adapter || norm(q_norm)
        };
        let key_value =
            |KeyValue { k, v, k_norm }: &KeyValue| k.is_trained() || v.is_trained() || norm(k_norm);
        let router = self.router.as_ref().is_some_and(Router::is_trained);
        router || self.heads.iter().any(heads) || self.key_values.iter().any(key_value)
    }

    /// Whether the outputs of experts pass adapters.
    pub(super) fn has_adapters(&self) -> bool {
        self.heads.iter().any(|heads| heads.adapter.is_some())
    }
}

/// One feed-forward network: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub(super) struct Mlp {
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
    /// Multiplies the output, in experts with adapters.
    pub(super) adapter: Option<Matrix>,
    pub(super) activation: Activation,
}

/// A network that every token goes to beside its experts.
#[derive(Debug, Clone)]
pub(super) struct SharedExpert {
    pub(super) mlp: Mlp,
    /// `[1, hidden]`: the sigmoid of its product with a token weights the output for that token.
    pub(super) gate: Option<Matrix>,
}

/// Feed-forward experts (BAM, section 3.3).
#[derive(Debug, Clone)]
pub(super) struct Experts {
    pub(super) router: Router,
    pub(super) experts: Vec<Mlp>,
    pub(super) shared: Option<SharedExpert>,
}

/// The feed-forward sublayer of a layer.
#[derive(Debug, Clone)]
pub(super) enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}
