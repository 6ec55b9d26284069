//! What a model is worth: perplexity and bits per byte per domain, tasks, where its routers send tokens, and whether
//! two checkpoints compute the same.
//!
//! Perplexity is taken over non-overlapping windows of a document's tokens. Each window is read on its own, so that its
//! first token is context alone and every other one is scored: what transformers gives as the loss of `labels =
//! input_ids` on the same windows, summed over all of them.

pub mod chart;
pub mod corpus;
pub mod logits;
pub mod outlook;
pub mod perplexity;
pub mod prompts;
pub mod report;
pub mod request;
pub mod routing;
pub mod tasks;
