//! `man`: manual pages, generated from the flags.

use std::path::PathBuf;

use bam_convert::Error;
use clap::Args;

use super::printer::Printer;
use super::{Outcome, Verdict, definition};

/// Write a manual page for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert man --out ~/.local/share/man/man1")]
pub struct Arguments {
    /// Folder to write to, made where absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, printer: &Printer) -> Outcome {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("create", &self.out, e))?;
        clap_mangen::generate_to(definition(), &self.out)
            .map_err(|e| Error::io("write to", &self.out, e))?;
        printer.note(&format!("wrote manual pages to {}", self.out.display()));
        Ok(Verdict::Yes)
    }
}
