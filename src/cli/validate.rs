//! `validate`: whether a checkpoint is what it says it is.

use std::path::{Path, PathBuf};

use bam_convert::Result;
use bam_convert::arguments::{CheckpointPath, Outline};
use bam_convert::checkpoint::Checkpoint;
use bam_convert::estimate::{Estimate, READ};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::threads;
use bam_convert::verify::ValidateOptions;
use bam_convert::verify::validate::work_length;
use bam_convert::verify::{ValidationReport, validate};
use clap::{ArgAction, Args};

use super::estimate::print;
use super::names::paths;
use super::printer::Printer;
use super::verb::{HubUse, Verb};
use super::work::WorkArguments;
use super::{Outcome, Verdict};

/// Check a checkpoint: headers, index, configuration, tensors, numbers, tokenizer, manifest.
///
/// With `--against`, every tensor is also made anew from the sources, as the manifest records it, and
/// compared bit for bit. Exit code 1 means that faults were found; warnings do not count.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert validate bam\n  bam-convert validate bam --against\n  bam-convert validate bam --against ../models/seed ../models/code"
)]
pub struct Arguments {
    /// Folder or weight file.
    path: CheckpointPath,
    /// Replay the manifest against its sources. Those beside PATH, in the work folder of its recipe, and on the Hub are found;
    /// name the folders of all others here, in any order.
    #[arg(long, value_name = "DIR", num_args = 0..)]
    against: Option<Vec<CheckpointPath>>,
    /// Show every finding.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    work: WorkArguments,
    /// Say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
}

/// Bytes of a report, in round numbers.
const REPORT: u64 = 4096;

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("validate", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn hub_use(&self) -> HubUse {
        HubUse::Ranges
    }

    fn run(&self, printer: &Printer) -> Outcome {
        if *self.outline {
            // Read for its numbers and for its hashes, and twice more to make it anew.
            let passes = if self.against.is_some() { 4 } else { 2 };
            let bytes = passes * Checkpoint::open(&self.path)?.data_length();
            return print(printer, &Estimate::of(REPORT, bytes as f64 / READ));
        }
        let against = self
            .against
            .as_ref()
            .map(|given| paths(given).into_iter().map(Some).collect::<Vec<_>>());
        #[cfg(feature = "hub")]
        let against = match against {
            Some(given) if given.is_empty() => Some(super::hub::sources(&self.path, printer)?),
            other => other,
        };
        let report = examine(&self.path, against.as_deref(), &self.work, printer)?;
        if self.work.json {
            printer.json(&report)?;
        } else {
            printer.result(&report.table(self.all))?;
        }
        Ok(if report.faults() == 0 {
            Verdict::Yes
        } else {
            Verdict::No
        })
    }
}

/// What is found of a checkpoint, with a progress bar meanwhile.
pub fn examine(
    path: &Path,
    against: Option<&[Option<PathBuf>]>,
    work: &WorkArguments,
    printer: &Printer,
) -> Result<ValidationReport> {
    let bar = printer.bytes_bar(0, "checking");
    let (threads, memory) = (threads::count(), work.memory.as_u64());
    let options = ValidateOptions {
        against,
        threads,
        memory,
        progress: &|bytes| bar.inc(bytes),
    };
    bar.set_length(work_length(path, &options));
    let report = validate(path, &options)?;
    bar.finish_and_clear();
    Ok(report)
}
