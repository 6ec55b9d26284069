//! NaN, infinities and all-zero matrices.

use std::collections::{BTreeMap, BTreeSet};

use super::pieces::{self, Piece};
use super::report::{FindingPlace, ValidationReport};
use super::subject::{Subject, ValidateOptions};
use super::tensors;
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::{Encoding, TensorEntry, dtype};
use crate::table;

/// Bytes of a plain tensor looked at in one go.
const PIECE_BYTES: u64 = 1 << 20;
/// Values of a block-quantised tensor looked at in one go: a multiple of every block size.
const PIECE_VALUES: u64 = 1 << 17;
/// Working memory of one thread: the raw piece, and eight times that where a piece of bytes must be decoded.
const THREAD_MEMORY: u64 = 9 * PIECE_BYTES;

/// Counts over the values of a tensor.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    nan: u64,
    infinite: u64,
    first: Option<u64>,
    nonzero: bool,
}

/// Working space of one thread.
#[derive(Default)]
struct Scratch {
    raw: Vec<u8>,
    values: Vec<f64>,
}

/// Adds the row `numbers`.
pub(super) fn check(
    report: &mut ValidationReport,
    subject: &Subject,
    options: &ValidateOptions,
) -> Result<()> {
    let Some(checkpoint) = &subject.checkpoint else {
        report.skip("numbers", "the weights could not be opened");
        return Ok(());
    };
    let entries: Vec<(&String, &TensorEntry)> = checkpoint.tensors.iter().collect();
    let seen = look_at_all(checkpoint, &entries, options)?;
    let zero: BTreeSet<&str> = entries
        .iter()
        .zip(&seen)
        .filter(|(_, seen)| !seen.nonzero && seen.first.is_none())
        .map(|((name, _), _)| name.as_str())
        .collect();
    // A router may start at zero where it does not choose; where it does, its own check says so.
    let (routers, neutral) = match &subject.architecture {
        Some(architecture) => (
            tensors::routers(checkpoint, architecture)?,
            tensors::neutral_shared_experts(checkpoint, architecture, &zero)?,
        ),
        None => Default::default(),
    };
    let neutral_layers: BTreeSet<u64> = neutral.iter().filter_map(|spec| spec.layer).collect();
    let expected: BTreeSet<String> = routers
        .into_iter()
        .chain(neutral)
        .map(|spec| spec.name)
        .collect();

    let mut check = report.check("numbers");
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for ((name, entry), seen) in entries.iter().zip(&seen) {
        match seen.first {
            Some(first) => {
                let problem = not_finite(entry, seen, first, &mut kinds);
                check.fault(FindingPlace::tensor(name), problem);
            }
            None if is_float_matrix(entry) && !seen.nonzero && !expected.contains(*name) => {
                check.warn(FindingPlace::tensor(name), "is all zeros");
            }
            None => {}
        }
    }
    check.done(detail(&entries, neutral_layers.len() as u64, &kinds));
    Ok(())
}

/// Looks at every value of every tensor that holds numbers.
fn look_at_all(
    checkpoint: &Checkpoint,
    entries: &[(&String, &TensorEntry)],
    options: &ValidateOptions,
) -> Result<Vec<Seen>> {
    let mut seen = vec![Seen::default(); entries.len()];
    let pieces = entries.iter().enumerate().flat_map(|(item, (_, entry))| {
        let elements = if piece_size(entry).is_some() {
            entry.elements()
        } else {
            0
        };
        pieces::cut(item, elements, piece_size(entry).unwrap_or(1))
    });
    let look = |piece: &Piece, scratch: &mut Scratch| {
        let entry = entries[piece.item].1;
        let found = look_at(checkpoint, entry, piece, scratch)?;
        (options.progress)(share(entry, piece));
        Ok(found)
    };
    pieces::for_each(
        pieces,
        options.threads_of(THREAD_MEMORY),
        Scratch::default,
        look,
        |piece, found| {
            let all = &mut seen[piece.item];
            all.nan += found.nan;
            all.infinite += found.infinite;
            all.first = all.first.or(found.first);
            all.nonzero |= found.nonzero;
        },
    )?;
    Ok(seen)
}

/// Whether a tensor is a matrix of floating-point numbers, which should not be zero throughout.
fn is_float_matrix(entry: &TensorEntry) -> bool {
    entry.shape.len() >= 2
        && entry.elements() > 0
        && piece_size(entry).is_some()
        && entry.encoding.plain().is_none_or(dtype::is_float)
}

/// What is wrong with a tensor whose element `first` is not finite; counts tensors by what they hold.
fn not_finite(
    entry: &TensorEntry,
    seen: &Seen,
    first: u64,
    kinds: &mut BTreeMap<&str, u64>,
) -> String {
    let mut what = Vec::new();
    for (count, kind) in [(seen.nan, "NaN"), (seen.infinite, "infinite")] {
        if count > 0 {
            *kinds.entry(kind).or_default() += 1;
            what.push(format!("{count} {kind}"));
        }
    }
    let (what, all) = (what.join(" and "), entry.elements());
    format!("{what} of {all} values, the first at element {first}")
}

/// What the row says: how much was read, and what was found.
fn detail(
    entries: &[(&String, &TensorEntry)],
    neutral_layers: u64,
    kinds: &BTreeMap<&str, u64>,
) -> String {
    let (mut values, mut unread) = (0u64, 0u64);
    for (_, entry) in entries {
        match piece_size(entry) {
            Some(_) => values = values.saturating_add(entry.elements()),
            None => unread += 1,
        }
    }
    let mut detail = format!("{values} values");
    if unread > 0 {
        let tensors = table::counted(unread, "tensor");
        detail.push_str(&format!(
            ", {tensors} of a dtype that holds no plain numbers not read"
        ));
    }
    if neutral_layers > 0 {
        let layers = table::counted(neutral_layers, "layer");
        detail.push_str(&format!(
            ", a shared expert of zeros, which adds nothing, in {layers}"
        ));
    }
    for (kind, count) in kinds {
        detail.push_str(&format!(", {kind} in {}", table::counted(*count, "tensor")));
    }
    detail
}

/// Elements of a tensor looked at in one go; `None` where its dtype cannot be read as numbers.
pub(super) fn piece_size(entry: &TensorEntry) -> Option<u64> {
    match entry.encoding {
        Encoding::Plain(dtype) if dtype::is_numeric(dtype) => {
            Some(PIECE_BYTES * 8 / dtype.bitsize() as u64)
        }
        Encoding::Plain(_) => None,
        Encoding::Ggml(_) => Some(PIECE_VALUES),
    }
}

/// Bytes of the file for a piece. The pieces of a tensor add up to its length.
pub(super) fn share(entry: &TensorEntry, piece: &Piece) -> u64 {
    let (length, elements) = (
        u128::from(entry.length),
        u128::from(entry.elements().max(1)),
    );
    let upto = |element: u64| u128::from(element) * length / elements;
    (upto(piece.first + piece.count) - upto(piece.first)) as u64
}

fn look_at(
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    piece: &Piece,
    scratch: &mut Scratch,
) -> Result<Seen> {
    let count = piece.count as usize;
    if let Encoding::Plain(dtype) = entry.encoding {
        let size = dtype.bitsize() / 8;
        let start = piece.first * size as u64;
        // A zero is finite in every dtype: what a sparse file does not store need not be read.
        if checkpoint.is_hole(entry, start, (count * size) as u64) {
            return Ok(Seen::default());
        }
        scratch.raw.resize(count * size, 0);
        checkpoint.read_bytes(entry, start, &mut scratch.raw)?;
        let nonzero = scratch.raw.iter().any(|byte| *byte != 0);
        if dtype::first_non_finite(dtype, &scratch.raw).is_none() {
            return Ok(Seen {
                nonzero,
                ..Seen::default()
            });
        }
    }
    scratch.values.resize(count, 0.0);
    checkpoint.read_values(entry, piece.first, &mut scratch.values, &mut scratch.raw)?;
    let mut seen = Seen::default();
    for (number, value) in scratch.values.iter().enumerate() {
        seen.nonzero |= *value != 0.0;
        if !value.is_finite() {
            seen.nan += u64::from(value.is_nan());
            seen.infinite += u64::from(value.is_infinite());
            seen.first = seen.first.or(Some(piece.first + number as u64));
        }
    }
    Ok(seen)
}
