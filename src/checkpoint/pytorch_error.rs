//! What can be wrong with a file of PyTorch: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use super::dtype::Dtype;
use super::pickle_value::PickleRule;
use crate::error::ErrorPlace;

/// A rule that a file of PyTorch breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PytorchError {
    /// A pickle that is refused.
    #[error("{}: {rule}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        rule: PickleRule,
    },
    /// An archive without a part.
    #[error("{}: has no `{name}`, which PyTorch's archives have", path.display())]
    NoEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
    },
    /// An entry that is not where the archive's list says, or there twice.
    #[error("{}: entry `{name}` of the archive is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
    },
    /// A pickle that is larger than any model's.
    #[error("{}: expected a pickle of at most {most} bytes, found {found}", path.display())]
    LongPickle {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        most: u64,
        /// The bytes.
        found: u64,
    },
    /// A pickle of something else than tensors by name.
    #[error("{}: holds {found}, expected tensors by name", path.display())]
    NotTensors {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// Tensors in a dictionary in the dictionary of tensors.
    #[error("{}: `{key}` holds more tensors, expected one level of names", path.display())]
    Nested {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A name twice.
    #[error("{}: tensor `{tensor}`: is there twice", path.display())]
    Repeated {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A storage that the file does not hold whole.
    #[error("{}: tensor `{tensor}`: its storage takes {needed} bytes, the file has {found}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes that the storage should have.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A tensor that reaches past the end of its storage.
    #[error("{}: tensor `{tensor}`: shape {shape:?} with strides {strides:?} leaves its storage", path.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Box<[u64]>,
        /// Its strides.
        strides: Box<[u64]>,
    },
    /// A tensor that repeats values of its storage, or has them in an order that is not read.
    #[error("{}: tensor `{tensor}`: strides {strides:?} of {dtype} are not read", path.display())]
    Strides {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its strides.
        strides: Box<[u64]>,
        /// Its dtype.
        dtype: Dtype,
    },
    /// Tensors that share storages so often that they are together far larger than the file.
    #[error("{}: its tensors take {found} bytes, the file has {length}", path.display())]
    ManyViews {
        /// The file.
        path: PathBuf,
        /// Bytes of all tensors.
        found: u64,
        /// Bytes of the file.
        length: u64,
    },
}

impl PytorchError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let advice = match self {
            Self::Pickle {
                rule: PickleRule::Truncated,
                ..
            }
            | Self::NoEntry { .. }
            | Self::Damaged { .. }
            | Self::Storage { .. } => "copy or download the file again",
            Self::Pickle {
                rule: PickleRule::BigEndian,
                ..
            } => "save it on a machine of the usual byte order",
            Self::Pickle { .. }
            | Self::NotTensors { .. }
            | Self::Nested { .. }
            | Self::Strides { .. } => {
                "if you trust the file, load it in Python and save its tensors with safetensors.torch.save_file"
            }
            _ => return None,
        };
        Some(Cow::Borrowed(advice))
    }

    /// The file, and the tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Pickle { path, .. }
            | Self::NoEntry { path, .. }
            | Self::Damaged { path, .. }
            | Self::LongPickle { path, .. }
            | Self::NotTensors { path, .. }
            | Self::ManyViews { path, .. } => ErrorPlace::of(path),
            Self::Nested { path, key } => ErrorPlace::of(path).with_key(key),
            Self::Repeated { path, tensor }
            | Self::Storage { path, tensor, .. }
            | Self::Outside { path, tensor, .. }
            | Self::Strides { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
        }
    }
}
