//! A `tokenizer.json`: a text there and back.
#![no_main]

use bam_convert::model::tokenizer::Tokenizer;
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("tokenizer.json", data);
    bounded(data.len(), || {
        let Ok(tokenizer) = Tokenizer::open(&path) else {
            return;
        };
        let _ = (tokenizer.vocab_size(), tokenizer.special_tokens());
        if let Ok(encoded) = tokenizer.encode("fn naïve(天地) -> 12,345 {}\n", true) {
            let _ = tokenizer.decode(&encoded.ids);
        }
    });
});
