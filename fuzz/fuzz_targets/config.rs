//! A `config.json`: the architecture that it means, its tensors, and what they cost.
#![no_main]

use bam_convert::family::{Architecture, Config};
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("config.json", data);
    bounded(data.len(), || {
        let Ok(config) = Config::read(&path) else {
            return;
        };
        let Ok(architecture) = Architecture::of(&config) else {
            return;
        };
        // The list of tensors is as long as the layers and experts that the configuration asks for, which are bounded.
        if architecture.num_layers <= 64 {
            let _ = architecture.tensors();
        }
    });
});
