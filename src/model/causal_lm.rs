//! A decoder, dense or a mixture, from token ids to logits.

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};

use super::backend::{Backend, BackendChoice, OperationRecord, TensorOperations};
use super::block::{Block, BlockOutput};
use super::build::Builder;
use super::cache::{KvCache, LayerCache};
use super::error::ModelError;
use super::memory;
use super::modules::{Head, Matrix, Norm};
use super::params::{LoadOptions, Params, describe};
use super::pass::Pass;
use super::rope::Ropes;
use super::router::{LayerRouting, Overrides, RouterLosses};
use crate::family::{Architecture, Config};
use crate::{Error, Result, threads};

/// A language model: any family that `formats/` knows, and BAM mixtures of them.
#[derive(Debug, Clone)]
pub struct CausalLm {
    pub(super) architecture: Architecture,
    pub(super) params: Params,
    pub(super) embedding: Matrix,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    pub(super) head: Head,
    pub(super) ropes: Ropes,
    pub(super) backend: Backend,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

/// The options of a forward pass.
#[derive(Debug, Clone, Default)]
pub struct Forward {
    /// The number of padding tokens at the start of each row of the batch, which other tokens do not see. A cache remembers
    /// the numbers of its first pass.
    pub left_padding: Option<Vec<usize>>,
    /// For each row of the batch, the document that each of its tokens belongs to, in any numbering. Attention stays within
    /// documents, which are contiguous. Only without a cache.
    pub documents: Option<Vec<Vec<u32>>>,
    /// Changes to the routing.
    pub overrides: Overrides,
    /// Whether to return [`Output::routing`].
    pub keep_routing: bool,
    /// Whether to return [`Output::hidden`].
    pub keep_hidden: bool,
    /// Whether to compute logits of the last position alone.
    pub last_only: bool,
}

/// The results of a forward pass.
#[derive(Debug, Clone)]
pub struct Output {
    /// Logits `[batch, seq, vocab]` (`seq` = 1 with [`Forward::last_only`]) in float32, or float64 where the model
    /// computes in it.
    pub logits: Tensor,
    /// How each layer routed its tokens; empty unless asked for.
    pub routing: Vec<LayerRouting>,
    /// The input of each layer and, last, the input of the head after its norm, all `[batch, seq, hidden]`: the
    /// `hidden_states` of transformers. Empty unless asked for.
    pub hidden: Vec<Tensor>,
}

impl CausalLm {
    /// Loads the checkpoint in `folder`.
    ///
    /// Errors name the file, tensor or key: a config that contradicts the tensors, an unknown activation or RoPE scaling.
    ///
    /// ```
    /// use bam_convert::model::{CausalLm, Forward, LoadOptions};
    /// use candle_core::{Device, Tensor};
    ///
    /// let model = CausalLm::load("fixtures/llama/seed".as_ref(), &LoadOptions::default())?;
    /// let tokens = Tensor::new(&[[1_u32, 5, 9]], &Device::Cpu)?;
    /// let output = model.forward(&tokens, None, &Forward::default())?;
    /// assert_eq!(output.logits.dims(), [1, 3, 384]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        memory::keep_freed();
        threads::start_shared(0)?;
        let (config, architecture) = describe(folder)?;
        let params = Params::load(folder, &architecture, options)?;
        Self::new(architecture, &config, params, options)
    }

    /// The model of `architecture` with these parameters; `config` holds the keys beyond the architecture.
    pub fn new(
        architecture: Architecture,
        config: &Config,
        params: Params,
        options: &LoadOptions,
    ) -> Result<Self> {
        let builder = Builder {
            params: &params,
            architecture: &architecture,
            config,
        };
        let (embedding, head) = builder.embeddings()?;
        let blocks = builder.blocks()?;
        let norm = builder.final_norm()?;
        let ropes = Ropes::new(&architecture, config)?;
        let sublayers = blocks
            .iter()
            .map(|block| (&block.attention, &block.feed_forward));
        let backend = Backend::choose(options, sublayers);
        let (dtype, device) = (options.dtype, options.device.clone());
        Ok(Self {
            architecture,
            params,
            embedding,
            blocks,
            norm,
            head,
            ropes,
            backend,
            dtype,
            device,
        })
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The backend that computes, and why it was chosen.
    pub fn backend(&self) -> &BackendChoice {
        self.backend.choice()
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Logits of `tokens`, ids `[batch, seq]` of dtype u32, which follow the positions that `cache` has seen.
    ///
    /// The cache is filled with the new positions. Refused are ids outside the vocabulary, more positions than
    /// `max_position_embeddings`, a cache of another model or batch, and overrides that leave no expert.
    pub fn forward(
        &self,
        tokens: &Tensor,
        mut cache: Option<&mut KvCache>,
        options: &Forward,
    ) -> Result<Output> {
        if let Some(cache) = cache.as_deref_mut()
            && self.is_stale(cache, tokens)
        {
            return self.forward_again(tokens, cache, options);
        }
        let (mut x, pass) = self.begin(tokens, cache.as_deref_mut(), options)?;
        let (mut routing, mut hidden) = (Vec::new(), Vec::new());
        for layer in 0..self.blocks.len() {
            if options.keep_hidden {
                hidden.push(x.clone());
            }
            let layer_cache = cache
                .as_deref_mut()
                .and_then(|cache| cache.layers.get_mut(layer));
            let output = self.run(layer, &x, &pass, layer_cache, None)?;
            x = output.x;
            if options.keep_routing {
                routing.push(output.routing);
            }
        }
        if let Some(cache) = cache {
            if self.ropes.may_switch() {
                cache.remember(tokens).map_err(|e| self.failed(e))?;
                cache.switched = self.switched(cache, tokens);
            }
            cache.length += tokens.dims()[1];
        }
        if options.last_only {
            let last = x
                .dim(1)
                .and_then(|seq| x.narrow(1, seq - 1, 1))
                .and_then(|last| last.contiguous());
            x = last.map_err(|e| self.failed(e))?;
        }
        let x = self.final_norm(&x)?;
        let logits = self.head(&x)?;
        if options.keep_hidden {
            hidden.push(x);
        }
        Ok(Output {
            logits,
            routing,
            hidden,
        })
    }

    /// How many rotations have switched to their frequencies of long texts after `tokens`.
    fn switched(&self, cache: &KvCache, tokens: &Tensor) -> usize {
        let padding = cache.left_padding.iter().flatten().min().copied();
        let new = tokens.dims().get(1).copied().unwrap_or_default();
        self.ropes
            .switched((cache.length + new).saturating_sub(padding.unwrap_or_default()))
    }

    /// Whether the keys of a cache are rotated in another way than the keys of `tokens` will be.
    fn is_stale(&self, cache: &KvCache, tokens: &Tensor) -> bool {
        let same_batch = tokens.dims().first() == Some(&cache.batch);
        !cache.is_empty() && same_batch && self.switched(cache, tokens) != cache.switched
    }

    /// [`Self::forward`] after all positions of the cache are computed again, as `generate` of transformers does for Phi-3.
    fn forward_again(
        &self,
        tokens: &Tensor,
        cache: &mut KvCache,
        options: &Forward,
    ) -> Result<Output> {
        let options = Forward {
            left_padding: cache.left_padding.clone(),
            ..options.clone()
        };
        let old = cache.length;
        let all = cache.with_seen(tokens).map_err(|e| self.failed(e))?;
        cache.truncate(0);
        let output = self.forward(&all, Some(cache), &options)?;
        let narrowed = || -> candle_core::Result<Output> {
            let new = |x: &Tensor| x.narrow(1, old, x.dim(1)? - old);
            Ok(Output {
                logits: if options.last_only {
                    output.logits.clone()
                } else {
                    new(&output.logits)?
                },
                routing: output
                    .routing
                    .iter()
                    .map(|routing| routing.each(new))
                    .collect::<candle_core::Result<_>>()?,
                hidden: output
                    .hidden
                    .iter()
                    .map(new)
                    .collect::<candle_core::Result<_>>()?,
            })
        };
        narrowed().map_err(|e| self.failed(e))
    }

    /// One layer of a pass without cache: `x` `[batch, seq, hidden]` to the same.
    pub fn layer(&self, layer: usize, x: &Tensor, pass: &Pass) -> Result<(Tensor, LayerRouting)> {
        let output = self.run(layer, x, pass, None, None)?;
        Ok((output.x, output.routing))
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The norm before the head, `[batch, seq, hidden]` to the same.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.operations().norm(&self.norm, x);
        Ok(normed.map_err(|e| self.failed(e))?.output)
    }

    /// Logits `[.., vocab]` of normed hidden states `[.., hidden]`, in float32 at least.
    pub fn head(&self, x: &Tensor) -> Result<Tensor> {
        self.operations()
            .logits(&self.head, x)
            .map_err(|e| self.failed(e))
    }

    /// The negative log-likelihoods of [`loss`](Self::loss) alone.
    pub fn likelihoods(&self, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
        self.check_in_vocabulary(targets)?;
        let rows = self.final_norm(x)?;
        rows.flatten(0, 1)
            .and_then(|rows| self.operations().likelihoods(&self.head, &rows, targets))
            .map_err(|e| self.failed(e))
    }

    pub(super) fn operations(&self) -> &TensorOperations {
        self.backend.operations()
    }

    pub(super) fn run(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        losses: Option<&RouterLosses>,
    ) -> Result<BlockOutput<Tensor, Box<dyn OperationRecord>>> {
        let Some(block) = self.blocks.get(layer) else {
            return Err(ModelError::NoLayer {
                layers: self.blocks.len(),
                found: layer,
            }
            .into());
        };
        block
            .forward(self.operations(), x, pass, cache, losses)
            .map_err(|e| self.failed(e))
    }

    pub(super) fn check_in_vocabulary(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.architecture.vocab_size;
        match ids.iter().find(|id| u64::from(**id) >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutside { id, vocab_size }.into()),
            None => Ok(()),
        }
    }

    pub(super) fn failed(&self, problem: candle_core::Error) -> Error {
        Error::compute(
            format!("run the model {}", self.params.path().display()),
            problem,
        )
    }
}

/// Logits `[seq, vocab]` of one sequence in float32, computed in float32 whatever the checkpoint's dtype.
///
/// Logits that are not finite are an error.
pub fn logits(folder: &Path, tokens: &[u32], device: &Device) -> Result<Tensor> {
    let model = CausalLm::load(
        folder,
        &LoadOptions {
            device: device.clone(),
            ..LoadOptions::default()
        },
    )?;
    let tokens = Tensor::new(tokens, &Device::Cpu).and_then(|tokens| tokens.unsqueeze(0));
    let tokens = tokens.map_err(|e| Error::compute("hold the token ids", e))?;
    let logits = model.forward(&tokens, None, &Forward::default())?.logits;
    let finish = || -> candle_core::Result<(Tensor, f32)> {
        let sum = logits
            .abs()?
            .max(D::Minus1)?
            .sum_all()?
            .to_scalar::<f32>()?;
        Ok((logits.squeeze(0)?, sum))
    };
    let (logits, sum) = finish().map_err(|e| model.failed(e))?;
    if !sum.is_finite() {
        let path = folder.to_path_buf();
        return Err(ModelError::NotFinite { path }.into());
    }
    Ok(logits)
}
