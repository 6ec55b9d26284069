//! A `bam-manifest.json`: read, shown, and written again.
#![no_main]

use bam_convert::checkpoint::manifest::{MANIFEST, Manifest};
use bam_convert_fuzz::{bounded, folder_with};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let folder = folder_with(MANIFEST, data);
    bounded(data.len(), || {
        let Ok(Some(manifest)) = Manifest::read(folder) else {
            return;
        };
        for tensor in manifest.tensors.values() {
            let _ = tensor.expression.to_string();
        }
        let again: Manifest =
            serde_json::from_slice(&manifest.to_bytes()).expect("what was written is read");
        assert_eq!(again, manifest);
    });
});
