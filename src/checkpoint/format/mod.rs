//! The formats of weight files that we read: one file each, with one trait.
//!
//! `FORMATS` lists them. A format hands out tensors with their places in the file and, where the file describes its model
//! itself, that description. Hashes, changes while reading and the files beside the weights are the same for all formats, so
//! `folder.rs` and `source_file.rs` take care of them.

mod gguf;
mod npz;
mod pytorch;
mod safetensors;
mod zip_directory;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use super::encoding::TensorEntry;
use super::source_file::{ReadAt, SourceFile};
use crate::checkpoint::ForeignError;
use crate::{Error, Result};

/// Every format; safetensors comes last, because its files begin with no magic number.
static FORMATS: [&dyn WeightFormat; 4] = [
    &gguf::GgufFile,
    &npz::NumpyArchive,
    &pytorch::PytorchFile,
    &safetensors::SafetensorsFile,
];

/// A format of weight files.
pub(crate) trait WeightFormat: Debug + Sync {
    /// What messages call a file of this format, without an article.
    fn name(&self) -> &'static str;

    /// Whether a checkpoint folder's weight files may have this name; none where only a file that is named itself is read.
    fn is_in_folder(&self, _name: &str) -> bool {
        false
    }

    /// Whether a file that begins with `head` is of this format. Safetensors is never asked: every other file may be one.
    fn recognises(&self, head: &[u8]) -> bool;

    /// Reads everything but tensor data; entries point to file number `number`.
    ///
    /// # Errors
    /// Where the file breaks a rule of the format: the error names the tensor or key.
    fn read(&self, file: &SourceFile, number: usize) -> Result<WeightFile>;
}

/// What a weight file holds.
pub(crate) struct WeightFile {
    /// Its tensors by name.
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    /// What it says of its model.
    pub(crate) description: Option<Box<dyn ModelDescription>>,
}

/// The description of its model that a weight file carries.
///
/// Names, keys and tokens in it follow the conventions of the file's format. This room knows nothing of models:
/// [`family::described`](crate::family::described) translates them.
pub trait ModelDescription: Any + Debug + Send + Sync {
    /// The metadata by key, each value in words.
    fn metadata(&self) -> BTreeMap<String, String>;
}

/// The description of a model, and the file that carries it.
#[derive(Debug)]
pub struct Described {
    /// The name of the format in messages, without an article.
    pub name: &'static str,
    /// What the file says.
    pub model: Box<dyn ModelDescription>,
}

impl Described {
    /// The refusal where `place` must hold weights in the Hugging Face layout.
    pub(super) fn refusal(&self, place: &Path) -> Error {
        ForeignError::HoldsWeightFile {
            path: place.to_path_buf(),
            kind: a(self.name),
        }
        .into()
    }
}

/// The name with its article.
pub(crate) fn a(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {name}")
}

/// The format other than safetensors of a file that begins with `head`.
pub(super) fn recognised(head: &[u8]) -> Option<&'static dyn WeightFormat> {
    let with_magic = &FORMATS[..FORMATS.len() - 1];
    with_magic
        .iter()
        .copied()
        .find(|format| format.recognises(head))
}

/// Reads everything but the tensor data of a weight file: its tensors and its description of its model.
pub(super) fn read(
    file: &SourceFile,
    number: usize,
) -> Result<(BTreeMap<String, TensorEntry>, Option<Described>)> {
    let head = head(file)?;
    let format = recognised(&head).unwrap_or(&safetensors::SafetensorsFile);

    let found = format.read(file, number)?;
    let described = found.description.map(|model| Described {
        name: format.name(),
        model,
    });
    Ok((found.tensors, described))
}

/// Whether a file of a checkpoint folder holds weights, by its name.
pub fn is_weight_file(name: &str) -> bool {
    FORMATS.iter().any(|format| format.is_in_folder(name))
}

/// Whether a file of a checkpoint folder holds weights as PyTorch saves them, by its name.
pub fn is_pytorch_file(name: &str) -> bool {
    pytorch::PytorchFile.is_in_folder(name)
}

/// As many first bytes as say what a file is.
pub(super) const HEAD: usize = 512;

/// The first bytes of a file, as recognising its content needs them.
pub(super) fn head(file: &SourceFile) -> Result<Vec<u8>> {
    let mut bytes = vec![0; file.len().min(HEAD as u64) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
