//! `tokenize`: texts to token shards.

use std::sync::Mutex;

use bam_convert::arguments::{CorpusPath, Force, InputPath, Outline, OutputPath};
use bam_convert::checkpoint::reference::DatasetReference;
use bam_convert::data::documents::{DocumentForm, TEXT_KEY};
#[cfg(feature = "hub")]
use bam_convert::data::input::holds_rows;
use bam_convert::data::outline::outline;
use bam_convert::data::tokenize::{
    SplitReport, TextsPlace, TokenizeProgress, TokenizeReport, TokenizeSettings, tokenize,
};
use bam_convert::data::vocabulary::{ChatLayout, Vocabulary};
#[cfg(feature = "hub")]
use bam_convert::hub::DatasetPull;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::printable::printable;
use bam_convert::table::{self, Align};
use bam_convert::threads;
use bytesize::ByteSize;
use clap::{ArgAction, Args};
use indicatif::ProgressBar;

use super::error::Result;
use super::estimate::print;
use super::names::size;
use super::printer::Printer;
use super::render_chat::Renderers;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Turn texts into a folder of token shards to train on.
///
/// Reads text files (one document each), JSON lines (.jsonl, .ndjson, .json) and parquet, each plain or packed (.gz,
/// .zst). Documents that differ in white space only are dropped; near-duplicates stay on one side of the split between
/// training and validation. The same texts make the same bytes on any number of threads.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert tokenize texts/code --tokenizer seed --out tokens/code\n  \
                        bam-convert tokenize 'dumps/**/*.jsonl.zst' --text-key content --tokenizer seed --out tokens/web\n  \
                        bam-convert tokenize texts --tokenizer train:4096 --out tokens/all\n\n\
                        Conversations:\n  bam-convert tokenize chats.jsonl --chat --tokenizer seed --out tokens/chats\n\n\
                        A tokenizer made here (train:N) is in the output folder, which other runs take as --tokenizer."
)]
pub struct Arguments {
    /// Files, folders, and patterns such as 'texts/**/*.md'; or rows of a dataset on the Hub:
    /// hf://datasets/ORG/NAME[@REVISION][:CONFIG[/SPLIT]].
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<CorpusPath>,
    /// Folder with a tokenizer.json, or the file itself; `train:N` makes a byte-level BPE of N tokens of the texts.
    #[arg(long, value_name = "DIR|FILE|train:N")]
    tokenizer: Vocabulary,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Field of JSON lines, or column of a table, that holds the text.
    #[arg(long, value_name = "NAME", default_value = TEXT_KEY)]
    text_key: String,
    /// Each line of JSON lines is a conversation: `messages`, `conversations`, or `prompt` and `completion`. The chat template
    /// lays it out, and only answers carry loss.
    #[arg(long, conflicts_with = "text_key")]
    chat: bool,
    /// Chat template [default: the one beside the tokenizer].
    #[arg(long, value_name = "FILE", requires = "chat")]
    chat_template: Option<InputPath>,
    /// Token to put after each document [default: what the tokenizer's files call the end of a text].
    #[arg(long, value_name = "TOKEN")]
    end_of_text: Option<String>,
    /// Share of the text to hold back for validation.
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    validation: f64,
    /// Largest shard; a single longer document gets one of its own.
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = size)]
    max_shard_size: ByteSize,
    /// Replace an existing token folder at the output.
    #[arg(long, action = ArgAction::SetTrue)]
    force: Force,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Make the outline of the output, and say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("tokenize", StageUse::Makes)
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let mut settings = TokenizeSettings {
            sources: Vec::new(),
            form: if self.chat {
                DocumentForm::Conversations
            } else {
                DocumentForm::Texts(self.text_key.clone())
            },
            layout: match &self.chat_template {
                Some(path) => ChatLayout::File(path.to_path_buf()),
                None if self.chat => ChatLayout::Own,
                None => ChatLayout::None,
            },
            vocabulary: self.tokenizer.clone(),
            end_of_text: self.end_of_text.clone(),
            validation: self.validation,
            max_shard_size: self.max_shard_size.as_u64(),
            out: self.out.to_path_buf(),
            force: *self.force,
        };
        // What is wrong elsewhere is said before anything is pulled.
        if !*self.outline && self.paths.iter().any(|path| reference(path).is_some()) {
            settings.check()?;
        }
        settings.sources = sources(&self.paths, *self.outline, printer)?;
        if *self.outline {
            return print(printer, &outline(&settings)?);
        }
        let pool = threads::pool(0)?;
        let bar = Mutex::new(ProgressBar::hidden());
        let progress = |progress: TokenizeProgress| {
            // A bar that cannot be reached is no reason to stop.
            let Ok(mut bar) = bar.lock() else { return };
            match progress {
                TokenizeProgress::Begin(verb, bytes) => {
                    bar.finish_and_clear();
                    *bar = printer.bytes_bar(bytes, verb);
                }
                TokenizeProgress::Bytes(bytes) => bar.inc(bytes),
            }
        };
        let renderers = Renderers::default();
        let render = |template: &_, conversation| renderers.render(template, conversation);
        let report = pool.install(|| tokenize(&settings, &render, &progress));
        if let Ok(bar) = bar.lock() {
            bar.finish_and_clear();
        }
        let report = report?;
        for note in &report.notes {
            printer.note(&format!(" note: {note}"));
        }
        if let Vocabulary::Train(wanted) = self.tokenizer
            && report.vocab_size < wanted
        {
            let found = table::grouped(report.vocab_size);
            printer.note(&format!(
                " note: the texts have pairs for {found} tokens only, not {}",
                table::grouped(wanted)
            ));
        }
        if self.json {
            printer.json(&report)?;
        } else {
            printer.result(&text(&report))?;
        }
        Ok(Verdict::Yes)
    }
}

/// Where the texts are, those on the Hub once they are pulled. For an outline, lengths are enough.
fn sources(paths: &[CorpusPath], is_outline: bool, printer: &Printer) -> Result<Vec<TextsPlace>> {
    let mut places = Vec::with_capacity(paths.len());
    for path in paths {
        places.push(match reference(path) {
            Some(text) => dataset(&DatasetReference::parse(text)?, is_outline, printer)?,
            None => TextsPlace::Path(path.to_path_buf()),
        });
    }
    Ok(places)
}

/// The reference to a dataset that is typed in the place of a path.
fn reference(path: &CorpusPath) -> Option<&str> {
    let text = path.to_str();
    text.filter(|text| DatasetReference::is_meant(text))
}

#[cfg(feature = "hub")]
fn dataset(
    reference: &DatasetReference,
    is_outline: bool,
    printer: &Printer,
) -> Result<TextsPlace> {
    let client = super::hub::client()?;
    let pull = DatasetPull::new(&client, reference, holds_rows)?;
    let (name, missing) = (pull.name().to_owned(), pull.missing());
    let lengths = pull.files().map(|(_, length)| length);
    let paths = if is_outline {
        pull.files().map(|(path, _)| path.into()).collect()
    } else {
        if missing > 0 {
            printer.note(&format!("pulling {name}: {}", table::bytes(missing)));
        }
        let bar = printer.bytes_bar(missing, "pulling");
        let paths = pull.run(super::hub::WORKERS, &|bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        paths
    };
    let files = paths.into_iter().zip(lengths).collect();
    Ok(TextsPlace::Pulled { name, files })
}

#[cfg(not(feature = "hub"))]
fn dataset(reference: &DatasetReference, _: bool, _: &Printer) -> Result<TextsPlace> {
    let place = reference.reference.to_string();
    Err(super::error::CliError::NoHub { place })
}

fn text(report: &TokenizeReport) -> String {
    let facts = [
        ("files", table::grouped(report.files)),
        ("documents", table::grouped(report.documents)),
        ("without text", table::grouped(report.empty)),
        ("unreadable", table::grouped(report.unreadable)),
        (
            "exact duplicates dropped",
            table::grouped(report.duplicates),
        ),
        (
            "near-duplicates",
            format!(
                "{} in {}",
                table::counted(report.near_duplicates, "document"),
                table::counted(report.near_duplicate_clusters, "cluster")
            ),
        ),
        ("vocabulary", table::grouped(report.vocab_size)),
    ];
    let has_answers = report.train.answer_tokens.is_some();
    let row = |name: &str, split: &SplitReport| {
        let mut row = vec![
            name.to_owned(),
            table::grouped(split.documents),
            table::grouped(split.tokens),
            table::bytes(split.bytes_of_text),
            table::number(split.bytes_per_token),
        ];
        // A split without documents has none.
        row.extend(has_answers.then(|| table::grouped(split.answer_tokens.unwrap_or(0))));
        row
    };
    let mut columns = vec![
        ("split", Align::Left),
        ("documents", Align::Right),
        ("tokens", Align::Right),
        ("text", Align::Right),
        ("bytes per token", Align::Right),
    ];
    if has_answers {
        columns.push(("answer tokens", Align::Right));
    }
    let rows = [
        row("train", &report.train),
        row("validation", &report.validation),
    ];
    let facts = table::facts(facts.map(|(name, value)| (name.to_owned(), value)));
    format!(
        "{facts}\n{}\nwrote {}",
        table::render(&columns, rows),
        printable(&report.output.to_string_lossy())
    )
}
