//! What each family of models calls its tensors and configuration keys.

pub mod gguf;
mod gguf_bpe;
mod gguf_rope;
pub mod gguf_tokenizer;
