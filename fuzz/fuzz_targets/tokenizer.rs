//! A `tokenizer.json`: texts there and back.
#![no_main]

use bam_convert::model::tokenizer::Tokenizer;
use bam_convert_fuzz::{bounded, file, within};
use libfuzzer_sys::fuzz_target;

/// What tokenizing a short text may take: the normalizer may make some thousand bytes of one.
const TOKENIZED: usize = 256 << 20;

fuzz_target!(|data: &[u8]| {
    let path = file("tokenizer.json", data);
    let opened = bounded(data.len(), || Tokenizer::open(&path));
    let Ok(tokenizer) = opened else {
        return;
    };
    within(TOKENIZED, || {
        let _ = (
            tokenizer.vocab_size(),
            tokenizer.special_tokens(),
            tokenizer.note(),
        );
        for text in ["", "fn naïve(天地) -> 12,345 {}\n", &"a bc  ".repeat(200)] {
            if let Ok(encoded) = tokenizer.encode(text, true) {
                assert_eq!(encoded.ids.len(), encoded.ends.len());
                let _ = tokenizer.decode(&encoded.ids);
            }
            let _ = (tokenizer.ids(text), tokenizer.prompt_ids(text));
        }
        // Ids that no text has.
        let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX]);
    });
});
