//! `convert`: the same model in another dtype, other shards, or out of a GGUF file.

use std::path::PathBuf;

use bam_convert::checkpoint::dtype::Dtype;
use bam_convert::family::{Architecture, Config};
use bam_convert::surgery::convert::plan;
use clap::Args;

use super::Outcome;
use super::printer::Printer;
use super::upcycle::float_dtype;
use super::write::WriteArguments;

/// Convert a checkpoint: GGUF to a Hugging Face folder, another dtype, other shards.
///
/// A GGUF file becomes a folder with config.json and tokenizer rebuilt from its metadata. Any other
/// checkpoint keeps its tensors; with `--dtype` its floating-point tensors are rounded once to that dtype.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert convert model.gguf model\n  bam-convert convert model model-f32 --dtype f32 --max-shard-size 500MB"
)]
pub struct Arguments {
    /// Folder, .safetensors or .gguf file.
    source: PathBuf,
    /// Folder to make.
    out: PathBuf,
    /// Dtype of floating-point tensors [default: the source's; bf16 from quantised].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    write: WriteArguments,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, printer: &Printer) -> Outcome {
        let (plan, files) = plan(&self.source, self.dtype)?;
        // A family we do not know can be converted all the same; there is just less to say about it.
        let architecture = Config::read(&self.source).and_then(|config| Architecture::of(&config)).ok();
        self.write.run(&plan, architecture.as_ref(), &files, &self.out, printer)
    }
}
