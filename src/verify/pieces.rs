//! Going through tensors piece by piece, in parallel, with results folded in order.
//!
//! Where a piece begins and ends depends on the tensor alone, and results are folded in the order of the pieces. So
//! sums of floating-point numbers are the same on any number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{Error, Result};

/// Pieces handed out before their results are folded: bounds the results that wait.
const BATCH: usize = 8192;

/// A part of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which item.
    pub item: usize,
    /// First element of the part.
    pub first: u64,
    /// Number of elements.
    pub count: u64,
}

/// Cuts an item of `elements` into pieces of `size`; one of no elements has no piece.
pub(super) fn cut(item: usize, elements: u64, size: u64) -> impl Iterator<Item = Piece> {
    let size = size.max(1);
    (0..elements.div_ceil(size)).map(move |number| {
        let first = number * size;
        Piece {
            item,
            first,
            count: size.min(elements - first),
        }
    })
}

/// Threads of at most `threads` that can work at once within `memory` bytes where each takes `bytes`; at least one.
pub(super) fn affordable(threads: usize, memory: u64, bytes: u64) -> usize {
    let affordable = usize::try_from(memory / bytes.max(1)).unwrap_or(usize::MAX);
    threads.min(affordable).max(1)
}

/// Does `work` on every piece with `threads` threads, each with its own `scratch`, and folds the results in order.
///
/// The first error in the order of the pieces done ends it.
pub(super) fn for_each<S, T: Send>(
    pieces: impl IntoIterator<Item = Piece>,
    threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&Piece, &mut S) -> Result<T> + Sync,
    mut fold: impl FnMut(&Piece, T),
) -> Result<()> {
    let mut pieces = pieces.into_iter();
    loop {
        let batch: Vec<Piece> = pieces.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let mut results = run(&batch, threads.clamp(1, batch.len()), &scratch, &work)?;
        results.sort_by_key(|(number, _)| *number);
        for (number, result) in results {
            fold(&batch[number], result);
        }
    }
}

fn run<S, T: Send>(
    batch: &[Piece],
    threads: usize,
    scratch: &(impl Fn() -> S + Sync),
    work: &(impl Fn(&Piece, &mut S) -> Result<T> + Sync),
) -> Result<Vec<(usize, T)>> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let worker = || {
        let mut scratch = scratch();
        let mut done = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = batch.get(number) else {
                break;
            };
            match work(piece, &mut scratch) {
                Ok(result) => done.push((number, result)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut failed = failed
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(earlier, _)| number < *earlier) {
                        *failed = Some((number, error));
                    }
                }
            }
        }
        done
    };
    let results = std::thread::scope(|scope| {
        // With fewer threads than asked for it takes longer.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, worker).ok();
        let others: Vec<_> = (1..threads).map_while(spawn).collect();
        let mut results = worker();
        for other in others {
            match other.join() {
                Ok(mut done) => results.append(&mut done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    match failed
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        Some((_, error)) => Err(error),
        None => Ok(results),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_an_item_once_and_fold_in_order() {
        let mut seen = Vec::new();
        let pieces = cut(0, 100_000, 7).chain(cut(1, 0, 7)).chain(cut(2, 5, 7));
        for_each(
            pieces,
            3,
            || (),
            |piece, ()| Ok(piece.count),
            |piece, count| seen.push((piece.item, piece.first, count)),
        )
        .unwrap();
        assert!(seen.is_sorted());
        assert_eq!(seen.iter().map(|(_, _, count)| count).sum::<u64>(), 100_005);
    }

    #[test]
    fn an_error_ends_it() {
        let error = for_each(
            cut(0, 100, 1),
            2,
            || (),
            |_, ()| Err::<(), _>(Error::compute("add", "no")),
            |_, ()| {},
        );
        assert!(matches!(error, Err(Error::Compute { .. })));
    }
}
