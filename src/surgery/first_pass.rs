//! A pass over a whole tensor that comes before any range of it can be computed: a dot product, a threshold.
//!
//! The threads that need the result share the pass. Each takes the next piece; results are folded in the order of the pieces,
//! so that sums of floating-point numbers are the same on any number of threads.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::node::Node;
use super::places::Scratch;
use crate::Result;
use crate::checkpoint::writer::TensorLayout;

/// Values of one piece.
const PIECE: u64 = 1 << 18;

/// Values that are read at a time.
const BLOCK: usize = 1 << 14;

/// Pieces that may be under way or wait to be folded: bounds the memory of their results.
const MOST_AHEAD: u64 = 8;

/// A pass whose pieces make an `A` each, and which makes an `R`.
pub(super) struct FirstPass<A, R> {
    state: Mutex<State<A, R>>,
    moved: Condvar,
}

struct State<A, R> {
    /// The next piece that no thread has taken.
    next: u64,
    /// Pieces that a thread took and failed at.
    returned: Vec<u64>,
    /// Results that wait for those before them.
    waiting: BTreeMap<u64, A>,
    /// Pieces that are folded.
    folded: u64,
    sum: Option<A>,
    result: Option<R>,
}

impl<A, R> Default for FirstPass<A, R> {
    fn default() -> Self {
        let state = State {
            next: 0,
            returned: Vec::new(),
            waiting: BTreeMap::new(),
            folded: 0,
            sum: None,
            result: None,
        };
        Self {
            state: Mutex::new(state),
            moved: Condvar::new(),
        }
    }
}

/// A piece that a thread works on. If it is dropped without a result, another thread may take it.
struct Taken<'a, A, R> {
    pass: &'a FirstPass<A, R>,
    number: Option<u64>,
}

impl<A, R> Drop for Taken<'_, A, R> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.pass.lock().returned.push(number);
            self.pass.moved.notify_all();
        }
    }
}

impl<A, R: Clone> FirstPass<A, R> {
    /// The result of the pass over a tensor of `elements` values. One without values is one empty piece.
    ///
    /// `work` computes piece after piece, each with its first element and its number of elements. `fold` adds a result to the sum
    /// of the results before it, and `finish` makes the result of the pass of their sum.
    pub(super) fn result(
        &self,
        elements: u64,
        mut work: impl FnMut(u64, u64) -> Result<A>,
        fold: impl Fn(&mut A, A),
        finish: impl Fn(A) -> R,
    ) -> Result<R> {
        let pieces = elements.div_ceil(PIECE).max(1);
        loop {
            let number = match self.take(pieces) {
                Taking::Done(result) => return Ok(result),
                Taking::Piece(number) => number,
            };
            let mut taken = Taken {
                pass: self,
                number: Some(number),
            };
            let first = number * PIECE;
            let part = work(first, PIECE.min(elements - first))?;
            taken.number = None;

            let state = &mut *self.lock();
            state.waiting.insert(number, part);
            while let Some(part) = state.waiting.remove(&state.folded) {
                match &mut state.sum {
                    Some(sum) => fold(sum, part),
                    none => *none = Some(part),
                }
                state.folded += 1;
            }
            if state.folded == pieces {
                state.result = state.sum.take().map(&finish);
            }
            self.moved.notify_all();
        }
    }

    /// Waits for the result or for a piece to work on.
    fn take(&self, pieces: u64) -> Taking<R> {
        let mut state = self.lock();
        loop {
            if let Some(result) = &state.result {
                return Taking::Done(result.clone());
            }
            if let Some(number) = state.returned.pop() {
                return Taking::Piece(number);
            }
            if state.next < pieces && state.next < state.folded + MOST_AHEAD {
                state.next += 1;
                return Taking::Piece(state.next - 1);
            }
            let waited = self.moved.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<A, R> FirstPass<A, R> {
    fn lock(&self) -> MutexGuard<'_, State<A, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Taking<R> {
    Done(R),
    Piece(u64),
}

/// A tensor that a first pass reads: what to name if a value is not finite.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) layout: &'a TensorLayout,
    pub(super) elements: u64,
}

impl Whole<'_> {
    /// Calls `visit` with blocks of the values of `parts`, side by side, and with the element that each block begins at.
    ///
    /// # Errors
    /// Values that are not finite, under the names of their sources.
    pub(super) fn read(
        &self,
        parts: &[&Node],
        (first, count): (u64, u64),
        scratch: &mut Scratch,
        mut visit: impl FnMut(u64, &[Vec<f64>], &mut Scratch) -> Result<()>,
    ) -> Result<()> {
        let mut values: Vec<Vec<f64>> = parts
            .iter()
            .map(|_| scratch.free.pop().unwrap_or_default())
            .collect();
        let mut position = first;
        while position < first + count {
            let length = (first + count - position).min(BLOCK as u64) as usize;
            for (part, values) in parts.iter().zip(&mut values) {
                values.resize(length, 0.0);
                part.values(position, values, scratch)?;
                if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                    return Err(part.blame(position + at as u64, self.layout, scratch)?);
                }
            }
            visit(position, &values, scratch)?;
            position += length as u64;
        }
        scratch.free.append(&mut values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::Error;

    #[test]
    fn pieces_are_folded_in_order_on_any_number_of_threads() {
        let pass = FirstPass::<Vec<u64>, Vec<u64>>::default();
        let elements = 20 * PIECE + 7;
        let run = || {
            pass.result(
                elements,
                |first, count| Ok(vec![first, count]),
                |sum, mut part| sum.append(&mut part),
                |sum| sum,
            )
        };
        let found: Vec<Vec<u64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results.collect::<Result<_>>().unwrap()
        });
        let expected: Vec<u64> = (0..21)
            .flat_map(|number| [number * PIECE, if number < 20 { PIECE } else { 7 }])
            .collect();
        assert!(found.iter().all(|found| *found == expected));
    }

    #[test]
    fn a_pass_over_nothing_ends() {
        let pass = FirstPass::<u64, u64>::default();
        let found = pass.result(0, |_, count| Ok(count), |sum, part| *sum += part, |sum| sum);
        assert_eq!(found.unwrap(), 0);
    }

    #[test]
    fn a_thread_that_fails_leaves_its_piece_to_the_others() {
        let pass = FirstPass::<u64, u64>::default();
        let first = AtomicBool::new(true);
        let run = || {
            pass.result(
                3 * PIECE,
                |_, count| {
                    if first.swap(false, Ordering::SeqCst) {
                        return Err(Error::compute("read", "no"));
                    }
                    Ok(count)
                },
                |sum, part| *sum += part,
                |sum| sum,
            )
        };
        run().unwrap_err();
        assert_eq!(run().unwrap(), 3 * PIECE);
    }
}
