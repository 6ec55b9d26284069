//! `generate`: a model continues texts.

use bam_convert::arguments::CheckpointPath;
use bam_convert::model::CausalLm;
use bam_convert::model::chat::{ChatTemplate, Conversation};
use bam_convert::model::generate::{Batch, Ending, Flow, Settings, eos_ids, generate};
use bam_convert::model::sampling::Sampling;
use bam_convert::model::text_stream::TextStream;
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::pipeline::{Declaration, StageUse};
use clap::Args;
use serde::Serialize;

use super::device::{ComputeDtype, DeviceName, load_options};
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict, render_chat};

/// New tokens where nothing else is said.
const MAX_TOKENS: usize = 128;

/// Continue a text with a model: dense, or a mixture of experts.
///
/// The text is printed as it comes. Several prompts run as one batch; the first is printed as it comes, the others
/// when all are done. Greedy unless --temperature, --top-k, --top-p or --min-p is given.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert generate bam --prompt 'The capital of France is'\n  \
                        bam-convert generate bam --chat --prompt 'Who are you?' --temperature 0.7 --seed 1"
)]
pub struct Arguments {
    /// Folder of the model.
    checkpoint: CheckpointPath,
    /// Text to continue; repeat it for a batch.
    #[arg(long = "prompt", value_name = "TEXT", required = true)]
    prompts: Vec<String>,
    /// Each prompt is what a user says in a conversation, laid out by the model's chat template.
    #[arg(long)]
    chat: bool,
    /// What the conversation's system message says.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most new tokens [default: 128, or what the model's context leaves].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// What logits are divided by; 0 is greedy [default: 0, or 1 with another flag of sampling].
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    temperature: Option<f64>,
    /// Draw from the K most probable tokens.
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// Draw from the fewest tokens that have probability P together.
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    top_p: Option<f64>,
    /// Draw from tokens with at least P of the largest probability.
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    min_p: Option<f64>,
    /// Make tokens that have come before less likely (above 1).
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        help_heading = "Sampling"
    )]
    repetition_penalty: f64,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
    /// End the text where this one begins (repeat).
    #[arg(long = "stop", value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stops: Vec<String>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// Dtype to compute in [default: the checkpoint's].
    #[arg(long, value_enum)]
    dtype: Option<ComputeDtype>,
    /// Print the result as JSON: an object, or an array of them for several prompts.
    #[arg(long)]
    json: bool,
}

/// One text, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    text: &'a str,
    ids: &'a [u32],
    prompt_tokens: usize,
    ended_by: Ending,
    prefill_seconds: f64,
    decode_seconds: f64,
    /// Tokens per second of the whole batch, without the first new token of each text.
    tokens_per_second: f64,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("generate", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        // A template that cannot be used is refused before a large model is loaded.
        let texts = self.texts()?;
        let options = load_options(&self.checkpoint, self.device, self.dtype)?;
        let model = CausalLm::load(&self.checkpoint, &options)?;
        printer.note(&format!("backend: {}", model.backend()));
        let tokenizer = Tokenizer::load(&self.checkpoint, model.architecture().vocab_size)?;
        if let Some(note) = tokenizer.note() {
            printer.note(&format!(" note: {note}"));
        }
        // A chat template writes the special tokens itself.
        let encode = |text: &String| {
            if self.chat {
                Ok(tokenizer.encode(text, false)?.ids)
            } else {
                Ok(tokenizer.prompt_ids(text)?)
            }
        };
        let prompts: Vec<Vec<u32>> = texts.iter().map(encode).collect::<anyhow::Result<_>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let room = model
            .architecture()
            .max_position_embeddings
            .map(|context| context as usize);
        let room = room.map_or(MAX_TOKENS, |context| {
            context.saturating_sub(longest).clamp(1, MAX_TOKENS)
        });
        let settings = Settings {
            max_tokens: self.max_tokens.map_or(room, |tokens| tokens as usize),
            eos: eos_ids(&self.checkpoint)?,
            sampling: self.sampling(),
            ..Settings::default()
        };
        let mut streams: Vec<TextStream> = prompts
            .iter()
            .map(|prompt| TextStream::new(&tokenizer, prompt, &self.stops))
            .collect();
        let mut printed = Ok(());
        let live = !self.json;
        if live {
            self.heading(printer, 0)?;
        }
        let batch = generate(&model, &prompts, &settings, &mut |row, id| {
            let piece = streams[row].push(id)?;
            if live && row == 0 {
                printed = printer.piece(&piece);
            }
            Ok(if streams[row].stopped() || printed.is_err() {
                Flow::Stop
            } else {
                Flow::Continue
            })
        })?;
        printed?;
        let rest: Vec<String> = streams
            .iter_mut()
            .map(TextStream::finish)
            .collect::<Result<_, _>>()?;
        if self.json {
            self.print_json(printer, &streams, &prompts, &batch)?;
        } else {
            printer.piece(&rest[0])?;
            for (number, stream) in streams.iter().enumerate().skip(1) {
                printer.piece("\n")?;
                self.heading(printer, number)?;
                printer.piece(stream.text())?;
            }
            printer.piece("\n")?;
        }
        Ok(Verdict::Yes)
    }

    fn computes(&self) -> bool {
        true
    }
}

impl Arguments {
    fn heading(&self, printer: &Printer, number: usize) -> std::io::Result<()> {
        if self.prompts.len() == 1 {
            return Ok(());
        }
        printer.piece(&format!("==> prompt {} <==\n", number + 1))
    }

    /// What the model reads: the prompts, or the conversations that they begin.
    fn texts(&self) -> anyhow::Result<Vec<String>> {
        if !self.chat {
            return Ok(self.prompts.clone());
        }
        let template = ChatTemplate::load(&self.checkpoint)?;
        let text = |prompt: &String| {
            let conversation = Conversation::question(self.system.as_deref(), prompt);
            render_chat::render(&template, conversation)
        };
        self.prompts.iter().map(text).collect()
    }

    fn sampling(&self) -> Sampling {
        let filtered = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        Sampling {
            temperature: self.temperature.unwrap_or(if filtered { 1.0 } else { 0.0 }),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    fn print_json(
        &self,
        printer: &Printer,
        streams: &[TextStream],
        prompts: &[Vec<u32>],
        batch: &Batch,
    ) -> anyhow::Result<()> {
        let later: usize = batch
            .texts
            .iter()
            .map(|text| text.ids.len().saturating_sub(1))
            .sum();
        let (prefill_seconds, decode_seconds) =
            (batch.prefill.as_secs_f64(), batch.decode.as_secs_f64());
        let rows = streams
            .iter()
            .zip(&batch.texts)
            .zip(self.prompts.iter().zip(prompts));
        let answers = rows.map(|((stream, generated), (prompt, ids))| Answer {
            prompt,
            text: stream.text(),
            ids: &generated.ids,
            prompt_tokens: ids.len(),
            ended_by: generated.ending,
            prefill_seconds,
            decode_seconds,
            tokens_per_second: if later == 0 {
                0.0
            } else {
                later as f64 / decode_seconds.max(1e-9)
            },
        });
        match answers.collect::<Vec<_>>().as_slice() {
            [one] => printer.json(one),
            several => printer.json(&several),
        }
    }
}
