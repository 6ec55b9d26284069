//! Tensors of a file that hold the rows of several tensors, and what each of these is of them.

use super::expression::Expression;

/// A stored tensor that holds the rows of several tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FusedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its rows fall into this many equal blocks, and each block has as many rows of a part as any other.
    pub blocks: u64,
    /// Names and shapes of the parts, in the order of their rows in a block.
    pub parts: Vec<(String, Vec<u64>)>,
}

/// Which rows of a stored tensor a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartOf {
    /// The stored tensor.
    pub(super) whole: String,
    /// Its blocks.
    pub(super) blocks: u64,
    /// First row of the part in each block.
    pub(super) start: u64,
    /// Rows of the part in each block.
    pub(super) rows: u64,
    /// Whether the stored tensor is a stack, in one entry of which the part has its rows.
    pub(super) in_stack: bool,
}

/// Why a tensor cannot be taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PartFault {
    /// Its bytes do not fall into the parts.
    Uneven,
    /// The file has a part as a tensor of its own.
    Twice {
        /// The part.
        tensor: String,
    },
}

impl FusedTensor {
    /// Whether it is a stack of matrices, or of vectors, each of which holds the rows of parts.
    pub(crate) fn is_stack(&self) -> bool {
        let part = self.parts.first().map_or(0, |(_, shape)| shape.len());
        self.shape.len() > part
    }

    /// Where the parts are in it, in their order; `stored` is its name in the file.
    pub(super) fn places(&self, stored: &str) -> impl Iterator<Item = PartOf> {
        let mut start = 0;
        self.parts.iter().map(move |(_, shape)| {
            let rows = shape.first().copied().unwrap_or(0) / self.blocks.max(1);
            let place = PartOf {
                whole: stored.to_owned(),
                blocks: self.blocks,
                start,
                rows,
                in_stack: self.is_stack(),
            };
            start += rows;
            place
        })
    }
}

impl PartOf {
    /// All of a stored tensor of so many rows.
    pub(super) fn all(stored: &str, rows: u64) -> Self {
        Self {
            whole: stored.to_owned(),
            blocks: 1,
            start: 0,
            rows,
            in_stack: false,
        }
    }

    /// The part of a stored tensor of that shape, which `of` is.
    pub(super) fn expression(&self, mut of: Expression, whole: &[u64]) -> Expression {
        let (mut start, mut extent) = (self.start, whole.first().copied().unwrap_or(0));
        if let (true, [_, rows, ..]) = (self.in_stack, whole) {
            let rows = *rows;
            of = Expression::Entry {
                of: Box::new(of),
                index: start / rows,
            };
            (start, extent) = (start % rows, rows);
        }
        if self.rows * self.blocks == extent {
            return of;
        }
        Expression::Slice {
            of: Box::new(of),
            axis: 0,
            start,
            length: self.rows,
            blocks: self.blocks,
        }
    }
}
