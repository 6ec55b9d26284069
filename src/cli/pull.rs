//! `pull`: a checkpoint from the Hub.

use bam_convert::Error;
use bam_convert::arguments::{DryRun, Force, Outline, OutputPath};
use bam_convert::checkpoint::outline;
use bam_convert::checkpoint::reference::Reference;
use bam_convert::estimate::Estimate;
use bam_convert::hub::{FileSelection, HubError, Pull, cached, headers};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::printable::printable;
use bam_convert::table::{self, Align, counted, grouped};
use clap::{ArgAction, Args};
use serde::Serialize;

use super::printer::Printer;
use super::verb::{HubUse, Verb};
use super::{Outcome, Verdict, estimate, hub};

/// Pull a checkpoint from the Hugging Face Hub, every file checked against the hashes of its commit.
///
/// Without DIR it goes to the cache that Python shares (HF_HOME), and its folder is printed. What was transferred before a
/// cut connection or a kill is kept, and the next run resumes from there.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert pull HuggingFaceTB/SmolLM2-135M\n  \
                        bam-convert pull org/name@v1.0 seed --exclude '*.gguf' --dry-run\n\n\
                        Environment: HF_ENDPOINT, HF_TOKEN (or the file of a login), HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE (docs/reference/hub.md)."
)]
pub struct Arguments {
    /// Repository, and a branch, tag or commit of it.
    #[arg(value_name = "REPO[@REV]")]
    repository: hub::Repository,
    /// Folder to make; it is complete or absent.
    #[arg(value_name = "DIR")]
    folder: Option<OutputPath>,
    /// Pull the files that match, instead of those that a checkpoint needs; `*` matches `/` too.
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave out the files that match.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Replace an existing checkpoint at DIR.
    #[arg(long, requires = "folder", action = ArgAction::SetTrue)]
    force: Force,
    /// Files to transfer at a time.
    #[arg(long, value_name = "N", default_value_t = hub::WORKERS as u16, value_parser = clap::value_parser!(u16).range(1..=64))]
    max_workers: u16,
    /// Show what would be pulled, with sizes, and pull nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: DryRun,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Make the outline of the output, and say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
}

/// What `--dry-run` shows.
#[derive(Serialize)]
struct Preview<'a> {
    repository: &'a str,
    commit: &'a str,
    files: &'a [bam_convert::hub::PullFile],
    bytes: u64,
    missing: u64,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("pull", StageUse::Copies)
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let reference = Reference::parse(&self.repository)?;
        let selection = FileSelection::new(&self.include, &self.exclude)?;
        let client = hub::client()?;
        if client.settings.offline {
            let folder = cached(&client, &reference)
                .filter(|_| self.folder.is_none())
                .ok_or_else(|| {
                    Error::from(HubError::NotCached {
                        place: reference.to_string(),
                    })
                })?;
            if self.json {
                printer.json(
                    &serde_json::json!({"repository": reference.repository, "folder": folder}),
                )?;
            } else {
                printer.result(&printable(&folder.to_string_lossy()))?;
            }
            return Ok(Verdict::Yes);
        }
        let pull = Pull::new(&client, &reference, &selection, self.folder.as_deref())?;
        if *self.outline {
            if let Some(folder) = &self.folder {
                outline::copy(&headers(&client, &reference)?, folder)?;
            }
            // Nothing tells how fast the network is.
            return estimate::print(
                printer,
                &Estimate {
                    bytes: pull.missing(),
                    work: None,
                    memory: None,
                    ranks: None,
                },
            );
        }
        if *self.dry_run {
            return Self::preview(&pull, self.json, printer);
        }
        let bar = printer.bytes_bar(pull.missing(), "pulling");
        let pulled = pull.run(*self.force, usize::from(self.max_workers), &|bytes| {
            bar.inc(bytes)
        })?;
        bar.finish_and_clear();
        if self.json {
            printer.json(&pulled)?;
        } else {
            printer.note(&format!(
                "{} at {}: {}, {}; {} transferred",
                pulled.repository,
                pulled.commit,
                counted(pulled.files as u64, "file"),
                table::bytes(pulled.bytes),
                table::bytes(pulled.transferred),
            ));
            printer.result(&printable(&pulled.folder.to_string_lossy()))?;
        }
        Ok(Verdict::Yes)
    }

    fn hub_use(&self) -> HubUse {
        HubUse::Own
    }
}

impl Arguments {
    fn preview(pull: &Pull, json: bool, printer: &Printer) -> Outcome {
        let snapshot = &pull.snapshot;
        let (bytes, missing) = (pull.bytes(), pull.missing());
        if json {
            let (repository, commit, files) = (&snapshot.repository, &snapshot.commit, &pull.files);
            printer.json(&Preview {
                repository,
                commit,
                files,
                bytes,
                missing,
            })?;
            return Ok(Verdict::Yes);
        }
        let columns = [
            ("file", Align::Left),
            ("bytes", Align::Right),
            ("size", Align::Right),
            ("", Align::Left),
        ];
        let rows = pull.files.iter().map(|file| {
            let state = if file.here.is_some() {
                "here already"
            } else {
                "to pull"
            };
            vec![
                file.path.clone(),
                grouped(file.entry.size),
                table::bytes(file.entry.size),
                state.to_owned(),
            ]
        });
        let text = format!(
            "{} at {}\n\n{}\n{} in {}, {} to pull\n",
            snapshot.repository,
            snapshot.commit,
            table::render(&columns, rows),
            table::bytes(bytes),
            counted(pull.files.len() as u64, "file"),
            table::bytes(missing),
        );
        printer.result(&text)?;
        Ok(Verdict::Yes)
    }
}
