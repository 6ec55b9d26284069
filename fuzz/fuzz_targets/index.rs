//! The index of a sharded checkpoint, beside two shards.
#![no_main]

use std::sync::Once;

use bam_convert::checkpoint::{Checkpoint, folder::INDEX};
use bam_convert_fuzz::{bounded, file, folder_with};
use libfuzzer_sys::fuzz_target;

static SHARDS: Once = Once::new();

fuzz_target!(|data: &[u8]| {
    SHARDS.call_once(|| {
        file(
            "model-00001-of-00002.safetensors",
            include_bytes!("../../fixtures/hostile/index-good/model-00001-of-00002.safetensors"),
        );
        file(
            "model-00002-of-00002.safetensors",
            include_bytes!("../../fixtures/hostile/index-good/model-00002-of-00002.safetensors"),
        );
    });
    let folder = folder_with(INDEX, data);
    bounded(data.len(), || {
        if let Ok(checkpoint) = Checkpoint::open(folder) {
            assert!(
                checkpoint
                    .files
                    .iter()
                    .all(|shard| shard.path().parent() == Some(folder)),
                "a shard outside"
            );
        }
    });
});
