//! A weight file of any format: its header, and the values of its first tensors.
#![no_main]

use bam_convert::checkpoint::Checkpoint;
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("model.safetensors", data);
    bounded(data.len(), || {
        let Ok(checkpoint) = Checkpoint::open(&path) else {
            return;
        };
        let mut values = [0.0; 64];
        for entry in checkpoint.tensors.values().take(8) {
            let count = entry.elements().min(64) as usize;
            // What cannot be decoded is refused.
            let _ = checkpoint.read_values(entry, 0, &mut values[..count], &mut Vec::new());
        }
    });
});
