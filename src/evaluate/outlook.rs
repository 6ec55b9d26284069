//! What an evaluation would take, by the configurations of models and the length of texts.

use std::path::{Path, PathBuf};

use super::perplexity::CHUNK;
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::dtype::Dtype;
use crate::data::{Split, TokenHeader, outline};
use crate::estimate::{BYTES_PER_TOKEN, Estimate, Products, READ, START, Work};
use crate::family::cost::Report;
use crate::family::{Architecture, Config, Mixture, TensorSpec};

/// The share of the peak that the forward pass of windows of a few hundred tokens reaches.
const SHARE: f64 = 0.4;
/// Bytes of the result for a model, and for each of its domains.
const SCORE: u64 = 350;
/// Bytes of the result for a router in a domain, and for each of its experts.
const ROUTER: (u64, u64) = (200, 60);

/// Bytes of a float32.
const FLOAT: u64 = 4;
/// Bytes of the program itself, with its tokenizer.
const PROGRAM: u64 = 40 << 20;

/// An evaluation that is asked for.
pub struct EvaluationRequest<'a> {
    /// Folders of the models.
    pub checkpoints: &'a [PathBuf],
    /// Names and texts or token folders of the domains.
    pub data: &'a [(String, PathBuf)],
    /// Tokens of a window.
    pub context: u64,
    /// Most tokens of a domain.
    pub max_tokens: Option<u64>,
    /// Whether routers are reported.
    pub routing: bool,
    /// The number of the GPU; none on the CPU.
    pub gpu: Option<usize>,
    /// In what, where it is not the default.
    pub weights: Option<WeightWidth>,
}

/// How wide a model's weights are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightWidth {
    /// float32, whatever is stored.
    Full,
    /// bfloat16.
    Half,
}

/// What it would take; without its work where a domain's length is not known.
///
/// # Errors
/// Models whose configuration or headers cannot be read.
pub fn estimate(request: &EvaluationRequest) -> Result<Estimate> {
    let tokens: Option<u64> = request
        .data
        .iter()
        .map(|(_, path)| tokens(path, request.max_tokens))
        .sum();
    let domains = request.data.len() as u64;
    let (mut flops, mut loaded, mut bytes, mut memory) = (0.0, 0, 0, 0);
    for path in request.checkpoints {
        let architecture = Architecture::of(&Config::read(path)?)?;
        flops += Report::new(&architecture, request.context / 2)?.flops_per_token as f64;
        loaded += Checkpoint::open(path)?.data_length();
        // Models are loaded one after the other.
        memory = memory.max(model_memory(
            &architecture,
            request.context,
            request.weights,
        )?);
        bytes += SCORE * (1 + domains);
        if let Some(mixture) = architecture.mixture.as_ref().filter(|_| request.routing) {
            let router = |experts: u64| architecture.num_layers * (ROUTER.0 + ROUTER.1 * experts);
            let Mixture {
                num_experts,
                num_attention_experts,
                ..
            } = *mixture;
            bytes += domains * (router(num_experts) + router(num_attention_experts));
        }
    }
    let work = tokens.map(|tokens| {
        let products = Products {
            flops: tokens as f64 * flops,
            share: SHARE,
            gpu: request.gpu,
            half: request.weights == Some(WeightWidth::Half),
        };
        Work {
            seconds: START + loaded as f64 / READ,
            products: Some(products),
        }
    });
    Ok(Estimate {
        bytes,
        work,
        memory: Some(memory),
        ranks: None,
    })
}

/// Peak of the memory of a process that scores windows of `context` tokens with a model, in bytes.
///
/// By default, bfloat16 matrices stay in the pages of their file, and all else is float32: matrices whose rows lie between others,
/// too.
///
/// # Errors
/// An architecture whose tensors cannot be listed.
pub fn model_memory(a: &Architecture, context: u64, weights: Option<WeightWidth>) -> Result<u64> {
    let is_half = match weights {
        Some(width) => width == WeightWidth::Half,
        None => a.dtype == Some(Dtype::BF16),
    };
    let copied = match weights {
        Some(_) => &[],
        None => a.scattered_roles()?,
    };
    let of_tensor = |spec: &TensorSpec| {
        let size = if is_half && spec.shape.len() == 2 && !copied.contains(&spec.role) {
            2
        } else {
            4
        };
        size * spec.shape.iter().product::<u64>()
    };
    let weights: u64 = a.tensors()?.iter().map(of_tensor).sum();
    let mixture = a.mixture.as_ref();
    let attention_experts = mixture.map_or(1, |mixture| mixture.num_attention_experts);
    let inner = mixture.map_or(a.intermediate_size, |mixture| {
        mixture.num_experts_per_tok * mixture.moe_intermediate_size
    });
    // The residual stream with its norm; then queries, keys, values and outputs, or the feed-forward network.
    let attention = attention_experts * (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_dim;
    let token = FLOAT * (4 * a.hidden_size + attention.max(3 * inner));
    // As a tensor, and as rows that are scored.
    let logits = 2 * FLOAT * CHUNK as u64 * a.vocab_size;
    let moving = token.saturating_mul(context).saturating_add(logits);
    Ok((PROGRAM + weights).saturating_add(moving))
}

/// Tokens of a domain, `most` at most; none where nothing tells.
fn tokens(path: &Path, most: Option<u64>) -> Option<u64> {
    let found = match TokenHeader::read(path) {
        Ok((header, _)) => Some(header.tokens(Split::Validation)),
        Err(_) => outline::length(path)
            .ok()
            .map(|bytes| (bytes / BYTES_PER_TOKEN) as u64),
    };
    found.map_or(most, |found| {
        Some(most.map_or(found, |most| found.min(most)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Query, key and value of a head follow each other in GPT-NeoX, so that they are widened when they are loaded.
    #[test]
    fn scattered_rows_count_as_float32() {
        let config = Config::read("fixtures/families/gpt_neox".as_ref()).unwrap();
        let mut neox = Architecture::of(&config).unwrap();
        let bytes = |of: &Architecture, weights| model_memory(of, 16, weights).unwrap();
        let wide = bytes(&neox, Some(WeightWidth::Full));
        assert_eq!(bytes(&neox, None), wide);

        neox.dtype = Some(Dtype::BF16);
        let half = bytes(&neox, Some(WeightWidth::Half));
        // Two layers of 32 + 2 · 32 rows with 32 columns.
        assert_eq!(bytes(&neox, None), half + 2 * 2 * (3 * 32 * 32));
        assert_eq!(bytes(&neox, Some(WeightWidth::Full)), wide);
    }
}
