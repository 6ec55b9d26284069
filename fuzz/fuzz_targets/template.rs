//! A chat template, on a conversation of two.
#![no_main]

use bam_convert::model::chat::{ChatTemplate, Message};
use bam_convert_fuzz::{folder_with, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let folder = folder_with("chat_template.jinja", data);
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let messages = [message("user", " What? "), message("assistant", "This.")];
    // A template is a program: its steps are bounded, and with them its memory.
    within(512 << 20, || {
        if let Ok(template) = ChatTemplate::load(folder) {
            let _ = template.render(&messages, true);
        }
    });
});
