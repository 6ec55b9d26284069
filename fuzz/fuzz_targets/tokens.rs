//! A token folder: its header, beside shards of 64 bytes.
#![no_main]

use std::sync::Once;

use bam_convert::data::{Split, TokenFolder};
use bam_convert_fuzz::{bounded, file, folder_with};
use libfuzzer_sys::fuzz_target;

static SHARDS: Once = Once::new();

fuzz_target!(|data: &[u8]| {
    SHARDS.call_once(|| {
        for split in ["train", "validation"] {
            file(&format!("{split}-00000.bin"), &[1; 64]);
            file(&format!("{split}-00000.ends"), &[32, 0, 0, 0, 0, 0, 0, 0]);
            file(&format!("{split}-00000.mask"), &[1; 32]);
        }
    });
    let folder = folder_with("header.json", data);
    bounded(data.len(), || {
        let Ok(tokens) = TokenFolder::open(folder) else {
            return;
        };
        for split in [Split::Train, Split::Validation] {
            let all = tokens.tokens(split);
            let _ = tokens.ids(split, 0..all);
            let _ = tokens.scored(split, 0..all);
            let _ = (0..tokens.documents(split))
                .try_for_each(|document| tokens.document(split, document).map(drop));
        }
    });
});
