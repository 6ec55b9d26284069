//! A file of `torch.save`: the archive or the old layout, the pickle, the places of tensors, and the first values of each.
#![no_main]

use bam_convert::checkpoint::Checkpoint;
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("model.bin", data);
    bounded(data.len(), || {
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
