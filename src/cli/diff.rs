//! `diff`: where two checkpoints differ, and by how much.

use std::path::PathBuf;

use bam_convert::verify::diff;
use bam_convert::verify::diff::{Options, work_length};
use bytesize::ByteSize;
use clap::Args;

use super::printer::Printer;
use super::write::thread_count;
use super::{Outcome, Verdict};

/// Compare two checkpoints tensor by tensor: files or folders, sharded or not, of any dtypes.
///
/// A mixture is compared with a dense model expert by expert. Exit code 1 means that they differ.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert diff bam seed")]
pub struct Arguments {
    /// Folder or weight file.
    a: PathBuf,
    /// The other.
    b: PathBuf,
    /// Show every tensor, the equal ones too.
    #[arg(long)]
    all: bool,
    /// Working memory, all threads together.
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    memory: ByteSize,
    /// Worker threads [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, printer: &Printer) -> Outcome {
        let bar = printer.bytes_bar(work_length(&self.a, &self.b), "comparing");
        let options = Options {
            threads: thread_count(self.threads),
            memory: self.memory.as_u64(),
            progress: &|bytes| bar.inc(bytes),
        };
        let difference = diff(&self.a, &self.b, &options)?;
        bar.finish_and_clear();
        match self.json {
            true => printer.json(&difference)?,
            false => printer.result(&difference.table(self.all))?,
        }
        Ok(if difference.is_equal() { Verdict::Yes } else { Verdict::No })
    }
}
