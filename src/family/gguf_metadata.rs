//! What the metadata of a GGUF file says about its model.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use super::architecture::Architecture;
use super::format::{Family, Presence};
use super::gguf_architecture;
use super::gguf_error::GgufModelError;
use super::gguf_names::{default_activation, usual_cap};
use super::gguf_rope;
use super::keys::Field;
use super::layout::{AttentionKv, Block, QkNorm};
use super::mixture::Mixture;
use super::multipliers::Multipliers;
use super::names::{GgufNames, PARALLEL, WINDOW_PATTERN, bias_of};
use super::role::{BiasRule, Role};
use super::rope_kinds::LayerRope;
use crate::checkpoint::{Dtype, Encoding, Gguf};
use crate::error::{Error, InputError, Result};

/// A file, and the family whose names it uses.
pub(super) struct Metadata<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) family: Arc<Family>,
}

impl<'a> Metadata<'a> {
    /// The metadata of a file of a family that is read.
    ///
    /// # Errors
    /// Another architecture, and what llama.cpp would compute otherwise than the family.
    pub(super) fn of(gguf: &'a Gguf) -> Result<Self> {
        let family = gguf_architecture::family(gguf)?;
        let metadata = Self { gguf, family };
        metadata.check_neutral()?;
        Ok(metadata)
    }

    /// What llama.cpp calls the parts of the family.
    pub(super) fn names(&self) -> Result<&GgufNames> {
        let names = self.family.gguf.as_ref();
        names.ok_or_else(|| {
            GgufModelError::NoNames {
                family: self.family.name.clone(),
            }
            .into()
        })
    }

    /// An error for a value that a key of the metadata may not have.
    pub(super) fn unexpected(
        &self,
        key: &str,
        expected: impl Into<Cow<'static, str>>,
        found: impl ToString,
    ) -> Error {
        InputError::wrong_value(&self.gguf.path, key, expected, found)
    }

    /// Refuses keys of llama.cpp that change what the model computes.
    fn check_neutral(&self) -> Result<()> {
        let names = self.names()?;
        let architecture = &names.architecture;
        let mut multipliers = Field::MULTIPLIERS.into_iter();
        let is_unread = |field: &Field| {
            let is_read = names.keys.contains_key(field)
                || self.family.fixed(*field).is_some()
                || *field == Field::QueryPreAttnScalar && names.hidden_scale_layers.is_some();
            self.family.keys.has(*field) && !is_read
        };
        if let Some(field) = multipliers.find(is_unread) {
            return Err(GgufModelError::NoKey {
                architecture: architecture.clone(),
                field: field.name(),
            }
            .into());
        }
        for (key, neutral) in [
            ("attention.sliding_window", 0.0),
            ("attention.clamp_kqv", 0.0),
            ("attention.scale", 0.0),
            ("attention.temperature_scale", 0.0),
            ("attn_logit_softcapping", 0.0),
            ("final_logit_softcapping", 0.0),
            ("expert_weights_scale", 1.0),
            // A softmax.
            ("expert_gating_func", 1.0),
            ("leading_dense_block_count", 0.0),
            ("logit_scale", 1.0),
            ("residual_scale", 1.0),
            ("embedding_scale", 1.0),
        ] {
            let mut read = names.keys.values().chain(&names.unused_window);
            if read.any(|listed| listed == key) {
                continue;
            }
            let key = names.own_key(key);
            if let Some(value) = self
                .gguf
                .float(&key)?
                .filter(|value| *value != neutral && *value != 0.0)
            {
                let expected = format!("it absent, as in the {architecture} architecture");
                return Err(self.unexpected(&key, expected, value));
            }
        }
        self.check_layer_kinds()?;
        let is_parallel = self.family.layouts.block != Block::Sequential;
        // Where the tensors say it, llama.cpp does not read the key, and files have it wrong.
        let by_tensors = self.family.keys.has(Field::ParallelBlock);
        for (key, neutral) in [("attention.causal", true), (PARALLEL, is_parallel)] {
            if by_tensors && !key.starts_with("attention") {
                continue;
            }
            let key = names.own_key(key);
            if self
                .gguf
                .boolean(&key)?
                .is_some_and(|value| value != neutral)
            {
                let expected = format!("{neutral}, as in the {architecture} architecture");
                return Err(self.unexpected(&key, expected, !neutral));
            }
        }
        Ok(())
    }

    /// Refuses kinds of layers that the architecture does not have.
    fn check_layer_kinds(&self) -> Result<()> {
        let names = self.names()?;
        let has_local = names.keys.contains_key(&Field::RopeLocalTheta);
        let theta = self.gguf.float(&names.key(Field::RopeTheta)?)?;
        let local = names.own_key("rope.freq_base_swa");
        let is_other = !has_local && self.gguf.float(&local)? != theta;
        let pattern = names.own_key(WINDOW_PATTERN);
        let period = names.window_period.map(i128::from);
        let found = self.gguf.metadata.get(&pattern);
        let has_other_pattern =
            found.is_some_and(|found| period.is_none() || found.integer() != period);
        let usual_pattern = period.map_or("it absent".to_owned(), |period| period.to_string());
        let as_there =
            |usual: &str| format!("{usual}, as in the {} architecture", names.architecture);
        for (key, is_refused, usual) in [
            (names.own_key("rope.dimension_sections"), true, "it absent"),
            (local, is_other, "it absent"),
            (pattern, has_other_pattern, usual_pattern.as_str()),
        ] {
            if let (Some(found), true) = (self.gguf.metadata.get(&key), is_refused) {
                return Err(self.unexpected(&key, as_there(usual), found.describe()));
            }
        }
        if let Some(switch) = &names.rotation_switch {
            let key = names.own_key(switch);
            if self.gguf.boolean(&key)? == Some(false) {
                return Err(self.unexpected(&key, as_there("true"), false));
            }
        }
        let key = names.key(Field::NumLayers)?;
        match (self.gguf.unsigned(&key)?, names.layers_below) {
            (Some(layers), Some(limit)) if layers >= limit => {
                let expected = format!("fewer than {limit}: llama.cpp has other layers with more");
                Err(self.unexpected(&key, expected, layers))
            }
            _ => Ok(()),
        }
    }

    /// The model that the metadata and the names of the tensors describe.
    ///
    /// # Errors
    /// Numbers that are missing, out of bounds or contradict each other: the error names the key.
    pub(super) fn architecture(&self) -> Result<Architecture> {
        let (gguf, family) = (self.gguf, &self.family);
        let names = self.names()?;
        let hidden_size = self.size(Field::HiddenSize)?;
        let (num_heads, num_kv_heads) = self.heads()?;
        let (head_dim, rotated) = self.head_dim(hidden_size, num_heads)?;
        let vocab_size = self.vocabulary()?;
        let num_layers = self.layers()?;
        let intermediate_size = self.size(Field::IntermediateSize)?;
        let experts = self.experts()?;

        let eps_key = names.key(Field::NormEps)?;
        let norm_eps = gguf.float(&eps_key)?.ok_or_else(|| {
            InputError::missing_key(&gguf.path, &eps_key, "a number of at least 0")
        })?;
        if norm_eps.is_nan() || norm_eps < 0.0 {
            return Err(self.unexpected(&eps_key, "a number of at least 0", norm_eps));
        }
        let context = self.size(Field::MaxPositionEmbeddings)?;
        let rope = gguf_rope::read(gguf, names, rotated, context)?;

        let layouts = family.layouts;
        let has_qk_norm = names.tensors.get(Role::QNorm).is_some();
        let qk_norm = match family.present.qk_norm {
            Presence::Never => QkNorm::None,
            Presence::Always | Presence::Key { .. } if has_qk_norm => layouts.qk_norm,
            Presence::Always | Presence::Key { .. } => QkNorm::None,
        };
        let biased = |rule| self.is_biased(rule, num_layers);
        let sliding_window = self.window(names)?;
        let query_scale_beta = self.factor(Field::QueryScaleBeta)?;
        let query_scale_context = match query_scale_beta {
            Some(_) => Some(self.size(Field::QueryScaleContext)?),
            None => None,
        };
        let window_layers = names.window_layers(sliding_window, num_layers);
        let head = names.tensors.get(Role::Head).unwrap_or_default();
        let dense = Architecture {
            family: family.name.clone(),
            block: self.block(names)?,
            norm_type: layouts.norm_type,
            norm_position: layouts.norm_position,
            mlp_type: layouts.mlp_type,
            rope_interleaved: layouts.rope_interleaved,
            norm_offset: layouts.norm_offset,
            hidden_size,
            intermediate_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            tie_word_embeddings: !gguf.tensors.contains_key(head),
            attention_bias: biased(BiasRule::Attention)?,
            attention_output_bias: biased(BiasRule::AttentionOutput)?,
            mlp_bias: biased(BiasRule::FeedForward)?,
            norm_bias: biased(BiasRule::Norm)?,
            head_bias: biased(BiasRule::Head)?,
            qk_norm,
            qk_norm_after_rope: layouts.qk_norm_after_rope,
            norm_eps,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling.map(serde_json::Value::Object),
            hidden_act: default_activation(family).to_owned(),
            logit_scale: self.logit_scale(names)?,
            sliding_window,
            rope_layers: names.rope_layers(family.rotation, &window_layers, num_layers),
            window_layers,
            window_rope: self.window_rope()?,
            partial_rotary_factor: (rotated != head_dim)
                .then_some(rotated as f64 / head_dim as f64),
            clip_qkv: None,
            multipliers: Multipliers {
                embedding_multiplier: self.factor(Field::EmbeddingMultiplier)?.or(
                    Multipliers::fixed(family, Field::EmbeddingMultiplier, hidden_size),
                ),
                residual_multiplier: self.factor(Field::ResidualMultiplier)?,
                attention_multiplier: self
                    .factor(Field::AttentionMultiplier)?
                    .or(names.hidden_scale([num_layers, hidden_size, num_heads, head_dim])),
                attn_logit_softcapping: self.soft_cap(Field::AttnLogitSoftcapping)?,
                final_logit_softcapping: self.soft_cap(Field::FinalLogitSoftcapping)?,
                logits_divisor: self.divisor()?,
                query_scale_beta,
                query_scale_context,
            },
            max_position_embeddings: Some(context),
            initializer_range: 0.02,
            dtype: Some(self.dtype()?),
            mixture: None,
            multimodal: None,
            format: Some(Arc::clone(family)),
        };
        let mixture = match experts {
            Some((count, used)) => Some(self.mixture(&dense, count, used)?),
            None => None,
        };
        Ok(Architecture { mixture, ..dense })
    }

    /// The experts of a mixture, of which each token goes to `used`; all else is in the model `dense`.
    fn mixture(&self, dense: &Architecture, count: u64, used: u64) -> Result<Mixture> {
        let names = self.names()?;
        let width = |field| -> Result<Option<u64>> {
            let is_said = names.keys.contains_key(&field);
            is_said.then(|| self.size(field)).transpose()
        };
        let usual = Mixture::new(dense, count);
        let shared = width(Field::SharedExpertIntermediateSize)?;
        let has_gate = names.tensors.get(Role::SharedExpertGate).is_some();
        Ok(Mixture {
            num_experts_per_tok: used,
            num_attention_experts: 1,
            num_attention_experts_per_tok: 1,
            attention_kv: AttentionKv::Merged,
            norm_topk_prob: names.norm_topk_prob.unwrap_or(usual.norm_topk_prob),
            moe_intermediate_size: width(Field::MoeIntermediateSize)?
                .unwrap_or(usual.moe_intermediate_size),
            shared_expert_intermediate_size: shared,
            shared_expert_gate: shared.is_some() && has_gate,
            ..usual
        })
    }

    /// How attention and feed-forward network are joined. In a family that has both ways, a layer without a norm between them is
    /// parallel; where both ways have that norm, a key says it.
    fn block(&self, names: &GgufNames) -> Result<Block> {
        let usual = self.family.layouts.block;
        let has_both = self.family.keys.has(Field::ParallelBlock);
        if has_both && usual == Block::ParallelTwoNorms {
            let key = names.own_key(PARALLEL);
            let said = self
                .gguf
                .boolean(&key)?
                .ok_or_else(|| InputError::missing_key(&self.gguf.path, &key, "true or false"))?;
            return Ok(if said { usual } else { Block::Sequential });
        }
        let between = names.tensors.name(Role::PostAttentionNorm, Some(0), None);
        let has_norm = between.is_some_and(|name| self.gguf.tensors.contains_key(&name));
        if has_both && usual == Block::Parallel && has_norm {
            return Ok(Block::Sequential);
        }
        Ok(usual)
    }

    /// The positions that layers with a window look back.
    fn window(&self, names: &GgufNames) -> Result<Option<u64>> {
        if names.keys.contains_key(&Field::SlidingWindow) {
            let said = self.gguf.unsigned(&names.key(Field::SlidingWindow)?)?;
            let usual = names.usual_window.filter(|_| said.is_none());
            return usual
                .map_or_else(|| self.size(Field::SlidingWindow), Ok)
                .map(Some);
        }
        let Some(key) = &names.unused_window else {
            return Ok(None);
        };
        let window = self.gguf.unsigned(&names.own_key(key))?;
        Ok(window.filter(|window| *window > 0))
    }

    /// The number under the key of `field`, where the architecture has one; it may be as small as `least`.
    fn number(&self, field: Field, least: f64) -> Result<Option<f64>> {
        let names = self.names()?;
        if !names.keys.contains_key(&field) {
            return Ok(None);
        }
        let key = names.key(field)?;
        match self.gguf.float(&key)? {
            Some(value) if value < least => {
                let expected = if least == 0.0 {
                    "a number of at least 0"
                } else {
                    "a number above 0"
                };
                Err(self.unexpected(&key, expected, value))
            }
            value => Ok(value),
        }
    }

    /// A factor, where the architecture has a key for it; llama.cpp takes zero for none.
    fn factor(&self, field: Field) -> Result<Option<f64>> {
        let may_be_negative = field != Field::AttentionMultiplier;
        let least = if may_be_negative { f64::MIN } else { 0.0 };
        let value = self.number(field, least)?;
        Ok(value.filter(|value| *value != 0.0))
    }

    /// The factor on logits, where the architecture has a key for it: llama.cpp needs one there, and takes zero for none.
    fn logit_scale(&self, names: &GgufNames) -> Result<Option<f64>> {
        if !names.keys.contains_key(&Field::LogitScale) {
            return Ok(None);
        }
        let key = names.key(Field::LogitScale)?;
        match self.gguf.float(&key)? {
            Some(0.0) => Ok(Some(1.0)),
            Some(scale) => Ok(Some(scale)),
            None => Err(InputError::missing_key(&self.gguf.path, &key, "a number")),
        }
    }

    /// What logits are divided by, where the architecture has a key for it and that changes something.
    fn divisor(&self) -> Result<Option<f64>> {
        let divisor = self.number(Field::LogitsDivisor, f64::MIN_POSITIVE)?;
        Ok(divisor.filter(|divisor| *divisor != 1.0))
    }

    /// A soft cap, where the architecture has a key for it; llama.cpp takes the family's where the file has none.
    fn soft_cap(&self, field: Field) -> Result<Option<f64>> {
        if !self.names()?.keys.contains_key(&field) {
            return Ok(None);
        }
        let cap = self.number(field, 0.0)?;
        let cap = cap.or(usual_cap(&self.family, field));
        Ok(cap.filter(|cap| *cap != 0.0))
    }

    /// The rotation of layers with a window, where the architecture has one for them.
    fn window_rope(&self) -> Result<Option<LayerRope>> {
        let names = self.names()?;
        if !names.keys.contains_key(&Field::RopeLocalTheta) {
            return Ok(None);
        }
        let said = self.number(Field::RopeLocalTheta, f64::MIN_POSITIVE)?;
        let usual = self.family.keys[Field::RopeLocalTheta].default.as_ref();
        let theta = said.or(usual.and_then(Value::as_f64)).unwrap_or(10000.0);
        Ok(Some(LayerRope {
            theta,
            scaling: None,
        }))
    }

    /// Whether the projections of a rule have biases: where a key of the family decides, the file's tensors do.
    fn is_biased(&self, rule: BiasRule, layers: u64) -> Result<bool> {
        let present = &self.family.present;
        let presence_of = |rule| match rule {
            BiasRule::Never | BiasRule::Router | BiasRule::RouterLogits => None,
            BiasRule::Attention => Some(&present.attention_bias),
            BiasRule::AttentionOutput => Some(&present.attention_output_bias),
            BiasRule::FeedForward => Some(&present.mlp_bias),
            BiasRule::Norm => Some(&present.norm_bias),
            BiasRule::Head => Some(&present.head_bias),
        };
        let presence = presence_of(rule);
        let one_key = |role: &Role| presence_of(role.bias()) == presence;
        match presence {
            None | Some(Presence::Never) => Ok(false),
            Some(Presence::Always) => Ok(true),
            Some(Presence::Key { .. }) => {
                let roles = Role::ALL.into_iter().filter(|role| one_key(role));
                Ok(self.first_bias(roles, layers)?.is_some())
            }
        }
    }

    /// The first bias of these roles that the file holds, layer by layer.
    pub(super) fn first_bias(
        &self,
        roles: impl Iterator<Item = Role> + Clone,
        layers: u64,
    ) -> Result<Option<String>> {
        let names = self.names()?;
        let mut held = (0..layers).flat_map(|layer| {
            let weights = roles.clone();
            let weights = weights.flat_map(move |role| names.weights(role, layer));
            weights.map(|weight| bias_of(&weight))
        });
        Ok(held.find(|bias| self.gguf.tensors.contains_key(bias)))
    }

    /// The dtype of the converted weights: the embedding's, or bfloat16 from quantised tensors.
    fn dtype(&self) -> Result<Dtype> {
        let names = self.names()?;
        let quantised = self
            .gguf
            .tensors
            .values()
            .any(|entry| matches!(entry.encoding, Encoding::Ggml(_)));
        let embedding = names.tensors.get(Role::Embedding).unwrap_or_default();
        let stored = self.gguf.tensors.get(embedding);
        Ok(match stored.map(|entry| entry.encoding) {
            Some(Encoding::Plain(dtype @ (Dtype::F32 | Dtype::F16))) if !quantised => dtype,
            _ => Dtype::BF16,
        })
    }
}
