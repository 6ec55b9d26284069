//! `merge`: the weighted average of models of one shape.

use bam_convert::arguments::{CheckpointPath, OutputPath, Weighted};
use bam_convert::checkpoint::Dtype;
use bam_convert::mergekit::Dialect;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::Model;
use bam_convert::surgery::merge::{Settings, plan};
use clap::Args;

use super::Outcome;
use super::error::CliError;
use super::printer::Printer;
use super::upcycle::float_dtype;
use super::verb::Verb;
use super::write::WriteArguments;

/// Average models of one shape, each with a weight.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert merge --model a:0.75 --model b:0.25 --out merged")]
pub struct Arguments {
    /// A model and its weight [default weight: 1] (repeat).
    #[arg(long = "model", value_name = "DIR[:WEIGHT]", required = true)]
    models: Vec<Weighted<CheckpointPath>>,
    /// The model whose configuration and tokenizer the output has [default: the first].
    #[arg(long, value_name = "DIR")]
    base: Option<CheckpointPath>,
    /// Divide by the sum of the weights.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    normalize: bool,
    /// Dtype of the output [default: the base's].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    #[command(flatten)]
    write: WriteArguments,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("merge", StageUse::Makes).with_settings_file(Dialect::Linear)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let mut models = Vec::with_capacity(self.models.len());
        for (number, model) in self.models.iter().enumerate() {
            models.push((
                Model::open(&format!("model-{}", number + 1), &model.value)?,
                model.weight,
            ));
        }
        let base = match &self.base {
            None => 0,
            Some(base) => self
                .models
                .iter()
                .position(|model| model.value == *base)
                .ok_or_else(|| CliError::Base {
                    base: base.to_path_buf(),
                })?,
        };
        let settings = Settings {
            base,
            normalize: self.normalize,
            dtype: self.dtype,
        };
        let (plan, architecture, files) = plan(models, &settings)?;
        self.write
            .run(&plan, Some(&architecture), &files, &self.out, printer)
    }
}
