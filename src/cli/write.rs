//! What every command that writes weights takes and does.

use std::path::Path;

use bam_convert::arguments::{DryRun, Force, Outline};
use bam_convert::checkpoint::Manifest;
use bam_convert::checkpoint::writer::shard_count;
use bam_convert::estimate::{DRAWN, Estimate, WRITTEN};
use bam_convert::family::Architecture;
use bam_convert::surgery::Plan;
use bam_convert::surgery::execute::{
    OutputFile, Target, check_place, check_plan, execute, outline, work_length,
};
use bam_convert::surgery::export::Export;
use bam_convert::surgery::router::RouterInit;
use bam_convert::{memory, table, threads};
use bytesize::ByteSize;
use clap::{ArgAction, Args};

use super::check::Untrained;
use super::estimate::{print, warn_of_memory};
use super::names::size;
use super::preview::Preview;
use super::printer::Printer;
use super::work::WorkArguments;
use super::{Outcome, Verdict};

/// What measures a mixture after the surgery, in messages.
const CHECK: &str = "the check";

/// Flags of every command that writes weights.
#[derive(Debug, Args)]
#[command(next_help_heading = "Writing")]
pub struct WriteArguments {
    /// Largest weight file; a single larger tensor gets a file of its own.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub max_shard_size: ByteSize,
    /// Replace an existing checkpoint at the output.
    #[arg(long, action = ArgAction::SetTrue)]
    pub force: Force,
    /// Show what would be written, and write nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    pub dry_run: DryRun,
    /// Make the outline of the output, and say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub outline: Outline,
    /// Hash every source again, also those that have not changed since they were hashed before.
    #[arg(long)]
    rehash: bool,
    #[command(flatten)]
    work: WorkArguments,
}

impl WriteArguments {
    /// Shows the plan (`--dry-run`) or carries it out, and says what came of it.
    pub fn run(
        &self,
        plan: &Plan,
        architecture: Option<&Architecture>,
        files: &[OutputFile],
        out: &Path,
        printer: &Printer,
    ) -> Outcome {
        self.run_untrained(plan, architecture, files, out, None, printer)
    }

    /// Shows the plan of a single file for another program, or writes it.
    pub fn run_export(&self, export: &Export, out: &Path, printer: &Printer) -> Outcome {
        if *self.outline {
            return print(
                printer,
                &Estimate::of(export.length(), work_length(&export.plan) as f64 / WRITTEN),
            );
        }
        export
            .plan
            .notes
            .iter()
            .for_each(|note| printer.note(&format!(" note: {note}")));
        let place = export.check_place(out, *self.force);
        if *self.dry_run {
            let (memory, threads) = (self.work.memory.as_u64(), threads::count());
            let preview = Preview::new(
                &export.plan,
                export.architecture.as_ref(),
                out,
                1,
                memory,
                threads,
            )?;
            return self.show(&preview.refused(place.err()), printer);
        }
        place?;
        let bar = printer.bytes_bar(export.length(), "writing");
        export.write(out, *self.force, threads::count(), &|bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        if self.work.json {
            printer.json(&serde_json::json!({"output": out, "tensors": export.tensors(), "bytes": export.length()}))?;
        } else {
            let size = table::bytes(export.length());
            printer.note(&format!(
                "wrote {}: {} tensors, {size}",
                out.display(),
                export.tensors()
            ));
        }
        Ok(Verdict::Yes)
    }

    /// Makes the outline of the output, and says what it would take.
    fn print_outline(
        &self,
        plan: &Plan,
        files: &[OutputFile],
        out: &Path,
        printer: &Printer,
    ) -> Outcome {
        let bytes = outline(plan, files, out, self.max_shard_size.as_u64())?;
        // A plan without sources draws its tensors at random.
        let drawn = if plan.sources.is_empty() {
            plan.parameters()
        } else {
            0
        };
        print(
            printer,
            &Estimate::of(
                bytes,
                work_length(plan) as f64 / WRITTEN + drawn as f64 / DRAWN,
            ),
        )
    }

    fn show(&self, preview: &Preview, printer: &Printer) -> Outcome {
        if self.work.json {
            printer.json(preview)?;
        } else {
            printer.result(&preview.table())?;
        }
        Ok(Verdict::Yes)
    }

    /// As [`run`](Self::run), for a mixture whose gates are described, and which is then measured where a check asks for it.
    pub fn run_untrained(
        &self,
        plan: &Plan,
        architecture: Option<&Architecture>,
        files: &[OutputFile],
        out: &Path,
        untrained: Option<&Untrained>,
        printer: &Printer,
    ) -> Outcome {
        if *self.outline {
            return self.print_outline(plan, files, out, printer);
        }
        plan.notes
            .iter()
            .chain(&plan.licence_notes())
            .for_each(|note| printer.note(&format!(" note: {note}")));
        let bar = printer.bytes_bar(work_length(plan), "writing");
        let threads = threads::count();
        let target = Target {
            folder: out,
            force: *self.force,
            max_shard_size: self.max_shard_size.as_u64(),
            memory: self.work.memory.as_u64(),
            threads,
            rehash: self.rehash,
            progress: &|bytes| bar.inc(bytes),
        };
        if *self.dry_run {
            bar.finish_and_clear();
            let preview = self.preview(plan, architecture, &target, untrained, printer)?;
            return self.show(&preview, printer);
        }
        if let Some(needed) = check_memory(untrained, architecture)? {
            memory::check_memory(
                CHECK,
                needed,
                "check a smaller mixture, or leave --check out",
            )?;
            warn_of_memory(CHECK, Some(needed), printer);
        }
        let manifest = execute(plan, files, &target)?;
        bar.finish_and_clear();
        self.say_written(plan, &manifest, out, untrained, printer)?;
        Ok(Verdict::Yes)
    }

    /// What a run into the target would make, and why it would be refused now.
    fn preview(
        &self,
        plan: &Plan,
        architecture: Option<&Architecture>,
        target: &Target,
        untrained: Option<&Untrained>,
        printer: &Printer,
    ) -> bam_convert::Result<Preview> {
        let shards = shard_count(&plan.layouts(), target.max_shard_size);
        check_plan(plan)?;
        let refusal = check_place(plan, target.folder, target.force).err();
        let preview = Preview::new(
            plan,
            architecture,
            target.folder,
            shards,
            target.memory,
            target.threads,
        )?;
        let memory = check_memory(untrained, architecture)?;
        warn_of_memory(CHECK, memory, printer);
        let gates = untrained.map(|untrained| untrained.gates.clone());
        Ok(preview.with_gates(gates).checked(memory).refused(refusal))
    }

    /// Says what was written, and what the mixture does before it is trained.
    fn say_written(
        &self,
        plan: &Plan,
        manifest: &Manifest,
        out: &Path,
        untrained: Option<&Untrained>,
        printer: &Printer,
    ) -> anyhow::Result<()> {
        if self.work.json {
            let mut result = serde_json::json!({
                "output": out,
                "method": manifest.method,
                "tensors": manifest.tensors.len(),
                "bytes": plan.data_length(),
                "files": manifest.files,
            });
            if let Some(untrained) = untrained {
                untrained.add_to(&mut result, out, printer)?;
            }
            return printer.json(&result);
        }

        printer.note(&format!(
            "wrote {}: {} tensors, {}, {} files",
            out.display(),
            manifest.tensors.len(),
            table::bytes(plan.data_length()),
            manifest.files.len() + manifest.unhashed_files.len() + 1,
        ));
        match untrained {
            Some(untrained) => untrained.print(out, printer),
            None => Ok(()),
        }
    }
}

/// Routers as they are asked for; where no rows are computed, such as need no model but have the same shape.
pub fn routers<const N: usize>(asked: [&RouterInit; N], has_rows: bool) -> [RouterInit; N] {
    asked.map(|router| match router {
        RouterInit::Prompts(_) if !has_rows => RouterInit::Normal(0.02),
        router => router.clone(),
    })
}

/// Peak of the memory of a check of the mixture, where one is asked for.
fn check_memory(
    untrained: Option<&Untrained>,
    architecture: Option<&Architecture>,
) -> bam_convert::Result<Option<u64>> {
    let check = untrained.and_then(|untrained| untrained.check);
    let both = check.zip(architecture);
    both.map(|(check, architecture)| check.memory(architecture))
        .transpose()
}
