//! Evaluation of models: perplexity and bits per byte per domain, tasks, routing reports, and whether two checkpoints
//! compute the same function.
//!
//! Perplexity is taken over non-overlapping windows of a document's tokens. Each window is read on its own, so that its
//! first token is context alone and every other token is scored. The sum equals the loss that transformers gives with
//! `labels = input_ids` on the same windows.

pub mod chart;
pub mod corpus;
mod error;
pub mod logits;
pub mod outlook;
pub mod perplexity;
pub mod prompts;
pub mod report;
pub mod request;
pub mod routing;
pub mod table_file;
pub mod tasks;

pub use error::EvaluateError;
