//! A decoder, dense or a mixture, from token ids to logits.

use std::cell::RefCell;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};

use super::backend::{
    Backend, BackendChoice, Gradients, OptimiserState, TensorOperations, TensorRecord, TokenLosses,
};
use super::block::{Block, BlockOutput, BlockRecord, InputGradient};
use super::build::Builder;
use super::cache::{KvCache, LayerCache};
use super::memory;
use super::modules::{Head, Matrix, Norm};
use super::params::{LoadOptions, Params, describe};
use super::pass::{AttentionMask, Pass};
use super::rope::Rope;
use super::router::{LayerRouting, Overrides, RouterLoss, RouterLosses};
use crate::family::{Architecture, AttentionKv, Config};
use crate::{Error, Result, threads};

/// A language model: any family that `formats/` knows, and BAM mixtures of them.
#[derive(Debug, Clone)]
pub struct CausalLm {
    architecture: Architecture,
    params: Params,
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: Norm,
    head: Head,
    rope: Rope,
    backend: Backend,
    dtype: DType,
    device: Device,
}

/// What a forward pass is asked for beside the tokens.
#[derive(Debug, Clone, Default)]
pub struct Forward {
    /// Padding tokens at the start of each row of the batch, which nothing looks at. With a cache they are given with
    /// the first pass and remembered.
    pub left_padding: Option<Vec<usize>>,
    /// For each row of the batch the document that each of its tokens belongs to, in any numbering: attention stays within
    /// documents, which stand side by side. Without a cache only.
    pub documents: Option<Vec<Vec<u32>>>,
    /// Changes to the routing.
    pub overrides: Overrides,
    /// Whether [`Output::routing`] is wanted.
    pub keep_routing: bool,
    /// Whether [`Output::hidden`] is wanted.
    pub keep_hidden: bool,
    /// Whether logits are wanted of the last position alone.
    pub last_only: bool,
}

/// A layer that has run, and waits for the gradient of its output.
pub struct LayerRun {
    /// `[batch, seq, hidden]`.
    pub output: Tensor,
    /// How its tokens were routed.
    pub routing: LayerRouting,
    /// The losses of its feed-forward router, where they were asked for and there is one.
    pub loss: Option<RouterLoss>,
    /// What its backward pass needs.
    pub record: LayerRecord,
}

/// What the backward pass of a layer needs.
pub struct LayerRecord {
    layer: usize,
    record: BlockRecord<Box<dyn TensorRecord>>,
}

/// What a forward pass computes.
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
        let rope = Rope::new(&architecture, config)?;
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
            rope,
            backend,
            dtype,
            device,
        })
    }

    /// What the model is.
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

    /// Logits of `tokens`, ids `[batch, seq]` of dtype u32, behind the positions that `cache` has seen.
    ///
    /// The cache is filled with the new positions. Refused are ids outside the vocabulary, more positions than
    /// `max_position_embeddings`, a cache of another model or batch, and overrides that leave no expert.
    pub fn forward(
        &self,
        tokens: &Tensor,
        mut cache: Option<&mut KvCache>,
        options: &Forward,
    ) -> Result<Output> {
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
        let (batch, seq) = tokens.dims2().map_err(|_| {
            Error::usage(format!(
                "expected token ids [batch, seq], found {:?}",
                tokens.dims()
            ))
        })?;
        if batch == 0 || seq == 0 {
            return Err(Error::usage("expected at least one token, found none"));
        }
        self.check_ids(tokens)?;
        self.check_overrides(&options.overrides)?;
        if let Some(padding) = options
            .left_padding
            .as_ref()
            .filter(|padding| padding.len() != batch)
        {
            let problem = format!(
                "expected the padding of {batch} rows, found {}",
                padding.len()
            );
            return Err(Error::usage(problem));
        }
        if cache.is_some() && self.params.vars().next().is_some() {
            return Err(Error::usage(
                "a pass with a cache has no backward pass: load the model without trainable parameters",
            ));
        }
        let (mut offset, mut left_padding) = (0, options.left_padding.clone());
        if let Some(cache) = cache {
            offset = cache.length;
            if cache.layers.is_empty() || offset == 0 {
                cache
                    .layers
                    .resize_with(self.blocks.len(), LayerCache::default);
                if cache.batch != batch {
                    cache.layers.fill(LayerCache::default());
                }
                (cache.batch, cache.left_padding) = (batch, left_padding.clone());
            } else if (cache.batch, cache.layers.len()) != (batch, self.blocks.len()) {
                let problem = format!(
                    "the cache holds {} rows of another pass, expected {batch}",
                    cache.batch
                );
                return Err(Error::usage(problem));
            } else if options.left_padding.is_some() {
                return Err(Error::usage(
                    "padding belongs to the first tokens, but the cache has seen some already",
                ));
            }
            left_padding = cache.left_padding.clone();
        }
        let positions = offset + seq;
        if let Some(longest) = self
            .architecture
            .max_position_embeddings
            .filter(|longest| positions as u64 > *longest)
        {
            let problem =
                format!("{positions} positions are more than the model's context of {longest}");
            return Err(Error::usage(problem)
                .with_hint("shorten the text; max_position_embeddings is the limit"));
        }
        let document_starts = match &options.documents {
            None => None,
            Some(documents)
                if documents.len() != batch || documents.iter().any(|row| row.len() != seq) =>
            {
                return Err(Error::usage(format!(
                    "expected the documents of {batch} rows of {seq} tokens"
                )));
            }
            Some(_) if offset > 0 => {
                return Err(Error::usage("documents are for a pass without cache"));
            }
            Some(documents) => Some(documents.iter().map(|row| starts(row)).collect()),
        };
        let rows = left_padding.clone().unwrap_or_else(|| vec![0]);
        let positions: Vec<Vec<usize>> = rows
            .iter()
            .map(|padding| {
                (offset..positions)
                    .map(|position| position.saturating_sub(*padding))
                    .collect()
            })
            .collect();
        let begin = || -> candle_core::Result<(Tensor, Pass)> {
            let rotation = self.rope.rotation(&positions, self.dtype, &self.device)?;
            let pass = Pass {
                tokens: tokens.to_device(&self.device)?,
                attention_mask: AttentionMask {
                    offset,
                    left_padding,
                    document_starts,
                },
                rotation,
                overrides: options.overrides.clone(),
                dtype: self.dtype,
                device: self.device.clone(),
                masks: RefCell::default(),
            };
            let embedded = self.operations().embed(&self.embedding, &pass.tokens)?;
            Ok((embedded, pass))
        };
        begin().map_err(|e| self.failed(e))
    }

    /// One layer of a pass without cache: `x` `[batch, seq, hidden]` to the same.
    pub fn layer(&self, layer: usize, x: &Tensor, pass: &Pass) -> Result<(Tensor, LayerRouting)> {
        let output = self.run(layer, x, pass, None, None)?;
        Ok((output.x, output.routing))
    }

    /// [`layer`](Self::layer) with the record that [`layer_backward`](Self::layer_backward) needs, and the losses of its
    /// feed-forward router.
    ///
    /// Refused is a model that was loaded for inference.
    pub fn layer_recorded(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        losses: Option<&RouterLosses>,
    ) -> Result<LayerRun> {
        let output = self.run(layer, x, pass, None, losses)?;
        let Some(record) = output.record else {
            return Err(no_backward_pass());
        };
        Ok(LayerRun {
            output: output.x,
            routing: output.routing,
            loss: output.loss,
            record: LayerRecord { layer, record },
        })
    }

    /// The gradient of a layer's input from the gradient of its output, with the losses of its router. The gradients of its
    /// parameters are added to `gradients`.
    ///
    /// The result may be `None` only where the input's gradient is not needed.
    pub fn layer_backward(
        &self,
        record: LayerRecord,
        grad_output: &Tensor,
        input_gradient: InputGradient,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let LayerRecord { layer, record } = record;
        self.blocks[layer]
            .backward(
                self.operations(),
                record,
                grad_output,
                input_gradient,
                gradients,
            )
            .map_err(|e| self.failed(e))
    }

    /// Adds the gradient of the embedding to `gradients`, from the gradient of the output of [`begin`](Self::begin).
    pub fn embed_backward(
        &self,
        pass: &Pass,
        grad_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.operations()
            .embed_backward(&self.embedding, &pass.tokens, grad_output, gradients)
            .map_err(|e| self.failed(e))
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Empty gradients of the trainable parameters, in the order of [`Params::vars`].
    pub fn gradients(&self) -> Gradients {
        self.backend
            .gradients(self.params.vars().map(|(_, var)| var))
    }

    /// The optimiser's state of a parameter before the first update; `master` holds the float32 weights of a variable of
    /// another dtype.
    pub fn optimiser_state(
        &self,
        var: &Var,
        master: Option<Vec<f32>>,
    ) -> Result<Box<dyn OptimiserState>> {
        self.backend
            .optimiser_state(var, master)
            .map_err(|e| Error::compute("hold the state of the optimiser", e))
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

    /// The negative log-likelihoods in nats of `targets` `[batch · seq]` behind `x` `[batch, seq, hidden]`, the output of
    /// the last layer, and the gradient of `x` of the sum of them times their `weights`.
    ///
    /// The gradients of the final norm and the head are added to `gradients`. Logits of all tokens never exist at once.
    /// Refused are targets outside the vocabulary, and a model that was loaded for inference.
    pub fn loss(
        &self,
        x: &Tensor,
        targets: &[u32],
        weights: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        self.check_targets(targets)?;
        let failed = |e| self.failed(e);
        let operations = self.operations();
        let normed = operations.norm(&self.norm, x).map_err(failed)?;
        let Some(record) = normed.record else {
            return Err(no_backward_pass());
        };
        let loss = || -> candle_core::Result<(Tensor, Tensor)> {
            let rows = normed.output.flatten(0, 1)?;
            let TokenLosses { nll, grad_x } =
                operations.loss(&self.head, &rows, targets, weights, gradients)?;
            let grad_normed = grad_x.reshape(x.shape())?;
            let grad_x = operations.backward(record, &grad_normed, None, gradients)?;
            Ok((nll, grad_x))
        };
        loss().map_err(failed)
    }

    /// The negative log-likelihoods of [`loss`](Self::loss) alone.
    pub fn likelihoods(&self, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
        self.check_targets(targets)?;
        let rows = self.final_norm(x)?;
        rows.flatten(0, 1)
            .and_then(|rows| self.operations().likelihoods(&self.head, &rows, targets))
            .map_err(|e| self.failed(e))
    }

    fn operations(&self) -> &TensorOperations {
        self.backend.operations()
    }

    fn run(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        losses: Option<&RouterLosses>,
    ) -> Result<BlockOutput<Tensor, Box<dyn TensorRecord>>> {
        let Some(block) = self.blocks.get(layer) else {
            return Err(Error::usage(format!(
                "the model has {} layers, found layer {layer}",
                self.blocks.len()
            )));
        };
        block
            .forward(self.operations(), x, pass, cache, losses)
            .map_err(|e| self.failed(e))
    }

    fn check_targets(&self, targets: &[u32]) -> Result<()> {
        let vocab = self.architecture.vocab_size;
        match targets.iter().find(|id| u64::from(**id) >= vocab) {
            Some(id) => Err(Error::usage(format!(
                "token id {id} is outside the model's vocabulary of {vocab}"
            ))),
            None => Ok(()),
        }
    }

    fn failed(&self, problem: candle_core::Error) -> Error {
        Error::compute(
            format!("run the model {}", self.params.path().display()),
            problem,
        )
    }

    fn check_ids(&self, tokens: &Tensor) -> Result<()> {
        let ids = tokens.flatten_all().and_then(|ids| ids.to_vec1::<u32>());
        let ids = ids.map_err(|e| Error::usage(format!("expected token ids of dtype u32: {e}")))?;
        let vocab = self.architecture.vocab_size;
        match ids.iter().find(|id| u64::from(**id) >= vocab) {
            Some(id) => Err(Error::usage(format!(
                "token id {id} is outside the model's vocabulary of {vocab}"
            ))
            .with_hint("is the tokenizer the one of this model?")),
            None => Ok(()),
        }
    }

    fn check_overrides(&self, overrides: &Overrides) -> Result<()> {
        if overrides == &Overrides::default() {
            return Ok(());
        }
        let Some(mixture) = &self.architecture.mixture else {
            return Err(Error::usage(
                "routing cannot be changed: the model is dense",
            ));
        };
        let experts = mixture.num_experts as usize;
        if let Some(dropped) = overrides
            .dropped
            .iter()
            .find(|dropped| **dropped >= experts)
        {
            return Err(Error::usage(format!(
                "expected experts from 0 to {}, found {dropped}",
                experts - 1
            )));
        }
        let attention_experts = match mixture.attention_kv {
            AttentionKv::Merged => experts,
            AttentionKv::Expert | AttentionKv::Shared => mixture.num_attention_experts as usize,
        };
        if (0..experts.min(attention_experts)).all(|expert| overrides.dropped.contains(&expert)) {
            return Err(Error::usage(
                "every expert is dropped; expected at least one to be left",
            ));
        }
        let limits = [
            ("top-k", overrides.top_k, experts),
            (
                "attention top-k",
                overrides.attention_top_k,
                mixture.num_attention_experts as usize,
            ),
        ];
        for (name, value, most) in limits {
            if let Some(value) = value.filter(|value| *value == 0 || *value > most) {
                return Err(Error::usage(format!(
                    "expected a {name} of 1 to {most}, found {value}"
                )));
            }
        }
        Ok(())
    }
}

fn no_backward_pass() -> Error {
    Error::usage("a model loaded for inference has no backward pass")
        .with_hint("load it with Mode::Train")
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
        return Err(Error::file(
            folder,
            "its logits are not finite: NaN or infinity among them",
        )
        .with_hint("`bam-convert inspect` shows the tensors; look for NaN in the weights"));
    }
    Ok(logits)
}
