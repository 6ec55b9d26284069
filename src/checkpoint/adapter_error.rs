//! What can be wrong with an adapter, or with an adapter and the checkpoint that it is added to.

use std::borrow::Cow;
use std::path::PathBuf;

use safetensors::Dtype;

use super::encoding::Encoding;
use crate::error::ErrorPlace;

/// A rule that an adapter breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A folder without the configuration of an adapter.
    #[error("{}: expected a LoRA adapter with adapter_config.json", path.display())]
    NotAdapter {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with a configuration and no weights.
    #[error("{}: expected {expected} beside adapter_config.json", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// The file.
        expected: &'static str,
    },
    /// An adapter of another kind than LoRA.
    #[error("{}: key `peft_type`: is {found}, expected LORA", path.display())]
    Kind {
        /// The configuration.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A key that changes what the adapter means in a way that is not computed here.
    #[error("{}: key `{key}`: is {found}, which bam-convert does not merge", path.display())]
    Unsupported {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
    },
    /// A value of another kind than the key has.
    #[error("{}: key `{key}`: expected {expected}, found {found}", path.display())]
    Value {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is expected.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A pattern that is no regular expression, or takes too long.
    #[error("{}: key `{key}`: the pattern `{pattern}` cannot be matched: {problem}", path.display())]
    Pattern {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that no adapter has.
    #[error("{}: tensor `{tensor}`: is not one of a LoRA adapter", path.display())]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// One factor without the other.
    #[error("{}: module `{module}` has no `{missing}`", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// The module.
        module: String,
        /// The tensor that is missing.
        missing: &'static str,
    },
    /// Two tensors for one purpose.
    #[error("{}: tensor `{tensor}`: is the second of its kind for its module", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A module that the base has no tensor for.
    #[error("{}: tensor `{tensor}`: the base has no `{wanted}`", path.display())]
    NoModule {
        /// The file of the adapter.
        path: PathBuf,
        /// A tensor of the adapter.
        tensor: String,
        /// The tensor that the base would have.
        wanted: String,
        /// The nearest that it has.
        nearest: Option<String>,
        /// How many others of the adapter's tensors have no place, either.
        others: usize,
        /// The base.
        base: PathBuf,
    },
    /// A module with factors that the configuration does not name.
    #[error("{}: has factors of `{module}`, which `{key}` leaves out", path.display())]
    NotTargeted {
        /// The file of the adapter.
        path: PathBuf,
        /// The module.
        module: String,
        /// The key of the configuration.
        key: &'static str,
    },
    /// Magnitudes (DoRA) of an embedding.
    #[error("{}: tensor `{tensor}`: magnitudes of an embedding (DoRA) are not merged", path.display())]
    EmbeddingMagnitude {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A magnitude (DoRA) where the configuration denies one.
    #[error("{}: tensor `{tensor}`: is a magnitude (DoRA), but `use_dora` is not true", path.display())]
    UnsaidMagnitude {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// An input embedding or a head that is stored whole, for a base where one matrix is both.
    #[error("{}: tensor `{tensor}`: replaces one of input embedding and head, but the base has one matrix for both", path.display())]
    Tied {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The module.
        module: String,
    },
    /// Factors whose rank is another than the configuration's.
    #[error("{}: tensor `{tensor}`: has rank {found}, expected {expected}", path.display())]
    Rank {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its rank.
        found: u64,
        /// The rank of the configuration.
        expected: u64,
    },
    /// A tensor of another shape than the base's needs.
    #[error("{}: tensor `{tensor}`: has shape {found:?}, expected {expected:?} for `{base}`", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Box<[u64]>,
        /// The shape that fits.
        expected: Box<[u64]>,
        /// The tensor of the base.
        base: String,
    },
    /// A low-rank sum for a tensor that is no matrix.
    #[error("{}: tensor `{tensor}`: has shape {found:?}, expected a matrix for an adapter", path.display())]
    NotMatrix {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
    },
    /// A tensor that is not stored in floating-point numbers of 16 bits or more.
    #[error("{}: tensor `{tensor}`: is {found}, expected bf16, f16, f32 or f64 for an adapter", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How it is stored.
        found: Encoding,
    },
    /// A factor that is NaN or infinite.
    #[error("tensor `{tensor}`: expected a finite scale, found {found}")]
    Scale {
        /// The tensor.
        tensor: String,
        /// The scale.
        found: f64,
    },
    /// A sum that the dtype of its tensor cannot hold.
    #[error("{}: tensor `{tensor}`: with its adapters, element {element} is {value:e}, beyond {dtype}", path.display())]
    Overflow {
        /// The file of the base.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element.
        element: u64,
        /// The sum.
        value: f64,
        /// The dtype.
        dtype: Dtype,
    },
    /// A tensor that shares its bytes with one that the adapter changes, or whose bytes do not lie together.
    #[error("{}: tensor `{tensor}`: shares its storage with a tensor that the adapter changes", path.display())]
    SharedBytes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A base that is no folder in the Hugging Face layout.
    #[error("{}: an adapter needs a base in the Hugging Face layout", path.display())]
    Base {
        /// The base.
        path: PathBuf,
    },
}

impl AdapterError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::NotAdapter { .. } => "write BASE+ADAPTER, the base model first".into(),
            Self::Kind { .. } | Self::Unsupported { .. } | Self::EmbeddingMagnitude { .. } => {
                "merge the adapter in Python with PEFT's merge_and_unload, and name the merged model".into()
            }
            Self::NoModule {
                nearest,
                others,
                base,
                ..
            } => {
                let near = nearest.as_ref().map_or_else(String::new, |near| {
                    format!("; the nearest that it has is `{near}`")
                });
                let more = if *others > 0 {
                    format!("{others} more tensors of the adapter have no place, either; ")
                } else {
                    String::new()
                };
                format!(
                    "{more}was the adapter trained on {}?{near}",
                    base.display()
                )
                .into()
            }
            Self::Tied { module, .. } => format!(
                "`modules_to_save` has `{module}`, whose copy PEFT trains alone: save the merged model with PEFT's merge_and_unload, or give the base a head of its own"
            )
            .into(),
            Self::UnsaidMagnitude { .. } | Self::Shape { .. } | Self::Rank { .. } => {
                "is this the base that the adapter was trained on, and the adapter's own configuration?".into()
            }
            Self::Base { .. } | Self::SharedBytes { .. } => "convert the base first: `bam-convert convert BASE DIR`".into(),
            Self::NotFloat { .. } => {
                "an adapter is added to plain weights: take the base before it was quantised".into()
            }
            Self::Overflow { .. } => {
                "convert the base to a dtype of wider range first, such as bf16 or f32".into()
            }
            _ => return None,
        })
    }

    /// The file, and the tensor or key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NotAdapter { path }
            | Self::NoWeights { path, .. }
            | Self::Incomplete { path, .. }
            | Self::NotTargeted { path, .. }
            | Self::Base { path } => ErrorPlace::of(path),
            Self::Kind { path, .. } => ErrorPlace::of(path).with_key("peft_type"),
            Self::Unsupported { path, key, .. }
            | Self::Value { path, key, .. }
            | Self::Pattern { path, key, .. } => ErrorPlace::of(path).with_key(key),
            Self::UnknownTensor { path, tensor }
            | Self::Twice { path, tensor }
            | Self::EmbeddingMagnitude { path, tensor }
            | Self::UnsaidMagnitude { path, tensor }
            | Self::Tied { path, tensor, .. }
            | Self::NoModule { path, tensor, .. }
            | Self::Rank { path, tensor, .. }
            | Self::Shape { path, tensor, .. }
            | Self::NotMatrix { path, tensor, .. }
            | Self::SharedBytes { path, tensor }
            | Self::NotFloat { path, tensor, .. }
            | Self::Overflow { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
            Self::Scale { .. } => ErrorPlace::default(),
        }
    }
}
