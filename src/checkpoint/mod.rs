//! Bytes: readers, the streaming atomic sharded writer, dtypes, hashes, the manifest. Knows nothing of models.

pub mod json;

pub use safetensors::Dtype;
