//! The models themselves: from token ids to logits, dense seeds and mixtures of their experts alike.
//!
//! A model is built from an [`Architecture`](crate::family::Architecture). Modules know roles, and only [`Params`] knows
//! names. Layers say what is computed; a [backend](BackendChoice), chosen when the model is built, says how.

mod backend;
mod backward;
mod begin;
mod block;
mod build;
mod cache;
mod causal_lm;
pub mod chat;
mod error;
pub mod generate;
mod memory;
mod modules;
mod params;
mod pass;
mod rope;
mod router;
pub mod sampling;
mod stored;
#[cfg(test)]
mod tests;
pub mod text_stream;
pub mod tokenizer;
mod tokenizer_cuts;
mod tokenizer_error;
mod tokenizer_parts;
#[cfg(test)]
mod tokenizer_tests;

pub use backend::{
    AdamW, BackendChoice, BackendName, GradientSquares, Gradients, HostValues, MeasuredUpdate,
    OptimiserState, ReadValues, Reading, Readings, StatePart, Update, UpdateSums, WorkLimits,
    cpu_features, optimiser_bytes,
};
pub use backward::{LayerRecord, LayerRun};
pub use block::InputGradient;
pub use cache::KvCache;
pub use causal_lm::{CausalLm, Forward, Output, logits};
pub use error::ModelError;
pub use params::{
    Computation, LoadOptions, Mode, Parameter, Params, Trainable, Weights, has_kernels,
};
pub use pass::Pass;
pub use router::{
    LayerRouting, LoadBalance, Overrides, RouterLoss, RouterLossReading, RouterLossValues,
    RouterLosses, Routing,
};
pub use tokenizer_error::{TokenizerError, TokenizerPartRule};
