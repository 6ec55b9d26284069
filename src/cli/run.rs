//! `run`: a recipe of stages, from texts to a finished mixture.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bam_convert::arguments::{CheckpointPath, DryRun, InputPath, Named, OutputPath};
use bam_convert::checkpoint::reference::SCHEME;
use bam_convert::pipeline::{
    Choice, Compared, Declaration, Failure, Graph, PipelineError, Rebuild, Recipe, Report, Runner,
    Selection, Site, Stage, StageUse, comparison_table, schema, status_table, submission_script,
    submitted_table, supervise,
};
use bam_convert::{Error, threads};
use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use super::error::CliError;
use super::printer::Printer;
use super::prune::Pruned;
use super::remaining::Remaining;
use super::results;
use super::signals::{SecondSignal, command_line, stop_at_signals};
use super::stages::Preview;
use super::verb::{HubUse, Verb};
use super::watcher::Watcher;
use super::{Outcome, Verdict, program};

/// Name of the command, by which stages run below a supervisor and as jobs.
const NAME: &str = "run";
/// Variables for commands that say what they would take while a run waits for them: none asks the network.
const OFFLINE: [(&str, &str); 1] = [("HF_HUB_OFFLINE", "1")];
/// Arguments that make this program a supervisor of the words after them.
pub(super) const SUPERVISE: [&str; 3] = [NAME, "--supervise", "--"];

/// Run a recipe: stages, each a command of this program or of the shell, in a work folder.
///
/// The run skips stages whose settings, inputs and outputs are as their last run left them. So a run that was stopped
/// resumes, and a recipe that was changed runs only what changed. Stages that do not need each other run side by side; one
/// that runs a model takes all cores and runs alone. STAGE is a name or a pattern: 'train-*'.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert run recipes/quickstart.yaml\n  \
                        bam-convert run recipes/quickstart.yaml --set steps=20 --work /tmp/quick\n  \
                        bam-convert run recipes/quickstart.yaml --dry-run\n  \
                        bam-convert run recipes/quickstart.yaml --status\n  \
                        bam-convert run --from-manifest mixture --source seed=/models/seed"
)]
pub struct Arguments {
    /// The recipe, in YAML.
    #[arg(value_name = "RECIPE.yaml", required_unless_present_any = ["schema", "from_manifest", "supervise"])]
    recipe: Option<InputPath>,
    /// Make the checkpoint in this folder again, by the recipe in its manifest, and compare the two.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "set"])]
    from_manifest: Option<InputPath>,
    /// Where a source of that recipe is now (repeat); its bytes must be the same [default: where the manifest says].
    #[arg(long, value_name = "NAME=PATH", requires = "from_manifest")]
    source: Vec<Named<CheckpointPath>>,
    /// Run the commands of the shell that are in that recipe: programs that whoever wrote the manifest has chosen.
    #[arg(long, requires = "from_manifest")]
    allow_shell: bool,
    /// Folder to work in [default: the recipe's `work`, else one named after it, in the current folder; with
    /// --from-manifest, NAME.again beside the folder NAME that the recipe ran in].
    #[arg(long, value_name = "DIR")]
    work: Option<OutputPath>,
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
    /// Where stages run: on this machine, or each as a job of Slurm.
    #[arg(long, value_enum, default_value_t = Executor::Local)]
    executor: Executor,
    /// Run as a job beside others, which run the other stages.
    #[arg(long, hide = true, requires = "only", conflicts_with = "executor")]
    job: bool,
    /// Then remove the checkpoints of training stages that are up to date, and say how much disk that freed.
    #[arg(long, conflicts_with_all = ["status", "job"])]
    prune: bool,
    /// Print the commands, what needs what, which would run and why, and the disk and time that they take; run nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: DryRun,
    /// Print the state of each stage; run nothing.
    #[arg(long, conflicts_with = "dry_run")]
    status: bool,
    /// Print the JSON schema of recipes, for editors.
    #[arg(long, exclusive = true)]
    schema: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Run a program, and end all that it has started where standard input closes.
    #[arg(long, hide = true, requires = "supervised")]
    supervise: bool,
    /// That program with its arguments.
    #[arg(last = true, hide = true, requires = "supervise")]
    supervised: Vec<OsString>,
}

/// Where stages run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Executor {
    /// On this machine.
    Local,
    /// As jobs of Slurm, on machines that share the file system.
    Slurm,
}

/// The stages of a recipe, and what becomes of each.
struct Todo<'a> {
    stages: &'a [Stage],
    graph: &'a Graph,
    choices: &'a [Choice],
}

/// The result of a run for programs.
#[derive(Serialize)]
struct RunResult<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned: Option<&'a Pruned>,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new(NAME, StageUse::Never)
    }

    fn run(&self, printer: &Printer) -> Outcome {
        if self.supervise {
            return Err(supervise(&self.supervised).into());
        }
        let program = program();
        if let Some(folder) = &self.from_manifest {
            #[cfg(feature = "hub")]
            let moved = super::hub::recipe_sources(folder, &self.source, printer)?;
            #[cfg(not(feature = "hub"))]
            let moved: Vec<_> = self
                .source
                .iter()
                .map(|source| (source.name.clone(), source.value.to_path_buf()))
                .collect();
            let rebuild = Rebuild::read(
                folder,
                self.work.as_deref(),
                &moved,
                self.allow_shell,
                self.verify,
                &program,
            )?;
            let stages = rebuild.stages(&program)?;
            return self.run_stages(
                rebuild.recipe(),
                rebuild.work(),
                &stages,
                Some(&rebuild),
                printer,
            );
        }
        let Some(recipe) = self.recipe.as_deref() else {
            printer.json(&schema(&program))?;
            return Ok(Verdict::Yes);
        };
        let recipe = Recipe::read(recipe)?;
        let work = recipe.work(self.work.as_deref());
        let stages = recipe.stages(&self.set, &work, &program)?;
        self.run_stages(&recipe, &work, &stages, None, printer)
    }

    fn hub_use(&self) -> HubUse {
        HubUse::Own
    }

    fn handles_signals(&self) -> bool {
        true
    }
}

impl Arguments {
    fn run_stages(
        &self,
        recipe: &Recipe,
        work: &Path,
        stages: &[Stage],
        rebuild: Option<&Rebuild>,
        printer: &Printer,
    ) -> Outcome {
        let variables = recipe.variables(&self.set, work)?;
        let graph = Graph::of(stages, work)?;
        let selection = Selection {
            from: self.from.clone(),
            only: self.only.clone(),
            force: self.force.clone(),
        };
        let choices = selection.choices(stages)?;
        let todo = Todo {
            stages,
            graph: &graph,
            choices: &choices,
        };
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
        let stop = Arc::new(AtomicBool::new(false));
        let watcher = Watcher::new(printer, stages);
        let runner = Runner {
            program: &program,
            supervise: &SUPERVISE,
            work,
            jobs: self.jobs.map_or_else(threads::cores, usize::from),
            variables: &variables,
            verify: self.verify,
            shares: self.job,
            stop: &stop,
            watch: &watcher,
        };

        if self.status {
            return self.show_status(&runner, &todo, printer);
        }
        if self.executor == Executor::Slurm {
            if self.prune {
                return Err(CliError::PruneOnSlurm.into());
            }
            return self.run_on_slurm(&runner, recipe, &todo, printer);
        }
        self.answer_signals(&stop, &watcher)?;
        if *self.dry_run {
            return self.show_forecast(&runner, &todo, printer);
        }
        if !self.job && !printer.is_quiet() {
            self.look_ahead(&runner, &todo, &watcher, printer);
        }
        let report = runner.run(stages, &graph, &choices);
        watcher.stop();
        let report = report?;
        let pruned = if self.prune && !report.stopped {
            Some(Pruned::run(&runner, stages, &graph)?)
        } else {
            None
        };
        let verdict = self.end(&report, pruned.as_ref(), rebuild, &todo, printer);
        if report.is_complete() && !self.json {
            results::show(&report, stages, work, printer)?;
        }
        verdict
    }

    /// Makes signals stop the stages, with an answer.
    fn answer_signals(&self, stop: &Arc<AtomicBool>, watcher: &Watcher) -> std::io::Result<()> {
        // A second signal does not wait for the stages to end. But Slurm sends as many as it likes, and a dry run has its
        // outlines to remove.
        let (second, answer) = if self.job {
            (SecondSignal::Waits, "stopping: the stage saves and ends")
        } else if *self.dry_run {
            (SecondSignal::Waits, "stopping")
        } else {
            let answer = "stopping: running stages save and end; press Ctrl-C again to stop now";
            (SecondSignal::Ends, answer)
        };
        let say = watcher.notes();
        stop_at_signals(stop, second, move || say(answer))
    }

    /// Estimates the time of the stages, and warns where one does not fit into memory. Nothing of the run depends on it, so
    /// an estimate that fails is left out.
    fn look_ahead(&self, runner: &Runner, todo: &Todo, watcher: &Watcher, printer: &Printer) {
        // What the run verifies needs no second reading.
        let runner = Runner {
            verify: false,
            ..*runner
        };
        let Ok(mut forecasts) = runner.forecast(todo.stages, todo.graph, todo.choices) else {
            return;
        };
        if runner
            .estimate(todo.stages, &mut forecasts, &OFFLINE)
            .is_err()
        {
            return;
        }
        let preview = Preview::new(todo.stages, &forecasts);
        preview.warn_of_memory(printer);
        watcher.expect(Remaining::new(preview.times()));
    }

    fn show_status(&self, runner: &Runner, todo: &Todo, printer: &Printer) -> Outcome {
        let status = runner.status(todo.stages, todo.graph)?;
        if self.json {
            printer.json(&status)?;
        } else {
            printer.result(&status_table(&status))?;
        }
        Ok(Verdict::Yes)
    }

    fn show_forecast(&self, runner: &Runner, todo: &Todo, printer: &Printer) -> Outcome {
        let mut forecasts = runner.forecast(todo.stages, todo.graph, todo.choices)?;
        runner.estimate(todo.stages, &mut forecasts, &[])?;
        let preview = Preview::new(todo.stages, &forecasts);
        if self.json {
            printer.json(&preview.json())?;
        } else {
            printer.result(&preview.text(runner.work)?)?;
        }
        if self.prune {
            let pruned = Pruned::forecast(runner, todo.stages, todo.graph)?;
            let lines = pruned.lines("--prune would free");
            lines.iter().for_each(|line| printer.note(line));
        }
        preview.warn_of_memory(printer);
        let missing = runner.missing_inputs(todo.stages, &forecasts)?;
        missing
            .iter()
            .for_each(|input| printer.note(&format!(" note: {input}")));
        Ok(Verdict::Yes)
    }

    /// Prints how the run ended. What was made again is compared with the first, if every stage took part.
    fn end(
        &self,
        report: &Report,
        pruned: Option<&Pruned>,
        rebuild: Option<&Rebuild>,
        todo: &Todo,
        printer: &Printer,
    ) -> Outcome {
        if let Some(pruned) = pruned {
            pruned
                .lines("freed")
                .iter()
                .for_each(|line| printer.note(line));
        }
        let is_whole =
            report.is_complete() && todo.choices.iter().all(|choice| *choice != Choice::Leave);
        let Some(rebuild) = rebuild.filter(|_| is_whole) else {
            if self.json {
                printer.json(&RunResult { report, pruned })?;
            } else {
                printer.result(&report.table())?;
            }
            if report.is_up_to_date() {
                printer.note("nothing to do: every stage is up to date");
            }
            return ended(report, printer);
        };
        let compared = rebuild.compare()?;
        if self.json {
            let run = RunResult { report, pruned };
            printer.json(&serde_json::json!({"run": run, "compared": compared}))?;
        } else {
            let (ran, compared) = (report.table(), comparison_table(&compared));
            printer.result(&format!("{ran}\n{compared}"))?;
        }
        let differs = |file: &Compared| rebuild.is_result(file) && !file.is_equal();
        if compared.iter().any(differs) {
            return Ok(Verdict::No);
        }
        ended(report, printer)
    }

    /// The arguments that say what to run, wherever that happens; each is one word, so that no value passes for a flag.
    fn what(&self, recipe: &Recipe) -> bam_convert::Result<Vec<String>> {
        let text = |path: &Path| whole(path).map(|path| path.to_string_lossy().into_owned());
        let Some(folder) = &self.from_manifest else {
            let set = self
                .set
                .iter()
                .map(|(name, value)| format!("--set={name}={value}"));
            return Ok(std::iter::once(text(recipe.path())?).chain(set).collect());
        };
        let mut words = vec![format!("--from-manifest={}", text(folder)?)];
        for Named { name, value } in &self.source {
            let place = match value.to_str().filter(|place| place.starts_with(SCHEME)) {
                Some(reference) => reference.to_owned(),
                None => text(value)?,
            };
            words.push(format!("--source={name}={place}"));
        }
        words.extend(self.allow_shell.then(|| "--allow-shell".to_owned()));
        Ok(words)
    }

    /// Submits the stages, or shows how.
    fn run_on_slurm(
        &self,
        runner: &Runner,
        recipe: &Recipe,
        todo: &Todo,
        printer: &Printer,
    ) -> Outcome {
        let (program, work) = (runner.program.to_path_buf(), whole(runner.work)?);
        let mut arguments = vec![NAME.to_owned()];
        arguments.extend(self.what(recipe)?);
        arguments.extend(["--work".to_owned(), work.to_string_lossy().into_owned()]);
        arguments.extend(self.verify.then(|| "--verify".to_owned()));
        let site = Site {
            program,
            arguments,
            only: "--only",
            force: "--force",
            shares: "--job",
            work,
        };
        if *self.dry_run {
            let (jobs, waiting) = runner.jobs(todo.stages, todo.graph, todo.choices, &site)?;
            if self.json {
                printer.json(&jobs)?;
            } else {
                // A file that it goes to must hold every value as it is.
                printer.piece(&submission_script(&jobs, &waiting))?;
            }
            return Ok(Verdict::Yes);
        }
        let submitted = runner.submit(todo.stages, todo.graph, todo.choices, &site)?;
        if self.json {
            printer.json(&submitted)?;
        } else if submitted.is_empty() {
            printer.note("nothing changed: nothing was submitted");
        } else {
            printer.result(&submitted_table(&submitted))?;
        }
        Ok(Verdict::Yes)
    }
}

/// The path from the root of the file system.
fn whole(path: &Path) -> bam_convert::Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, e))
}

/// A stage that said no is a no; one that broke is an error, and so is a run that was stopped.
fn ended(report: &Report, printer: &Printer) -> Outcome {
    if report.stopped {
        let error = Error::from(PipelineError::Stopped);
        let command = command_line("");
        return Err(error.with_hint(format!("continue with: {command}")).into());
    }
    // What is worse than a no comes last, and decides.
    let (noes, faults): (Vec<_>, Vec<_>) = report
        .failures
        .iter()
        .partition(|failure| failure.code == Some(1) && failure.missing.is_none());
    let Some((worst, others)) = faults.split_last() else {
        noes.iter().for_each(|failure| say(failure, printer));
        return Ok(if noes.is_empty() {
            Verdict::Yes
        } else {
            Verdict::No
        });
    };
    noes.iter()
        .chain(others)
        .for_each(|failure| say(failure, printer));
    printer.log(&worst.tail);
    Err(match (worst.code, &worst.missing) {
        (Some(2), _) | (_, Some(_)) => CliError::Stage((*worst).clone()).into(),
        _ => Error::compute("finish the recipe", worst).into(),
    })
}

fn say(failure: &Failure, printer: &Printer) {
    printer.log(&failure.tail);
    printer.error(&anyhow::anyhow!(failure.to_string()));
}

fn named_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
