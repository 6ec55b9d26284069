//! Every tensor that a checkpoint of an architecture has: its name, shape and what it is for.

use super::architecture::Architecture;
use super::error::FamilyError;
use super::format::Family;
use super::layout::{AttentionKv, QkNorm};
use super::mixture::{Mixture, RouterBias};
use super::names::bias_of;
use super::role::{BiasRule, Role, Shape, Size};
use crate::Result;

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
    /// Every tensor of a checkpoint: embedding, layer by layer, final norm, head (absent where tied).
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        self.check()
            .map_err(|fault| FamilyError::Architecture { fault })?;
        self.unchecked_tensors()
    }

    /// As [`Self::tensors`], for an architecture that a reader holds against a file tensor by tensor, whatever its sizes.
    pub(super) fn unchecked_tensors(&self) -> Result<Vec<TensorSpec>> {
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
        let head = list.of_role(Role::Head)?;
        // A tied head may have a bias of its own.
        list.specs
            .extend(head.skip(usize::from(self.tie_word_embeddings)));
        Ok(list.specs)
    }

    /// The shape of a role's weight, in an expert or outside the experts.
    pub(super) fn shape(&self, role: Role, in_expert: bool) -> Vec<u64> {
        let norm_of = |heads| match self.qk_norm {
            QkNorm::PerHead => vec![heads, self.head_dim],
            QkNorm::Full => vec![heads * self.head_dim],
            QkNorm::HeadDim | QkNorm::None => vec![self.head_dim],
        };
        let size = |size| self.size(size, in_expert);
        match role.shape() {
            Shape::Vector(length) => vec![size(length)],
            Shape::Matrix(rows, columns) => vec![size(rows), size(columns)],
            Shape::QueryNorm => norm_of(self.num_heads),
            Shape::KeyNorm => norm_of(self.num_kv_heads),
        }
    }

    fn size(&self, size: Size, in_expert: bool) -> u64 {
        let mixture = |count: fn(&Mixture) -> u64| self.mixture.as_ref().map_or(0, count);
        match size {
            Size::One => 1,
            Size::Vocabulary => self.vocab_size,
            Size::Hidden => self.hidden_size,
            Size::Queries => self.query_width(),
            Size::Keys => self.kv_width(),
            Size::Intermediate if in_expert => mixture(|mixture| mixture.moe_intermediate_size),
            Size::Intermediate => self.intermediate_size,
            Size::SharedIntermediate => {
                mixture(|mixture| mixture.shared_expert_intermediate_size.unwrap_or(0))
            }
            Size::Experts => mixture(|mixture| mixture.num_experts),
            Size::AttentionExperts => mixture(|mixture| mixture.num_attention_experts),
        }
    }

    /// Whether a role's weight has a bias.
    pub(super) fn has_bias(&self, role: Role) -> bool {
        let router_bias = self
            .mixture
            .as_ref()
            .map_or(RouterBias::None, |mixture| mixture.router_bias);
        match role.bias() {
            BiasRule::Never => false,
            BiasRule::Attention => self.attention_bias,
            BiasRule::AttentionOutput => self.attention_output_bias,
            BiasRule::FeedForward => self.mlp_bias,
            BiasRule::Norm => self.norm_bias,
            BiasRule::Head => self.head_bias,
            BiasRule::Router => router_bias != RouterBias::None,
            BiasRule::RouterLogits => router_bias == RouterBias::Logits,
        }
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
        self.attention(attention_experts)?;
        self.push_all(&between)?;
        self.feed_forward(ffn_experts)?;
        self.push_all(&after_ffn)
    }

    fn attention(&mut self, experts: bool) -> Result<()> {
        let architecture = self.architecture;
        let mut attention = vec![Role::Q, Role::K, Role::V, Role::O];
        if architecture.qk_norm != QkNorm::None {
            attention.extend([Role::QNorm, Role::KNorm]);
        }
        let Some(mixture) = architecture.mixture.as_ref().filter(|_| experts) else {
            return self.push_all(&attention);
        };

        let shared = mixture.attention_kv == AttentionKv::Shared;
        let (once, mut each): (Vec<Role>, Vec<Role>) = attention
            .into_iter()
            .partition(|role| shared && matches!(role, Role::K | Role::V | Role::KNorm));
        if mixture.expert_adapters {
            each.push(Role::AttentionAdapter);
        }
        self.push(Role::AttentionRouter)?;
        self.push_all(&once)?;
        self.push_experts(mixture.num_attention_experts, &each)
    }

    fn feed_forward(&mut self, experts: bool) -> Result<()> {
        let architecture = self.architecture;
        let in_mlp = |roles: [Role; 3]| {
            let mut roles = roles.to_vec();
            roles.retain(|role| role.is_in_mlp(architecture.mlp_type));
            roles
        };
        let mut ffn = in_mlp([Role::Gate, Role::Up, Role::Down]);
        let Some(mixture) = architecture.mixture.as_ref().filter(|_| experts) else {
            return self.push_all(&ffn);
        };

        if mixture.expert_adapters {
            ffn.push(Role::FfnAdapter);
        }
        self.push(Role::FfnRouter)?;
        self.push_experts(mixture.num_experts, &ffn)?;
        if mixture.shared_expert_intermediate_size.is_some() {
            self.push_all(&in_mlp([
                Role::SharedGate,
                Role::SharedUp,
                Role::SharedDown,
            ]))?;
            if mixture.shared_expert_gate {
                self.push(Role::SharedExpertGate)?;
            }
        }
        Ok(())
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

    fn push(&mut self, role: Role) -> Result<()> {
        let specs = self.of_role(role)?;
        self.specs.extend(specs);
        Ok(())
    }

    /// The weight of a role, and its bias where it has one.
    fn of_role(&self, role: Role) -> Result<impl Iterator<Item = TensorSpec> + use<>> {
        let weight = TensorSpec {
            name: self.name(role)?,
            shape: self.architecture.shape(role, self.expert.is_some()),
            role,
            bias: false,
            layer: self.layer,
            expert: self.expert,
        };
        let bias = self.architecture.has_bias(role).then(|| TensorSpec {
            name: bias_of(&weight.name),
            shape: weight.shape[..1].to_vec(),
            bias: true,
            ..weight
        });
        Ok([Some(weight), bias].into_iter().flatten())
    }

    fn name(&self, role: Role) -> Result<String> {
        let names = match self.expert {
            None => Some(&self.names.tensors),
            Some(_) => self.names.expert_tensors.as_ref(),
        };
        names
            .and_then(|names| names.name(role, self.layer, self.expert))
            .ok_or_else(|| {
                FamilyError::NoTensorName {
                    family: self.names.name.clone(),
                    role,
                }
                .into()
            })
    }
}
