//! The invariants of a safetensors file: one variant for each that a file can break.

use std::borrow::Cow;
use std::path::PathBuf;

use super::Dtype;
use crate::error::ErrorPlace;

/// A rule of the safetensors format that a file breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// A file that ends before the length of its header does.
    #[error("{}: expected an 8-byte header length, found a file of {length} bytes", path.display())]
    ShortFile {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// A header that is longer than the format allows.
    #[error("{}: expected a header of at most {limit} bytes, found a header length of {found}", path.display())]
    LongHeader {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
        /// The length of the header.
        found: u64,
    },
    /// A file that ends before its header does.
    #[error("{}: expected a header of {expected} bytes, found {found} bytes in the file after its length", path.display())]
    CutHeader {
        /// The file.
        path: PathBuf,
        /// The length of the header.
        expected: u64,
        /// Bytes that the file has for it.
        found: u64,
    },
    /// A header that is no object.
    #[error("{}: expected the header to begin with `{{`: not a safetensors file", path.display())]
    NoObject {
        /// The file.
        path: PathBuf,
    },
    /// Metadata with a value that is no string.
    #[error("{}: key `__metadata__`: expected an object whose values are all strings", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
    },
    /// A tensor whose data overlap the data of the tensor before it.
    #[error(
        "{}: tensor `{tensor}`: overlaps the tensor before it: expected data offset {expected}, found {found}", path.display()
    )]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// A tensor with unused bytes before its data.
    #[error(
        "{}: tensor `{tensor}`: leaves a hole before it: expected data offset {expected}, found {found}", path.display()
    )]
    Hole {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// A file that ends before its last tensor does.
    #[error(
        "{}: tensor `{tensor}`: is cut short: expected {expected} bytes of tensor data, found {found}", path.display()
    )]
    CutData {
        /// The file.
        path: PathBuf,
        /// The last tensor.
        tensor: String,
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes of data in the file.
        found: u64,
    },
    /// A file that continues after its last tensor.
    #[error(
        "{}: bytes after the last tensor: expected {expected} bytes of tensor data, found {found}", path.display()
    )]
    TrailingData {
        /// The file.
        path: PathBuf,
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes of data in the file.
        found: u64,
    },
    /// An entry that is no object.
    #[error(
        "{}: tensor `{tensor}`: expected an object with dtype, shape and data_offsets, found {found}", path.display()
    )]
    NotEntry {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The entry, in words.
        found: String,
    },
    /// An entry with another field.
    #[error("{}: tensor `{tensor}`: expected only dtype, shape and data_offsets, found `{field}`", path.display())]
    UnknownField {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The field.
        field: String,
    },
    /// An entry without one of its fields.
    #[error("{}: tensor `{tensor}`: expected the field `{field}`, which is missing", path.display())]
    NoField {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The field.
        field: &'static str,
    },
    /// A dtype that the format does not have.
    #[error("{}: tensor `{tensor}`: expected a safetensors dtype, found {found}", path.display())]
    UnknownDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype, in words.
        found: String,
    },
    /// A field that is no list of sizes.
    #[error("{}: tensor `{tensor}`: expected `{field}` to be an array of non-negative integers", path.display())]
    NotIntegers {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The field.
        field: &'static str,
    },
    /// More or fewer than two offsets.
    #[error("{}: tensor `{tensor}`: expected two data_offsets, found {found}", path.display())]
    OffsetCount {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The number of offsets.
        found: usize,
    },
    /// Offsets in the wrong order.
    #[error("{}: tensor `{tensor}`: expected data_offsets in order, found [{begin}, {end}]", path.display())]
    OffsetOrder {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first offset.
        begin: u64,
        /// The second offset.
        end: u64,
    },
    /// An offset that does not fit into 64 bits.
    #[error("{}: tensor `{tensor}`: data offset {begin} overflows", path.display())]
    OffsetOverflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first offset.
        begin: u64,
    },
    /// A shape that is not a whole number of bytes.
    #[error(
        "{}: tensor `{tensor}`: shape {shape:?} of {dtype} is not a whole number of bytes below 2^64", path.display()
    )]
    UncountableShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its dtype.
        dtype: Dtype,
    },
    /// A shape that takes more or fewer bytes than the offsets span.
    #[error(
        "{}: tensor `{tensor}`: shape {shape:?} of {dtype} takes {bytes} bytes, but its data_offsets span {span}",
        path.display()
    )]
    WrongSpan {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its dtype.
        dtype: Dtype,
        /// Bytes that it takes.
        bytes: u64,
        /// Bytes between its offsets.
        span: u64,
    },
}

impl HeaderError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::ShortFile { .. } | Self::LongHeader { .. } | Self::CutHeader { .. } => {
                "the file is cut short or is no safetensors file: copy or download it again"
            }
            Self::CutData { .. } | Self::TrailingData { .. } => {
                "the file was cut or appended to: copy or download it again"
            }
            _ => return None,
        }))
    }

    /// The file, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::ShortFile { path, .. }
            | Self::LongHeader { path, .. }
            | Self::CutHeader { path, .. }
            | Self::NoObject { path }
            | Self::TrailingData { path, .. } => ErrorPlace::of(path),
            Self::Metadata { path } => ErrorPlace::of(path).with_key("__metadata__"),
            Self::Overlap { path, tensor, .. }
            | Self::Hole { path, tensor, .. }
            | Self::CutData { path, tensor, .. }
            | Self::NotEntry { path, tensor, .. }
            | Self::UnknownField { path, tensor, .. }
            | Self::NoField { path, tensor, .. }
            | Self::UnknownDtype { path, tensor, .. }
            | Self::NotIntegers { path, tensor, .. }
            | Self::OffsetCount { path, tensor, .. }
            | Self::OffsetOrder { path, tensor, .. }
            | Self::OffsetOverflow { path, tensor, .. }
            | Self::UncountableShape { path, tensor, .. }
            | Self::WrongSpan { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
        }
    }
}
