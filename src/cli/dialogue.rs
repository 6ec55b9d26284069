//! `generate --chat` without a prompt: a dialogue on standard input and output.
//!
//! Each line is what the user says. The chat template lays out the whole conversation each time, and the model reads what is
//! new of it.

use std::io::{BufRead, IsTerminal};

use bam_convert::Error;
use bam_convert::model::chat::{ChatTemplate, Conversation};

use super::printer::Printer;
use super::{Outcome, Verdict, render_chat};

/// Reads lines until the input ends, and prints what `answer` says to each conversation as the template lays it out.
pub fn run(
    system: Option<&str>,
    template: &ChatTemplate,
    printer: &Printer,
    mut answer: impl FnMut(&str) -> anyhow::Result<String>,
) -> Outcome {
    let mut conversation = Conversation::begin(system);
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        printer.note(" note: each line is a message; Ctrl-D ends the dialogue");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            printer.ask();
        }
        let Some(line) = lines.next() else {
            break;
        };
        let line = line.map_err(|e| Error::io("read", "standard input", e))?;
        if line.trim().is_empty() {
            continue;
        }
        conversation.say("user", &line);
        let said = answer(&render_chat::render(template, conversation.clone())?)?;
        printer.piece("\n")?;
        conversation.say("assistant", &said);
    }
    if is_terminal {
        printer.piece("\n")?;
    }
    Ok(Verdict::Yes)
}
