//! `run`: a recipe of stages, from texts to a finished mixture.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use bam_convert::Error;
use bam_convert::checkpoint::output::free_space;
use bam_convert::pipeline::{
    Failure, Finished, Forecast, Graph, Ran, Recipe, Report, Runner, Selection, Stage, Watch, last_line, schema,
    status_table,
};
use bam_convert::table;
use clap::Args;
use indicatif::ProgressBar;

use super::printer::Printer;
use super::{Outcome, Verdict, definition};

/// Run a recipe: stages, each a command of this program or of the shell, in a work folder.
///
/// Stages whose settings, inputs and outputs are as their last run left them are skipped, so that a run that was stopped,
/// or a recipe that was changed, goes on with what is left to do. Stages that do not need each other run side by side; one
/// that runs a model (train, eval, logits, generate) takes all cores and runs alone. STAGE is a name or a pattern: 'train-*'.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bam-convert run recipes/quickstart.yaml\n  \
                        bam-convert run recipes/quickstart.yaml --set steps=20 --work /tmp/quick\n  \
                        bam-convert run recipes/quickstart.yaml --dry-run\n  \
                        bam-convert run recipes/quickstart.yaml --status")]
pub struct Arguments {
    /// The recipe, in YAML.
    #[arg(value_name = "RECIPE.yaml", required_unless_present = "schema")]
    recipe: Option<PathBuf>,
    /// Folder to work in [default: the recipe's `work`, else one named after it, in the current folder].
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Replace the value of a variable (repeat).
    #[arg(long, value_name = "NAME=VALUE", value_parser = named_value)]
    set: Vec<(String, String)>,
    /// Leave the stages above this one as they are.
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// Leave all stages but this one as they are (repeat).
    #[arg(long, value_name = "STAGE", conflicts_with = "from")]
    only: Vec<String>,
    /// Run a stage even where nothing changed (repeat); without a name, all that are chosen.
    #[arg(long, value_name = "STAGE", num_args = 0..=1, require_equals = true, default_missing_value = "*")]
    force: Vec<String>,
    /// Most stages that run at once [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Read every input again instead of trusting its size, times and inode.
    #[arg(long)]
    verify: bool,
    /// Print the commands, what needs what, and which would run and why; run nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print where each stage stands; run nothing.
    #[arg(long, conflicts_with = "dry_run")]
    status: bool,
    /// Print the JSON schema of recipes, for editors.
    #[arg(long, exclusive = true)]
    schema: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, printer: &Printer) -> Outcome {
        let Some(recipe) = &self.recipe else {
            printer.json(&schema(&definition()))?;
            return Ok(Verdict::Yes);
        };
        let recipe = Recipe::read(recipe)?;
        let work = recipe.work(self.work.as_deref());
        let stages = recipe.stages(&self.set, &work, &definition())?;
        let graph = Graph::of(&stages, &work)?;
        let selection = Selection { from: self.from.clone(), only: self.only.clone(), force: self.force.clone() };
        let choices = selection.choices(&stages)?;
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
        let stop = Arc::new(AtomicBool::new(false));
        let watcher = Watcher::new(printer, stages.len());
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = self.jobs.map_or_else(cores, usize::from);
        let verify = self.verify;
        let runner = Runner { program: &program, work: &work, jobs, verify, stop: &stop, watch: &watcher };
        if self.status {
            let status = runner.status(&stages, &graph)?;
            match self.json {
                true => printer.json(&status)?,
                false => printer.result(&status_table(&status))?,
            }
            return Ok(Verdict::Yes);
        }
        if self.dry_run {
            let forecasts = runner.forecast(&stages, &graph, &choices)?;
            match self.json {
                true => printer.json(&stages.iter().zip(&forecasts).map(preview).collect::<Vec<_>>())?,
                false => printer.result(&commands(&work, &stages, &forecasts)?)?,
            }
            return Ok(Verdict::Yes);
        }
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second signal does not wait for the stages to end.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let report = runner.run(&stages, &graph, &choices);
        watcher.stop();
        let report = report?;
        match self.json {
            true => printer.json(&report)?,
            false => printer.result(&report.table())?,
        }
        ended(&report, printer)
    }
}

fn preview((stage, forecast): (&Stage, &Forecast)) -> serde_json::Value {
    serde_json::json!({"stage": stage.name, "command": stage.command, "stdout": stage.stdout, "outputs": stage.outputs,
                       "needs": forecast.needs, "runs_because": forecast.runs_because,
                       "last_seconds": forecast.last_seconds, "last_bytes": forecast.last_bytes})
}

/// What would be run, as one would type it, and what it took the last time.
fn commands(work: &Path, stages: &[Stage], forecasts: &[Forecast]) -> bam_convert::Result<String> {
    let mut text = format!("cd {}\n", quoted(&work.to_string_lossy()));
    for (stage, forecast) in stages.iter().zip(forecasts) {
        let why =
            forecast.runs_because.as_deref().map_or("does not run".to_owned(), |reason| format!("runs: {reason}"));
        text.push_str(&format!("\n# {}: {}\n", stage.name, table::printable(&why)));
        let needs = (!forecast.needs.is_empty()).then(|| format!("needs {}", forecast.needs.join(", ")));
        let seconds = forecast.last_seconds.map(|seconds| format!("took {seconds:.1} s"));
        let bytes = forecast.last_bytes.map(|bytes| format!("made {}", table::bytes(bytes)));
        let facts: Vec<String> = [needs, seconds, bytes].into_iter().flatten().collect();
        if !facts.is_empty() {
            text.push_str(&format!("# {}\n", facts.join("; ")));
        }
        text.push_str(&format!("{}\n", table::printable(&typed(stage))));
    }
    let run: Vec<&Forecast> = forecasts.iter().filter(|forecast| forecast.runs_because.is_some()).collect();
    let unknown = run.iter().filter(|forecast| forecast.last_seconds.is_none()).count();
    let seconds: f64 = run.iter().filter_map(|forecast| forecast.last_seconds).sum();
    let bytes: u64 = run.iter().filter_map(|forecast| forecast.last_bytes).sum();
    let (all, free) = (stages.len(), table::bytes(free_space(work)?));
    text.push_str(&format!("\n# {} of {all} stages would run", run.len()));
    if unknown < run.len() {
        text.push_str(&format!("; by their last runs, {seconds:.1} s and {} of disk", table::bytes(bytes)));
    }
    if unknown > 0 {
        text.push_str(&format!("; {unknown} of them for the first time"));
    }
    text.push_str(&format!("; {free} of disk are free\n"));
    Ok(text)
}

/// A stage's command for a shell.
fn typed(stage: &Stage) -> String {
    let words = stage.command.iter().map(|word| quoted(word));
    let program = stage.is_own.then(|| "bam-convert".to_owned());
    let words: Vec<String> = program.into_iter().chain(words).collect();
    let stdout = stage.stdout.iter().map(|file| format!(" > {}", quoted(&file.to_string_lossy())));
    words.join(" ") + &stdout.collect::<String>()
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// A stage that said no is a no; one that broke is an error, and so is a run that was stopped.
fn ended(report: &Report, printer: &Printer) -> Outcome {
    if report.stopped {
        let error = Error::compute("finish the recipe", "a signal stopped it");
        return Err(error.with_hint("the same command goes on from here").into());
    }
    // What is worse than a no comes last, and decides.
    let (noes, faults): (Vec<_>, Vec<_>) =
        report.failures.iter().partition(|failure| failure.code == Some(1) && failure.missing.is_none());
    let Some((worst, others)) = faults.split_last() else {
        noes.iter().for_each(|failure| say(failure, printer));
        return Ok(if noes.is_empty() { Verdict::Yes } else { Verdict::No });
    };
    noes.iter().chain(others).for_each(|failure| say(failure, printer));
    printer.note(&worst.tail);
    Err(match (worst.code, &worst.missing) {
        (Some(2), _) | (_, Some(_)) => Error::usage(problem(worst)).with_hint("the last lines are above").into(),
        _ => Error::compute("finish the recipe", problem(worst)).into(),
    })
}

fn say(failure: &Failure, printer: &Printer) {
    printer.note(&failure.tail);
    printer.error(&anyhow::anyhow!(problem(failure)));
}

fn problem(failure: &Failure) -> String {
    let ended = match (&failure.missing, failure.code) {
        (Some(missing), _) => format!("ended well, but did not make {}", missing.display()),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "was ended by a signal".to_owned(),
    };
    format!("stage `{}` {ended}; all it printed is in {}", failure.stage, failure.log.display())
}

fn named_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The logs of the stages that run, by their names.
type Logs = Arc<Mutex<BTreeMap<String, PathBuf>>>;

/// Says what runs: a line for each stage, and on a terminal the last lines of the logs as they grow.
struct Watcher<'a> {
    printer: &'a Printer,
    stages: usize,
    bar: ProgressBar,
    done: Mutex<usize>,
    running: Logs,
    follower: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl<'a> Watcher<'a> {
    fn new(printer: &'a Printer, stages: usize) -> Self {
        let (done, running, follower) = (Mutex::new(0), Logs::default(), Mutex::new(None));
        Self { printer, stages, bar: printer.spinner(), done, running, follower }
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
        if let Ok(mut running) = self.running.lock() {
            running.insert(stage.name.clone(), log.to_path_buf());
        }
        if let Ok(mut follower) = self.follower.lock()
            && follower.is_none()
        {
            let (end, ended) = channel();
            let (bar, running) = (self.bar.clone(), Arc::clone(&self.running));
            *follower = Some((end, spawn(move || follow(&bar, &running, &ended))));
        }
    }

    fn ends(&self, finished: &Finished) {
        if let Ok(mut running) = self.running.lock() {
            running.remove(&finished.stage);
        }
        let number = self.done.lock().map_or(0, |mut done| {
            *done += 1;
            *done
        });
        let width = self.stages.to_string().len();
        let ran = match (finished.ran, &finished.because) {
            (Ran::Done, _) => format!("{:.1} s", finished.seconds),
            (ran, Some(stage)) => format!("{}, for it needs {stage}", ran.words()),
            (ran, None) => ran.words().to_owned(),
        };
        self.say(&format!("[{number:>width$}/{}] {}: {ran}", self.stages, finished.stage));
    }
}

/// Draws the last lines of growing logs until told to end.
fn follow(bar: &ProgressBar, running: &Logs, ended: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(200)) {
        let running = running.lock().map(|running| running.clone()).unwrap_or_default();
        let line = |(name, log): (&String, &PathBuf)| format!("{name}: {}", last_line(log).unwrap_or_default());
        let lines: Vec<String> = running.iter().map(line).collect();
        bar.set_message(table::printable(&lines.join(" | ")));
        bar.tick();
    }
}
