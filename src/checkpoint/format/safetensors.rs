//! safetensors: the format that checkpoint folders hold.

use super::{WeightFile, WeightFormat};
use crate::Result;
use crate::checkpoint::header;
use crate::checkpoint::source_file::SourceFile;

/// A safetensors file.
#[derive(Debug)]
pub(super) struct SafetensorsFile;

impl WeightFormat for SafetensorsFile {
    fn name(&self) -> &'static str {
        "safetensors file"
    }

    fn is_in_folder(&self, name: &str) -> bool {
        name.ends_with(".safetensors")
    }

    fn recognises(&self, head: &[u8]) -> bool {
        // An eight-byte length of less than 4 GiB, then the brace that opens the header.
        head.get(4..9) == Some(b"\0\0\0\0{")
    }

    fn read(&self, file: &SourceFile, number: usize) -> Result<WeightFile> {
        Ok(WeightFile {
            tensors: header::read(file, number)?.tensors,
            description: None,
        })
    }
}
