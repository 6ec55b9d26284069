//! A GGUF file: metadata, tensor list, the configuration, tensors and tokenizer that follow, and the first values.
#![no_main]

use bam_convert::checkpoint::{Checkpoint, Gguf};
use bam_convert::family::gguf;
use bam_convert::family::gguf_tokenizer;
use bam_convert_fuzz::{bounded, file, read_first_values};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("model.gguf", data);
    bounded(data.len(), || {
        let Ok(found) = Gguf::open(&path) else { return };
        let _ = (
            gguf::config(&found),
            gguf::tensors(&found),
            gguf_tokenizer::files(&found),
        );
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            read_first_values(&checkpoint);
        }
    });
});
