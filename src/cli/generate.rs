//! `generate`: a model continues texts.

use std::path::Path;

use bam_convert::Error;
use bam_convert::arguments::CheckpointPath;
use bam_convert::model::CausalLm;
use bam_convert::model::chat::{ChatTemplate, Conversation};
use bam_convert::model::generate::{
    Batch, Ending, Flow, ReadText, Settings, eos_ids, generate, generate_after,
};
use bam_convert::model::sampling::Sampling;
use bam_convert::model::text_stream::TextStream;
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::pipeline::{Declaration, StageUse};
use clap::Args;
use serde::Serialize;

use super::device::{ComputeDtype, DeviceName, load_options};
use super::error::CliError;
use super::opened::Opened;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict, dialogue, render_chat};

/// The prompt that means standard input.
const STDIN: &str = "-";

/// New tokens where nothing else is said.
const MAX_TOKENS: usize = 128;

/// Continue a text with a model: dense, or a mixture of experts.
///
/// The text is printed as it comes. Several prompts run as one batch; the first is printed as it comes, the others
/// when all are done. Greedy unless --temperature, --top-k, --top-p or --min-p is given.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert generate bam --prompt 'The capital of France is'\n  \
                        bam-convert generate bam --chat --prompt 'Who are you?' --temperature 0.7 --seed 1\n  \
                        bam-convert generate model.gguf --chat"
)]
pub struct Arguments {
    /// Folder of the model, or a GGUF file.
    checkpoint: CheckpointPath,
    /// Text to continue; `-` reads it from standard input; repeat it for a batch.
    #[arg(long = "prompt", value_name = "TEXT", required_unless_present = "chat")]
    prompts: Vec<String>,
    /// Each prompt is what a user says in a conversation, laid out by the model's chat template. Without a prompt, have a
    /// dialogue: each line of standard input is a message.
    #[arg(long)]
    chat: bool,
    /// System message of the conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Maximum new tokens [default: 128, or what the model's context leaves].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Temperature, which divides the logits; 0 is greedy [default: 0, or 1 with another flag of sampling].
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    temperature: Option<f64>,
    /// Draw from the K most probable tokens.
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// Draw from the smallest set of tokens whose probabilities sum to P.
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    top_p: Option<f64>,
    /// Draw from tokens with at least P of the largest probability.
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    min_p: Option<f64>,
    /// Penalty for tokens that came before; above 1 makes them less likely.
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
    /// End the text before this string (repeat).
    #[arg(long = "stop", value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stops: Vec<String>,
    /// Where to compute.
    #[arg(long, default_value_t = DeviceName::Cpu)]
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
        let prompts = self.prompts()?;
        let opened = Opened::whole(&self.checkpoint, printer)?;
        let folder = opened.folder();
        // A template that cannot be used is refused before a large model is loaded.
        let template = self.chat.then(|| ChatTemplate::load(folder)).transpose()?;
        let Some(template) = template.as_ref().filter(|_| prompts.is_empty()) else {
            return self.answer_prompts(folder, &prompts, template.as_ref(), printer);
        };
        if self.json {
            return Err(CliError::JsonDialogue.into());
        }
        let loaded = self.load(folder, printer)?;
        let mut read = ReadText::default();
        dialogue::run(self.system.as_deref(), template, printer, |text| {
            loaded.answer(text, &mut read, printer)
        })
    }

    fn takes_less_memory(&self) -> Option<&'static str> {
        Some("pass --dtype bf16, a shorter prompt or a smaller --max-tokens")
    }

    fn computes(&self) -> bool {
        true
    }
}

impl Arguments {
    /// The prompts; `-` is what standard input holds, without the line break at its end.
    fn prompts(&self) -> anyhow::Result<Vec<String>> {
        if self
            .prompts
            .iter()
            .filter(|prompt| *prompt == STDIN)
            .count()
            > 1
        {
            return Err(CliError::RepeatedStdin.into());
        }
        let read = |prompt: &String| {
            if prompt != STDIN {
                return Ok(prompt.clone());
            }
            let text = std::io::read_to_string(std::io::stdin())
                .map_err(|e| Error::io("read", "standard input", e))?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
        };
        self.prompts.iter().map(read).collect()
    }

    fn load(&self, folder: &Path, printer: &Printer) -> anyhow::Result<Loaded<'_>> {
        let options = load_options(folder, self.device, self.dtype)?;
        let model = CausalLm::load(folder, &options)?;
        printer.note(&format!("backend: {}", model.backend()));
        let tokenizer = Tokenizer::load(folder, model.architecture().vocab_size)?;
        if let Some(note) = tokenizer.note() {
            printer.note(&format!(" note: {note}"));
        }
        Ok(Loaded {
            model,
            tokenizer,
            eos: eos_ids(folder)?,
            arguments: self,
        })
    }

    fn answer_prompts(
        &self,
        folder: &Path,
        prompts: &[String],
        template: Option<&ChatTemplate>,
        printer: &Printer,
    ) -> Outcome {
        let texts = self.texts(template, prompts)?;
        let loaded = self.load(folder, printer)?;
        // A chat template writes the special tokens itself.
        let encode = |text: &String| {
            if self.chat {
                Ok(loaded.tokenizer.encode(text, false)?.ids)
            } else {
                Ok(loaded.tokenizer.prompt_ids(text)?)
            }
        };
        let ids: Vec<Vec<u32>> = texts.iter().map(encode).collect::<anyhow::Result<_>>()?;
        let mut streams = loaded.streams(&ids);
        let heading = |number: usize| {
            if prompts.len() == 1 {
                return Ok(());
            }
            printer.piece(&format!("==> prompt {} <==\n", number + 1))
        };
        if self.json {
            let batch = loaded.generate(&ids, &mut streams, None)?;
            print_json(printer, &streams, (prompts, &ids), &batch)?;
            return Ok(Verdict::Yes);
        }
        heading(0)?;
        loaded.generate(&ids, &mut streams, Some(printer))?;
        for (number, stream) in streams.iter().enumerate().skip(1) {
            printer.piece("\n")?;
            heading(number)?;
            printer.piece(stream.text())?;
        }
        printer.piece("\n")?;
        Ok(Verdict::Yes)
    }

    /// What the model reads: the prompts, or the conversations that they begin.
    fn texts(
        &self,
        template: Option<&ChatTemplate>,
        prompts: &[String],
    ) -> anyhow::Result<Vec<String>> {
        let Some(template) = template else {
            return Ok(prompts.to_vec());
        };
        let text = |prompt: &String| {
            let conversation = Conversation::question(self.system.as_deref(), prompt);
            Ok(render_chat::render(template, conversation)?)
        };
        prompts.iter().map(text).collect()
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
}

/// A model that is ready to continue texts.
struct Loaded<'a> {
    model: CausalLm,
    tokenizer: Tokenizer,
    eos: Vec<u32>,
    arguments: &'a Arguments,
}

impl Loaded<'_> {
    /// The continuation of a text that a chat template has laid out, printed as it comes; `read` is what the model has read
    /// of the dialogue.
    fn answer(&self, text: &str, read: &mut ReadText, printer: &Printer) -> anyhow::Result<String> {
        // A chat template writes the special tokens itself.
        let prompt = self.tokenizer.encode(text, false)?.ids;
        let mut stream = TextStream::new(&self.tokenizer, &prompt, &self.arguments.stops);
        let settings = self.settings(std::slice::from_ref(&prompt));
        let mut printed = Ok(());
        generate_after(&self.model, read, prompt, &settings, &mut |id| {
            printed = printer.piece(&stream.push(id)?);
            Ok(flow(&stream, &printed))
        })?;
        printed?;
        printer.piece(&stream.finish()?)?;
        Ok(stream.text().to_owned())
    }

    fn streams(&self, prompts: &[Vec<u32>]) -> Vec<TextStream<'_>> {
        let stream =
            |prompt: &Vec<u32>| TextStream::new(&self.tokenizer, prompt, &self.arguments.stops);
        prompts.iter().map(stream).collect()
    }

    /// Continues the prompts; the first is printed as it comes if there is a printer.
    fn generate(
        &self,
        prompts: &[Vec<u32>],
        streams: &mut [TextStream],
        printer: Option<&Printer>,
    ) -> anyhow::Result<Batch> {
        let mut printed = Ok(());
        let settings = self.settings(prompts);
        let batch = generate(&self.model, prompts, &settings, &mut |row, id| {
            let piece = streams[row].push(id)?;
            if let Some(printer) = printer.filter(|_| row == 0) {
                printed = printer.piece(&piece);
            }
            Ok(flow(&streams[row], &printed))
        })?;
        printed?;
        for (row, stream) in streams.iter_mut().enumerate() {
            let rest = stream.finish()?;
            if let Some(printer) = printer.filter(|_| row == 0) {
                printer.piece(&rest)?;
            }
        }
        Ok(batch)
    }

    fn settings(&self, prompts: &[Vec<u32>]) -> Settings {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = self.model.architecture().max_position_embeddings;
        let room = context.map_or(MAX_TOKENS, |context| {
            (context as usize)
                .saturating_sub(longest)
                .clamp(1, MAX_TOKENS)
        });
        let most = self.arguments.max_tokens;
        Settings {
            max_tokens: most.map_or(room, |tokens| tokens as usize),
            eos: self.eos.clone(),
            sampling: self.arguments.sampling(),
            ..Settings::default()
        }
    }
}

/// Whether a text continues after what was printed of it.
fn flow(stream: &TextStream, printed: &std::io::Result<()>) -> Flow {
    if stream.stopped() || printed.is_err() {
        Flow::Stop
    } else {
        Flow::Continue
    }
}

fn print_json(
    printer: &Printer,
    streams: &[TextStream],
    (prompts, ids): (&[String], &[Vec<u32>]),
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
        .zip(prompts.iter().zip(ids));
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
