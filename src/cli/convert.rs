//! `convert`: the same model in another dtype, other shards, another format, or out of a GGUF file.

use bam_convert::arguments::{CheckpointPath, OutputPath};
use bam_convert::checkpoint::GgufDtype;
use bam_convert::checkpoint::dtype::{self, Dtype};
use bam_convert::family::{Architecture, Config, ExpertLayout, QWEN3_NEXT};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::convert::plan;
use bam_convert::surgery::relayout::{self, Form};
use bam_convert::surgery::{gguf, npz, qwen3_next};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};

use super::Outcome;
use super::error::{self, CliError};
use super::printer::Printer;
use super::upcycle::{float_dtype, targets};
use super::verb::Verb;
use super::write::WriteArguments;

/// Convert a checkpoint: from and to GGUF, to numpy, to another dtype, family or layout, other shards.
///
/// A GGUF file becomes a folder with config.json and tokenizer rebuilt from its metadata. Any other
/// checkpoint keeps its tensors; with `--dtype` its floating-point tensors are rounded once to that dtype.
/// A mixture of feed-forward experts can be taken to another family where that one holds it exactly (`--to`), and its
/// experts put together or taken apart (`--layout`). With `--to qwen3_next`, a mixture of a Qwen 3 seed keeps its attention experts. An archive for numpy (`--to npz`) has every tensor under its name. Numpy lacks
/// bf16, so tensors of bf16 become f32 with the same values.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert convert model.gguf model\n  bam-convert convert model model-f32 --dtype f32 --max-shard-size 500MB\n  bam-convert convert btx mixtral --to mixtral\n  bam-convert convert bam next --to qwen3_next\n  bam-convert convert from-transformers-5 classic --layout classic\n  bam-convert convert mixtral mixtral.gguf --dtype f16\n  bam-convert convert model model.npz"
)]
pub struct Arguments {
    /// Folder, or a .safetensors, .gguf or .npz file.
    source: CheckpointPath,
    /// Folder to make; a name that ends in `.gguf` or `.npz` is a file, as with `--to gguf` and `--to npz`.
    out: OutputPath,
    /// Dtype of floating-point tensors [default: the source's; bf16 from quantised].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    /// Family of the output, for a mixture; or `gguf`, a file for llama.cpp; or `npz`, one for numpy [default: as OUT ends, else the source's].
    #[arg(long, value_name = "FAMILY", value_parser = PossibleValuesParser::new(forms()))]
    to: Option<String>,
    /// Quantise the matrices (`--to gguf`).
    #[arg(long, value_enum, conflicts_with = "dtype")]
    quantize: Option<Quantized>,
    /// How a mixture's experts are stored [default: as they are, or classic with --to]. `classic`: one tensor per expert,
    /// which every program reads. `fused`: all experts of a layer in one tensor, as transformers 5 does.
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    #[command(flatten)]
    write: WriteArguments,
}

/// Formats of the output that are one file. Its name ends in the same word.
const FILES: [&str; 2] = ["gguf", "npz"];

/// Values of `--to`: the families of mixtures, GGUF, and archives of numpy.
fn forms() -> Vec<&'static str> {
    let families = targets().into_iter().chain([QWEN3_NEXT]);
    families.chain(FILES).collect()
}

/// Values of `--quantize`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Quantized {
    /// Blocks of 32 values of 8 bits with one scale.
    #[value(name = "q8_0")]
    Q8_0,
}

/// Values of `--layout`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutName {
    /// One tensor per expert and projection.
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

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("convert", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let file = self.file();
        if let (Some(to), Some(_)) = (file, self.layout) {
            let to = to.to_owned();
            return Err(CliError::LayoutOfFile { to }.into());
        }
        if file == Some("gguf") {
            let export = gguf::plan(&self.source, self.gguf_dtype()?)?;
            return self.write.run_export(&export, &self.out, printer);
        }
        if self.quantize.is_some() {
            return Err(CliError::Quantize.into());
        }
        if file == Some("npz") {
            let export = npz::plan(&self.source, self.dtype)?;
            return self.write.run_export(&export, &self.out, printer);
        }
        if self.to.as_deref() == Some(QWEN3_NEXT) {
            if self.layout.is_some() {
                return Err(CliError::LayoutOfClass { to: QWEN3_NEXT }.into());
            }
            let (plan, files) = qwen3_next::plan(&self.source, self.dtype)?;
            return self.write.run(&plan, None, &files, &self.out, printer);
        }
        if self.to.is_some() || self.layout.is_some() {
            let layout = self.layout.map(LayoutName::value);
            let form = Form {
                to: self.to.as_deref(),
                layout,
                dtype: self.dtype,
            };
            let (plan, architecture, files) = relayout::plan(&self.source, &form)?;
            return self
                .write
                .run(&plan, Some(&architecture), &files, &self.out, printer);
        }
        let (plan, files) = plan(&self.source, self.dtype)?;
        // A family we do not know can be converted all the same; there is just less to say about it.
        let architecture = Config::read_if_present(&self.source)?
            .and_then(|config| Architecture::of(&config).ok());
        self.write
            .run(&plan, architecture.as_ref(), &files, &self.out, printer)
    }
}

impl Arguments {
    /// The format of an output that is one file: as `--to` says, else as its name ends.
    fn file(&self) -> Option<&str> {
        let ending = || self.out.extension()?.to_str();
        let form = self.to.as_deref().or_else(ending);
        form.filter(|form| FILES.contains(form))
    }

    /// How matrices are stored in a GGUF file; as they are where absent.
    fn gguf_dtype(&self) -> error::Result<Option<GgufDtype>> {
        Ok(match (self.quantize, self.dtype) {
            (Some(Quantized::Q8_0), _) => Some(GgufDtype::Q8_0),
            (None, None) => None,
            (None, Some(Dtype::F32)) => Some(GgufDtype::F32),
            (None, Some(Dtype::F16)) => Some(GgufDtype::F16),
            (None, Some(Dtype::BF16)) => Some(GgufDtype::BF16),
            (None, Some(other)) => {
                let dtype = dtype::name(other);
                return Err(CliError::GgufDtype { dtype });
            }
        })
    }
}
