//! `run`: a recipe of stages, from texts to a finished mixture.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use bam_convert::Error;
use bam_convert::pipeline::{Failure, Finished, Ran, Recipe, Runner, Stage, Watch};
use bam_convert::table;
use clap::Args;
use indicatif::ProgressBar;

use super::printer::Printer;
use super::{Outcome, Verdict, definition};

/// Run a recipe: stages, each a command of this program, in a work folder.
///
/// Stages whose settings, inputs and outputs are as their last run left them are skipped, so that a run that was stopped,
/// or a recipe that was changed, goes on with what is left to do.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bam-convert run recipes/quickstart.yaml\n  \
                        bam-convert run recipes/quickstart.yaml --set steps=20 --work /tmp/quick\n  \
                        bam-convert run recipes/quickstart.yaml --dry-run")]
pub struct Arguments {
    /// The recipe, in YAML.
    #[arg(value_name = "RECIPE.yaml")]
    recipe: PathBuf,
    /// Folder to work in [default: the recipe's `work`, else one named after it, in the current folder].
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Replace the value of a variable (repeat).
    #[arg(long, value_name = "NAME=VALUE", value_parser = named_value)]
    set: Vec<(String, String)>,
    /// Print the commands, and which would run and why; run nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, printer: &Printer) -> Outcome {
        let recipe = Recipe::read(&self.recipe)?;
        let work = recipe.work(self.work.as_deref());
        let stages = recipe.stages(&self.set, &work, &definition())?;
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
        let watcher = Watcher::new(printer, stages.len());
        let runner = Runner { program: &program, work: &work, watch: &watcher };
        if self.dry_run {
            let reasons = runner.reasons(&stages)?;
            match self.json {
                true => printer.json(&stages.iter().zip(&reasons).map(preview).collect::<Vec<_>>())?,
                false => printer.result(&commands(&work, &stages, &reasons))?,
            }
            return Ok(Verdict::Yes);
        }
        let report = runner.run(&stages)?;
        watcher.stop();
        match self.json {
            true => printer.json(&report)?,
            false => printer.result(&report.table())?,
        }
        report.failure.map_or(Ok(Verdict::Yes), |failure| failed(&failure, printer))
    }
}

fn preview((stage, reason): (&Stage, &Option<String>)) -> serde_json::Value {
    serde_json::json!({"stage": stage.name, "command": stage.command, "stdout": stage.stdout, "outputs": stage.outputs,
                       "runs_because": reason})
}

/// What would be run, as one would type it.
fn commands(work: &Path, stages: &[Stage], reasons: &[Option<String>]) -> String {
    let mut text = format!("cd {}\n", quoted(&work.to_string_lossy()));
    for (stage, reason) in stages.iter().zip(reasons) {
        let why = reason.as_deref().map_or("up to date".to_owned(), |reason| format!("runs: {reason}"));
        let words: Vec<String> = stage.command.iter().map(|word| quoted(word)).collect();
        let stdout = stage.stdout.iter().map(|file| format!(" > {}", quoted(&file.to_string_lossy())));
        let line = format!("bam-convert {}{}", words.join(" "), stdout.collect::<String>());
        text.push_str(&format!("\n# {}: {}\n{}\n", stage.name, table::printable(&why), table::printable(&line)));
    }
    text
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// A stage that said no is a no; one that broke is an error.
fn failed(failure: &Failure, printer: &Printer) -> Outcome {
    let ended = match failure.code {
        Some(code) => format!("ended with exit code {code}"),
        None => "was ended by a signal".to_owned(),
    };
    printer.note(&failure.tail);
    let problem = format!("stage `{}` {ended}; all it printed is in {}", failure.stage, failure.log.display());
    match failure.code {
        Some(1) => {
            printer.error(&anyhow::anyhow!(problem));
            Ok(Verdict::No)
        }
        Some(2) => Err(Error::usage(problem).with_hint("the last lines are above").into()),
        _ => Err(Error::compute("finish the recipe", problem).into()),
    }
}

fn named_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Says what runs: a line for each stage, and on a terminal the last line of the log as it grows.
struct Watcher<'a> {
    printer: &'a Printer,
    stages: usize,
    bar: ProgressBar,
    done: Mutex<usize>,
    follower: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl<'a> Watcher<'a> {
    fn new(printer: &'a Printer, stages: usize) -> Self {
        let (done, follower) = (Mutex::new(0), Mutex::new(None));
        Self { printer, stages, bar: printer.spinner(), done, follower }
    }

    fn stop(&self) {
        let follower = self.follower.lock().map(|mut follower| follower.take()).unwrap_or_default();
        if let Some((end, thread)) = follower {
            drop(end);
            // A thread that only draws has nothing to tell.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| self.printer.note(text));
    }
}

impl Watch for Watcher<'_> {
    fn starts(&self, stage: &Stage, _reason: &str, log: &Path) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.reset();
        let (end, ended) = channel();
        let (bar, name, log) = (self.bar.clone(), stage.name.clone(), log.to_path_buf());
        let thread = spawn(move || follow(&bar, &name, &log, &ended));
        if let Ok(mut follower) = self.follower.lock() {
            *follower = Some((end, thread));
        }
    }

    fn ends(&self, finished: &Finished) {
        self.stop();
        let number = self.done.lock().map_or(0, |mut done| {
            *done += 1;
            *done
        });
        let width = self.stages.to_string().len();
        let ran = match finished.ran {
            Ran::Done => format!("{:.1} s", finished.seconds),
            Ran::UpToDate => "up to date".to_owned(),
        };
        self.say(&format!("[{number:>width$}/{}] {}: {ran}", self.stages, finished.stage));
    }
}

/// Draws the last line of a growing log until told to end.
fn follow(bar: &ProgressBar, name: &str, log: &Path, ended: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(200)) {
        let line = last_line(log).unwrap_or_default();
        bar.set_message(format!("{name}: {}", table::printable(&line)));
        bar.tick();
    }
}

fn last_line(log: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).lines().last().unwrap_or_default().to_owned())
}
