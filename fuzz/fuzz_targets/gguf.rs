//! A GGUF file: metadata, tensor list, the configuration, tensors and tokenizer that follow, and the first values.
#![no_main]

use bam_convert::checkpoint::{Checkpoint, Gguf};
use bam_convert::family::gguf;
use bam_convert::family::gguf_tokenizer;
use bam_convert_fuzz::{bounded, file};
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
        let Ok(checkpoint) = Checkpoint::open(&path) else {
            return;
        };
        let mut values = [0.0; 256];
        for entry in checkpoint.tensors.values().take(8) {
            let count = entry.elements().min(256) as usize;
            let _ = checkpoint.read_values(entry, 0, &mut values[..count], &mut Vec::new());
        }
    });
});
