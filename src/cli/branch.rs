//! `branch`: a seed into copies, one for each domain.

use bam_convert::arguments::{CheckpointPath, DryRun, Force, Outline, OutputPath};
use bam_convert::estimate::{Estimate, WRITTEN};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::Model;
use bam_convert::surgery::branch::plan;
use bam_convert::surgery::upcycle::SEED;
use bam_convert::table;
use clap::{ArgAction, Args};

use super::estimate::print;
use super::preview::Preview;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Copy a dense seed into one folder for each domain, byte for byte.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert branch seed --into code,law,math --out branches")]
pub struct Arguments {
    /// Folder of the seed.
    seed: CheckpointPath,
    /// Names of the branches, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    into: Vec<String>,
    /// Folder that holds the branches.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Hard-link the weight files instead of copying them.
    #[arg(long)]
    link: bool,
    /// Replace branches that exist.
    #[arg(long, action = ArgAction::SetTrue)]
    force: Force,
    /// Show what would be written, and write nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: DryRun,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Make the outline of the output, and say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("branch", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let seed = Model::open(SEED, &self.seed)?;
        let architecture = seed.architecture.clone();
        let files = seed.source.checkpoint.files.len();
        let branching = plan(seed, &self.into, &self.out)?;
        if *self.outline {
            branching.outline()?;
            let bytes = branching.needed(self.link) + branching.side_length()?;
            return print(
                printer,
                &Estimate::of(bytes, 2.0 * branching.needed(false) as f64 / WRITTEN),
            );
        }
        if *self.dry_run {
            let refusal = branching.check(*self.force, self.link).err();
            let preview = Preview::new(
                &branching.plan,
                Some(&architecture),
                &self.out,
                files,
                1 << 20,
                1,
            )?
            .refused(refusal);
            if self.json {
                printer.json(&preview)?;
            } else {
                let bytes = table::bytes(branching.needed(self.link));
                let count = branching.targets.len();
                printer.result(&format!(
                    "{}\n{count} branches of this, {bytes} together",
                    preview.table()
                ))?;
            }
            return Ok(Verdict::Yes);
        }
        for note in &branching.plan.notes {
            printer.note(&format!(" note: {note}"));
        }
        let bar = printer.bytes_bar(branching.needed(false), "copying");
        let manifests = branching.execute(*self.force, self.link, &|bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        if self.json {
            let outputs = branching.targets.iter().zip(&manifests);
            let outputs: Vec<_> = outputs
                .map(|(out, manifest)| serde_json::json!({"output": out, "files": manifest.files}))
                .collect();
            printer.json(&outputs)?;
        } else {
            for target in &branching.targets {
                printer.note(&format!("wrote {}", target.display()));
            }
        }
        Ok(Verdict::Yes)
    }
}
