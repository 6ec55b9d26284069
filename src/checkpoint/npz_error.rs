//! What can be wrong with an archive of numpy arrays: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use zip::result::ZipError;

use super::dtype::Dtype;
use crate::error::ErrorPlace;

/// A rule that an archive of numpy arrays breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpzError {
    /// An archive whose end is missing.
    #[error("{}: has no list of its arrays at its end", path.display())]
    NoList {
        /// The archive.
        path: PathBuf,
    },
    /// A list of arrays that cannot be right.
    #[error("{}: has a list of arrays that does not fit the file", path.display())]
    BrokenList {
        /// The archive.
        path: PathBuf,
    },
    /// More names than any model has.
    #[error("{}: expected at most {most} bytes of names, found {found}", path.display())]
    LongList {
        /// The archive.
        path: PathBuf,
        /// The most bytes.
        most: u64,
        /// The bytes.
        found: u64,
    },
    /// More arrays than the list has bytes for.
    #[error(
        "{}: declares {arrays} arrays, which take at least {least} bytes, but lists them in {found}",
        path.display()
    )]
    ManyArrays {
        /// The archive.
        path: PathBuf,
        /// Number of arrays.
        arrays: u64,
        /// The fewest bytes that they take.
        least: u64,
        /// Bytes of the list.
        found: u64,
    },
    /// A name that is not UTF-8.
    #[error("{}: holds a name that is not UTF-8", path.display())]
    NameNotUtf8 {
        /// The archive.
        path: PathBuf,
    },
    /// A file in the archive that is no array.
    #[error("{}: holds `{name}`; expected the names of arrays, NAME.npy", path.display())]
    NotArray {
        /// The archive.
        path: PathBuf,
        /// Name of the file.
        name: String,
    },
    /// An array that breaks a rule.
    #[error("{}: tensor `{tensor}`: {rule}", path.display())]
    Array {
        /// The archive.
        path: PathBuf,
        /// The array.
        tensor: String,
        /// The rule that it breaks.
        rule: ArrayRule,
    },
    /// An archive that cannot be written.
    #[error("{}: cannot be an archive: {error}", path.display())]
    NotWritten {
        /// The archive.
        path: PathBuf,
        /// The answer of the zip writer.
        error: ZipError,
    },
}

/// A rule about one array of an archive.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayRule {
    /// A name twice.
    #[error("is there twice; expected each name once")]
    Repeated,
    /// An encrypted array.
    #[error("is encrypted")]
    Encrypted,
    /// A compressed array.
    #[error("is compressed; expected an array that is stored as it is")]
    Compressed,
    /// An array whose length in the archive differs from its unpacked length.
    #[error("takes {stored} bytes in the archive, but has {length}; expected the same number")]
    TwoLengths {
        /// Bytes in the archive.
        stored: u64,
        /// Bytes once unpacked.
        length: u64,
    },
    /// An array that is somewhere else.
    #[error("is not where the archive's list says")]
    Elsewhere,
    /// A file without the description of an array.
    #[error("is no array of numpy: expected its description")]
    NoDescription,
    /// A description that numpy does not write.
    #[error("has a description that is not numpy's: {found:?}")]
    Description {
        /// The description.
        found: String,
    },
    /// An array of records.
    #[error("has fields; expected plain numbers")]
    Fields,
    /// An array in the order of columns.
    #[error("is in Fortran order; expected C order, as numpy.ascontiguousarray makes it")]
    FortranOrder,
    /// A dtype that is not read.
    #[error("has the dtype `{found}`; expected little-endian numbers such as `<f4`")]
    UnknownDtype {
        /// The dtype.
        found: String,
    },
    /// A shape that does not fit the bytes.
    #[error("has shape {shape:?} of {dtype}, which does not take its {length} bytes")]
    WrongLength {
        /// The shape.
        shape: Vec<u64>,
        /// The dtype.
        dtype: Dtype,
        /// Bytes of the values.
        length: u64,
    },
    /// An array that has bytes of another.
    #[error("shares bytes with `{other}`; expected each array on its own")]
    SharedBytes {
        /// The other array.
        other: String,
    },
    /// A dtype that numpy does not have.
    #[error("is {dtype}, which numpy lacks")]
    NoNumpyDtype {
        /// The dtype.
        dtype: Dtype,
    },
}

impl NpzError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let advice = match self {
            Self::NoList { .. } => "the archive was cut short: copy or download it again",
            Self::BrokenList { .. }
            | Self::Array {
                rule: ArrayRule::Elsewhere,
                ..
            } => "the archive was cut or changed: copy or download it again",
            Self::Array { rule, .. } => match rule {
                ArrayRule::Encrypted => "save the arrays without a password",
                ArrayRule::Compressed => {
                    "save the arrays with numpy.savez in place of numpy.savez_compressed"
                }
                ArrayRule::TwoLengths { .. } => "copy or download the archive again",
                _ => return None,
            },
            _ => return None,
        };
        Some(Cow::Borrowed(advice))
    }

    /// The archive, and the array.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NoList { path }
            | Self::BrokenList { path }
            | Self::LongList { path, .. }
            | Self::ManyArrays { path, .. }
            | Self::NameNotUtf8 { path }
            | Self::NotArray { path, .. }
            | Self::NotWritten { path, .. } => ErrorPlace::of(path),
            Self::Array { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
        }
    }
}
