//! `report`: runs and what came of them, as one page.

use bam_convert::arguments::{CheckpointPath, Outline, OutputPath};
use bam_convert::checkpoint::{Checkpoint, single};
use bam_convert::estimate::{Estimate, READ};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::report::{self, Means, Work};
use bam_convert::threads;
use clap::{ArgAction, Args};

use super::estimate::print;
use super::names::paths;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// What a page has near its beginning, by which an earlier one is known.
const TITLE: &[u8] = b"<title>bam-convert report: ";

/// Write one self-contained HTML page about training runs, checkpoints and evaluations.
///
/// The page shows perplexity by domain, loss curves, and routers over time. It also shows gradients and updates by role,
/// divergence from the seed, settings, the graph of the recipe's stages, and lineage. Several runs share one chart. A folder
/// that holds several runs, such as the work folder of `run`, adds all of them. The page needs no network and no
/// other file.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert report bam-trained btx-trained --out report.html\n  \
                        bam-convert report experts/code experts/law evaluation.json --out report.html\n  \
                        bam-convert report quickstart --out report.html"
)]
pub struct Arguments {
    /// Outputs of `train` (OUT or OUT.run), checkpoints, results of `eval --json`, and folders that hold several of these.
    #[arg(value_name = "DIR|FILE.json", required = true)]
    inputs: Vec<CheckpointPath>,
    /// The page.
    #[arg(long, value_name = "FILE.html")]
    out: OutputPath,
    /// Say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
}

/// Bytes of a page without runs, and of what a checkpoint and its run add to it, in round numbers.
const PAGE: (u64, u64) = (30_000, 50_000);

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("report", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        if *self.outline {
            let checkpoints = self
                .inputs
                .iter()
                .filter_map(|input| Checkpoint::open(input).ok());
            let lengths: Vec<u64> = checkpoints
                .map(|checkpoint| checkpoint.data_length())
                .collect();
            // Each is compared with its seed.
            let compared = 2 * lengths.iter().sum::<u64>();
            let bytes = PAGE.0 + PAGE.1 * lengths.len() as u64;
            return print(printer, &Estimate::of(bytes, compared as f64 / READ));
        }
        single::check_kind(&self.out, "report of bam-convert", &|beginning| {
            beginning.windows(TITLE.len()).any(|part| part == TITLE)
        })?;
        let input = report::read(&paths(&self.inputs))?;
        let bar = printer.bytes_bar(0, "comparing");
        let means = Means {
            threads: threads::count(),
            progress: &|work| match work {
                Work::Total(bytes) => bar.set_length(bytes),
                Work::Done(bytes) => bar.inc(bytes),
            },
        };
        let page = report::html(&input, means)?;
        bar.finish_and_clear();
        single::write(&self.out, &[page.as_bytes()])?;
        printer.note(&format!("wrote {}", self.out.display()));
        Ok(Verdict::Yes)
    }
}
