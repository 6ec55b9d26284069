//! Tensors made of other tensors' elements in another order: slices, concatenations, repetitions, gathers.
//!
//! Each is a rule that says, for any element, which element of which part it is and how many follow it in a row. So values
//! and undecoded bytes are moved by the same code.

use super::node::Node;
use super::places::{Places, Scratch};
use crate::Result;

/// Parts and the rule that orders their elements.
pub(super) struct Moved<'a> {
    pub(super) parts: Vec<Node<'a>>,
    pub(super) rule: Rule<'a>,
}

/// Where the elements of a tensor are in its parts. Every length counts the elements of a tensor that has some, so it is never 0.
pub(super) enum Rule<'a> {
    /// Of each `stride` elements, the `run` from `offset` on.
    Slice { stride: u64, offset: u64, run: u64 },
    /// In turn `runs[p]` elements of each part `p`; `total` is their sum.
    Concat { runs: Vec<u64>, total: u64 },
    /// `rows` rows of length `row`, each `each` times, and all of it again.
    Repeat { row: u64, rows: u64, each: u64 },
    /// Rows of each head from interleaved pairs to two halves, or to `pairs` from halves.
    Heads {
        rows_per_head: u64,
        row: u64,
        pairs: bool,
    },
    /// Entries of an axis in the order in which they were drawn.
    Gather(Places<'a>),
}

/// A stretch of elements that lie in a row in one part.
struct Run {
    part: usize,
    from: u64,
    length: u64,
}

impl Rule<'_> {
    /// The stretch that begins at element `position`.
    fn run(&self, position: u64, order: &[u32]) -> Run {
        match self {
            Self::Slice {
                stride,
                offset,
                run,
            } => {
                let within = position % run;
                Run {
                    part: 0,
                    from: position / run * stride + offset + within,
                    length: run - within,
                }
            }
            Self::Concat { runs, total } => {
                let (turn, mut within) = (position / total, position % total);
                let mut part = 0;
                while within >= runs[part] {
                    within -= runs[part];
                    part += 1;
                }
                Run {
                    part,
                    from: turn * runs[part] + within,
                    length: runs[part] - within,
                }
            }
            Self::Repeat { row, rows, each } => {
                let (number, column) = (position / row, position % row);
                let from = number / each % rows;
                let length = if *each == 1 {
                    (rows - from) * row
                } else {
                    *row
                };
                Run {
                    part: 0,
                    from: from * row + column,
                    length: length - column,
                }
            }
            Self::Heads {
                rows_per_head,
                row,
                pairs,
            } => {
                let (number, column) = (position / row, position % row);
                let (head, within, half) = (
                    number / rows_per_head,
                    number % rows_per_head,
                    rows_per_head / 2,
                );
                let moved = if *pairs {
                    within % 2 * half + within / 2
                } else {
                    2 * (within % half) + within / half
                };
                let from = head * rows_per_head + moved;
                Run {
                    part: 0,
                    from: from * row + column,
                    length: row - column,
                }
            }
            Self::Gather(Places {
                drawn,
                extent,
                inner,
            }) => {
                let (entry, within) = (position / inner, position % inner);
                let (block, number) = (entry / drawn.length, entry % drawn.length);
                let from = block * extent + u64::from(order[(drawn.start + number) as usize]);
                Run {
                    part: 0,
                    from: from * inner + within,
                    length: inner - within,
                }
            }
        }
    }
}

impl<'a> Moved<'a> {
    /// Fills `out` with the elements from `first` on, `width` items of `T` each; `read` does the same for a part.
    pub(super) fn fill<T: Copy + Default>(
        &self,
        first: u64,
        out: &mut [T],
        width: usize,
        scratch: &mut Scratch,
        read: impl Fn(&Node<'a>, u64, &mut [T], &mut Scratch) -> Result<()>,
    ) -> Result<()> {
        let order = match &self.rule {
            Rule::Gather(places) => scratch.order(places),
            _ => [].into(),
        };
        let (mut position, mut rest) = (first, out);
        if let Rule::Gather(Places {
            drawn,
            extent,
            inner: 1,
        }) = &self.rule
        {
            // Entry by entry would be a read each: whole rows are read instead.
            let mut row = vec![T::default(); *extent as usize * width];
            while !rest.is_empty() {
                let (number, column) = (position / drawn.length, position % drawn.length);
                let length = (drawn.length - column).min((rest.len() / width) as u64);
                read(&self.parts[0], number * extent, &mut row, scratch)?;
                let (piece, others) = rest.split_at_mut(length as usize * width);
                let entries = &order[(drawn.start + column) as usize..];
                for (slot, entry) in piece.chunks_exact_mut(width).zip(entries) {
                    slot.copy_from_slice(&row[*entry as usize * width..][..width]);
                }
                (position, rest) = (position + length, others);
            }
            return Ok(());
        }
        while !rest.is_empty() {
            let run = self.rule.run(position, &order);
            let length = run.length.min((rest.len() / width) as u64);
            let (piece, others) = rest.split_at_mut(length as usize * width);
            read(&self.parts[run.part], run.from, piece, scratch)?;
            (position, rest) = (position + length, others);
        }
        Ok(())
    }

    /// The part that element `position` comes from, and its number there.
    pub(super) fn origin(&self, position: u64, scratch: &mut Scratch) -> (&Node<'a>, u64) {
        let order = match &self.rule {
            Rule::Gather(places) => scratch.order(places),
            _ => [].into(),
        };
        let run = self.rule.run(position, &order);
        (&self.parts[run.part], run.from)
    }
}
