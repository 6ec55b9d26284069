//! Where a tensor is in its file and how its bytes encode numbers.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::ggml::GgmlType;

/// How a tensor's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One value after the other, little-endian.
    Plain(Dtype),
    /// Blocks of a GGML type, as GGUF files hold them.
    Ggml(GgmlType),
}

impl Encoding {
    /// The dtype, where values are stored plainly.
    pub fn plain(self) -> Option<Dtype> {
        match self {
            Self::Plain(dtype) => Some(dtype),
            Self::Ggml(_) => None,
        }
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype}"),
            Self::Ggml(ggml) => f.write_str(ggml.name()),
        }
    }
}

/// One tensor of a checkpoint: its place, its encoding, its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Index of the file among the checkpoint's files.
    pub file: usize,
    /// Offset of the first byte in that file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// How the bytes are to be read.
    pub encoding: Encoding,
    /// Extents, outermost first: `[out, in]` for a weight.
    pub shape: Vec<u64>,
    /// The runs of bytes that it consists of, where its bytes do not lie together.
    pub runs: Option<Runs>,
}

/// Runs of bytes of one length, which lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Bytes of each; never 0.
    length: u64,
    /// From one run to the next, the innermost axis first; of those that are not needed, one step of nothing.
    axes: [Axis; MOST_AXES],
}

/// Steps from one run of bytes to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Runs along the axis.
    pub count: u64,
    /// Bytes from the beginning of one to the beginning of the next.
    pub stride: u64,
}

/// Axes of runs at most.
pub const MOST_AXES: usize = 4;

impl Runs {
    /// Runs of `length` bytes along `axes`, the innermost first, of which there are at most [`MOST_AXES`].
    pub fn new(length: u64, axes: &[Axis]) -> Self {
        let none = Axis {
            count: 1,
            stride: 0,
        };
        let mut all = [none; MOST_AXES];
        for (place, axis) in all.iter_mut().zip(axes) {
            *place = *axis;
        }
        Self { length, axes: all }
    }

    /// Bytes from the beginning of the first run to the beginning of another.
    fn start(&self, mut run: u64) -> u64 {
        let mut start = 0;
        for axis in &self.axes {
            start += run % axis.count * axis.stride;
            run /= axis.count;
        }
        start
    }
}

impl TensorEntry {
    /// Number of values; readers have checked that it does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Where `length` of its bytes from `start` on are in the file: offset and length of each piece, in order.
    pub(crate) fn pieces(&self, start: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
        // One run holds all bytes where they lie together.
        let runs = self.runs.unwrap_or(Runs::new(u64::MAX, &[]));
        let (offset, end) = (self.offset, start + length);
        let mut position = start;
        std::iter::from_fn(move || {
            let (run, within) = (position / runs.length, position % runs.length);
            let count = (runs.length - within).min(end - position);
            position += count;
            (count > 0).then(|| (offset + runs.start(run) + within, count))
        })
    }

    /// The tensor of this shape in `rows` of its rows from `first` on, in each of `blocks` equal blocks of rows. `None` where a
    /// row of it does not end with a byte.
    pub(super) fn rows(&self, blocks: u64, first: u64, rows: u64, shape: Vec<u64>) -> Option<Self> {
        let row: u64 = shape.get(1..)?.iter().product();
        let all = self.elements().checked_div(row).filter(|all| *all > 0)?;
        let is_whole = self.runs.is_none()
            && self.length.is_multiple_of(all)
            && blocks > 0
            && all.is_multiple_of(blocks);
        let bytes = self.length / all;
        let (run, stride) = (rows * bytes, self.length / blocks.max(1));
        (is_whole && run > 0).then(|| Self {
            file: self.file,
            offset: self.offset + first * bytes,
            length: run * blocks,
            encoding: self.encoding,
            shape,
            runs: (blocks > 1).then(|| {
                let count = blocks;
                Runs::new(run, &[Axis { count, stride }])
            }),
        })
    }
}

/// Two tensors of one file that share bytes, the one that begins first before the other. With shared bytes the tensors of a
/// file could together be larger than the file. Readers have checked that no tensor ends after the file.
pub(super) fn overlapping(
    tensors: &BTreeMap<String, TensorEntry>,
) -> Option<[(&String, &TensorEntry); 2]> {
    let mut spans: Vec<_> = tensors
        .iter()
        .filter(|(_, entry)| entry.length > 0)
        .collect();
    spans.sort_by_key(|(_, entry)| entry.offset);
    spans
        .array_windows()
        .find(|[(_, a), (_, b)]| a.offset + a.length > b.offset)
        .copied()
}
