//! What each family of models calls its tensors and configuration keys.
//!
//! A family is a file in `formats/`, embedded in the binary or brought by a user: names and named layouts, no language of its own.
//! [`Config`] is one `config.json`, and [`Architecture`] is its meaning, with the family's differences resolved.
//! [`Architecture::tensors`] is every tensor of a checkpoint, and [`cost`] is arithmetic on it.
//!
//! From the bottom up:
//!
//! - tables: `layout`, `role`, `keys`, `key_meanings`, `model_types`,
//! - errors: `architecture_fault`, `config_error`, `format_error`, `gguf_error`, `error`,
//! - one format file: `names`, `format`, `extends`, and all of them: `known`,
//! - a configuration: `config`,
//! - a model: `mixture`, `multipliers`, `architecture`, `tensors`,
//! - readers: `sparse_layers`, `layer_kinds`, `rope_place`, `rope`, `rope_kinds`, `read`, `unsaid`, `gguf_metadata`,
//!   `gguf_sizes`, `gguf`,
//! - writers: `both_spellings`, `optional_bias`, `write`, `write_rope`, `target`, `cannot_hold`, `stock`, `dense`, `gguf_names`,
//!   `gguf_check`, `wide_attention`, `gguf_bam`, `qwen3_next`.

mod activation;
mod architecture;
mod architecture_fault;
mod assumed;
mod both_spellings;
mod cannot_hold;
mod config;
mod config_error;
pub mod cost;
mod dense;
pub mod described;
mod error;
mod experts;
mod extends;
mod format;
mod format_error;
mod fused;
pub mod gguf;
mod gguf_architecture;
pub mod gguf_bam;
mod gguf_bpe;
pub mod gguf_check;
mod gguf_error;
mod gguf_metadata;
pub mod gguf_names;
mod gguf_rope;
mod gguf_scaling;
mod gguf_sizes;
pub mod gguf_tokenizer;
pub mod gguf_vocabulary;
mod in_vllm;
mod key_meanings;
mod keys;
mod known;
mod layer_kinds;
#[cfg(test)]
mod layer_kinds_tests;
mod layout;
mod matching;
mod mismatch;
mod mixture;
mod mixture_read;
mod model_types;
mod multimodal;
mod multipliers;
mod names;
mod optional_bias;
pub(crate) mod quantised;
mod qwen3_next;
mod read;
#[cfg(test)]
mod refusal_tests;
mod role;
mod rope;
mod rope_kinds;
mod rope_place;
mod routing;
mod sparse_layers;
mod spelling;
mod stock;
mod target;
mod tensors;
#[cfg(test)]
mod tests;
mod token_ids;
mod unsaid;
#[cfg(test)]
mod unsaid_tests;
mod wide_attention;
mod write;
mod write_rope;

pub(crate) use activation::Activation;
pub use architecture::Architecture;
pub(crate) use architecture_fault::ALL_ATTENTION_EXPERTS;
pub use architecture_fault::ArchitectureFault;
pub use both_spellings::both_spellings;
pub use config::Config;
pub use config_error::ConfigError;
pub use dense::dense;
pub use error::{FamilyError, PlainNeed};
pub use experts::{expert_names, find_experts};
pub use format::Family;
pub use format_error::FormatError;
pub use fused::ExpertLayout;
pub use gguf_error::GgufModelError;
pub(crate) use in_vllm::InVllm;
pub use known::{BAM, families};
pub use layout::{
    AttentionGate, AttentionKv, Block, Layers, MlpType, NormPosition, NormType, QkNorm,
};
pub use mixture::{Mixture, RouterBias, TopK, usual_gate_scale};
pub use model_types::QWEN3_NEXT;
pub use multimodal::Multimodal;
pub use multipliers::Multipliers;
pub(crate) use quantised::drop_leftover;
pub use quantised::{Quantised, leftover_quantisation};
pub use qwen3_next::Qwen3Next;
pub use role::Role;
pub use rope_kinds::LayerRope;
pub use routing::{RoutingChoice, RoutingPreset, RoutingRequest, USUAL_TOP_K};
pub(crate) use spelling::same_value;
pub use stock::{Output, output, targets};
pub use target::bam_config;
pub use tensors::{Place, TensorSpec};
pub use token_ids::each_token_id;
pub use wide_attention::WideAttention;
pub use write::say_dtype;
