//! `logits`: what a model says of a sequence of tokens, kept or compared.

use std::path::Path;

use bam_convert::arguments::{CheckpointPath, InputPath, OutputPath};
use bam_convert::checkpoint::single::{check_tensor_target, write_tensor};
use bam_convert::evaluate::logits::{Comparison, LOGITS, Logits, default_tokens, read_tokens};
use bam_convert::family::{Architecture, Config};
use bam_convert::pipeline::{Declaration, StageUse};
use candle_core::Device;
use clap::Args;

use super::device::DeviceName;
use super::error::{self, CliError};
use super::opened::Opened;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Compute a model's logits, or compare the logits of two models.
///
/// Computed in float32 whatever the stored dtype. With --dump they are written as float32 tensor `logits` [seq, vocab].
/// With a second model, or for two dumps, differences are printed. Exit code 1 means that the largest one is
/// above --tolerance.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert logits bam --tokens tokens.json --dump logits.safetensors\n  \
                        bam-convert logits bam seed --tolerance 1e-5"
)]
pub struct Arguments {
    /// Folder of a model, a GGUF file, or a dump of its logits.
    #[arg(value_name = "CKPT")]
    a: CheckpointPath,
    /// A second model, or a dump, to compare with.
    #[arg(value_name = "B")]
    b: Option<CheckpointPath>,
    /// A JSON array of token ids [default: 64 fixed ids, for a comparison].
    #[arg(long, value_name = "FILE")]
    tokens: Option<InputPath>,
    /// Write the logits to this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["b", "tolerance", "json"], requires = "tokens")]
    dump: Option<OutputPath>,
    /// Largest difference that counts as equal.
    #[arg(long, value_name = "X", value_parser = tolerance)]
    tolerance: Option<f64>,
    /// Where to compute.
    #[arg(long, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("logits", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let device = self.device.open()?;
        if let Some(dump) = &self.dump {
            check_tensor_target(dump, LOGITS)?;
            let model = Opened::whole(&self.a, printer)?;
            let tokens = self.tokens()?.unwrap_or_default();
            let logits = Logits::of(model.folder(), &tokens, &device)?;
            write_tensor(
                dump,
                LOGITS,
                &[logits.positions as u64, logits.vocab as u64],
                &logits.values,
            )?;
            let (positions, vocab) = (logits.positions, logits.vocab);
            printer.note(&format!(
                "wrote {}: {LOGITS} [{positions}, {vocab}], float32",
                dump.display()
            ));
            return Ok(Verdict::Yes);
        }
        let b = self.b.as_deref().ok_or(CliError::OneModel)?;
        let tokens = self.tokens()?;
        let (a, b) = (Opened::whole(&self.a, printer)?, Opened::whole(b, printer)?);
        let tokens = match tokens {
            Some(tokens) => Some(tokens),
            None => self.fixed_tokens([a.folder(), b.folder()])?,
        };
        let a = side(a.folder(), tokens.as_deref(), &device)?;
        let b = side(b.folder(), tokens.as_deref(), &device)?;
        let comparison = Comparison::of(&a, &b)?;
        if self.json {
            printer.json(&comparison)?;
        } else {
            printer.result(&comparison.table())?;
        }
        let beyond = self
            .tolerance
            .is_some_and(|tolerance| comparison.max > tolerance);
        Ok(if beyond { Verdict::No } else { Verdict::Yes })
    }

    fn takes_less_memory(&self) -> Option<&'static str> {
        Some("pass fewer --tokens, or use --device cpu")
    }

    fn computes(&self) -> bool {
        true
    }
}

impl Arguments {
    fn tokens(&self) -> bam_convert::Result<Option<Vec<u32>>> {
        self.tokens.as_deref().map(read_tokens).transpose()
    }

    /// Tokens that both models know and have room for; none for two dumps.
    fn fixed_tokens(&self, sides: [&Path; 2]) -> error::Result<Option<Vec<u32>>> {
        let folders: Vec<&Path> = sides.into_iter().filter(|side| !side.is_file()).collect();
        let described = folders
            .iter()
            .map(|folder| Architecture::of(&Config::read(folder)?));
        let described: Vec<Architecture> = described.collect::<bam_convert::Result<_>>()?;
        match folders.len() {
            0 => Ok(None),
            1 => Err(CliError::NoTokens),
            _ => Ok(Some(default_tokens(&described))),
        }
    }
}

/// A number of 0 or more: nothing is larger than NaN or infinity.
fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(format!(
            "expected a finite number of 0 or more, found `{text}`"
        )),
    }
}

fn side(path: &Path, tokens: Option<&[u32]>, device: &Device) -> bam_convert::Result<Logits> {
    match tokens {
        Some(tokens) if !path.is_file() => Logits::of(path, tokens, device),
        _ => Logits::read(path),
    }
}
