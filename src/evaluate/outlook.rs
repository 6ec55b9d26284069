//! What an evaluation would take, by the configurations of models and the length of texts.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::data::{Split, TokenHeader, outline};
use crate::estimate::{BYTES_PER_TOKEN, Estimate, Products, READ, START, Work};
use crate::family::cost::Report;
use crate::family::{Architecture, Config, Mixture};

/// The share of the peak that the forward pass of windows of a few hundred tokens reaches.
const SHARE: f64 = 0.4;
/// Bytes of the result for a model, and for each of its domains.
const SCORE: u64 = 350;
/// Bytes of the result for a router in a domain, and for each of its experts.
const ROUTER: (u64, u64) = (200, 60);

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
    /// Whether on a GPU.
    pub gpu: bool,
    /// Whether in half precision.
    pub half: bool,
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
    let (mut flops, mut loaded, mut bytes) = (0.0, 0, 0);
    for path in request.checkpoints {
        let architecture = Architecture::of(&Config::read(path)?)?;
        flops += Report::new(&architecture, request.context / 2)?.flops_per_token as f64;
        loaded += Checkpoint::open(path)?.data_length();
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
            half: request.half,
        };
        Work {
            seconds: START + loaded as f64 / READ,
            products: Some(products),
        }
    });
    Ok(Estimate { bytes, work })
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
