//! The reference backend: candle's differentiable operations, on any device and dtype and with every feature.
//!
//! A backward pass is candle's autograd on the subgraph of one operation, whose input is cut as a variable. Sublayers are
//! composed of [`Steps`], so that another backend may replace a step and take the composition from here.

mod adamw;
mod attend;
mod attend_blocks;
mod attention;
mod composed;
mod feed_forward;
mod gelu;
mod linear;
mod loss;
mod norm;
mod outside;
pub(in crate::model) mod rotate;
mod router;
mod steps;
mod subgraph;

pub(super) use adamw::DeviceState;
pub(super) use attend::{Scores, attend_in_groups};
pub(super) use composed::{Composed, Reference};
pub(super) use feed_forward::{experts, network};
pub(super) use router::{losses, route};
pub(super) use steps::{CandleSteps, Steps};
pub(super) use subgraph::Subgraph;
