//! Generation: a pass over the prompts, then token by token with a cache.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::Value;

use super::cache::KvCache;
use super::causal_lm::{CausalLm, Forward};
use super::error::ModelError;
use super::router::Overrides;
use super::sampling::{Sampler, Sampling};
use crate::checkpoint::json;
use crate::{Error, Result};

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Most new tokens a prompt gets.
    pub max_tokens: usize,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Changes to the routing.
    pub overrides: Overrides,
}

/// What the receiver of a token wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// More of this text.
    Continue,
    /// No more of this text.
    Stop,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The model ended it.
    Eos,
    /// Its receiver did: a stop string.
    Stop,
    /// It reached [`Settings::max_tokens`].
    Length,
}

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, the one that ends the text included.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub ending: Ending,
}

/// The continuations of a batch of prompts, and the time that they took.
#[derive(Debug, Clone)]
pub struct Batch {
    /// One for each prompt.
    pub texts: Vec<Generated>,
    /// From the start to the first new token of each prompt.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
}

/// Continues all `prompts` (token ids) together, the shorter ones padded on the left.
///
/// `each` gets the number of the prompt and each new token, except for tokens of [`Settings::eos`]. Every prompt has its own
/// draws from the same seed, so that a text does not depend on the others beside it, up to rounding.
///
/// Refused are empty prompts, ids outside the vocabulary, and more tokens than the model's context. Logits that are not
/// finite are an error.
pub fn generate(
    model: &CausalLm,
    prompts: &[Vec<u32>],
    settings: &Settings,
    each: &mut dyn FnMut(usize, u32) -> Result<Flow>,
) -> Result<Batch> {
    continue_from(model, KvCache::new(), 0, prompts, settings, each).map(|(batch, _)| batch)
}

/// What a model has read of one growing text: a dialogue.
#[derive(Debug, Default)]
pub struct ReadText {
    cache: KvCache,
    /// The ids whose keys and values the cache holds.
    ids: Vec<u32>,
}

/// Continues `prompt` as [`generate`] does, but reads only what follows its common beginning with the text that `read` is
/// of. Afterwards `read` is of the prompt with its continuation.
///
/// # Errors
/// As [`generate`].
pub fn generate_after(
    model: &CausalLm,
    read: &mut ReadText,
    prompt: Vec<u32>,
    settings: &Settings,
    each: &mut dyn FnMut(u32) -> Result<Flow>,
) -> Result<Batch> {
    let ReadText { mut cache, ids } = std::mem::take(read);
    let same = ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
    // The last position is read again for its logits.
    let kept = same.min(prompt.len().saturating_sub(1));
    cache.truncate(kept);
    let prompts = [prompt];
    let (batch, cache) = continue_from(model, cache, kept, &prompts, settings, &mut |_, id| {
        each(id)
    })?;
    let [mut ids] = prompts;
    ids.extend(batch.texts.iter().flat_map(|text| &text.ids));
    // The last new token has not been read.
    ids.truncate(cache.len());
    *read = ReadText { cache, ids };
    Ok(batch)
}

/// Continues prompts of which `cache` holds the first `read` tokens; returns the cache with the rest.
fn continue_from(
    model: &CausalLm,
    mut cache: KvCache,
    read: usize,
    prompts: &[Vec<u32>],
    settings: &Settings,
    each: &mut dyn FnMut(usize, u32) -> Result<Flow>,
) -> Result<(Batch, KvCache)> {
    settings.sampling.check()?;
    check_prompts(model, prompts, settings.max_tokens)?;
    let start = Instant::now();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let padding: Vec<usize> = prompts
        .iter()
        .map(|prompt| longest - prompt.len())
        .collect();
    let rows = prompts.len();
    let mut input: Vec<u32> = Vec::with_capacity(rows * longest);
    for (prompt, padding) in prompts.iter().zip(&padding) {
        input.resize(input.len() + padding, 0);
        input.extend(&prompt[read..]);
    }
    let mut forward = Forward {
        left_padding: padding
            .iter()
            .any(|padding| *padding > 0)
            .then_some(padding),
        overrides: settings.overrides.clone(),
        last_only: true,
        ..Forward::default()
    };
    let mut texts: Vec<Text> = prompts
        .iter()
        .map(|prompt| Text::new(prompt, settings))
        .collect();
    let mut prefill = None;
    if settings.max_tokens > 0 {
        loop {
            let tokens = Tensor::from_vec(
                input,
                (rows, if prefill.is_none() { longest - read } else { 1 }),
                &Device::Cpu,
            )
            .map_err(|e| Error::compute("hold the token ids", e))?;
            let logits = last_logits(model, &tokens, &mut cache, &forward)?;
            prefill.get_or_insert_with(|| start.elapsed());
            forward.left_padding = None;
            for (row, (text, logits)) in texts.iter_mut().zip(logits).enumerate() {
                text.extend(model, row, logits, settings, each)?;
            }
            if texts.iter().all(|text| text.ending.is_some()) {
                break;
            }
            input = texts
                .iter()
                .map(|text| text.all.last().copied().unwrap_or(0))
                .collect();
        }
    }
    let prefill = prefill.unwrap_or_default();
    let texts = texts.into_iter().map(|text| Generated {
        ids: text.all[text.prompt..].to_vec(),
        ending: text.ending.unwrap_or(Ending::Length),
    });
    let batch = Batch {
        texts: texts.collect(),
        prefill,
        decode: start.elapsed().saturating_sub(prefill),
    };
    Ok((batch, cache))
}

/// The ids that end a text: `eos_token_id` of `generation_config.json`, else of `config.json`; a number or a list.
pub fn eos_ids(folder: &Path) -> Result<Vec<u32>> {
    const KEY: &str = "eos_token_id";
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let object = json::read_object(&path)?;
        let ids = match object.get(KEY) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
        };
        let id = |id: &Value| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| {
                let (path, key) = (path.clone(), KEY);
                ModelError::EndOfText { path, key }.into()
            })
        };
        // −1 was an early spelling of "none".
        return ids
            .iter()
            .filter(|id| id.as_i64() != Some(-1))
            .map(id)
            .collect();
    }
    Ok(Vec::new())
}

fn check_prompts(model: &CausalLm, prompts: &[Vec<u32>], max_tokens: usize) -> Result<()> {
    if prompts.is_empty() {
        return Err(ModelError::NoPrompts.into());
    }
    for (number, prompt) in prompts.iter().enumerate() {
        let number = (prompts.len() > 1).then_some(number + 1);
        if prompt.is_empty() {
            return Err(ModelError::EmptyPrompt { number }.into());
        }
        let Some(context) = model.architecture().max_position_embeddings else {
            continue;
        };
        let length = prompt.len();
        if max_tokens > (context as usize).saturating_sub(length) {
            return Err(ModelError::LongPrompt {
                number,
                length,
                new: max_tokens,
                context,
            }
            .into());
        }
    }
    Ok(())
}

/// Logits of the last position of each row.
fn last_logits(
    model: &CausalLm,
    tokens: &Tensor,
    cache: &mut KvCache,
    forward: &Forward,
) -> Result<Vec<Vec<f32>>> {
    let logits = model.forward(tokens, Some(cache), forward)?.logits;
    let logits = logits
        .squeeze(1)
        .and_then(|logits| logits.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>());
    logits.map_err(|e| Error::compute("read the logits", e))
}

/// One row of the batch.
struct Text {
    /// The prompt and the new tokens.
    all: Vec<u32>,
    prompt: usize,
    ending: Option<Ending>,
    sampler: Sampler,
}

impl Text {
    fn new(prompt: &[u32], settings: &Settings) -> Self {
        Self {
            all: prompt.to_vec(),
            prompt: prompt.len(),
            ending: None,
            sampler: Sampler::new(&settings.sampling),
        }
    }

    fn extend(
        &mut self,
        model: &CausalLm,
        row: usize,
        logits: Vec<f32>,
        settings: &Settings,
        each: &mut dyn FnMut(usize, u32) -> Result<Flow>,
    ) -> Result<()> {
        if self.ending.is_some() {
            return Ok(());
        }
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(ModelError::NotFiniteAfter {
                path: model.params().path().to_path_buf(),
                tokens: self.all.len(),
            }
            .into());
        }
        let id = self.sampler.next(logits, &self.all)?;
        self.all.push(id);
        if settings.eos.contains(&id) {
            self.ending = Some(Ending::Eos);
        } else if each(row, id)? == Flow::Stop {
            self.ending = Some(Ending::Stop);
        } else if self.all.len() - self.prompt >= settings.max_tokens {
            self.ending = Some(Ending::Length);
        }
        Ok(())
    }
}
