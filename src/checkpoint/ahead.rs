//! The values of one tensor as a stream of pieces: threads compute them, a few at a time, and one writes them in order.

use rayon::prelude::*;

use super::writer::TensorBytes;
use crate::Result;

/// Values that one thread computes at a time: whole blocks of every quantisation.
const PIECE: u64 = 1 << 17;

/// Calls `make` on the threads of the current pool for each piece of `elements` values, with its first value and their number, and
/// hands the results to `write` in order.
///
/// No more pieces are held than there are threads.
pub(super) fn for_each_piece<B: TensorBytes>(
    elements: u64,
    make: impl Fn((u64, usize), &mut B::Scratch) -> Result<Vec<u8>> + Sync,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let pieces: Vec<u64> = (0..elements.div_ceil(PIECE)).collect();
    for batch in pieces.chunks(rayon::current_num_threads().max(1)) {
        let made: Vec<Vec<u8>> = batch
            .par_iter()
            .map_init(B::Scratch::default, |scratch, piece| {
                let first = piece * PIECE;
                make((first, PIECE.min(elements - first) as usize), scratch)
            })
            .collect::<Result<_>>()?;
        made.iter().try_for_each(|bytes| write(bytes))?;
    }
    Ok(())
}
