//! From parameters to layers: which modules an architecture has.

use super::block::Block;
use super::error::ModelError;
use super::modules::{
    Attention, Bias, Experts, FeedForward, Gates, Head, Heads, KeyValue, LayerRotation, Linear,
    Matrix, Mlp, Norm, Router, SharedExpert,
};
use super::params::{Params, Value};
use crate::family::{
    Activation, Architecture, AttentionGate, AttentionKv, Block as Layout, Config, MlpType,
    NormPosition, NormType, QkNorm, Role, RouterBias,
};
use crate::{Error, Result};

/// The parameters, and what they are to become.
pub(super) struct Builder<'a> {
    pub(super) params: &'a Params,
    pub(super) architecture: &'a Architecture,
    pub(super) config: &'a Config,
}

/// The feed-forward network of a layer or expert.
const MLP: [Role; 3] = [Role::Gate, Role::Up, Role::Down];

/// A layer, and an expert of it or none.
type Place = (u64, Option<u64>);

impl Builder<'_> {
    /// All layers.
    pub(super) fn blocks(&self) -> Result<Vec<Block>> {
        let activation = self.architecture.activation(self.config)?;
        let (windows, rotations) = (self.windows(), self.rotations());
        (0..)
            .zip(windows.into_iter().zip(rotations))
            .map(|(layer, (window, rotation))| self.block(layer, window, rotation, activation))
            .collect()
    }

    fn block(
        &self,
        layer: u64,
        window: Option<usize>,
        rotation: LayerRotation,
        activation: Activation,
    ) -> Result<Block> {
        let position = self.architecture.norm_position;
        let two_inputs = self.architecture.block != Layout::Parallel;
        let (before, after) = (
            position != NormPosition::Post,
            position != NormPosition::Pre,
        );
        let norm = |there: bool, role| {
            if there {
                self.norm(role, (layer, None)).map(Some)
            } else {
                Ok(None)
            }
        };
        let before_feed_forward = if after {
            Role::PreFeedforwardNorm
        } else {
            Role::PostAttentionNorm
        };
        Ok(Block {
            layout: self.architecture.block,
            residual_multiplier: self.architecture.multipliers.residual_multiplier,
            experts_multiplier: self.experts_multiplier(layer),
            before_attention: norm(before, Role::InputNorm)?,
            after_attention: norm(after, Role::PostAttentionNorm)?,
            before_feed_forward: norm(before && two_inputs, before_feed_forward)?,
            after_feed_forward: norm(after, Role::PostFeedforwardNorm)?,
            attention: self.attention(layer, window, rotation)?,
            feed_forward: self.feed_forward(layer, activation)?,
        })
    }

    fn attention(
        &self,
        layer: u64,
        window: Option<usize>,
        rotation: LayerRotation,
    ) -> Result<Attention> {
        let a = self.architecture;
        let mixture = a.mixture.as_ref().filter(|mixture| {
            mixture.attention_kv != AttentionKv::Merged
                && mixture.attention_moe_layers.contains(layer)
        });
        let places: Vec<Place> = match mixture {
            None => vec![(layer, None)],
            Some(mixture) => (0..mixture.num_attention_experts)
                .map(|expert| (layer, Some(expert)))
                .collect(),
        };
        let shared = mixture.is_some_and(|mixture| mixture.attention_kv == AttentionKv::Shared);
        let qk_norm = |role, place: Place| {
            let kind = match a.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::HeadDim | QkNorm::Full => NormType::Rms,
                QkNorm::PerHead => NormType::Layer,
            };
            self.norm_of(kind, role, Some(place.0), place.1).map(Some)
        };
        let heads = places.iter().map(|place| {
            let (q, o) = (self.linear(Role::Q, *place)?, self.linear(Role::O, *place)?);
            let adapter = self.adapter(Role::AttentionAdapter, *place)?;
            Ok(Heads {
                q,
                o,
                adapter,
                q_norm: qk_norm(Role::QNorm, *place)?,
            })
        });
        let kv_places = if shared {
            vec![(layer, None)]
        } else {
            places.clone()
        };
        let key_values = kv_places.into_iter().map(|place| {
            let (k, v) = (self.linear(Role::K, place)?, self.linear(Role::V, place)?);
            Ok(KeyValue {
                k,
                v,
                k_norm: qk_norm(Role::KNorm, place)?,
            })
        });
        let router = match mixture {
            None => None,
            Some(mixture) => Some(Router {
                weight: self.matrix(Role::AttentionRouter, (layer, None))?,
                bias: self.router_bias(Role::AttentionRouter, layer)?,
                gates: match mixture.attention_gate {
                    AttentionGate::Softmax => Gates::Softmax,
                    AttentionGate::Sigmoid => Gates::Sigmoid {
                        scale: mixture.attention_gate_scale.unwrap_or(1.0),
                    },
                },
                experts: mixture.num_attention_experts as usize,
                top_k: mixture.num_attention_experts_per_tok as usize,
                normalise: mixture.norm_topk_prob_attention,
            }),
        };
        Ok(Attention {
            heads: heads.collect::<Result<_>>()?,
            key_values: key_values.collect::<Result<_>>()?,
            router,
            kv_heads: a.num_kv_heads as usize,
            head_dim: a.head_dim as usize,
            window,
            rotation,
            clip: a.clip_qkv,
            scale: a.multipliers.attention_multiplier,
            soft_cap: a.multipliers.attn_logit_softcapping,
            norm_after_rotation: a.qk_norm_after_rope,
        })
    }

    fn experts_multiplier(&self, layer: u64) -> Option<f64> {
        let mixture = self.architecture.mixture.as_ref()?;
        let has_experts = mixture.moe_layers.contains(layer);
        mixture.moe_output_multiplier.filter(|_| has_experts)
    }

    fn feed_forward(&self, layer: u64, activation: Activation) -> Result<FeedForward> {
        let Some(mixture) = self
            .architecture
            .mixture
            .as_ref()
            .filter(|mixture| mixture.moe_layers.contains(layer))
        else {
            return Ok(FeedForward::Dense(self.mlp(
                MLP,
                (layer, None),
                activation,
            )?));
        };
        let router = Router {
            weight: self.matrix(Role::FfnRouter, (layer, None))?,
            bias: self.router_bias(Role::FfnRouter, layer)?,
            gates: Gates::Softmax,
            experts: mixture.num_experts as usize,
            top_k: mixture.num_experts_per_tok as usize,
            normalise: mixture.norm_topk_prob,
        };
        let experts =
            (0..mixture.num_experts).map(|expert| self.mlp(MLP, (layer, Some(expert)), activation));
        let shared = match mixture.shared_expert_intermediate_size {
            None => None,
            Some(_) => {
                let roles = [Role::SharedGate, Role::SharedUp, Role::SharedDown];
                let gate = mixture
                    .shared_expert_gate
                    .then(|| self.matrix(Role::SharedExpertGate, (layer, None)));
                Some(SharedExpert {
                    mlp: self.mlp(roles, (layer, None), activation)?,
                    gate: gate.transpose()?,
                })
            }
        };
        Ok(FeedForward::Experts(Experts {
            router,
            experts: experts.collect::<Result<_>>()?,
            shared,
        }))
    }

    /// A network of gate, up and down projection.
    fn mlp(
        &self,
        [gate, up, down]: [Role; 3],
        place: Place,
        activation: Activation,
    ) -> Result<Mlp> {
        let gate = match self.architecture.mlp_type {
            MlpType::Gated => Some(self.linear(gate, place)?),
            MlpType::Plain => None,
        };
        let (up, down) = (self.linear(up, place)?, self.linear(down, place)?);
        Ok(Mlp {
            gate,
            up,
            down,
            adapter: self.adapter(Role::FfnAdapter, place)?,
            activation,
        })
    }

    /// The adapter of an expert, where experts have one.
    fn adapter(&self, role: Role, place: Place) -> Result<Option<Matrix>> {
        let adapters = self
            .architecture
            .mixture
            .as_ref()
            .is_some_and(|mixture| mixture.expert_adapters);
        (adapters && place.1.is_some())
            .then(|| self.matrix(role, place))
            .transpose()
    }

    fn router_bias(&self, role: Role, layer: u64) -> Result<Bias> {
        let Some(bias) = self.params.at(role, true, Some(layer), None) else {
            return Ok(Bias::None);
        };
        let of_choice = self
            .architecture
            .mixture
            .as_ref()
            .is_some_and(|m| m.router_bias == RouterBias::Choice);
        Ok(if of_choice {
            Bias::Choice(plain(bias)?)
        } else {
            Bias::Logits(plain(bias)?)
        })
    }

    fn linear(&self, role: Role, place: Place) -> Result<Linear> {
        Ok(Linear {
            weight: self.matrix(role, place)?,
            bias: self.bias(role, Some(place.0), place.1)?,
        })
    }

    fn matrix(&self, role: Role, (layer, expert): Place) -> Result<Matrix> {
        Ok(Matrix::new(self.value(role, Some(layer), expert)?))
    }

    fn norm(&self, role: Role, (layer, expert): Place) -> Result<Norm> {
        self.norm_of(self.architecture.norm_type, role, Some(layer), expert)
    }

    /// The norm before the head.
    pub(super) fn final_norm(&self) -> Result<Norm> {
        self.norm_of(self.architecture.norm_type, Role::FinalNorm, None, None)
    }

    fn norm_of(
        &self,
        kind: NormType,
        role: Role,
        layer: Option<u64>,
        expert: Option<u64>,
    ) -> Result<Norm> {
        Ok(Norm {
            kind,
            weight: plain(self.value(role, layer, expert)?)?,
            bias: self.bias(role, layer, expert)?,
            offset: self.architecture.norm_offset,
            eps: self.architecture.norm_eps,
        })
    }

    /// The bias beside the weight of a role, where it has one.
    fn bias(
        &self,
        role: Role,
        layer: Option<u64>,
        expert: Option<u64>,
    ) -> Result<Option<candle_core::Tensor>> {
        let bias = self.params.at(role, true, layer, expert);
        bias.map(plain).transpose()
    }

    /// The input embedding, and the output embedding, which is the same where they are tied.
    pub(super) fn embeddings(&self) -> Result<(Matrix, Head)> {
        let input = Matrix::new(self.value(Role::Embedding, None, None)?);
        let weight = if self.architecture.tie_word_embeddings {
            input.clone()
        } else {
            Matrix::new(self.value(Role::Head, None, None)?)
        };
        let multipliers = &self.architecture.multipliers;
        let scale = self.architecture.logit_scale;
        let scale = match multipliers.logits_divisor {
            Some(divisor) => Some(scale.unwrap_or(1.0) / divisor),
            None => scale,
        };
        let soft_cap = multipliers.final_logit_softcapping;
        let head = Head {
            weight,
            bias: self.bias(Role::Head, None, None)?,
            scale,
            soft_cap,
        };
        Ok((input, head))
    }

    fn value(&self, role: Role, layer: Option<u64>, expert: Option<u64>) -> Result<&Value> {
        self.params.at(role, false, layer, expert).ok_or_else(|| {
            ModelError::NoRoleTensor {
                path: self.params.path().to_path_buf(),
                role,
                layer,
                expert,
            }
            .into()
        })
    }

    /// Positions that each layer looks back.
    fn windows(&self) -> Vec<Option<usize>> {
        let a = self.architecture;
        let sliding = a.window_layers.mask(a.num_layers);
        sliding
            .into_iter()
            .map(|sliding| {
                a.sliding_window
                    .filter(|_| sliding)
                    .map(|window| window as usize)
            })
            .collect()
    }

    /// How each layer rotates.
    fn rotations(&self) -> Vec<LayerRotation> {
        let a = self.architecture;
        let rotates = a.rope_layers.mask(a.num_layers);
        let sliding = a.window_layers.mask(a.num_layers);
        let of = |(rotates, sliding)| match (rotates, &a.window_rope) {
            (false, _) => LayerRotation::None,
            (true, Some(_)) if sliding => LayerRotation::Window,
            (true, _) => LayerRotation::Full,
        };
        rotates.into_iter().zip(sliding).map(of).collect()
    }
}

/// The tensor of a vector.
fn plain(value: &Value) -> Result<candle_core::Tensor> {
    match value {
        Value::Variable(var) => Ok(var.as_tensor().clone()),
        Value::Frozen(tensor) => Ok(tensor.clone()),
        Value::Stored(stored) => stored
            .to_tensor()
            .map_err(|e| Error::compute("widen a stored tensor", e)),
    }
}
