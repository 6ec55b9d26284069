//! What a model is worth: perplexity and bits per byte per domain, tasks, where its routers send tokens, and whether
//! two checkpoints compute the same.

pub mod logits;
