//! Checkpoint surgery for mixtures of experts.
//!
//! A surgery is a *plan*: for each tensor of the output its name, dtype, shape and an expression over
//! the tensors of the sources. The same plan is printed, executed, recorded and replayed. See
//! `docs/design/architecture.md` for the house and which room may know of which.
//!
//! Where to begin: [`Checkpoint::open`](checkpoint::Checkpoint::open) reads weights,
//! [`Architecture::of`](family::Architecture::of) reads a configuration, and [`surgery::upcycle::plan`] plans a mixture.
//! [`surgery::execute::execute`] writes the output of a plan, and [`verify::validate()`] checks it.
//! [`CausalLm::load`](model::CausalLm::load) loads a model to compute with. `examples/` has whole programs.

pub mod arguments;
pub mod card;
mod caught;
pub mod checkpoint;
pub mod data;
pub mod error;
mod error_place;
pub mod estimate;
pub mod evaluate;
pub mod family;
pub mod gpu;
mod heat_map;
#[cfg(feature = "hub")]
pub mod hub;
mod input_error;
mod latex;
pub mod markdown;
pub mod memory;
pub mod mergekit;
pub mod model;
pub mod notice;
pub mod parameter;
pub mod pipeline;
pub mod printable;
pub mod progress;
pub mod report;
pub mod surgery;
mod svg;
pub mod table;
pub mod threads;
pub mod train;
pub mod verify;

pub use error::{Error, Result};
