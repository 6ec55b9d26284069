//! Sublayers for training on the CPU in float32: forward and backward pass written by hand, over all cores.
//!
//! candle's graph makes a tensor for each operation and two more for each of its gradients, on one thread. Here a sublayer is one
//! operation: what is not a product of matrices runs in one pass over memory, attention keeps no scores, and weights' gradients come
//! from one product each. Every other device and dtype takes candle's own operations, which the tests compare these with.

mod attend;
mod attention;
mod loss;
mod mlp;
mod norm;
mod record;
mod rotate;
mod rows;
mod weight;

pub(super) use attend::Sizes;
pub(super) use attention::{Attention, Expert, KeyValue, attention};
pub(super) use loss::next_token_loss;
pub(super) use mlp::{Mlp, Places, mlp};
pub(super) use norm::{Norm, norm};
pub(super) use rotate::Rotate;
pub(super) use weight::Weight;
