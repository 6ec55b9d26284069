//! The models themselves: from token ids to logits, dense seeds and mixtures of their experts alike.
//!
//! A model is built from an [`Architecture`](crate::family::Architecture); modules know roles, and only
//! [`Params`] knows names. Everything differentiates in [`Mode::Train`]: candle's fused norms, softmax and rotations cut
//! the gradient without a word, so they are used in [`Mode::Infer`] alone, and the tests compare both.

mod attend;
mod attention;
mod block;
mod build;
mod cache;
mod causal_lm;
pub mod chat;
mod feed_forward;
mod fused;
pub mod generate;
mod kernels;
mod linear;
mod matrix;
mod memory;
mod norm;
mod params;
mod pass;
mod product;
mod rope;
mod router;
pub mod sampling;
mod stored;
#[cfg(test)]
mod tests;
pub mod text_stream;
pub mod tokenizer;
mod tokenizer_cuts;
mod tokenizer_parts;
#[cfg(test)]
mod tokenizer_tests;

pub use cache::KvCache;
pub use causal_lm::{CausalLm, Forward, Output, logits};
pub use params::{LoadOptions, Mode, Parameter, Params, Trainable, Weights};
pub use pass::Pass;
pub use router::{LayerRouting, Overrides, Routing};
