//! How layers compute.
//!
//! Layer code says *what* is computed: a norm, an attention or feed-forward sublayer, the loss, an optimiser step. A
//! backend says *how*. [`Backend::choose`] chooses once, when a model is built; nothing else looks at device or dtype.
//!
//! | backend | for |
//! |---|---|
//! | [`mod@reference`] | any device, dtype and feature, with candle's operations and its autograd |
//! | [`cpu`] | float32 on the CPU, with kernels and backward passes written by hand |
//!
//! The contract for training: an operation's forward pass returns its output and a [`Record`](Operations::Record) of what
//! its backward pass needs. [`Operations::backward`] takes the gradient of the output, returns the gradient of the input, and
//! adds the gradients of parameters to their buffers. Layer code never sees inside a [`Buffer`](Operations::Buffer), so that a
//! backend may keep its numbers on a device. Nothing within a step needs a value on the host: the loss and the norm of the
//! gradients are downloaded at its end.

mod choice;
mod cpu;
mod gradients;
mod host;
mod operations;
mod optimiser;
mod readings;
mod reference;
#[cfg(test)]
mod tests;

pub(super) use choice::Backend;
pub use choice::{BackendChoice, BackendName};
pub use cpu::cpu_features;
pub use gradients::{GradientSquares, Gradients};
pub use host::WorkLimits;
pub(super) use operations::{Computed, OperationRecord, Operations, TensorOperations, TokenLosses};
pub use optimiser::{
    AdamW, HostValues, MeasuredUpdate, OptimiserState, StatePart, Update, UpdateSums,
    optimiser_bytes,
};
pub use readings::{ReadValues, Reading, Readings};
#[cfg(test)]
pub(super) use reference::rotate;
