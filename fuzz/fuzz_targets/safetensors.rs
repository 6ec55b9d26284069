//! A weight file of any format: its header, and the values of its first tensors.
#![no_main]

use bam_convert::checkpoint::Checkpoint;
use bam_convert_fuzz::{bounded, file, read_first_values};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("model.safetensors", data);
    bounded(data.len(), || {
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            read_first_values(&checkpoint);
        }
    });
});
