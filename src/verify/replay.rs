//! `validate --against`: the manifest's expressions computed again from the sources and compared byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::error::VerifyError;
use super::limits::too_much;
use super::pieces::{self, Piece};
use super::report::{FindingPlace, Running, ValidationReport};
use super::sources::open_sources;
use super::subject::{Subject, ValidateOptions};
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::manifest::{MANIFEST, Manifest};
use crate::checkpoint::{Dtype, dtype, views};
use crate::surgery::evaluate::{Evaluator, Scratch};
use crate::surgery::plan::{PlannedTensor, Source};
use crate::table;

/// Values computed in one go at most; fewer where the memory is small.
const MOST_VALUES: u64 = 1 << 18;
/// Values computed in one go at least: a multiple of every block size.
const LEAST_VALUES: u64 = 1 << 12;

/// Adds the rows `sources` and `replay`; `given` are folders of sources, which their hashes or their order tell apart.
pub(super) fn check(
    report: &mut ValidationReport,
    subject: &Subject,
    given: &[Option<PathBuf>],
    options: &ValidateOptions,
) -> Result<()> {
    let (Some(manifest), Some(checkpoint)) = (&subject.manifest, &subject.checkpoint) else {
        // The user asked for a replay, so a skipped one would read as a success.
        let mut check = report.check("replay");
        let missing = if subject.manifest.is_none() {
            format!("no readable {MANIFEST}")
        } else {
            "no readable weights".to_owned()
        };
        check.fault(
            FindingPlace::default(),
            format!("{missing}: there is nothing to compute again"),
        );
        check.done("nothing");
        return Ok(());
    };
    // A base with adapters is several sources.
    let given: Vec<Option<PathBuf>> = given.iter().flat_map(apart).collect();
    if given.len() > manifest.sources.len() {
        let names = manifest.sources.iter().map(|source| source.name.clone());
        return Err(VerifyError::ManyFolders {
            found: given.len(),
            names: names.collect(),
        }
        .into());
    }
    let sources = open_sources(report, subject.path, manifest, &given, options)?;
    replay(report, manifest, checkpoint, &sources, options)?;
    sources
        .iter()
        .try_for_each(|source| source.checkpoint.check_unchanged())
}

/// A folder, or the base and the adapters of a view.
fn apart(given: &Option<PathBuf>) -> Vec<Option<PathBuf>> {
    match given {
        None => vec![None],
        Some(path) => views::places(path).into_iter().map(Some).collect(),
    }
}

/// The first place where an output differs from its expression.
struct Difference {
    element: u64,
    expected: String,
    found: String,
    count: u64,
}

/// Working space of one thread.
#[derive(Default)]
struct Space {
    expected: Vec<u8>,
    found: Vec<u8>,
    scratch: Scratch,
}

/// Computes every tensor again and compares it with the output.
fn replay(
    report: &mut ValidationReport,
    manifest: &Manifest,
    output: &Checkpoint,
    sources: &[Source],
    options: &ValidateOptions,
) -> Result<()> {
    let mut check = report.check("replay");
    let total = output.tensors.len().max(manifest.tensors.len());
    let (planned, trained) = computable(&mut check, manifest, output, sources);
    let differences = compare(&planned, output, sources, options)?;

    let equal = differences
        .iter()
        .filter(|difference| difference.is_none())
        .count();
    for (tensor, difference) in planned.iter().zip(&differences) {
        let Some(Difference {
            element,
            expected,
            found,
            count,
        }) = difference
        else {
            continue;
        };
        let layout = &tensor.layout;
        let all = layout.shape.iter().product::<u64>();
        let problem = format!(
            "{count} of {all} values differ from {}; the first is element {element}: expected {expected}, found {found}",
            tensor.expression
        );
        check.fault(FindingPlace::tensor(&layout.name), problem);
    }
    let mut done = format!(
        "{equal} of {} equal to their expressions, bit for bit",
        table::counted(total as u64, "tensor")
    );
    if trained > 0 {
        done += &format!("; {trained} are trained, which cannot be computed again");
    }
    check.done(done);
    Ok(())
}

/// The tensors that can be computed again, and the number of those that were trained; all others are faults.
fn computable(
    check: &mut Running,
    manifest: &Manifest,
    output: &Checkpoint,
    sources: &[Source],
) -> (Vec<PlannedTensor>, u64) {
    let mut planned = Vec::with_capacity(manifest.tensors.len());
    let mut trained = 0;
    let mut without_source: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, record) in &manifest.tensors {
        // Only a tensor that is stored in this shape is computed: the work is bounded by the size of the files.
        let stored = output.tensors.get(name);
        if !stored.is_some_and(|entry| {
            entry.encoding.plain() == Some(record.dtype) && entry.shape == record.shape
        }) {
            check.fault(
                FindingPlace::tensor(name),
                format!("is not stored as {MANIFEST} says, so it is not computed"),
            );
            continue;
        }
        if matches!(record.expression, Expression::Trained { .. }) {
            trained += 1;
            continue;
        }
        if let Some(absent) = absent_source(&record.expression, manifest, sources) {
            *without_source.entry(absent).or_default() += 1;
            continue;
        }
        if let Some(problem) = too_much(&record.expression, &record.shape) {
            check.fault(FindingPlace::tensor(name), problem);
            continue;
        }

        let tensor = PlannedTensor::new(
            name,
            record.dtype,
            record.shape.clone(),
            record.expression.clone(),
        );
        // One at a time, so that one that cannot be computed does not hide the others.
        match Evaluator::new(std::slice::from_ref(&tensor), sources) {
            Ok(_) => planned.push(tensor),
            Err(error) => {
                let problem = format!("cannot be computed: {error}");
                check.fault(FindingPlace::tensor(name), problem);
            }
        }
    }
    for (source, count) in without_source {
        let tensors = table::counted(count, "tensor");
        check.fault(
            FindingPlace::file(MANIFEST),
            format!("{tensors} cannot be computed without source `{source}`"),
        );
    }
    (planned, trained)
}

/// The first source of the manifest that an expression reads and that was not opened.
fn absent_source<'a>(
    expression: &Expression,
    manifest: &'a Manifest,
    sources: &[Source],
) -> Option<&'a str> {
    let mut read = BTreeSet::new();
    expression.for_each_copy(&mut |source, _| {
        read.insert(source.to_owned());
    });
    let is_open = |name: &str| sources.iter().any(|source| source.name == name);
    let names = manifest.sources.iter().map(|source| source.name.as_str());
    names
        .into_iter()
        .find(|name| read.contains(*name) && !is_open(name))
}

/// The first difference of each tensor from its expression, if there is one.
fn compare(
    planned: &[PlannedTensor],
    output: &Checkpoint,
    sources: &[Source],
    options: &ValidateOptions,
) -> Result<Vec<Option<Difference>>> {
    let evaluator = Evaluator::new(planned, sources)?;
    let deepest = planned
        .iter()
        .map(|tensor| depth(&tensor.expression))
        .max()
        .unwrap_or(1) as u64;
    // A sum and its term for each level, the decoded and the raw source, the expected and the stored bytes.
    let per_value = 8 * (deepest + 1) + 36;
    let affordable = options.memory / (options.threads.max(1) as u64 * per_value);
    let size = (affordable.clamp(LEAST_VALUES, MOST_VALUES) / LEAST_VALUES) * LEAST_VALUES;
    let pieces = planned.iter().enumerate().flat_map(|(item, tensor)| {
        let bits = tensor.layout.dtype.bitsize() as u64;
        // Sub-byte values are compared as bytes.
        let units = if bits < 8 {
            tensor.layout.length()
        } else {
            tensor.layout.length() * 8 / bits
        };
        pieces::cut(item, units, size)
    });

    let compare = |piece: &Piece, space: &mut Space| {
        let layout = &planned[piece.item].layout;
        let width = (layout.dtype.bitsize() / 8).max(1);
        let length = piece.count as usize * width;
        space.expected.resize(length, 0);
        space.found.resize(length, 0);
        let start = piece.first * width as u64;
        evaluator.bytes(piece.item, start, &mut space.expected, &mut space.scratch)?;
        output.read_bytes(output.tensor(&layout.name)?, start, &mut space.found)?;
        (options.progress)(length as u64);
        Ok(difference(
            layout.dtype,
            width,
            piece.first,
            &space.expected,
            &space.found,
        ))
    };
    let mut differences: Vec<Option<Difference>> = planned.iter().map(|_| None).collect();
    pieces::for_each(
        pieces,
        options.threads_of(size * per_value),
        Space::default,
        compare,
        |piece, found| match (&mut differences[piece.item], found) {
            (Some(earlier), Some(later)) => earlier.count += later.count,
            (none, found @ Some(_)) => *none = found,
            _ => {}
        },
    )?;
    Ok(differences)
}

fn difference(
    stored: Dtype,
    width: usize,
    first: u64,
    expected: &[u8],
    found: &[u8],
) -> Option<Difference> {
    if expected == found {
        return None;
    }
    let pairs = || expected.chunks(width).zip(found.chunks(width));
    let at = pairs().position(|(expected, found)| expected != found)?;
    let shown = |bytes: &[u8]| {
        let mut value = [0.0];
        match dtype::decode(stored, bytes, &mut value) {
            true if stored.bitsize() >= 8 => format!("{:?}", value[0]),
            _ => format!("{bytes:02x?}"),
        }
    };
    let count = pairs()
        .filter(|(expected, found)| expected != found)
        .count() as u64;
    let (expected, found) = pairs().nth(at)?;
    Some(Difference {
        element: first + at as u64,
        expected: shown(expected),
        found: shown(found),
        count,
    })
}

/// Levels of an expression; reading a manifest has bounded them.
fn depth(expression: &Expression) -> usize {
    1 + expression.parts().iter().map(depth).max().unwrap_or(0)
}
