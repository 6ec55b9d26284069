//! `push`: a checkpoint to the Hub.

use std::collections::BTreeMap;
use std::path::Path;

use bam_convert::arguments::{DryRun, InputPath};
use bam_convert::card::{DataScore, Publication};
use bam_convert::checkpoint::folder::CARD;
use bam_convert::checkpoint::manifest::{Manifest, manifest_hash, model_name};
use bam_convert::checkpoint::reference::Reference;
use bam_convert::evaluate::report::{EvaluationReport, ModelReport};
use bam_convert::hub::{self, LocalPaths, Push, PushOptions, PushState, Pushed};
use bam_convert::pipeline::{Declaration, StageUse, published_card};
use bam_convert::table::{self, Align, counted, grouped};
use clap::{ArgAction, Args};
use serde::Serialize;

use super::error::{self, CliError};
use super::evaluated::scores;
use super::hub::client;
use super::printer::Printer;
use super::validate::examine;
use super::verb::{HubUse, Verb};
use super::work::WorkArguments;
use super::{Outcome, Verdict};

/// Where a folder keeps how good its checkpoint is.
const EVALUATION: &str = "eval.json";

/// Push a checkpoint to the Hugging Face Hub, after it is found to be valid, in one commit that is read back.
///
/// Only what the repository lacks goes up; after a cut connection or a kill the next run resumes. Paths in the manifest
/// become repositories, and the card gets lineage and evaluation: in what is sent, not in DIR. Exit code 1 means that the
/// checkpoint has faults, and nothing was sent.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert push bam org/name --private\n  \
                        bam-convert push bam org/name --create-pr --message 'Longer training'\n\n\
                        Environment: HF_ENDPOINT, HF_TOKEN (or the file of a login), HF_HUB_DISABLE_XET (docs/reference/hub.md)."
)]
pub struct Arguments {
    /// Folder of the checkpoint.
    #[arg(value_name = "DIR")]
    folder: InputPath,
    /// Repository; it is made if it is missing.
    #[arg(value_name = "REPO")]
    repository: super::hub::Repository,
    /// Make a new repository private; refuse an existing one that is public.
    #[arg(long)]
    private: bool,
    /// Open a pull request instead of changing the branch.
    #[arg(long)]
    create_pr: bool,
    /// Branch to push to, made from main if it is missing [default: main].
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
    /// Message of the commit [default: how the checkpoint was made].
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// Result of `eval --json` for the card [default: eval.json in DIR, where there is one].
    #[arg(long, value_name = "FILE")]
    evaluation: Option<InputPath>,
    /// Show what would be pushed, and push nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: DryRun,
    #[command(flatten)]
    work: WorkArguments,
}

/// What becomes of files that another model has left in the repository.
const REMOVED: &str = "to remove, of the model that is there now";

/// What goes up in the place of files of the folder.
struct Replaced {
    /// The content of each, by name.
    files: BTreeMap<String, Vec<u8>>,
    /// Names of those whose own content holds paths of this machine.
    with_paths: Vec<String>,
}

/// What `--dry-run` shows.
#[derive(Serialize)]
struct Preview<'a> {
    repository: &'a str,
    revision: &'a str,
    new_repository: bool,
    files: &'a [hub::PushedFile],
    removed: &'a [String],
    sent: u64,
    /// The model card as it would go up.
    card: &'a str,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("push", StageUse::Publishes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let reference = self.reference()?;
        let client = client()?;
        if !*self.dry_run {
            client.require_token(&reference)?;
        } else if !client.has_token() {
            printer.note(&format!(
                " note: no token is set: to push to {reference}, set HF_TOKEN to one with write access. Without it, a private repository looks like a new one, and .gitignore does not count"
            ));
        }
        if !self.folder.is_dir() {
            let path = self.folder.to_path_buf();
            return Err(CliError::NotAFolder { path }.into());
        }
        if !self.is_valid(printer)? {
            return Ok(Verdict::No);
        }
        let manifest = Manifest::read(&self.folder)?;
        let replaced = self.replaced(&reference, manifest.as_ref())?;
        replaced.with_paths.iter().for_each(|path| {
            printer.note(&format!(
                " note: {path}: goes up without the paths of this machine that it holds"
            ))
        });
        hub::left_out(&self.folder)?.iter().for_each(|path| {
            printer.note(&format!(
                " note: {path}: is not pushed, because its name begins with a dot or ends as one of an unfinished file"
            ))
        });
        let card = replaced.files.get(CARD).cloned().unwrap_or_default();
        let card = String::from_utf8_lossy(&card).into_owned();
        let bar = printer.bytes_bar(hub::length(&self.folder)?, "reading");
        let options = PushOptions {
            folder: &self.folder,
            replaced: replaced.files,
            private: self.private,
            create_pr: self.create_pr,
            message: self.message(manifest.as_ref())?,
            dry_run: *self.dry_run,
        };
        let push = Push::new(&client, &reference, options, &|bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        if *self.dry_run {
            return self.preview(&push, &card, printer);
        }
        let ignored = push
            .files
            .iter()
            .filter(|file| file.state == PushState::Ignored);
        ignored.for_each(|file| {
            printer.note(&format!(
                " note: {}: left out by the repository's .gitignore",
                file.path
            ))
        });
        push.removed
            .iter()
            .for_each(|path| printer.note(&format!(" note: {path}: {REMOVED}")));
        let bar = printer.bytes_bar(push.missing(), "pushing");
        let pushed = push.run(&|bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        self.show(&pushed, printer)
    }

    fn hub_use(&self) -> HubUse {
        HubUse::Own
    }
}

impl Arguments {
    fn reference(&self) -> error::Result<Reference> {
        let mut reference = Reference::parse(&self.repository)?;
        match (&self.revision, &reference.revision) {
            (Some(revision), None) => {
                reference = Reference::parse(&format!("{}@{revision}", reference.repository))?;
            }
            (Some(revision), Some(other)) if revision != other => {
                return Err(CliError::TwoBranches {
                    in_reference: other.clone(),
                    in_flag: revision.clone(),
                });
            }
            _ => {}
        }
        Ok(reference)
    }

    fn is_valid(&self, printer: &Printer) -> anyhow::Result<bool> {
        let report = examine(&self.folder, None, &self.work, printer)?;
        if report.faults() == 0 {
            return Ok(true);
        }
        if self.work.json {
            printer.json(&report)?;
        } else {
            printer.result(&report.table(false))?;
        }
        printer.note(&format!(
            "nothing was pushed: {} has faults",
            self.folder.display()
        ));
        Ok(false)
    }

    /// What goes up in the place of files of the folder.
    fn replaced(
        &self,
        reference: &Reference,
        manifest: Option<&Manifest>,
    ) -> error::Result<Replaced> {
        let beside = self.folder.join(EVALUATION);
        let evaluation = self
            .evaluation
            .as_deref()
            .map(Path::to_path_buf)
            .or_else(|| Some(beside).filter(|path| path.exists()));
        let evaluation = evaluation
            .map(|path| EvaluationReport::read(&path).map(|report| (path, report)))
            .transpose()?;
        let title = reference.repository.rsplit('/').next().unwrap_or_default();
        let scores = match &evaluation {
            Some((path, report)) => self.scores(path, report)?,
            None => Vec::new(),
        };
        let card = Publication {
            folder: &self.folder,
            title,
            manifest,
            repository: &reference.repository,
            evaluation: evaluation.map(|(_, report)| report.markdown()),
            scores,
        }
        .card()?;
        let mut published = manifest.map(|manifest| manifest.clone().published(&self.folder));
        let recipe = published
            .as_ref()
            .and_then(|manifest| manifest.recipe.as_ref());
        let card = match recipe {
            Some(recipe) => published_card(&card, recipe)?,
            None => card,
        };
        let mut files = BTreeMap::from([(CARD.to_owned(), card.into_bytes())]);
        let local = LocalPaths::of(&self.folder, manifest);
        let with_paths = local.remove(&self.folder, published.as_mut(), &mut files)?;
        Ok(Replaced { files, with_paths })
    }

    /// The scores of this very model in an evaluation; none if its routing was changed for that.
    fn scores(&self, path: &Path, report: &EvaluationReport) -> error::Result<Vec<DataScore>> {
        let (name, hash) = (model_name(&self.folder), manifest_hash(&self.folder)?);
        let Some(model) = report.of_model(&name, hash.as_deref()) else {
            return Err(CliError::OtherEvaluation {
                path: path.to_path_buf(),
                found: report.models.iter().map(ModelReport::label).collect(),
                folder: self.folder.to_path_buf(),
            });
        };
        let is_changed = model.label() != model.name;
        Ok(if is_changed {
            Vec::new()
        } else {
            scores(model)
        })
    }

    fn message(&self, manifest: Option<&Manifest>) -> error::Result<String> {
        match &self.message {
            Some(message) if message.trim().is_empty() => Err(CliError::EmptyMessage),
            Some(message) => Ok(message.trim().to_owned()),
            None => {
                let method = manifest.map_or_else(String::new, |manifest| {
                    format!(" made with {}", manifest.method)
                });
                Ok(format!(
                    "Checkpoint{method}, pushed by bam-convert {}",
                    env!("CARGO_PKG_VERSION")
                ))
            }
        }
    }

    fn preview(&self, push: &Push, card: &str, printer: &Printer) -> Outcome {
        let reference = push.reference();
        let (repository, revision, sent) =
            (&reference.repository, reference.revision(), push.missing());
        if self.work.json {
            let (new_repository, files, removed) =
                (push.new_repository(), &push.files, &push.removed);
            printer.json(&Preview {
                repository,
                revision,
                new_repository,
                files,
                removed,
                sent,
                card,
            })?;
            return Ok(Verdict::Yes);
        }
        let columns = [
            ("file", Align::Left),
            ("bytes", Align::Right),
            ("size", Align::Right),
            ("", Align::Left),
        ];
        let rows = push.files.iter().map(|file| {
            let state = match file.state {
                PushState::Unchanged => "there already",
                PushState::Ignored => "left out by .gitignore",
                PushState::Small | PushState::Large | PushState::New => "to push",
            };
            vec![
                file.path.clone(),
                grouped(file.size),
                table::bytes(file.size),
                state.to_owned(),
            ]
        });
        let removed = push.removed.iter().map(|path| {
            vec![
                path.clone(),
                String::new(),
                String::new(),
                REMOVED.to_owned(),
            ]
        });
        let new = if push.new_repository() {
            ", a new repository"
        } else {
            ""
        };
        printer.result(&format!(
            "{repository} at {revision}{new}\n\n{}\n{} to push\n\n{CARD}:\n\n{card}",
            table::render(&columns, rows.chain(removed)),
            table::bytes(sent)
        ))?;
        Ok(Verdict::Yes)
    }

    fn show(&self, pushed: &Pushed, printer: &Printer) -> Outcome {
        if self.work.json {
            printer.json(pushed)?;
            return Ok(Verdict::Yes);
        }
        let Some(url) = &pushed.url else {
            let is_ignored = |file: &&hub::PushedFile| file.state == PushState::Ignored;
            let but = match pushed.files.iter().filter(is_ignored).count() {
                0 => String::new(),
                count => format!(
                    " but {} that .gitignore leaves out",
                    counted(count as u64, "file")
                ),
            };
            printer.note(&format!(
                "{} has all of it already{but}, at {}",
                pushed.repository, pushed.commit
            ));
            printer.result(&pushed.commit)?;
            return Ok(Verdict::Yes);
        };
        let sent = pushed
            .files
            .iter()
            .filter(|file| matches!(file.state, PushState::Small | PushState::Large))
            .count();
        printer.note(&format!(
            "{} at {}: {}, of which {} sent ({})",
            pushed.repository,
            pushed.revision,
            counted(pushed.files.len() as u64, "file"),
            sent,
            table::bytes(pushed.sent),
        ));
        printer.result(&format!("{}\n{url}", pushed.commit))?;
        if let Some(pull_request) = &pushed.pull_request {
            printer.result(pull_request)?;
        }
        Ok(Verdict::Yes)
    }
}
