//! A chat template, on conversations with tools and documents.
#![no_main]

use bam_convert::model::chat::{ChatTemplate, Conversation};
use bam_convert_fuzz::{folder_with, within};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Bytes of stack, for the longest chain that the fuzzer's inputs hold.
const STACK: usize = 256 << 20;

fn conversations() -> [Conversation; 2] {
    let called = json!({
        "messages": [
            {"role": "system", "content": "Be <brief>."},
            {"role": "user", "content": [{"type": "text", "text": " What? "}, {"type": "image"}]},
            {"role": "assistant", "content": null, "reasoning": "So.", "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": [1.5, null, true]}}}
            ]},
            {"role": "tool", "name": "f", "content": "東京"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "documents": [{"title": "A", "text": "one\ntwo"}],
        "variables": {"enable_thinking": false},
    });
    let called = serde_json::from_value(called).expect("a conversation");
    [Conversation::question(None, " What? "), called]
}

fuzz_target!(|data: &[u8]| {
    // A namespace can hold itself, on which the engine recurses without end. The command line renders in a process that may.
    if String::from_utf8_lossy(data).contains("namespace") {
        return;
    }
    let folder = folder_with("chat_template.jinja", data);
    let render = move || {
        if let Ok(template) = ChatTemplate::load(folder) {
            for conversation in conversations() {
                let _ = template.request(conversation).text();
            }
        }
    };
    // A template is a program: its steps are bounded, and with them its memory.
    within(512 << 20, || {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(render);
        thread.expect("a thread").join().expect("no panic");
    });
});
