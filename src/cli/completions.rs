//! `completions`: shell completions, generated from the flags.

use bam_convert::pipeline::{Declaration, StageUse};
use clap::Args;
use clap_complete::Shell;

use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict, definition};

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bam-convert completions bash > ~/.local/share/bash-completion/completions/bam-convert"
)]
pub struct Arguments {
    /// The shell.
    shell: Shell,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("completions", StageUse::Never)
    }

    fn has_threads() -> bool {
        false
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut definition(), "bam-convert", &mut text);
        printer.result(&String::from_utf8_lossy(&text))?;
        Ok(Verdict::Yes)
    }
}
