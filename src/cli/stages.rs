//! The stages of a recipe as `run --dry-run` shows them.

use std::path::Path;

use bam_convert::checkpoint::output::free_space;
use bam_convert::pipeline::{Forecast, Stage};
use bam_convert::table::{self, quoted};

/// A stage and what a run would do about it, for programs.
pub(super) fn preview((stage, forecast): (&Stage, &Forecast)) -> serde_json::Value {
    serde_json::json!({"stage": stage.name, "command": stage.command, "stdout": stage.stdout, "outputs": stage.outputs,
                       "needs": forecast.needs, "runs_because": forecast.runs_because,
                       "last_seconds": forecast.last_seconds, "last_bytes": forecast.last_bytes})
}

/// What would be run, as one would type it, and what it took the last time.
pub(super) fn commands(work: &Path, stages: &[Stage], forecasts: &[Forecast]) -> bam_convert::Result<String> {
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
