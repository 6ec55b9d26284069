//! A BAM in the words of llama.cpp: the architecture `step35`, whose heads have sigmoid gates.
//!
//! `wide_attention.rs` says how attention experts become heads with gates.

use std::path::Path;

use super::activation::Activation;
use super::architecture::Architecture;
use super::gguf_error::GgufModelError;
use super::gguf_scaling::{FrequencyFactors, GgufScaling};
use super::layout::{Block, MlpType, NormPosition, NormType, QkNorm};
use super::mixture::{Mixture, RouterBias};
use super::names::GgufRope;
use super::wide_attention::{WideAttention, gates_that_differ};
use crate::Result;
use crate::checkpoint::GgufMetadata;

/// The architecture of the file.
const ARCHITECTURE: &str = "step35";

/// llama.cpp's limits.
const MOST_LAYERS: u64 = 512;
const MOST_EXPERTS: u64 = 512;

/// Inner width of networks of zeros, where the architecture requires one: a block of quantised formats.
pub const SPARE_WIDTH: u64 = 32;

/// A window that no context exceeds.
const WIDE_WINDOW: u64 = 1 << 20;

/// llama.cpp's number for gates that are a softmax.
const SOFTMAX: u64 = 1;

/// Whether the file has one more layer, of zeros, which changes nothing.
///
/// llama.cpp requires a layer with a window, and scales rotary positions in the others alone.
pub fn has_spare_layer(architecture: &Architecture) -> bool {
    architecture.rope_scaling.is_some()
}

/// Inner width of the layers without experts, the one of zeros among them.
pub fn dense_width(architecture: &Architecture) -> u64 {
    let is_sparse = |mixture: &Mixture| {
        let layers = mixture.moe_layers.mask(architecture.num_layers);
        layers.into_iter().all(|has_experts| has_experts)
    };
    if architecture.mixture.as_ref().is_some_and(is_sparse) {
        SPARE_WIDTH
    } else {
        architecture.intermediate_size
    }
}

/// Refuses what llama.cpp would compute otherwise, each reason named; `path` is the folder of the model.
pub fn check(path: &Path, architecture: &Architecture) -> Result<()> {
    let mut reasons = Reasons(Vec::new());
    reasons.of_block(architecture);
    reasons.of_attention(architecture);
    if let Some(mixture) = &architecture.mixture {
        reasons.of_mixture(mixture, architecture.num_layers);
    }
    GgufModelError::of_reasons(path, ARCHITECTURE, architecture, reasons.0)
}

/// The list in the making.
struct Reasons(Vec<String>);

impl Reasons {
    fn refuse(&mut self, refused: bool, reason: impl Into<String>) {
        self.0.extend(refused.then(|| reason.into()));
    }

    /// What a block computes beside its attention.
    fn of_block(&mut self, a: &Architecture) {
        self.refuse(
            a.block != Block::Sequential,
            format!("its blocks are sequential, the model's {}", a.block),
        );
        self.refuse(
            a.norm_type != NormType::Rms || a.norm_offset || a.norm_bias,
            "its norms are root mean squares with a weight alone",
        );
        self.refuse(
            a.norm_position != NormPosition::Pre,
            format!(
                "it normalises the inputs of sublayers (pre), the model {}",
                a.norm_position
            ),
        );
        let is_silu = Activation::named(&a.hidden_act) == Activation::named("silu");
        self.refuse(
            a.mlp_type != MlpType::Gated || !is_silu,
            "its feed-forward networks are gated by silu",
        );
        self.refuse(
            a.mlp_bias || a.head_bias,
            "it has no biases of the feed-forward network and the head",
        );
        self.refuse(
            a.logit_scale.is_some_and(|scale| scale != 1.0),
            "it does not scale logits",
        );
        for what in a.multipliers.not_done(|_| false) {
            self.refuse(true, format!("it does not {what}"));
        }
        self.refuse(
            a.num_layers + u64::from(has_spare_layer(a)) > MOST_LAYERS,
            format!("it has at most {MOST_LAYERS} layers"),
        );
        self.refuse(
            a.max_position_embeddings.is_none(),
            "its context has a length (max_position_embeddings)",
        );
    }

    /// Projections, norms and rotations of attention.
    fn of_attention(&mut self, a: &Architecture) {
        self.refuse(
            a.attention_bias || a.attention_output_bias,
            "its attention has no biases",
        );
        self.refuse(
            matches!(a.qk_norm, QkNorm::PerHead | QkNorm::Full) || a.qk_norm_after_rope,
            "its norm of queries and keys is one for all heads, before the rotation",
        );
        self.refuse(a.clip_qkv.is_some(), "it does not clip");
        self.refuse(
            !a.rope_layers.is_all() || a.window_rope.is_some() || a.partial_rotary_factor.is_some(),
            "all its layers rotate whole heads, and in one way",
        );
        self.refuse(
            !a.head_dim.is_multiple_of(2),
            "its heads have an even width",
        );
        self.refuse(
            window(a).is_some() && a.rope_scaling.is_some(),
            "its layers with a window do not scale rotary positions",
        );
        self.0.extend(GgufScaling::of(a, &GgufRope::USUAL).err());
    }

    /// Gates and experts.
    fn of_mixture(&mut self, mixture: &Mixture, num_layers: u64) {
        self.0.extend(gates_that_differ(mixture, num_layers));
        self.refuse(mixture.expert_adapters, "it has no adapters");
        self.refuse(
            mixture.router_bias == RouterBias::Logits,
            "its routers have no biases of logits",
        );
        self.refuse(
            mixture.shared_expert_gate,
            "it does not weight its shared expert by a gate",
        );
        self.refuse(
            mixture.moe_output_multiplier.is_some(),
            "it adds up the outputs of experts",
        );
        self.refuse(
            mixture.num_experts > MOST_EXPERTS,
            format!("it has at most {MOST_EXPERTS} experts"),
        );
    }
}

/// The sliding window, where it is shorter than the context.
fn window(a: &Architecture) -> Option<u64> {
    let context = a.max_position_embeddings.unwrap_or(u64::MAX);
    a.sliding_window.filter(|window| *window < context)
}

/// Adds what the model in the folder `path` is to `metadata`; returns the tensors of frequency factors, where its rotary embedding
/// has some.
pub fn describe(
    metadata: &mut GgufMetadata,
    path: &Path,
    a: &Architecture,
    name: &str,
) -> Result<Vec<FrequencyFactors>> {
    let key = |name: &str| format!("{ARCHITECTURE}.{name}");
    let spare = has_spare_layer(a);
    metadata.text("general.architecture", ARCHITECTURE);
    metadata.text("general.type", "model");
    metadata.text("general.name", name);
    metadata.number(&key("block_count"), a.num_layers + u64::from(spare))?;
    let context = a.max_position_embeddings.unwrap_or(WIDE_WINDOW);
    metadata.number(&key("context_length"), context)?;
    metadata.number(&key("embedding_length"), a.hidden_size)?;
    metadata.number(&key("feed_forward_length"), dense_width(a))?;
    metadata.number(&key("vocab_size"), a.vocab_size)?;
    metadata.float(&key("attention.layer_norm_rms_epsilon"), a.norm_eps);
    metadata.number(&key("attention.key_length"), a.head_dim)?;
    metadata.number(&key("attention.value_length"), a.head_dim)?;
    heads(metadata, a)?;

    // In layers without a window llama.cpp rotates half of what the file says.
    metadata.number(&key("rope.dimension_count"), 2 * a.head_dim)?;
    metadata.number(&key("rope.dimension_count_swa"), a.head_dim)?;
    metadata.float(&key("rope.freq_base"), a.rope_theta);
    metadata.float(&key("rope.freq_base_swa"), a.rope_theta);
    let sliding: Vec<bool> = match window(a) {
        Some(_) => a.window_layers.mask(a.num_layers),
        None => vec![!spare; a.num_layers as usize],
    };
    let sliding: Vec<bool> = sliding.into_iter().chain(spare.then_some(true)).collect();
    let wide = context.max(WIDE_WINDOW);
    metadata.number(&key("attention.sliding_window"), window(a).unwrap_or(wide))?;
    metadata.flags(&key("attention.sliding_window_pattern"), &sliding);

    if let Some(mixture) = &a.mixture {
        let shared = mixture.shared_expert_intermediate_size;
        for (name, number) in [
            ("expert_count", mixture.num_experts),
            ("expert_used_count", mixture.num_experts_per_tok),
            ("expert_feed_forward_length", mixture.moe_intermediate_size),
            (
                "expert_shared_feed_forward_length",
                shared.unwrap_or(SPARE_WIDTH),
            ),
            ("expert_gating_func", SOFTMAX),
        ] {
            metadata.number(&key(name), number)?;
        }
        metadata.flag(&key("expert_weights_norm"), mixture.norm_topk_prob);
        metadata.float(&key("expert_weights_scale"), 1.0);
    }
    let scaling = GgufScaling::of(a, &GgufRope::USUAL).or_else(|reason| {
        GgufModelError::of_reasons(path, ARCHITECTURE, a, vec![reason]).map(|()| None)
    })?;
    match scaling {
        Some(scaling) => scaling.add(metadata, ARCHITECTURE),
        None => Ok(Vec::new()),
    }
}

/// The numbers of heads: one for all layers, or one for each where they differ. The layer of zeros has one head.
fn heads(metadata: &mut GgufMetadata, a: &Architecture) -> Result<()> {
    let of_layers: Vec<(u64, u64)> = (0..a.num_layers)
        .map(|layer| WideAttention::of(a, layer))
        .map(|wide| (wide.experts * a.num_heads, wide.sets * a.num_kv_heads))
        .chain(has_spare_layer(a).then_some((1, 1)))
        .collect();
    let mut put = |name: &str, numbers: Vec<u64>| {
        let key = format!("{ARCHITECTURE}.{name}");
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().any(|number| number != first) => {
                metadata.unsigned(&key, &numbers)
            }
            Some((first, _)) => metadata.number(&key, *first),
            None => Ok(()),
        }
    };
    put(
        "attention.head_count",
        of_layers.iter().map(|heads| heads.0).collect(),
    )?;
    put(
        "attention.head_count_kv",
        of_layers.iter().map(|heads| heads.1).collect(),
    )
}
