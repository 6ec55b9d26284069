//! Texts: documents of plain text, JSON lines and tables, packed or not, and the examples of a task.
#![no_main]

use std::sync::Once;

use bam_convert::data::documents::Documents;
use bam_convert::evaluate::tasks::Task;
use bam_convert_fuzz::{bounded, file, within};
use libfuzzer_sys::fuzz_target;

/// What packed texts may take: a document of the largest size, and copies of it.
const UNPACKED: usize = 512 << 20;

static QUIET: Once = Once::new();

fuzz_target!(|data: &[u8]| {
    // Panics of the crate that reads tables are caught and told as errors; the fuzzer's hook would end the process first.
    // One that nobody catches still ends it.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let all = |name: &str| {
        let path = file(name, data);
        if let Ok(documents) = Documents::open(&path, "text") {
            documents.take(64).for_each(drop);
        }
    };
    match data {
        [b'P', b'A', b'R', b'1', ..] => all("texts.parquet"),
        [0x1f, 0x8b, ..] => within(UNPACKED, || all("texts.jsonl.gz")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => within(UNPACKED, || all("text.txt.zst")),
        _ => bounded(data.len(), || {
            all("text.txt");
            all("texts.jsonl");
            let _ = Task::read("task", &file("task.jsonl", data));
        }),
    }
});
