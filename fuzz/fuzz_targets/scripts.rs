//! Recipes to scripts for Slurm: whatever a recipe says, every value is one word of a command or of a directive.
#![no_main]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use bam_convert::arguments::{ArgumentKind, ArgumentKinds, OutputPath};
use bam_convert::pipeline::{
    Choice, Declaration, Finished, Graph, Job, Program, Recipe, Runner, Site, Stage, StageUse,
    Watch, submission_script,
};
use bam_convert_fuzz::{bounded, file};
use clap::{Arg, Command, value_parser};
use libfuzzer_sys::fuzz_target;

/// Nobody looks on.
struct Blind;

impl Watch for Blind {
    fn starts(&self, _: &Stage, _: &str, _: &Path) {}
    fn ends(&self, _: &Finished) {}
}

/// A command line of one command with an output.
fn program() -> Program {
    let out = Arg::new("out")
        .long("out")
        .value_parser(value_parser!(OutputPath));
    let definition = Command::new("bam-convert").subcommand(Command::new("init").arg(out));
    let kinds = ArgumentKinds::new(vec![ArgumentKind::of::<OutputPath>()]);
    Program::new(
        definition,
        vec![Declaration::new("init", StageUse::Makes)],
        kinds,
    )
}

/// The scripts of the recipe, if it means any.
fn scripts(path: &Path, site: &Site) -> Option<Vec<Job>> {
    let recipe = Recipe::read(path).ok()?;
    let work = path.with_file_name("absent").join(recipe.work(None));
    let stages = recipe.stages(&[], &work, &program()).ok()?;
    let variables = recipe.variables(&[], &work).ok()?;
    let graph = Graph::of(&stages, &work).ok()?;
    let runner = Runner {
        program: &site.program,
        supervise: &[],
        work: &work,
        jobs: 1,
        variables: &variables,
        verify: false,
        shares: false,
        stop: &AtomicBool::new(false),
        watch: &Blind,
    };
    let site = Site {
        work: work.clone(),
        ..site.clone()
    };
    let choices = vec![Choice::Force; stages.len()];
    let (jobs, waiting) = runner.jobs(&stages, &graph, &choices, &site).ok()?;
    let all = submission_script(&jobs, &waiting);
    assert!(jobs.iter().all(|job| all.contains(&job.script)));
    for job in &jobs {
        check(job, &stages, &site);
    }
    Some(jobs)
}

/// Asserts that the lines of a script are those that were meant, each of as many words.
fn check(job: &Job, stages: &[Stage], site: &Site) {
    let is_array = job.stages.len() > 1;
    let mut lines = job.script.lines();
    assert_eq!(lines.next(), Some("#!/bin/sh"));
    let rest: Vec<&str> = lines.collect();
    let directives = rest
        .iter()
        .take_while(|line| line.starts_with("#SBATCH "))
        .count();
    for line in &rest[..directives] {
        let option = line
            .strip_prefix("#SBATCH --")
            .expect("a directive is an option");
        if let Some((_, value)) = option.split_once("=\"") {
            let inner = value.strip_suffix('"').expect("a quote is closed");
            assert!(!inner.contains(['"', '\\', '\n', '\r']), "{line}");
        } else {
            assert!(!option.contains(['"', '\'', ' ']), "{line}");
        }
    }
    let commands = rest[directives..].join("\n");
    let words = shlex::split(commands.lines().last().unwrap_or_default());
    let words = words.expect("the last line is whole");
    let mut expected = vec![
        "exec".to_owned(),
        site.program.to_string_lossy().into_owned(),
    ];
    expected.extend(site.arguments.iter().cloned());
    expected.extend(["--only=$stage", "${force:-}", "--job"].map(str::to_owned));
    assert_eq!(words, expected, "{}", job.script);
    let named = rest[directives..]
        .iter()
        .filter(|line| line.contains("stage=") && !line.starts_with("exec"));
    assert_eq!(named.count(), job.stages.len(), "{}", job.script);
    let (export, frame) = (
        rest[directives..]
            .iter()
            .filter(|line| line.starts_with("export ")),
        2,
    );
    let lines = job.stages.len() + export.count() + 2 + if is_array { frame } else { 0 };
    assert_eq!(rest.len() - directives, lines, "{}", job.script);
    assert!(job.stages.iter().all(|stage| *stage < stages.len()));
}

fuzz_target!(|data: &[u8]| {
    let path = file("recipe.yaml", data);
    let site = Site {
        program: "/opt/bin/bam-convert".into(),
        arguments: vec!["run".to_owned(), path.to_string_lossy().into_owned()],
        only: "--only",
        force: "--force",
        shares: "--job",
        work: "/".into(),
    };
    bounded(data.len(), || drop(scripts(&path, &site)));
});
