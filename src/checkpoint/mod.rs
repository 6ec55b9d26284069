//! Bytes: readers, the streaming atomic sharded writer, dtypes, hashes, the manifest. Knows nothing of models.

mod ahead;
pub mod dtype;
pub mod encoding;
pub mod expression;
pub mod filesystem;
pub mod folder;
pub mod foreign;
pub mod format;
pub mod ggml;
pub mod gguf;
#[cfg(test)]
pub(crate) mod gguf_build;
mod gguf_value;
mod gguf_write;
pub mod hash;
pub mod header;
pub mod json;
pub mod known_hashes;
pub mod leftovers;
pub mod manifest;
pub mod npz;
mod open_files;
pub mod outline;
pub mod output;
pub mod owned;
pub mod reach;
pub mod recipe;
pub mod reference;
pub mod single;
pub mod source_file;
pub mod version;
pub mod writer;
pub mod yaml;

pub use dtype::Dtype;
pub use encoding::{Encoding, TensorEntry};
pub use expression::Expression;
pub use folder::Checkpoint;
pub use ggml::GgmlType;
pub use gguf::Gguf;
pub use gguf_value::{Numbers as GgufNumbers, Value as GgufValue};
pub use gguf_write::{GgufDtype, GgufLayout, GgufMetadata, write as write_gguf};
pub use manifest::Manifest;
pub use source_file::{ReadAt, SourceFile};
