//! The beginning of a forward pass: checks, positions and embeddings.

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::cache::{KvCache, LayerCache};
use super::causal_lm::{CausalLm, Forward};
use super::error::ModelError;
use super::pass::{AttentionMask, KeptMasks, Pass};
use super::router::Overrides;
use crate::Result;
use crate::family::{AttentionGate, AttentionKv};

impl CausalLm {
    /// The embeddings of `tokens` `[batch, seq, hidden]`, and what the layers need to know of the pass.
    ///
    /// With [`layer_recorded`](Self::layer_recorded), [`loss`](Self::loss) and [`layer_backward`](Self::layer_backward) a
    /// trainer runs a pass layer by layer, forward and back.
    pub fn begin(
        &self,
        tokens: &Tensor,
        cache: Option<&mut KvCache>,
        options: &Forward,
    ) -> Result<(Tensor, Pass)> {
        let (batch, seq) = self.check_shape(tokens, options)?;
        self.check_ids(tokens)?;
        self.check_overrides(&options.overrides)?;
        if cache.is_some() && self.params.vars().next().is_some() {
            return Err(ModelError::CacheInTraining.into());
        }

        let (mut offset, mut left_padding) = (0, options.left_padding.clone());
        if let Some(cache) = cache {
            self.prepare(cache, batch, options)?;
            (offset, left_padding) = (cache.length, cache.left_padding.clone());
        }
        self.check_context(offset + seq)?;
        let document_starts = document_starts(options, batch, seq, offset)?;
        let positions: Vec<Vec<usize>> = left_padding
            .as_deref()
            .unwrap_or(&[0])
            .iter()
            .map(|padding| {
                (offset..offset + seq)
                    .map(|position| position.saturating_sub(*padding))
                    .collect()
            })
            .collect();

        let begin = || -> candle_core::Result<(Tensor, Pass)> {
            let rotations = self.ropes.rotations(&positions, self.dtype, &self.device)?;
            let query_scales = self.query_scales(&positions)?;
            let pass = Pass {
                tokens: tokens.to_device(&self.device)?,
                attention_mask: AttentionMask {
                    offset,
                    left_padding,
                    document_starts,
                },
                rotations,
                query_scales,
                overrides: options.overrides.clone(),
                dtype: self.dtype,
                device: self.device.clone(),
                masks: KeptMasks::default(),
            };
            let embedded = self.operations().embed(&self.embedding, &pass.tokens)?;
            let factor = self.embedding_factor();
            Ok((self.operations().multiply(&embedded, factor)?, pass))
        };
        begin().map_err(|e| self.failed(e))
    }

    /// The factors on queries at these positions, where some are not 1.
    fn query_scales(&self, positions: &[Vec<usize>]) -> candle_core::Result<Option<Tensor>> {
        let Some(scale) = self.architecture.multipliers.query_scale() else {
            return Ok(None);
        };
        let factors: Vec<f64> = positions
            .iter()
            .flatten()
            .map(|position| scale.at(*position))
            .collect();
        if factors.iter().all(|factor| *factor == 1.0) {
            return Ok(None);
        }
        let seq = positions.first().map_or(0, Vec::len);
        let factors = Tensor::from_vec(factors, (positions.len(), seq, 1, 1, 1), &self.device)?;
        factors.to_dtype(self.dtype).map(Some)
    }

    /// The factor on embeddings.
    ///
    /// Gemma's classes hold the root of the width as a tensor, rounded to the dtype of the embeddings. Factors of other classes are
    /// Python's numbers.
    pub(super) fn embedding_factor(&self) -> Option<f64> {
        let factor = self.architecture.multipliers.embedding_multiplier?;
        let is_root = factor == (self.architecture.hidden_size as f64).sqrt();
        Some(match self.dtype {
            DType::BF16 if is_root => bf16::from_f64(factor).to_f64(),
            DType::F16 if is_root => f16::from_f64(factor).to_f64(),
            _ => factor,
        })
    }

    /// The batch and length of `tokens`.
    fn check_shape(&self, tokens: &Tensor, options: &Forward) -> Result<(usize, usize)> {
        let (batch, seq) = tokens.dims2().map_err(|_| ModelError::TokenShape {
            found: tokens.dims().to_vec(),
        })?;
        if batch == 0 || seq == 0 {
            return Err(ModelError::NoTokens.into());
        }
        match &options.left_padding {
            Some(padding) if padding.len() != batch => Err(ModelError::PaddingRows {
                expected: batch,
                found: padding.len(),
            }
            .into()),
            _ => Ok((batch, seq)),
        }
    }

    /// Makes an empty cache ready for a pass, and refuses one of another model or batch.
    fn prepare(&self, cache: &mut KvCache, batch: usize, options: &Forward) -> Result<()> {
        if cache.layers.is_empty() || cache.length == 0 {
            cache
                .layers
                .resize_with(self.blocks.len(), LayerCache::default);
            if cache.batch != batch {
                cache.layers.fill(LayerCache::default());
            }
            (cache.batch, cache.left_padding) = (batch, options.left_padding.clone());
        } else if (cache.batch, cache.layers.len()) != (batch, self.blocks.len()) {
            return Err(ModelError::OtherCache {
                expected: batch,
                found: cache.batch,
            }
            .into());
        } else if options.left_padding.is_some() {
            return Err(ModelError::LatePadding.into());
        }
        Ok(())
    }

    fn check_context(&self, positions: usize) -> Result<()> {
        match self.architecture.max_position_embeddings {
            Some(longest) if positions as u64 > longest => {
                Err(ModelError::LongContext { positions, longest }.into())
            }
            _ => Ok(()),
        }
    }

    fn check_ids(&self, tokens: &Tensor) -> Result<()> {
        if tokens.dtype() != DType::U32 {
            let found = tokens.dtype();
            return Err(ModelError::TokenDtype { found }.into());
        }
        let ids = tokens.flatten_all().and_then(|ids| ids.to_vec1::<u32>());
        let ids = ids.map_err(|e| self.failed(e))?;
        self.check_in_vocabulary(&ids)
    }

    fn check_overrides(&self, overrides: &Overrides) -> Result<()> {
        if overrides == &Overrides::default() {
            return Ok(());
        }
        let Some(mixture) = &self.architecture.mixture else {
            return Err(ModelError::DenseRouting.into());
        };
        let experts = mixture.num_experts as usize;
        if let Some(dropped) = overrides
            .dropped
            .iter()
            .find(|dropped| **dropped >= experts)
        {
            return Err(ModelError::NoExpert {
                last: experts - 1,
                found: *dropped,
            }
            .into());
        }
        let attention_experts = match mixture.attention_kv {
            AttentionKv::Merged => experts,
            AttentionKv::Expert | AttentionKv::Shared => mixture.num_attention_experts as usize,
        };
        if (0..experts.min(attention_experts)).all(|expert| overrides.dropped.contains(&expert)) {
            return Err(ModelError::AllDropped.into());
        }
        let limits = [
            ("top-k", overrides.top_k, experts),
            (
                "attention top-k",
                overrides.attention_top_k,
                mixture.num_attention_experts as usize,
            ),
        ];
        for (what, value, most) in limits {
            if let Some(found) = value.filter(|value| *value == 0 || *value > most) {
                return Err(ModelError::TopK { what, most, found }.into());
            }
        }
        let chooses = overrides
            .attention_top_k
            .is_some_and(|k| k < mixture.num_attention_experts as usize);
        if chooses && mixture.attention_gate == AttentionGate::Sigmoid {
            return Err(ModelError::SigmoidTopK.into());
        }
        Ok(())
    }
}

/// For each row and position, the position at which its document begins.
fn document_starts(
    options: &Forward,
    batch: usize,
    seq: usize,
    offset: usize,
) -> Result<Option<Vec<Vec<usize>>>> {
    let Some(documents) = &options.documents else {
        return Ok(None);
    };
    if documents.len() != batch || documents.iter().any(|row| row.len() != seq) {
        return Err(ModelError::DocumentShape {
            rows: batch,
            tokens: seq,
        }
        .into());
    }
    if offset > 0 {
        return Err(ModelError::DocumentsWithCache.into());
    }
    Ok(Some(documents.iter().map(|row| starts(row)).collect()))
}

/// The position at which the document of each token begins.
fn starts(documents: &[u32]) -> Vec<usize> {
    let mut start = 0;
    let start_of = |position: usize| {
        if position > 0 && documents[position] != documents[position - 1] {
            start = position;
        }
        start
    };
    (0..documents.len()).map(start_of).collect()
}
