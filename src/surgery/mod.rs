//! The plan, its executor, and one file per method.

pub mod branch;
pub mod card;
mod compile;
pub mod concat;
pub mod convert;
mod drawn;
pub mod evaluate;
pub mod execute;
pub mod expert;
pub mod export;
pub mod extract;
pub mod fit;
mod fit_tokenizer;
pub mod gguf;
pub mod init;
pub mod layers;
pub mod licence;
mod mapping;
pub mod merge;
pub mod methods;
mod mixture_experts;
pub mod model;
mod moved;
mod node;
pub mod npz;
pub mod plan;
pub mod publication;
pub mod random;
mod recompose;
mod record;
pub mod relayout;
pub mod router;
pub mod scales;
pub mod upcycle;

pub use model::Model;
pub use plan::{Plan, PlannedTensor, Source};
