//! A file of `torch.save`: the archive or the old layout, the pickle, the places of tensors, and the first values of each.
#![no_main]

use bam_convert::checkpoint::Checkpoint;
use bam_convert_fuzz::{bounded, file, read_first_values};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("model.bin", data);
    bounded(data.len(), || {
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            read_first_values(&checkpoint);
        }
    });
});
