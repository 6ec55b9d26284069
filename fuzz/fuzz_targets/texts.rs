//! Texts: documents of plain text and JSON lines, packed or not, and the examples of a task.
#![no_main]

use bam_convert::data::documents::{DocumentForm, Documents};
use bam_convert::evaluate::tasks::Task;
use bam_convert_fuzz::{bounded, file, within};
use libfuzzer_sys::fuzz_target;

/// What packed texts may take: a document of the largest size, and copies of it.
const UNPACKED: usize = 512 << 20;

fuzz_target!(|data: &[u8]| {
    let all = |name: &str| {
        let path = file(name, data);
        if let Ok(documents) = Documents::open(&path, "text") {
            documents.take(64).for_each(drop);
        }
    };
    match data {
        [0x1f, 0x8b, ..] => within(UNPACKED, || all("texts.jsonl.gz")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => within(UNPACKED, || all("text.txt.zst")),
        _ => bounded(data.len(), || {
            all("text.txt");
            all("texts.jsonl");
            let chats =
                Documents::open_as(&file("chats.jsonl", data), &DocumentForm::Conversations);
            chats.into_iter().flatten().take(64).for_each(drop);
            let _ = Task::read("task", &file("task.jsonl", data));
        }),
    }
});
