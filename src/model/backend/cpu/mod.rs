//! The backend for float32 on the CPU: kernels and backward passes written by hand, over all cores.
//!
//! candle's graph makes a tensor for each operation and two more for each of its gradients, on one thread. Here a sublayer is
//! one operation: everything but matmuls runs in one pass over memory, attention keeps no scores, and each weight's gradient
//! comes from one matmul. Sublayers without kernels ([`unsupported_attention`], [`unsupported_mlp`]) are composed by the
//! reference.

mod adamw;
mod attend;
mod attend_cached;
mod attention;
mod kernels;
mod loss;
mod matmul;
mod mlp;
mod norm;
mod product;
mod rotate;
mod router;
mod rows;
mod scores;
mod shared;
mod steps;
mod support;
mod training;
mod weight;

pub(super) use adamw::HostState;
pub(super) use support::{unsupported_attention, unsupported_mlp};
pub(super) use training::Training;

use super::reference::Composed;
use steps::InferSteps;

/// The features of this processor that the kernels use.
pub fn cpu_features() -> Vec<&'static str> {
    kernels::features()
}

/// The backend for inference.
pub(super) const INFERENCE: Composed<InferSteps> = Composed::of(InferSteps);
