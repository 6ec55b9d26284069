//! GGUF: one file with tensors under llama.cpp's names, and with the model's configuration and tokenizer in its metadata.

use std::collections::BTreeMap;

use super::{ModelDescription, WeightFile, WeightFormat};
use crate::Result;
use crate::checkpoint::Gguf;
use crate::checkpoint::source_file::SourceFile;

/// A GGUF file.
#[derive(Debug)]
pub(super) struct GgufFile;

impl WeightFormat for GgufFile {
    fn name(&self) -> &'static str {
        "GGUF file"
    }

    fn is_in_folder(&self, name: &str) -> bool {
        name.ends_with(".gguf")
    }

    fn recognises(&self, head: &[u8]) -> bool {
        head.starts_with(b"GGUF")
    }

    fn read(&self, file: &SourceFile, number: usize) -> Result<WeightFile> {
        let gguf = Gguf::open(file.path())?;
        let tensors = gguf.tensors.iter().map(|(name, entry)| {
            let mut entry = entry.clone();
            entry.file = number;
            (name.clone(), entry)
        });
        Ok(WeightFile {
            tensors: tensors.collect(),
            description: Some(Box::new(gguf)),
        })
    }
}

impl ModelDescription for Gguf {
    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata
            .iter()
            .map(|(key, value)| (key.clone(), value.describe()))
            .collect()
    }
}
