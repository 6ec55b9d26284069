//! `tokenize`: texts to token shards.

use std::sync::Mutex;

use bam_convert::arguments::{Force, Outline, OutputPath, TextsPath};
use bam_convert::data::documents::TEXT_KEY;
use bam_convert::data::outline::outline;
use bam_convert::data::tokenize::{
    SplitReport, TokenizeProgress, TokenizeReport, TokenizeSettings, tokenize,
};
use bam_convert::data::vocabulary::Vocabulary;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::printable::printable;
use bam_convert::table::{self, Align};
use bam_convert::threads;
use bytesize::ByteSize;
use clap::{ArgAction, Args};
use indicatif::ProgressBar;

use super::estimate::print;
use super::names::{paths, size};
use super::printer::Printer;
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
                        A tokenizer made here (train:N) is in the output folder, which other runs take as --tokenizer."
)]
pub struct Arguments {
    /// Files, folders, and patterns such as 'texts/**/*.md'.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<TextsPath>,
    /// Folder with a tokenizer.json, or the file itself; `train:N` makes a byte-level BPE of N tokens of the texts.
    #[arg(long, value_name = "DIR|FILE|train:N")]
    tokenizer: Vocabulary,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Field of JSON lines, or column of a table, that holds the text.
    #[arg(long, value_name = "NAME", default_value = TEXT_KEY)]
    text_key: String,
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
        let settings = TokenizeSettings {
            paths: paths(&self.paths),
            text_key: self.text_key.clone(),
            vocabulary: self.tokenizer.clone(),
            end_of_text: self.end_of_text.clone(),
            validation: self.validation,
            max_shard_size: self.max_shard_size.as_u64(),
            out: self.out.to_path_buf(),
            force: *self.force,
        };
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
        let report = pool.install(|| tokenize(&settings, &progress));
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
    let row = |name: &str, split: &SplitReport| {
        vec![
            name.to_owned(),
            table::grouped(split.documents),
            table::grouped(split.tokens),
            table::bytes(split.bytes_of_text),
            table::number(split.bytes_per_token),
        ]
    };
    let columns = [
        ("split", Align::Left),
        ("documents", Align::Right),
        ("tokens", Align::Right),
        ("text", Align::Right),
        ("bytes per token", Align::Right),
    ];
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
