//! `init`: a checkpoint from a configuration alone.

use bam_convert::arguments::{CheckpointPath, OutputPath};
use bam_convert::checkpoint::dtype::Dtype;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::init::plan;
use clap::Args;

use super::Outcome;
use super::printer::Printer;
use super::upcycle::float_dtype;
use super::verb::Verb;
use super::write::WriteArguments;

/// Make a randomly initialised checkpoint from a config.json.
///
/// Weights are drawn from N(0, initializer_range²), norms are 1, biases 0. Where CONFIG is a folder,
/// its tokenizer is copied.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert init config.json --out seed --rng-seed 7")]
pub struct Arguments {
    /// A config.json, or a folder that holds one.
    config: CheckpointPath,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Seed of the random draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rng_seed: u64,
    /// Dtype of the weights [default: the configuration's, else f32].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    write: WriteArguments,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("init", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let (plan, architecture, files) = plan(&self.config, self.dtype, self.rng_seed)?;
        self.write
            .run(&plan, Some(&architecture), &files, &self.out, printer)
    }
}
