//! `diff`: where two checkpoints differ, and by how much.

use bam_convert::arguments::CheckpointPath;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::threads;
use bam_convert::verify::diff;
use bam_convert::verify::diff::{DiffOptions, work_length};
use clap::Args;

use super::printer::Printer;
use super::verb::{HubUse, Verb};
use super::work::WorkArguments;
use super::{Outcome, Verdict};

/// Compare two checkpoints tensor by tensor: files or folders, sharded or not, of any dtypes.
///
/// A mixture is compared with a dense model expert by expert, and two mixtures by the names of their experts. Exit code 1
/// means that they differ.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert diff bam seed\n  bam-convert diff hf://org/a hf://org/b"
)]
pub struct Arguments {
    /// Folder or weight file.
    a: CheckpointPath,
    /// Folder or weight file to compare with.
    b: CheckpointPath,
    /// Show every tensor, the equal ones too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    work: WorkArguments,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("diff", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn hub_use(&self) -> HubUse {
        HubUse::Ranges
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let bar = printer.bytes_bar(work_length(&self.a, &self.b), "comparing");
        let options = DiffOptions {
            threads: threads::count(),
            memory: self.work.memory.as_u64(),
            progress: &|bytes| bar.inc(bytes),
        };
        let difference = diff(&self.a, &self.b, &options)?;
        bar.finish_and_clear();
        if self.work.json {
            printer.json(&difference)?;
        } else {
            printer.result(&difference.table(self.all))?;
        }
        Ok(if difference.is_equal() {
            Verdict::Yes
        } else {
            Verdict::No
        })
    }
}
