//! Scores of an evaluation: names of its rows, and model cards, of `eval --card` and of `push`.

use std::collections::BTreeSet;
use std::path::Path;

use bam_convert::arguments::CheckpointPath;
use bam_convert::card::{
    ACCURACY, BITS_PER_BYTE, DataScore, PERPLEXITY, check_card, with_evaluation,
};
use bam_convert::checkpoint::folder::CARD;
use bam_convert::checkpoint::manifest::{is_cached, model_name};
use bam_convert::checkpoint::single;
use bam_convert::evaluate::report::{EvaluationReport, ModelReport};

use super::error::{self, CliError};
use super::printer::Printer;

/// The scores of a model, for the front matter of its card.
pub fn scores(model: &ModelReport) -> Vec<DataScore> {
    let domains = model.domains.iter().map(|score| DataScore {
        data: score.domain.clone(),
        metrics: vec![
            (PERPLEXITY, score.perplexity),
            (BITS_PER_BYTE, score.bits_per_byte),
        ],
    });
    let tasks = model.tasks.iter().map(|score| DataScore {
        data: score.task.clone(),
        metrics: vec![(ACCURACY, score.accuracy)],
    });
    domains.chain(tasks).collect()
}

/// Refuses, before anything is measured, a model whose card cannot be written.
pub fn check(folder: &Path) -> error::Result<()> {
    if !folder.is_dir() || is_cached(folder) {
        let path = folder.to_path_buf();
        return Err(CliError::CardElsewhere { path });
    }
    Ok(check_card(folder)?)
}

/// Writes the scores of each model into the card of its folder.
pub fn write<'a>(
    folders: impl Iterator<Item = &'a Path>,
    report: &EvaluationReport,
    printer: &Printer,
) -> error::Result<()> {
    for (folder, model) in folders.zip(&report.models) {
        let alone = EvaluationReport {
            context: report.context,
            models: vec![model.clone()],
        };
        let tables = alone.markdown();
        let card = with_evaluation(folder, &model.name, &scores(model), &tables)?;
        let path = folder.join(CARD);
        single::write(&path, &[card.as_bytes()])?;
        printer.note(&format!("wrote the scores into {}", path.display()));
    }
    Ok(())
}

/// Names for the rows: the folders' own, or whole paths where those are not enough.
pub fn names(paths: &[CheckpointPath]) -> Vec<String> {
    let short: BTreeSet<String> = paths.iter().map(|path| model_name(path)).collect();
    let whole = short.len() < paths.len();
    paths
        .iter()
        .map(|path| {
            if whole {
                path.display().to_string()
            } else {
                model_name(path)
            }
        })
        .collect()
}
