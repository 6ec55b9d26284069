//! Stages as jobs of Slurm: which go together as an array, what waits for what, and the script of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::resources::{FLAGS, fits_directive};
use crate::Result;
use crate::pipeline::error::PipelineError;
use crate::pipeline::graph::Graph;
use crate::pipeline::runner::FOLDER;
use crate::pipeline::select::Choice;
use crate::pipeline::stage::Stage;
use crate::table::quoted;

/// How the jobs find what they run: every path is whole, on the file system that all machines share.
#[derive(Clone, Debug)]
pub struct Site {
    /// This program.
    pub program: PathBuf,
    /// Its arguments: what to run, in which work folder, and how.
    pub arguments: Vec<String>,
    /// The flag that names the one stage to run.
    pub only: &'static str,
    /// The flag that runs it even where nothing changed.
    pub force: &'static str,
    /// The flag that lets other runs of the folder work beside it.
    pub shares: &'static str,
    /// The work folder.
    pub work: PathBuf,
}

/// A job, or an array of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    /// What it is called.
    pub name: String,
    /// The stages, by their numbers; a task of an array for each.
    pub stages: Vec<usize>,
    /// Stages that must have ended well before, none of its own.
    pub needs: BTreeSet<usize>,
    /// Stages that must have ended.
    pub waits: BTreeSet<usize>,
    /// What is handed to `sbatch`.
    pub script: String,
}

/// The jobs of the stages that `runs`, in order. Stages of one entry of the recipe that do not need each other are an array.
///
/// # Errors
/// Where the path of the work folder cannot stand in a script.
pub(super) fn jobs(
    stages: &[Stage],
    graph: &Graph,
    choices: &[Choice],
    runs: &[bool],
    site: &Site,
) -> Result<Vec<Job>> {
    let logs = logs(site)?;
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for number in (0..stages.len()).filter(|number| runs[*number]) {
        let fits = |group: &&mut Vec<usize>| {
            let (first, stage) = (&stages[group[0]], &stages[number]);
            first.entry == stage.entry
                && choices[group[0]] == choices[number]
                && first.slurm == stage.slurm
                && group
                    .iter()
                    .all(|member| !graph.waits(number).any(|other| other == *member))
        };
        match groups.last_mut().filter(fits) {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    let job = |group: Vec<usize>| {
        let needs: BTreeSet<usize> = group
            .iter()
            .flat_map(|stage| graph.needs(*stage))
            .copied()
            .collect();
        let waits = group
            .iter()
            .flat_map(|stage| graph.waits(*stage))
            .filter(|stage| !needs.contains(stage))
            .collect();
        let script = script(stages, &group, choices, site, &logs);
        Job {
            name: name(stages, &group),
            stages: group,
            needs,
            waits,
            script,
        }
    };
    Ok(groups.into_iter().map(job).collect())
}

/// A stage's name, or what the names of an array's stages begin with.
fn name(stages: &[Stage], group: &[usize]) -> String {
    let first = &stages[group[0]].name;
    let shared = |other: &str| {
        first
            .chars()
            .zip(other.chars())
            .take_while(|(a, b)| a == b)
            .count()
    };
    let length = group
        .iter()
        .map(|stage| shared(&stages[*stage].name))
        .min()
        .unwrap_or_default();
    let begin: String = first.chars().take(length).collect();
    match begin.trim_end_matches(['-', '_', '.']) {
        "" => stages[group[0]].kind().to_owned(),
        begin => begin.to_owned(),
    }
}

/// The folder of the logs, as a directive has it.
fn logs(site: &Site) -> Result<String> {
    let logs = site.work.join(FOLDER).join("logs");
    let text = logs.to_string_lossy();
    if !fits_directive(&text) {
        let path = PathBuf::from(text.escape_debug().to_string());
        return Err(PipelineError::SlurmPath { path }.into());
    }
    // A `%` begins what Slurm replaces: the number of the job, the name of the user.
    Ok(text.replace('%', "%%"))
}

fn script(
    stages: &[Stage],
    group: &[usize],
    choices: &[Choice],
    site: &Site,
    logs: &str,
) -> String {
    let is_array = group.len() > 1;
    let log = if is_array {
        "slurm-%A_%a.out"
    } else {
        "slurm-%j.out"
    };
    let mut directives = vec![
        format!("job-name=\"{}\"", name(stages, group)),
        format!("output=\"{logs}/{log}\""),
        "open-mode=append".to_owned(),
        // A stage that was cut short resumes from what it left.
        "requeue".to_owned(),
    ];
    if is_array {
        directives.push(format!("array=0-{}", group.len() - 1));
    }
    let resources: &BTreeMap<_, _> = &stages[group[0]].slurm;
    let flag = |key: &str| {
        FLAGS
            .iter()
            .find(|(known, _)| *known == key)
            .map_or("", |(_, flag)| flag)
    };
    directives.extend(
        resources
            .iter()
            .map(|(key, value)| format!("{}=\"{value}\"", flag(key))),
    );
    let mut text = String::from("#!/bin/sh\n");
    directives
        .iter()
        .for_each(|directive| text.push_str(&format!("#SBATCH --{directive}\n")));
    if let Some(cpus) = resources.get("cpus") {
        text.push_str(&format!("export RAYON_NUM_THREADS={}\n", quoted(cpus)));
    }
    if is_array {
        text.push_str("case $SLURM_ARRAY_TASK_ID in\n");
        for (task, stage) in group.iter().enumerate() {
            text.push_str(&format!(
                "{task}) stage={} ;;\n",
                quoted(&stages[*stage].name)
            ));
        }
        text.push_str("esac\n");
    } else {
        text.push_str(&format!("stage={}\n", quoted(&stages[group[0]].name)));
    }
    if group.iter().all(|stage| choices[*stage] == Choice::Force) {
        // What was requeued is not begun anew.
        text.push_str(&format!(
            "[ \"${{SLURM_RESTART_COUNT:-0}}\" = 0 ] && force={}\n",
            site.force
        ));
    }
    let program = quoted(&site.program.to_string_lossy());
    let arguments: Vec<String> = site.arguments.iter().map(|word| quoted(word)).collect();
    // In the place of the shell, so that signals reach it: on SIGTERM it saves where it is.
    text.push_str(&format!(
        "exec {program} {} {}=\"$stage\" ${{force:-}} {}\n",
        arguments.join(" "),
        site.only,
        site.shares,
    ));
    text
}
