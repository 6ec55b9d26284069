//! What a user looks for at the end of a recipe: the tables of evaluations, and where the reports are.

use std::path::Path;

use bam_convert::evaluate::report::EvaluationReport;
use bam_convert::pipeline::{Ran, Report, Stage};
use bam_convert::table::quoted;

use super::printer::Printer;

/// Prints the results of stages that are up to date after a run in the folder `work`.
pub(super) fn show(
    report: &Report,
    stages: &[Stage],
    work: &Path,
    printer: &Printer,
) -> std::io::Result<()> {
    let is_fresh = |stage: &Stage| {
        let found = report.stages.iter().find(|found| found.stage == stage.name);
        found.is_some_and(|found| matches!(found.ran, Ran::Done | Ran::UpToDate))
    };
    let fresh: Vec<&Stage> = stages.iter().filter(|stage| is_fresh(stage)).collect();
    for stage in &fresh {
        if let Some(table) = evaluation(stage, work) {
            printer.result(&format!("\n{table}"))?;
        }
    }
    let outputs = fresh.iter().flat_map(|stage| &stage.outputs);
    let pages = outputs.filter(|output| output.extension().is_some_and(|kind| kind == "html"));
    for page in pages {
        let path = work.join(page);
        printer.result(&format!("\nreport: {}", quoted(&path.to_string_lossy())))?;
    }
    Ok(())
}

/// The table of a stage whose result is an evaluation.
fn evaluation(stage: &Stage, work: &Path) -> Option<String> {
    let result = work.join(stage.stdout.as_ref()?);
    let mut report = EvaluationReport::read(&result).ok()?;
    // These tables have a row for each router, and the page shows them better.
    for model in &mut report.models {
        model.routing.clear();
    }
    Some(report.table())
}
