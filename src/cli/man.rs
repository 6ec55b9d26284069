//! `man`: manual pages, generated from the flags.

use std::path::Path;

use bam_convert::arguments::OutputPath;
use bam_convert::checkpoint::single;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::{Error, Result};
use clap::{Args, Command};
use clap_mangen::Man;

use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict, definition};

/// Write a manual page for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert man --out ~/.local/share/man/man1")]
pub struct Arguments {
    /// Folder to write to, made where absent.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("man", StageUse::Never)
    }

    fn has_threads() -> bool {
        false
    }

    fn run(&self, printer: &Printer) -> Outcome {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("create", &self.out, e))?;
        let mut definition = definition().disable_help_subcommand(true);
        definition.build();
        write_pages(&definition, &self.out)?;
        printer.note(&format!("wrote manual pages to {}", self.out.display()));
        Ok(Verdict::Yes)
    }
}

/// The page of a command, and the pages of the commands below it. clap's own function would leave half a page on a full disk.
fn write_pages(command: &Command, folder: &Path) -> Result<()> {
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        write_pages(below, folder)?;
    }
    let page = Man::new(command.clone());
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)
        .map_err(|e| Error::io("write", &path, e))?;
    single::write(&path, &[&text])
}
