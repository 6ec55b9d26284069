//! What the metadata of a GGUF file says about its model.

use std::borrow::Cow;
use std::sync::Arc;

use super::architecture::Architecture;
use super::format::{Family, Presence};
use super::gguf_architecture;
use super::gguf_error::GgufModelError;
use super::gguf_names::default_activation;
use super::gguf_rope;
use super::keys::Field;
use super::layout::{AttentionKv, Block, QkNorm};
use super::mixture::Mixture;
use super::multipliers::Multipliers;
use super::names::{GgufNames, ROTATED, VALUE_LENGTH, bias_of};
use super::role::{BiasRule, Role};
use crate::checkpoint::{Dtype, Encoding, Gguf, GgufValue};
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
    fn unexpected(
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
        let is_unread =
            |field: &Field| self.family.keys.has(*field) && !names.keys.contains_key(field);
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
            ("logit_scale", 1.0),
            ("residual_scale", 1.0),
            ("embedding_scale", 1.0),
        ] {
            if names.keys.values().any(|listed| listed == key) {
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
        let is_parallel = self.family.layouts.block != Block::Sequential;
        // Where the tensors say it, llama.cpp does not read the key, and files have it wrong.
        let by_tensors = self.family.keys.has(Field::ParallelBlock);
        for (key, neutral) in [
            ("attention.causal", true),
            ("use_parallel_residual", is_parallel),
        ] {
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
        let sliding_window = if names.keys.contains_key(&Field::SlidingWindow) {
            Some(self.size(Field::SlidingWindow)?)
        } else {
            None
        };
        let window_layers = names.window_layers(sliding_window, num_layers);
        let head = names.tensors.get(Role::Head).unwrap_or_default();
        let dense = Architecture {
            family: family.name.clone(),
            block: self.block(names),
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
            logit_scale: self.factor(Field::LogitScale)?,
            sliding_window,
            rope_layers: names.rope_layers(family.rotation, &window_layers, num_layers),
            window_layers,
            window_rope: None,
            partial_rotary_factor: (rotated != head_dim)
                .then_some(rotated as f64 / head_dim as f64),
            clip_qkv: None,
            multipliers: Multipliers {
                embedding_multiplier: self.factor(Field::EmbeddingMultiplier)?,
                residual_multiplier: self.factor(Field::ResidualMultiplier)?,
                attention_multiplier: self.factor(Field::AttentionMultiplier)?,
                logits_divisor: self.factor(Field::LogitsDivisor)?,
                ..Multipliers::default()
            },
            max_position_embeddings: Some(context),
            initializer_range: 0.02,
            dtype: Some(self.dtype()?),
            mixture: None,
            multimodal: None,
            format: Some(Arc::clone(family)),
        };
        let mixture = experts.map(|(count, used)| Mixture {
            num_experts_per_tok: used,
            num_attention_experts: 1,
            num_attention_experts_per_tok: 1,
            attention_kv: AttentionKv::Merged,
            ..Mixture::new(&dense, count)
        });
        Ok(Architecture { mixture, ..dense })
    }

    /// How attention and feed-forward network are joined: in a family that has both ways, a layer without a norm between them is
    /// parallel.
    fn block(&self, names: &GgufNames) -> Block {
        let usual = self.family.layouts.block;
        let between = names.tensors.name(Role::PostAttentionNorm, Some(0), None);
        let has_norm = between.is_some_and(|name| self.gguf.tensors.contains_key(&name));
        if self.family.keys.has(Field::ParallelBlock) && usual == Block::Parallel && has_norm {
            return Block::Sequential;
        }
        usual
    }

    /// A factor, where the architecture has a key for it; llama.cpp takes zero for none.
    fn factor(&self, field: Field) -> Result<Option<f64>> {
        let names = self.names()?;
        if !names.keys.contains_key(&field) {
            return Ok(None);
        }
        let value = self.gguf.float(&names.key(field)?)?;
        Ok(value.filter(|value| *value != 0.0))
    }

    /// Heads of queries, and of keys and values.
    fn heads(&self) -> Result<(u64, u64)> {
        let heads = self.size(Field::NumHeads)?;
        let key = self.names()?.key(Field::NumKvHeads)?;
        let kv_heads = if self.gguf.metadata.contains_key(&key) {
            self.size(Field::NumKvHeads)?
        } else {
            heads
        };
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(self.unexpected(&key, expected, kv_heads));
        }
        Ok((heads, kv_heads))
    }

    /// The width of a head, and how much of it rotates.
    fn head_dim(&self, hidden: u64, heads: u64) -> Result<(u64, u64)> {
        let names = self.names()?;
        let (key, values) = (names.key(Field::HeadDim)?, names.own_key(VALUE_LENGTH));
        let rotated_key = names.own_key(ROTATED);
        let rotated = self.gguf.unsigned(&rotated_key)?;
        let rotates_in_part = names.keys.contains_key(&Field::PartialRotaryFactor);
        let (said_by, head_dim) = match (self.gguf.unsigned(&key)?, rotated) {
            (None, Some(rotated)) if !rotates_in_part => (&rotated_key, rotated),
            (said, _) => (&key, said.unwrap_or(hidden / heads)),
        };
        // A head is one row of attn_q at least, and attn_q is in the file: more is nonsense.
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 20 {
            return Err(self.unexpected(said_by, "an even head dimension", head_dim));
        }
        let rotated = rotated.unwrap_or(head_dim);
        if rotates_in_part && (rotated == 0 || !rotated.is_multiple_of(2) || rotated > head_dim) {
            let expected = format!("an even number up to the head dimension {head_dim}");
            return Err(self.unexpected(&rotated_key, expected, rotated));
        }
        let whole = (!rotates_in_part).then_some(rotated_key);
        for key in [values].into_iter().chain(whole) {
            let found = self.gguf.unsigned(&key)?;
            if let Some(found) = found.filter(|found| *found != head_dim) {
                let expected = format!("the head dimension {head_dim}");
                return Err(self.unexpected(&key, expected, found));
            }
        }
        Ok((head_dim, rotated))
    }

    /// Rows of the embedding, with which the metadata agrees where it says them.
    fn vocabulary(&self) -> Result<u64> {
        let names = self.names()?;
        let embedding = names.tensors.get(Role::Embedding).unwrap_or_default();
        let shape = &self.gguf.tensor(embedding)?.shape;
        let rows = shape.first().copied().unwrap_or_default();
        let key = names.key(Field::VocabSize)?;
        let said = self.gguf.unsigned(&key)?;
        match said.filter(|said| *said != rows) {
            Some(said) => {
                let expected = format!("{rows}, the rows of `{embedding}`");
                Err(self.unexpected(&key, expected, said))
            }
            None => Ok(rows),
        }
    }

    /// Number of layers: no more than the file has tensors.
    fn layers(&self) -> Result<u64> {
        let (layers, tensors) = (self.size(Field::NumLayers)?, self.gguf.tensors.len());
        if layers > tensors as u64 {
            let key = self.names()?.key(Field::NumLayers)?;
            let found = format!("{layers} layers, {tensors} tensors");
            return Err(self.unexpected(&key, "at least one tensor per layer", found));
        }
        Ok(layers)
    }

    /// Experts of a layer, and how many a token goes to; none in a dense model.
    fn experts(&self) -> Result<Option<(u64, u64)>> {
        if !self.family.is_mixture() {
            return Ok(None);
        }
        let names = self.names()?;
        let count_key = names.key(Field::NumExperts)?;
        let used_key = names.key(Field::NumExpertsPerTok)?;
        let count = self.gguf.unsigned(&count_key)?.unwrap_or(0);
        // Each expert has rows of its own in the router of each layer.
        if count > 1 << 16 {
            return Err(self.unexpected(&count_key, "at most 65536 experts", count));
        }
        let used = self.gguf.unsigned(&used_key)?.unwrap_or(0);
        if used == 0 || used > count {
            let expected = format!("1 to {count_key} = {count}");
            return Err(self.unexpected(&used_key, expected, used));
        }
        Ok(Some((count, used)))
    }

    /// A size above zero; a list of one a layer counts where all are equal.
    fn size(&self, field: Field) -> Result<u64> {
        let key = self.names()?.key(field)?;
        let value = match self.gguf.integers(&key) {
            Ok(Some(values)) => match values.split_first() {
                Some((first, rest)) if rest.iter().all(|value| value == first) => {
                    u64::try_from(*first).ok()
                }
                _ => {
                    let found = self.gguf.metadata.get(&key).map(GgufValue::describe);
                    let found = found.unwrap_or_default();
                    return Err(self.unexpected(&key, "one size for all layers", found));
                }
            },
            _ => self.gguf.unsigned(&key)?,
        };
        const EXPECTED: &str = "a whole number above 0";
        let value =
            value.ok_or_else(|| InputError::missing_key(&self.gguf.path, &key, EXPECTED))?;
        // No file holds a tensor with a larger dimension, and products of two sizes fit a `u64`.
        if value == 0 || value > u64::from(u32::MAX) {
            return Err(self.unexpected(&key, EXPECTED, value));
        }
        Ok(value)
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
            let biases = roles
                .clone()
                .filter_map(move |role| names.tensors.name(role, Some(layer), None));
            biases.map(|weight| bias_of(&weight))
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
