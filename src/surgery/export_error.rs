//! Why a model cannot be written in another form: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::checkpoint::dtype::{self, Dtype};
use crate::error::ErrorPlace;
use crate::family::Role;

/// A rule that a model breaks which is to be converted or published, or the output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Scales of FP8 weights whose blocks are of an unknown size.
    #[error("{}: tensor `{tensor}`: has shape {found:?}, which are no scales of `{weight}`", path.display())]
    Scales {
        /// The file.
        path: PathBuf,
        /// The scales.
        tensor: String,
        /// Their shape.
        found: Box<[u64]>,
        /// The weight.
        weight: String,
    },
    /// A dtype of integers for weights.
    #[error("--dtype {dtype} is no floating-point dtype that can be written")]
    IntegerDtype {
        /// The dtype.
        dtype: Dtype,
    },
    /// A described model of a kind that cannot be translated.
    #[error("{}: is {kind}, whose model has no translation", path.display())]
    NoTranslation {
        /// The file.
        path: PathBuf,
        /// Its format, with an article.
        kind: String,
    },
    /// A single file where a folder is needed.
    #[error("{}: expected a checkpoint folder with config.json", path.display())]
    NotFolder {
        /// The file.
        path: PathBuf,
    },
    /// Tensors of a role that the other family does not have.
    #[error("{}: has `{role}` tensors that a {family} model has no place for", path.display())]
    NoPlace {
        /// The checkpoint.
        path: PathBuf,
        /// The role.
        role: Role,
        /// The family of the output.
        family: String,
    },
    /// A family without a fused layout.
    #[error("a {family} mixture has no fused layout: each expert has tensors of its own")]
    NoFusedLayout {
        /// The family.
        family: String,
    },
    /// Weights in a dtype that GGUF does not have.
    #[error("{}: its weights are {stored}, which a GGUF file does not hold", path.display())]
    GgufDtype {
        /// The model.
        path: PathBuf,
        /// The dtype.
        stored: Dtype,
    },
    /// Norms of queries or keys that differ between attention experts.
    #[error("{}: tensor `{tensor}`: differs from `{first}`, but the format has one for all experts", path.display())]
    DifferentNorms {
        /// The mixture.
        path: PathBuf,
        /// The norm of another expert.
        tensor: String,
        /// The norm of the first expert.
        first: String,
        /// Layers whose experts differ.
        layers: u64,
        /// Layers of the model.
        all: u64,
    },
    /// A norm whose weights lose too much when they are stored less one.
    #[error("{}: tensor `{tensor}`: {} cannot hold it less one: a weight changes by {:.0} %", path.display(), dtype::name(*dtype).to_lowercase(), share * 100.0)]
    NormRounds {
        /// The mixture.
        path: PathBuf,
        /// The norm.
        tensor: String,
        /// The largest change, as a part of the weight.
        share: f64,
        /// The dtype of the output.
        dtype: Dtype,
    },
    /// A `--dtype` that numpy does not have.
    #[error("numpy has no {}; expected f16, f32 or f64", dtype::name(*dtype))]
    NumpyDtype {
        /// The dtype.
        dtype: Dtype,
    },
    /// A tensor of a dtype that numpy does not have.
    #[error("{}: tensor `{tensor}`: is {stored}, which numpy lacks", path.display())]
    ArrayDtype {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        stored: Dtype,
    },
    /// A tensor whose name is not safe as a file's.
    #[error(
        "{}: tensor `{tensor}`: has a name that an archive cannot hold safely: a path out of it, or the end `.npy`",
        path.display()
    )]
    ArrayName {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor with more extents than numpy has.
    #[error("{}: tensor `{tensor}`: has {found} extents; numpy reads at most {most}", path.display())]
    ArrayExtents {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its extents.
        found: usize,
        /// The most extents.
        most: usize,
    },
    /// An output inside its source.
    #[error("{}: is inside the source {}", path.display(), source_folder.display())]
    InsideSource {
        /// The output.
        path: PathBuf,
        /// The source.
        source_folder: PathBuf,
    },
    /// An output that is there already.
    #[error("{}: exists already", path.display())]
    FileExists {
        /// The output.
        path: PathBuf,
    },
    /// A file of another kind in the place of the output.
    #[error("{}: exists and is {kind}, so --force does not replace it", path.display())]
    OtherFile {
        /// The output.
        path: PathBuf,
        /// What it is not.
        kind: &'static str,
    },
}

impl ExportError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::IntegerDtype { .. } => "choose one of bf16, f16, f32, f64, f8_e4m3, f8_e5m2",
            Self::NotFolder { .. } => {
                "`bam-convert convert FILE DIR` makes a folder of a single file"
            }
            Self::NoFusedLayout { .. } => {
                "leave --layout out, or pass --to with a family of transformers"
            }
            Self::GgufDtype { .. } => "pass --dtype f16, bf16 or f32",
            Self::DifferentNorms { layers, all, .. } => {
                return Some(
                    format!(
                        "they differ in {layers} of {all} layers; transformers runs this BAM with its code, and vLLM with bam-vllm; \
                         specialists trained with --freeze q_norm,k_norm keep the seed's norms"
                    )
                    .into(),
                );
            }
            Self::NormRounds { .. } => "pass --dtype f32",
            Self::NumpyDtype { .. } => "bf16 tensors are stored exactly in f32 without --dtype",
            Self::ArrayDtype { stored, .. } if dtype::is_float(*stored) => {
                "pass --dtype f32 or f16"
            }
            Self::Scales { .. } => {
                "`weight_block_size` of `quantization_config` in config.json says the size of a block"
            }
            Self::InsideSource { .. } => "choose an output outside every source",
            Self::FileExists { .. } => "choose another file, or pass --force",
            Self::OtherFile { .. } => "choose another output, or remove it yourself",
            _ => return None,
        }))
    }

    /// The file or folder, and the tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::IntegerDtype { .. } | Self::NoFusedLayout { .. } | Self::NumpyDtype { .. } => {
                ErrorPlace::default()
            }
            Self::NoTranslation { path, .. }
            | Self::NotFolder { path }
            | Self::NoPlace { path, .. }
            | Self::GgufDtype { path, .. }
            | Self::InsideSource { path, .. }
            | Self::FileExists { path }
            | Self::OtherFile { path, .. } => ErrorPlace::of(path),
            Self::ArrayDtype { path, tensor, .. }
            | Self::DifferentNorms { path, tensor, .. }
            | Self::NormRounds { path, tensor, .. }
            | Self::Scales { path, tensor, .. }
            | Self::ArrayName { path, tensor }
            | Self::ArrayExtents { path, tensor, .. } => ErrorPlace::of(path).with_tensor(tensor),
        }
    }
}
