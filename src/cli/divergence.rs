//! `inspect --divergence`: how far specialists have moved from their seed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bam_convert::Error;
use bam_convert::checkpoint::manifest::model_name;
use bam_convert::checkpoint::single;
use bam_convert::verify::diff::Options;
use bam_convert::verify::divergence::{Specialist, divergence, work_length};

use super::names::named;
use super::printer::Printer;
use super::{Outcome, Verdict};

/// Working memory in bytes.
const MEMORY: u64 = 128 << 20;

/// Compares the specialists in `paths`, each `DIR` or `NAME=DIR`, with the seed, the first of them.
pub fn run(paths: &[PathBuf], svg: Option<&Path>, json: bool, printer: &Printer) -> Outcome {
    let Some((seed, experts)) = paths.split_first() else {
        return Err(Error::usage(
            "--divergence: expected a seed and its specialists, found nothing",
        )
        .into());
    };
    if let Some(svg) = svg {
        single::check_svg(svg)?;
    }
    let experts: Vec<Specialist> = experts.iter().map(|path| specialist(path)).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = experts.iter().find(|expert| !seen.insert(&expert.name)) {
        let problem = format!(
            "two specialists are named `{}`; expected each name once",
            twice.name
        );
        return Err(Error::usage(problem)
            .with_hint("name them: --divergence SEED NAME=DIR…")
            .into());
    }
    let bar = printer.bytes_bar(work_length(seed, &experts), "comparing");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options {
        threads,
        memory: MEMORY,
        progress: &|bytes| bar.inc(bytes),
    };
    let found = divergence(seed, &experts, &options)?;
    bar.finish_and_clear();
    if let Some(svg) = svg {
        single::write(svg, &[found.svg()?.as_bytes()])?;
    }
    match json {
        true => printer.json(&found)?,
        false => printer.result(&found.table())?,
    }
    Ok(Verdict::Yes)
}

/// `NAME=DIR`, or the folder by its own name.
fn specialist(path: &Path) -> Specialist {
    let (name, path) = named(path);
    Specialist {
        name: name.unwrap_or_else(|| model_name(&path)),
        path,
    }
}
