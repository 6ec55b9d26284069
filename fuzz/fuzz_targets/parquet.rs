//! A parquet table: every row of its column `text`, and its conversations.
#![no_main]

use bam_convert::data::documents::{Document, DocumentForm, Documents};
use bam_convert_fuzz::{file, within};
use libfuzzer_sys::fuzz_target;

/// What a table may take: a page, what it is unpacked to, and a document of it.
const UNPACKED: usize = 512 << 20;
/// Bytes of text after which another document tells nothing new.
const ENOUGH: usize = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let path = file("texts.parquet", data);
    let forms = [
        DocumentForm::Texts("text".to_owned()),
        DocumentForm::Conversations,
    ];
    for form in forms {
        within(UNPACKED, || {
            let Ok(documents) = Documents::open_as(&path, &form) else {
                return;
            };
            let mut read = 0;
            for document in documents {
                match document {
                    Ok(Document::Text(text)) => read += text.len(),
                    Ok(_) => {}
                    Err(_) => return,
                }
                if read > ENOUGH {
                    return;
                }
            }
        });
    }
});
