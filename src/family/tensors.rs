//! Every tensor that a checkpoint of an architecture has: its name, shape and what it is for.

use std::fmt;

use super::architecture::Architecture;
use super::format::Family;
use super::layout::{AttentionKv, Block, MlpType, NormPosition, QkNorm};
use super::mixture::{Mixture, RouterBias};
use crate::{Error, Result};

/// What a tensor is for; a projection's bias has the role of its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Input embedding `[vocab, hidden]`.
    Embedding,
    /// Norm before the head `[hidden]`.
    FinalNorm,
    /// Output embedding `[vocab, hidden]`.
    Head,
    /// Norm of a block's (or its attention's) input `[hidden]`.
    InputNorm,
    /// The norm after attention: of the feed-forward's input, or with post-norms of attention's output `[hidden]`.
    PostAttentionNorm,
    /// Norm of the feed-forward's input beside post-norms `[hidden]`.
    PreFeedforwardNorm,
    /// Norm of the feed-forward's output `[hidden]`.
    PostFeedforwardNorm,
    /// Query projection `[heads · head_dim, hidden]`.
    Q,
    /// Key projection `[kv_heads · head_dim, hidden]`.
    K,
    /// Value projection `[kv_heads · head_dim, hidden]`.
    V,
    /// Output projection `[hidden, heads · head_dim]`.
    O,
    /// Norm of queries, `[head_dim]`, `[heads, head_dim]` or `[heads · head_dim]`.
    QNorm,
    /// Norm of keys, `[head_dim]`, `[kv_heads, head_dim]` or `[kv_heads · head_dim]`.
    KNorm,
    /// Gate projection `[intermediate, hidden]`.
    Gate,
    /// Up projection `[intermediate, hidden]`.
    Up,
    /// Down projection `[hidden, intermediate]`.
    Down,
    /// Router of the feed-forward experts `[experts, hidden]`.
    FfnRouter,
    /// Router of the attention experts `[attention experts, hidden]`.
    AttentionRouter,
    /// Gate projection of the shared expert `[its intermediate, hidden]`.
    SharedGate,
    /// Up projection of the shared expert `[its intermediate, hidden]`.
    SharedUp,
    /// Down projection of the shared expert `[hidden, its intermediate]`.
    SharedDown,
    /// What weights the shared expert, through a sigmoid `[1, hidden]`.
    SharedExpertGate,
    /// What the output of an attention expert passes `[hidden, hidden]`.
    AttentionAdapter,
    /// What the output of a feed-forward expert passes `[hidden, hidden]`.
    FfnAdapter,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 24] = [
        Self::Embedding,
        Self::FinalNorm,
        Self::Head,
        Self::InputNorm,
        Self::PostAttentionNorm,
        Self::PreFeedforwardNorm,
        Self::PostFeedforwardNorm,
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::QNorm,
        Self::KNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::FfnRouter,
        Self::AttentionRouter,
        Self::SharedGate,
        Self::SharedUp,
        Self::SharedDown,
        Self::SharedExpertGate,
        Self::AttentionAdapter,
        Self::FfnAdapter,
    ];

    /// Whether each layer has its own.
    pub fn in_layer(self) -> bool {
        !matches!(self, Self::Embedding | Self::FinalNorm | Self::Head)
    }

    /// Whether it is a part of attention of which each attention expert may have its own.
    pub fn of_attention(self) -> bool {
        matches!(
            self,
            Self::Q
                | Self::K
                | Self::V
                | Self::O
                | Self::QNorm
                | Self::KNorm
                | Self::AttentionAdapter
        )
    }

    /// Whether it is a router.
    pub fn is_router(self) -> bool {
        matches!(self, Self::FfnRouter | Self::AttentionRouter)
    }

    /// Whether no dense model has such a tensor.
    pub fn only_in_mixtures(self) -> bool {
        self.is_router()
            || matches!(
                self,
                Self::SharedGate
                    | Self::SharedUp
                    | Self::SharedDown
                    | Self::SharedExpertGate
                    | Self::AttentionAdapter
                    | Self::FfnAdapter
            )
    }

    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        matches!(
            self,
            Self::FinalNorm
                | Self::InputNorm
                | Self::PostAttentionNorm
                | Self::PreFeedforwardNorm
                | Self::PostFeedforwardNorm
                | Self::QNorm
                | Self::KNorm
        )
    }

    /// The norms of a block, in the order in which it applies them.
    pub(crate) fn norms(block: Block, position: NormPosition) -> Vec<Self> {
        let sequential = block == Block::Sequential;
        match position {
            NormPosition::Pre if sequential => vec![Self::InputNorm, Self::PostAttentionNorm],
            NormPosition::Pre => vec![Self::InputNorm],
            NormPosition::Post => vec![Self::PostAttentionNorm, Self::PostFeedforwardNorm],
            NormPosition::Sandwich if sequential => {
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
        f.pad(match self {
            Self::Embedding => "embedding",
            Self::FinalNorm => "final_norm",
            Self::Head => "head",
            Self::InputNorm => "input_norm",
            Self::PostAttentionNorm => "post_attention_norm",
            Self::PreFeedforwardNorm => "pre_feedforward_norm",
            Self::PostFeedforwardNorm => "post_feedforward_norm",
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::QNorm => "q_norm",
            Self::KNorm => "k_norm",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
            Self::FfnRouter => "ffn_router",
            Self::AttentionRouter => "attention_router",
            Self::SharedGate => "shared_gate",
            Self::SharedUp => "shared_up",
            Self::SharedDown => "shared_down",
            Self::SharedExpertGate => "shared_expert_gate",
            Self::AttentionAdapter => "attention_adapter",
            Self::FfnAdapter => "ffn_adapter",
        })
    }
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its shape, weights as `[out, in]`.
    pub shape: Vec<u64>,
    /// What it is for.
    pub role: Role,
    /// Whether it is the bias beside the weight of that role.
    pub bias: bool,
    /// Its layer, counted from 0.
    pub layer: Option<u64>,
    /// Its expert, counted from 0.
    pub expert: Option<u64>,
}

/// What a tensor is in any family: role, bias or weight, layer, expert.
pub type Place = (Role, bool, Option<u64>, Option<u64>);

impl TensorSpec {
    /// What it is, whatever its name.
    pub fn place(&self) -> Place {
        (self.role, self.bias, self.layer, self.expert)
    }
}

impl Architecture {
    /// Every tensor of such a checkpoint: embedding, layer by layer, final norm, head (absent where tied).
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        self.check()
            .map_err(|fault| Error::usage(format!("{}: {}", fault.key, fault.problem)))?;
        let mut list = List {
            architecture: self,
            names: &*self.names()?,
            layer: None,
            expert: None,
            specs: Vec::new(),
        };
        list.push(Role::Embedding)?;
        let mixture = self.mixture.as_ref();
        let ffn_layers = mixture.map(|mixture| mixture.moe_layers.mask(self.num_layers));
        let attention_layers = mixture
            .filter(|mixture| mixture.attention_kv != AttentionKv::Merged)
            .map(|mixture| mixture.attention_moe_layers.mask(self.num_layers));
        for layer in 0..self.num_layers {
            let is_in =
                |mask: &Option<Vec<bool>>| mask.as_ref().is_some_and(|mask| mask[layer as usize]);
            list.layer = Some(layer);
            list.block(is_in(&attention_layers), is_in(&ffn_layers))?;
        }
        list.layer = None;
        list.push(Role::FinalNorm)?;
        if !self.tie_word_embeddings {
            list.push(Role::Head)?;
        }
        Ok(list.specs)
    }
}

/// The list under construction, and where in the model it is.
struct List<'a> {
    architecture: &'a Architecture,
    names: &'a Family,
    layer: Option<u64>,
    expert: Option<u64>,
    specs: Vec<TensorSpec>,
}

impl List<'_> {
    /// One block, with experts of either kind or without.
    fn block(&mut self, attention_experts: bool, ffn_experts: bool) -> Result<()> {
        let architecture = self.architecture;
        let norms = Role::norms(architecture.block, architecture.norm_position);
        let (before_ffn, after_ffn): (Vec<Role>, Vec<Role>) = norms
            .into_iter()
            .partition(|role| *role != Role::PostFeedforwardNorm);
        let (input, between): (Vec<Role>, Vec<Role>) = before_ffn
            .into_iter()
            .partition(|role| *role == Role::InputNorm);
        self.push_all(&input)?;
        let own_norms = |role| {
            architecture.qk_norm != QkNorm::None || !matches!(role, Role::QNorm | Role::KNorm)
        };
        let attention = [Role::Q, Role::K, Role::V, Role::O, Role::QNorm, Role::KNorm];
        let attention: Vec<Role> = attention
            .into_iter()
            .filter(|role| own_norms(*role))
            .collect();
        match architecture.mixture.as_ref().filter(|_| attention_experts) {
            None => self.push_all(&attention)?,
            Some(mixture) => {
                let shared = mixture.attention_kv == AttentionKv::Shared;
                let (once, mut each): (Vec<Role>, Vec<Role>) = attention
                    .into_iter()
                    .partition(|role| shared && matches!(role, Role::K | Role::V | Role::KNorm));
                each.extend(mixture.expert_adapters.then_some(Role::AttentionAdapter));
                self.push(Role::AttentionRouter)?;
                self.push_all(&once)?;
                self.push_experts(mixture.num_attention_experts, &each)?;
            }
        }
        self.push_all(&between)?;
        let gated = architecture.mlp_type == MlpType::Gated;
        let in_mlp = |role: &Role| gated || !matches!(role, Role::Gate | Role::SharedGate);
        let mut ffn: Vec<Role> = [Role::Gate, Role::Up, Role::Down]
            .into_iter()
            .filter(in_mlp)
            .collect();
        match architecture.mixture.as_ref().filter(|_| ffn_experts) {
            None => self.push_all(&ffn)?,
            Some(mixture) => {
                ffn.extend(mixture.expert_adapters.then_some(Role::FfnAdapter));
                self.push(Role::FfnRouter)?;
                self.push_experts(mixture.num_experts, &ffn)?;
                if mixture.shared_expert_intermediate_size.is_some() {
                    let shared = [Role::SharedGate, Role::SharedUp, Role::SharedDown];
                    self.push_all(&shared.into_iter().filter(in_mlp).collect::<Vec<_>>())?;
                    self.push_all(
                        mixture
                            .shared_expert_gate
                            .then_some(Role::SharedExpertGate)
                            .as_slice(),
                    )?;
                }
            }
        }
        self.push_all(&after_ffn)
    }

    fn push_experts(&mut self, experts: u64, roles: &[Role]) -> Result<()> {
        for expert in 0..experts {
            self.expert = Some(expert);
            self.push_all(roles)?;
        }
        self.expert = None;
        Ok(())
    }

    fn push_all(&mut self, roles: &[Role]) -> Result<()> {
        roles.iter().try_for_each(|role| self.push(*role))
    }

    /// The weight of a role, and its bias where it has one.
    fn push(&mut self, role: Role) -> Result<()> {
        let shape = self.shape(role);
        let name = self.name(role)?;
        let bias = self.has_bias(role).then(|| TensorSpec {
            name: format!("{}.bias", name.strip_suffix(".weight").unwrap_or(&name)),
            shape: shape[..1].to_vec(),
            role,
            bias: true,
            layer: self.layer,
            expert: self.expert,
        });
        self.specs.push(TensorSpec {
            name,
            shape,
            role,
            bias: false,
            layer: self.layer,
            expert: self.expert,
        });
        self.specs.extend(bias);
        Ok(())
    }

    fn name(&self, role: Role) -> Result<String> {
        let names = self.names;
        let pattern = match self.expert {
            None => names.tensors.get(role),
            Some(_) => names
                .expert_tensors
                .as_ref()
                .and_then(|experts| experts.get(role)),
        };
        let pattern = pattern.ok_or_else(|| {
            Error::usage(format!(
                "family `{}` has no name for its `{role}` tensors",
                names.name
            ))
            .with_hint("name it in a format file and give that with --format FILE")
        })?;
        Ok(match (self.layer, self.expert) {
            (None, _) => pattern.to_owned(),
            (Some(layer), None) => pattern.replace("{l}", &layer.to_string()),
            (Some(layer), Some(expert)) => pattern
                .replace("{l}", &layer.to_string())
                .replace("{e}", &expert.to_string()),
        })
    }

    fn has_bias(&self, role: Role) -> bool {
        let router_bias = self
            .architecture
            .mixture
            .as_ref()
            .map_or(RouterBias::None, |mixture| mixture.router_bias);
        match role {
            Role::Q | Role::K | Role::V => self.architecture.attention_bias,
            Role::O => self.architecture.attention_output_bias,
            Role::Gate
            | Role::Up
            | Role::Down
            | Role::SharedGate
            | Role::SharedUp
            | Role::SharedDown => self.architecture.mlp_bias,
            Role::FfnRouter => router_bias != RouterBias::None,
            Role::AttentionRouter => router_bias == RouterBias::Logits,
            _ => false,
        }
    }

    fn shape(&self, role: Role) -> Vec<u64> {
        let a = self.architecture;
        let experts = |count: fn(&Mixture) -> u64| a.mixture.as_ref().map_or(0, count);
        let shared = experts(|mixture| mixture.shared_expert_intermediate_size.unwrap_or(0));
        let ffn = match (&a.mixture, self.expert) {
            (Some(mixture), Some(_)) => mixture.moe_intermediate_size,
            _ => a.intermediate_size,
        };
        let norm_of = |heads| match a.qk_norm {
            QkNorm::PerHead => vec![heads, a.head_dim],
            QkNorm::Full => vec![heads * a.head_dim],
            QkNorm::HeadDim | QkNorm::None => vec![a.head_dim],
        };
        match role {
            Role::Embedding | Role::Head => vec![a.vocab_size, a.hidden_size],
            Role::FinalNorm
            | Role::InputNorm
            | Role::PostAttentionNorm
            | Role::PreFeedforwardNorm
            | Role::PostFeedforwardNorm => vec![a.hidden_size],
            Role::Q => vec![a.query_width(), a.hidden_size],
            Role::K | Role::V => vec![a.kv_width(), a.hidden_size],
            Role::O => vec![a.hidden_size, a.query_width()],
            Role::QNorm => norm_of(a.num_heads),
            Role::KNorm => norm_of(a.num_kv_heads),
            Role::Gate | Role::Up => vec![ffn, a.hidden_size],
            Role::Down => vec![a.hidden_size, ffn],
            Role::FfnRouter => vec![experts(|mixture| mixture.num_experts), a.hidden_size],
            Role::SharedGate | Role::SharedUp => vec![shared, a.hidden_size],
            Role::SharedDown => vec![a.hidden_size, shared],
            Role::SharedExpertGate => vec![1, a.hidden_size],
            Role::AttentionAdapter | Role::FfnAdapter => vec![a.hidden_size, a.hidden_size],
            Role::AttentionRouter => vec![
                experts(|mixture| mixture.num_attention_experts),
                a.hidden_size,
            ],
        }
    }
}
