//! The one table of roles: what each tensor of a decoder is for, and what follows from that.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

use super::layout::{Block, MlpType, NormPosition, QkNorm};

/// Which part of a model a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    /// Outside the layers.
    Model,
    /// A layer itself.
    Layer,
    Attention,
    FeedForward,
    SharedExpert,
}

/// What a tensor does there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Norm,
    Projection,
    Router,
    /// The sigmoid gate of a shared expert.
    Gate,
    /// The matrix that an expert's output passes.
    Adapter,
}

/// A dimension of a tensor, as a number of the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    One,
    Vocabulary,
    Hidden,
    /// Width of all queries.
    Queries,
    /// Width of all keys, and of all values.
    Keys,
    /// Inner width of a feed-forward network, or of one expert.
    Intermediate,
    /// Inner width of the shared expert.
    SharedIntermediate,
    Experts,
    AttentionExperts,
}

/// How the shape of a weight follows from the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Vector(Size),
    Matrix(Size, Size),
    /// A norm of queries: its shape depends on [`QkNorm`].
    QueryNorm,
    /// A norm of keys: its shape depends on [`QkNorm`].
    KeyNorm,
}

/// What decides whether a weight has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BiasRule {
    /// Nothing: there is never one.
    Never,
    /// `attention_bias`.
    Attention,
    /// `attention_output_bias`.
    AttentionOutput,
    /// `mlp_bias`.
    FeedForward,
    /// `norm_bias`.
    Norm,
    /// `head_bias`.
    Head,
    /// `router_bias`, of either meaning.
    Router,
    /// `router_bias` where it is added to the logits.
    RouterLogits,
}

/// One row of the table.
struct RoleFacts {
    name: &'static str,
    module: Module,
    kind: Kind,
    shape: Shape,
    bias: BiasRule,
}

macro_rules! roles {
    ($($(#[$about:meta])* $role:ident = $name:literal, $module:ident, $kind:ident, $shape:expr, $bias:ident;)*) => {
        /// What a tensor is for; a bias has the role of its weight.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Role { $($(#[$about])* $role,)* }

        impl Role {
            /// Every role.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$role),*];

            /// The keys of the roles in a format file.
            pub(crate) const NAMES: &'static [&'static str] = &[$($name),*];

            fn facts(self) -> RoleFacts {
                use Shape::{KeyNorm, Matrix, QueryNorm, Vector};
                use Size::*;
                match self {
                    $(Self::$role => RoleFacts {
                        name: $name,
                        module: Module::$module,
                        kind: Kind::$kind,
                        shape: $shape,
                        bias: BiasRule::$bias,
                    },)*
                }
            }
        }
    };
}

roles! {
    /// Input embedding `[vocab, hidden]`.
    Embedding = "embedding", Model, Table, Matrix(Vocabulary, Hidden), Never;
    /// Norm before the head `[hidden]`.
    FinalNorm = "final_norm", Model, Norm, Vector(Hidden), Norm;
    /// Output embedding `[vocab, hidden]`.
    Head = "head", Model, Table, Matrix(Vocabulary, Hidden), Head;
    /// Norm of the input of a block, or of its attention `[hidden]`.
    InputNorm = "input_norm", Layer, Norm, Vector(Hidden), Norm;
    /// The norm after attention: of the feed-forward's input, or with post-norms of attention's output `[hidden]`.
    PostAttentionNorm = "post_attention_norm", Layer, Norm, Vector(Hidden), Norm;
    /// Norm of the feed-forward's input beside post-norms `[hidden]`.
    PreFeedforwardNorm = "pre_feedforward_norm", Layer, Norm, Vector(Hidden), Norm;
    /// Norm of the feed-forward's output `[hidden]`.
    PostFeedforwardNorm = "post_feedforward_norm", Layer, Norm, Vector(Hidden), Norm;
    /// Query projection `[heads · head_dim, hidden]`.
    Q = "q", Attention, Projection, Matrix(Queries, Hidden), Attention;
    /// Key projection `[kv_heads · head_dim, hidden]`.
    K = "k", Attention, Projection, Matrix(Keys, Hidden), Attention;
    /// Value projection `[kv_heads · head_dim, hidden]`.
    V = "v", Attention, Projection, Matrix(Keys, Hidden), Attention;
    /// Output projection `[hidden, heads · head_dim]`.
    O = "o", Attention, Projection, Matrix(Hidden, Queries), AttentionOutput;
    /// Norm of queries, `[head_dim]`, `[heads, head_dim]` or `[heads · head_dim]`.
    QNorm = "q_norm", Attention, Norm, QueryNorm, Never;
    /// Norm of keys, `[head_dim]`, `[kv_heads, head_dim]` or `[kv_heads · head_dim]`.
    KNorm = "k_norm", Attention, Norm, KeyNorm, Never;
    /// Gate projection `[intermediate, hidden]`.
    Gate = "gate", FeedForward, Projection, Matrix(Intermediate, Hidden), FeedForward;
    /// Up projection `[intermediate, hidden]`.
    Up = "up", FeedForward, Projection, Matrix(Intermediate, Hidden), FeedForward;
    /// Down projection `[hidden, intermediate]`.
    Down = "down", FeedForward, Projection, Matrix(Hidden, Intermediate), FeedForward;
    /// Router of the feed-forward experts `[experts, hidden]`.
    FfnRouter = "ffn_router", FeedForward, Router, Matrix(Experts, Hidden), Router;
    /// Router of the attention experts `[attention experts, hidden]`.
    AttentionRouter = "attention_router", Attention, Router, Matrix(AttentionExperts, Hidden), RouterLogits;
    /// Gate projection of the shared expert `[its intermediate, hidden]`.
    SharedGate = "shared_gate", SharedExpert, Projection, Matrix(SharedIntermediate, Hidden), FeedForward;
    /// Up projection of the shared expert `[its intermediate, hidden]`.
    SharedUp = "shared_up", SharedExpert, Projection, Matrix(SharedIntermediate, Hidden), FeedForward;
    /// Down projection of the shared expert `[hidden, its intermediate]`.
    SharedDown = "shared_down", SharedExpert, Projection, Matrix(Hidden, SharedIntermediate), FeedForward;
    /// The sigmoid gate that weights the shared expert `[1, hidden]`.
    SharedExpertGate = "shared_expert_gate", SharedExpert, Gate, Matrix(One, Hidden), Never;
    /// The matrix that the output of an attention expert passes `[hidden, hidden]`.
    AttentionAdapter = "attention_adapter", Attention, Adapter, Matrix(Hidden, Hidden), Never;
    /// The matrix that the output of a feed-forward expert passes `[hidden, hidden]`.
    FfnAdapter = "ffn_adapter", FeedForward, Adapter, Matrix(Hidden, Hidden), Never;
}

impl Role {
    /// The role's key in a format file.
    pub(crate) fn name(self) -> &'static str {
        self.facts().name
    }

    /// How the shape of its weight follows from the architecture.
    pub(crate) fn shape(self) -> Shape {
        self.facts().shape
    }

    /// What decides whether it has a bias.
    pub(crate) fn bias(self) -> BiasRule {
        self.facts().bias
    }

    /// Whether each layer has its own.
    pub fn in_layer(self) -> bool {
        self.facts().module != Module::Model
    }

    /// Whether it is a part of attention of which each attention expert may have its own.
    pub fn of_attention(self) -> bool {
        self.facts().module == Module::Attention && !self.is_router()
    }

    /// Whether an expert may have its own.
    pub(crate) fn in_experts(self) -> bool {
        let facts = self.facts();
        matches!(facts.module, Module::Attention | Module::FeedForward)
            && facts.kind != Kind::Router
    }

    /// Whether a model may have it outside its experts.
    pub(crate) fn outside_experts(self) -> bool {
        self.facts().kind != Kind::Adapter
    }

    /// Whether it is a router.
    pub fn is_router(self) -> bool {
        self.facts().kind == Kind::Router
    }

    /// Whether no dense model has a tensor of this role.
    pub fn only_in_mixtures(self) -> bool {
        let facts = self.facts();
        facts.module == Module::SharedExpert || matches!(facts.kind, Kind::Router | Kind::Adapter)
    }

    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        self.facts().kind == Kind::Norm
    }

    /// Whether a feed-forward network of that kind has a projection of this role.
    pub(crate) fn is_in_mlp(self, mlp_type: MlpType) -> bool {
        mlp_type == MlpType::Gated || !matches!(self, Self::Gate | Self::SharedGate)
    }

    /// Whether each dense model of these layouts has a tensor of this role; a tied head counts, too.
    pub(crate) fn is_in_dense(
        self,
        (block, position): (Block, NormPosition),
        mlp_type: MlpType,
        qk_norm: QkNorm,
    ) -> bool {
        let facts = self.facts();
        match (facts.module, facts.kind) {
            (Module::Model, _) => true,
            (Module::Layer, _) => Self::norms(block, position).contains(&self),
            (Module::Attention, Kind::Norm) => qk_norm != QkNorm::None,
            (Module::Attention, Kind::Projection) => true,
            (Module::FeedForward, Kind::Projection) => self.is_in_mlp(mlp_type),
            _ => false,
        }
    }

    /// The norms of a block, in the order in which it applies them.
    pub(crate) fn norms(block: Block, position: NormPosition) -> Vec<Self> {
        let two_inputs = block != Block::Parallel;
        match position {
            NormPosition::Pre if two_inputs => vec![Self::InputNorm, Self::PostAttentionNorm],
            NormPosition::Pre => vec![Self::InputNorm],
            NormPosition::Post => vec![Self::PostAttentionNorm, Self::PostFeedforwardNorm],
            NormPosition::Sandwich if two_inputs => {
                vec![
                    Self::InputNorm,
                    Self::PostAttentionNorm,
                    Self::PreFeedforwardNorm,
                    Self::PostFeedforwardNorm,
                ]
            }
            NormPosition::Sandwich => vec![
                Self::InputNorm,
                Self::PostAttentionNorm,
                Self::PostFeedforwardNorm,
            ],
        }
    }
}

impl fmt::Display for Role {
    /// The role's key in a format file.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads a key of a format file as a row of a table, and refuses others as serde refuses unknown fields.
pub(super) fn named<'de, T: Copy, D: Deserializer<'de>>(
    deserializer: D,
    rows: &[T],
    names: &'static [&'static str],
) -> Result<T, D::Error> {
    struct Names<'a, T>(&'a [T], &'static [&'static str]);

    impl<T: Copy> Visitor<'_> for Names<'_, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a key")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            let found = self.1.iter().position(|name| *name == text);
            found
                .and_then(|row| self.0.get(row).copied())
                .ok_or_else(|| E::unknown_field(text, self.1))
        }
    }

    deserializer.deserialize_identifier(Names(rows, names))
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        named(deserializer, &Self::ALL, Self::NAMES)
    }
}

/// Reads a map; null removes an entry of the family that the file extends.
pub(super) fn listed<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let listed = BTreeMap::<K, Option<V>>::deserialize(deserializer)?;
    Ok(listed
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect())
}
