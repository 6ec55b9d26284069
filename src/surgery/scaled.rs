//! FP8 weights: each value times the scale of its block.

use super::node::Node;
use super::places::Scratch;
use crate::Result;
use crate::checkpoint::OpenTensor;

/// A matrix whose blocks have scales.
pub(super) struct BlockScaled<'a> {
    pub(super) of: Box<Node<'a>>,
    /// The scales, row-major.
    pub(super) by: OpenTensor<'a>,
    pub(super) columns: u64,
    /// Rows and columns of a block; the last ones may be cut.
    pub(super) block: [u64; 2],
}

impl BlockScaled<'_> {
    /// Values of elements `first..`.
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        self.of.values(first, out, scratch)?;
        let [rows, columns] = self.block;
        let across = self.columns.div_ceil(columns);
        let mut scales = Vec::new();
        let mut rest = out;
        let mut element = first;
        while !rest.is_empty() {
            let (row, column) = (element / self.columns, element % self.columns);
            let count = (self.columns - column).min(rest.len() as u64);
            let (begin, end) = (column / columns, (column + count).div_ceil(columns));
            scales.resize((end - begin) as usize, 0.0);
            self.by.read(row / rows * across + begin, &mut scales)?;

            let (part, others) = rest.split_at_mut(count as usize);
            for (place, value) in (column..).zip(part) {
                *value *= scales[(place / columns - begin) as usize];
            }
            (element, rest) = (element + count, others);
        }
        Ok(())
    }
}
