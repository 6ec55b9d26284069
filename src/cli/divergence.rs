//! `inspect --divergence`: how far specialists have moved from their seed.

use std::collections::BTreeSet;
use std::path::Path;

use bam_convert::arguments::{CheckpointPath, MaybeNamed};
use bam_convert::checkpoint::manifest::model_name;
use bam_convert::checkpoint::single;
use bam_convert::threads;
use bam_convert::verify::diff::DiffOptions;
use bam_convert::verify::divergence::{Specialist, divergence, work_length};

use super::error::CliError;
use super::printer::Printer;
use super::{Outcome, Verdict};

/// Working memory in bytes.
const MEMORY: u64 = 128 << 20;

/// Compares specialists with their seed, which is the first of the models.
pub fn run(
    models: &[MaybeNamed<CheckpointPath>],
    svg: Option<&Path>,
    json: bool,
    printer: &Printer,
) -> Outcome {
    let Some((seed, experts)) = models.split_first() else {
        return Err(CliError::NoSeed.into());
    };
    if let Some(name) = &seed.name {
        let name = name.clone();
        return Err(CliError::SeedName { name }.into());
    }
    let seed = &*seed.value;
    if let Some(svg) = svg {
        single::check_svg(svg)?;
    }
    let experts: Vec<Specialist> = experts.iter().map(specialist).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = experts.iter().find(|expert| !seen.insert(&expert.name)) {
        let name = twice.name.clone();
        return Err(CliError::RepeatedSpecialist { name }.into());
    }
    let bar = printer.bytes_bar(work_length(seed, &experts), "comparing");
    let options = DiffOptions {
        threads: threads::count(),
        memory: MEMORY,
        progress: &|bytes| bar.inc(bytes),
    };
    let found = divergence(seed, &experts, &options)?;
    bar.finish_and_clear();
    if let Some(svg) = svg {
        single::write(svg, &[found.svg().as_bytes()])?;
    }
    if json {
        printer.json(&found)?;
    } else {
        printer.result(&found.table())?;
    }
    Ok(Verdict::Yes)
}

/// A specialist by the name that was typed, or by the name of its folder.
fn specialist(model: &MaybeNamed<CheckpointPath>) -> Specialist {
    let name = model.name.clone();
    Specialist {
        name: name.unwrap_or_else(|| model_name(&model.value)),
        path: model.value.to_path_buf(),
    }
}
