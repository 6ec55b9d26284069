//! The plan, its executor, and one file a method.

pub mod branch;
pub mod card;
pub mod convert;
pub mod evaluate;
pub mod execute;
pub mod fit;
pub mod init;
pub mod licence;
pub mod merge;
pub mod model;
pub mod plan;
pub mod random;
pub mod router;
pub mod upcycle;

pub use model::Model;
pub use plan::{Plan, PlannedTensor, Source};
