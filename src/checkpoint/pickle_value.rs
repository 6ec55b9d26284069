//! What pickles of PyTorch make: values, names that are known, and why a pickle is refused.

use std::rc::Rc;

use super::dtype::Dtype;

/// Values that a pickle may make; a model of 50,000 tensors makes some 900,000.
pub(super) const MOST_VALUES: usize = 1 << 21;

/// The place of a value among the values of its pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueId(pub(super) u32);

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum PickleValue {
    Bool(bool),
    Int(i64),
    /// Text in the pickle, from one byte to another.
    Text(usize, usize),
    /// A tuple or list.
    Sequence(Vec<ValueId>),
    Dict(Vec<(ValueId, ValueId)>),
    Name(Name),
    Storage(Rc<Storage>),
    Tensor(StoredTensor),
    /// None, or a number or bytes that no tensor needs.
    Other,
}

/// A name that the interpreter knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// `collections.OrderedDict`.
    Dict,
    /// `torch._utils._rebuild_tensor` and its successors; whether the dtype is the last argument.
    Tensor { says_dtype: bool },
    /// `torch._utils._rebuild_parameter`.
    Parameter,
    /// `torch.Size`.
    Size,
    /// A kind of storage; one without dtype counts bytes.
    Storage(Option<Dtype>),
    /// A dtype.
    Dtype(Dtype),
}

/// Values of tensors in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Its name.
    pub(crate) key: String,
    /// What it holds; `None`: bytes.
    pub(crate) dtype: Option<Dtype>,
    /// How many of these it holds.
    pub(crate) length: u64,
    /// Where it begins in the storage of that name, which may be another's part.
    pub(crate) begin: u64,
}

/// A tensor, as a view of a storage. Counts are of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) storage: Rc<Storage>,
    pub(crate) dtype: Dtype,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// Why a pickle is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleRule {
    /// An end before the last instruction.
    #[error("the pickle is cut short")]
    Truncated,
    /// An instruction that no pickle of tensors needs.
    #[error("the pickle has instruction {code:#04x}, which no file of tensors needs")]
    Instruction {
        /// The instruction.
        code: u8,
    },
    /// A name that is not known.
    #[error("the pickle names `{name}`, which bam-convert does not call or load")]
    UnknownName {
        /// Module and name.
        name: String,
    },
    /// A call of something that cannot be called so.
    #[error("the pickle calls {what} with other arguments than PyTorch writes")]
    Call {
        /// What is called.
        what: &'static str,
    },
    /// An instruction without its values.
    #[error("the pickle takes a value that it has not made")]
    Stack,
    /// Too many values.
    #[error("the pickle makes more than {MOST_VALUES} values")]
    ManyValues,
    /// A text that is not UTF-8.
    #[error("the pickle has a text that is not UTF-8")]
    Text,
    /// A storage that does not say what it is.
    #[error("the pickle describes a storage as PyTorch does not")]
    StorageForm,
    /// Numbers with the most significant byte first.
    #[error("holds big-endian numbers, expected little-endian")]
    BigEndian,
    /// A tensor with metadata.
    #[error("a tensor's values are still to be negated or conjugated")]
    Metadata,
    /// An extent or a stride below zero.
    #[error("a tensor has an extent, a stride or an offset below zero")]
    Negative,
}

pub(super) type Outcome<T> = std::result::Result<T, PickleRule>;

/// Names that are known.
pub(super) fn known(module: &str, name: &str) -> Option<Name> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Name::Dict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
            Name::Tensor { says_dtype: false }
        }
        ("torch._utils", "_rebuild_tensor_v3") => Name::Tensor { says_dtype: true },
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Name::Parameter,
        ("torch", "Size") => Name::Size,
        ("torch", kind) if kind.ends_with("Storage") => Name::Storage(match kind {
            "DoubleStorage" => Some(Dtype::F64),
            "FloatStorage" => Some(Dtype::F32),
            "HalfStorage" => Some(Dtype::F16),
            "BFloat16Storage" => Some(Dtype::BF16),
            "LongStorage" => Some(Dtype::I64),
            "IntStorage" => Some(Dtype::I32),
            "ShortStorage" => Some(Dtype::I16),
            "CharStorage" => Some(Dtype::I8),
            "ByteStorage" => Some(Dtype::U8),
            "BoolStorage" => Some(Dtype::BOOL),
            "UntypedStorage" => None,
            _ => return None,
        }),
        ("torch.storage", "UntypedStorage") => Name::Storage(None),
        ("torch", dtype) => Name::Dtype(match dtype {
            "float64" => Dtype::F64,
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::BF16,
            "float8_e4m3fn" => Dtype::F8_E4M3,
            "float8_e5m2" => Dtype::F8_E5M2,
            "float8_e4m3fnuz" => Dtype::F8_E4M3FNUZ,
            "float8_e5m2fnuz" => Dtype::F8_E5M2FNUZ,
            "float8_e8m0fnu" => Dtype::F8_E8M0,
            "int64" => Dtype::I64,
            "int32" => Dtype::I32,
            "int16" => Dtype::I16,
            "int8" => Dtype::I8,
            "uint64" => Dtype::U64,
            "uint32" => Dtype::U32,
            "uint16" => Dtype::U16,
            "uint8" => Dtype::U8,
            "bool" => Dtype::BOOL,
            _ => return None,
        }),
        _ => return None,
    })
}
