//! Bytes: readers, the streaming atomic sharded writer, dtypes, hashes, the manifest. Knows nothing of models.

pub mod encoding;
pub mod ggml;
pub mod gguf;
#[cfg(test)]
pub(crate) mod gguf_build;
mod gguf_value;

pub use encoding::{Encoding, TensorEntry};
pub use ggml::GgmlType;
pub use gguf::Gguf;
pub use gguf_value::{Numbers as GgufNumbers, Value as GgufValue};
pub use safetensors::Dtype;
