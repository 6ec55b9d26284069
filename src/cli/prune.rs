//! `run --prune`: removes the checkpoints of training stages that are up to date.

use std::path::PathBuf;

use bam_convert::Result;
use bam_convert::pipeline::{Graph, Runner, Stage};
use bam_convert::table;
use bam_convert::train::{checkpoint_bytes, checkpoints_of, remove_checkpoints};
use serde::Serialize;

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pruned {
    /// Stages whose checkpoints these are.
    stages: Vec<String>,
    bytes: u64,
    /// Stages whose checkpoints stay, because another stage uses them.
    kept: Vec<Kept>,
}

/// A stage whose checkpoints stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Kept {
    stage: String,
    used_by: String,
}

impl Pruned {
    /// What pruning would remove.
    ///
    /// # Errors
    /// Where an input or a folder cannot be read.
    pub(super) fn forecast(runner: &Runner, stages: &[Stage], graph: &Graph) -> Result<Self> {
        Self::plan(runner, stages, graph).map(|(pruned, _)| pruned)
    }

    /// What pruning would remove, and the outputs beside which it is.
    fn plan(runner: &Runner, stages: &[Stage], graph: &Graph) -> Result<(Self, Vec<PathBuf>)> {
        let (mut pruned, mut outputs) = (Self::default(), Vec::new());
        for finished in runner.finished(stages, graph)? {
            let bytes = checkpoint_bytes(&finished.output)?;
            if bytes == 0 {
                continue;
            }
            let user = runner.user_of(stages, &checkpoints_of(&finished.output)?)?;
            if let Some(user) = user {
                let (stage, used_by) = (finished.stage, user.to_owned());
                pruned.kept.push(Kept { stage, used_by });
            } else {
                pruned.stages.push(finished.stage);
                pruned.bytes += bytes;
                outputs.push(finished.output);
            }
        }
        Ok((pruned, outputs))
    }

    /// Removes it.
    ///
    /// # Errors
    /// Where another run works in the folder, or a file cannot be removed.
    pub(super) fn run(runner: &Runner, stages: &[Stage], graph: &Graph) -> Result<Self> {
        let _held = runner.hold()?;
        let (forecast, outputs) = Self::plan(runner, stages, graph)?;
        let freed = outputs.iter().map(|output| remove_checkpoints(output));
        let bytes = freed.sum::<Result<u64>>()?;
        Ok(Self { bytes, ..forecast })
    }

    /// For people; `verb` is what happens to the bytes.
    pub(super) fn lines(&self, verb: &str) -> Vec<String> {
        let mut lines = vec![if self.stages.is_empty() {
            "nothing to prune".to_owned()
        } else {
            let (bytes, stages) = (table::bytes(self.bytes), self.stages.join(", "));
            format!("{verb} {bytes}: the checkpoints of {stages}")
        }];
        lines.extend(self.kept.iter().map(|kept| {
            let Kept { stage, used_by } = kept;
            format!("the checkpoints of {stage} stay, because stage {used_by} uses them")
        }));
        lines
    }
}
