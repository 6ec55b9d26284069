//! `convert`: the same model in another dtype, other shards, another format, or out of a GGUF file.

use std::path::PathBuf;

use bam_convert::checkpoint::dtype::Dtype;
use bam_convert::family::{Architecture, Config, ExpertLayout};
use bam_convert::surgery::convert::plan;
use bam_convert::surgery::relayout::{self, Form};
use clap::{Args, ValueEnum};

use super::Outcome;
use super::printer::Printer;
use super::upcycle::{TARGETS, float_dtype};
use super::write::WriteArguments;

/// Convert a checkpoint: GGUF to a Hugging Face folder, another dtype, other shards.
///
/// A GGUF file becomes a folder with config.json and tokenizer rebuilt from its metadata. Any other
/// checkpoint keeps its tensors; with `--dtype` its floating-point tensors are rounded once to that dtype.
/// A mixture of feed-forward experts can be taken to another family where that one holds it exactly (`--to`), and its
/// experts put together or taken apart (`--layout`).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert convert model.gguf model\n  bam-convert convert model model-f32 --dtype f32 --max-shard-size 500MB\n  bam-convert convert btx mixtral --to mixtral\n  bam-convert convert from-transformers-5 classic --layout classic"
)]
pub struct Arguments {
    /// Folder, .safetensors or .gguf file.
    source: PathBuf,
    /// Folder to make.
    out: PathBuf,
    /// Dtype of floating-point tensors [default: the source's; bf16 from quantised].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    /// Family of the output, for a mixture [default: the source's].
    #[arg(long, value_name = "FAMILY", value_parser = TARGETS)]
    to: Option<String>,
    /// How a mixture's experts are stored: one tensor an expert, which every program reads, or all experts of a layer in
    /// one, as transformers 5 does [default: as they are, or classic with --to].
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    #[command(flatten)]
    write: WriteArguments,
}

/// Values of `--layout`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutName {
    /// One tensor an expert and projection.
    Classic,
    /// All experts of a layer in one tensor.
    Fused,
}

impl LayoutName {
    fn value(self) -> ExpertLayout {
        match self {
            Self::Classic => ExpertLayout::Classic,
            Self::Fused => ExpertLayout::Fused,
        }
    }
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, printer: &Printer) -> Outcome {
        if self.to.is_some() || self.layout.is_some() {
            let layout = self.layout.map(LayoutName::value);
            let form = Form { to: self.to.as_deref(), layout, dtype: self.dtype };
            let (plan, architecture, files) = relayout::plan(&self.source, &form)?;
            return self.write.run(&plan, Some(&architecture), &files, &self.out, printer);
        }
        let (plan, files) = plan(&self.source, self.dtype)?;
        // A family we do not know can be converted all the same; there is just less to say about it.
        let architecture = Config::read(&self.source).and_then(|config| Architecture::of(&config)).ok();
        self.write.run(&plan, architecture.as_ref(), &files, &self.out, printer)
    }
}
