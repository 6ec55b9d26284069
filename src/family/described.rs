//! Models that describe themselves in their weight file, in the Hugging Face layout: configuration, tensor names, tokenizer.
//!
//! A format's reader hands out the description as the file has it ([`ModelDescription`]); a translator here knows what it means.
//! A format whose files describe no model needs none.

use std::any::Any;
use std::path::Path;

use serde_json::{Map, Value};

use super::gguf::{self, GgufTensor};
use super::gguf_architecture::other_architecture;
use super::gguf_tokenizer::{self, TextFile};
use crate::checkpoint::format::ModelDescription;
use crate::checkpoint::{Checkpoint, Gguf, foreign};
use crate::{Error, Result};

/// A model as its weight file describes it.
pub trait DescribedModel {
    /// The refusal of a model of a kind that cannot be translated; `None` for one that can.
    ///
    /// # Errors
    /// Where the file does not say its kind.
    fn unknown(&self) -> Result<Option<Error>>;

    /// The `config.json`.
    ///
    /// # Errors
    /// Keys that are missing, contradict each other, or mean what no configuration can say.
    fn config(&self) -> Result<Map<String, Value>>;

    /// Every tensor under its Hugging Face name.
    ///
    /// # Errors
    /// Tensors that are missing, unknown, of another shape than the description says, or stored so that their values cannot be
    /// computed.
    fn tensors(&self) -> Result<Vec<GgufTensor>>;

    /// The tokenizer and generation files.
    ///
    /// # Errors
    /// A tokenizer that cannot be rebuilt.
    fn tokenizer_files(&self) -> Result<Vec<TextFile>>;
}

/// Recognises the descriptions of one format.
type Translator = fn(&dyn ModelDescription) -> Option<&dyn DescribedModel>;

/// The translators, each of which knows the descriptions of one format.
static TRANSLATORS: [Translator; 1] = [of_gguf];

/// The model that the weight file of a checkpoint describes; `None` where it describes none.
pub fn model_of(checkpoint: &Checkpoint) -> Option<&dyn DescribedModel> {
    let description = checkpoint.described.as_ref()?;
    TRANSLATORS
        .iter()
        .find_map(|translator| translator(&*description.model))
}

/// Refuses a file where a checkpoint folder is meant; of a file that `convert` would refuse too, it says why.
///
/// # Errors
/// As [`foreign::expect_folder`].
pub fn expect_folder(path: &Path) -> Result<()> {
    foreign::expect_folder(path).map_err(|error| refusal(path).unwrap_or(error))
}

/// Why `convert` would refuse a file that describes its model; `None` for every other file.
fn refusal(path: &Path) -> Option<Error> {
    let checkpoint = Checkpoint::open(path).ok()?;
    model_of(&checkpoint)?.unknown().ok().flatten()
}

fn of_gguf(description: &dyn ModelDescription) -> Option<&dyn DescribedModel> {
    let description: &dyn Any = description;
    let gguf: &Gguf = description.downcast_ref()?;
    Some(gguf)
}

impl DescribedModel for Gguf {
    fn unknown(&self) -> Result<Option<Error>> {
        other_architecture(self)
    }

    fn config(&self) -> Result<Map<String, Value>> {
        gguf::config(self)
    }

    fn tensors(&self) -> Result<Vec<GgufTensor>> {
        let tensors = gguf::tensors(self)?;
        gguf::refuse_unreadable(self)?;
        Ok(tensors)
    }

    fn tokenizer_files(&self) -> Result<Vec<TextFile>> {
        gguf_tokenizer::files(self)
    }
}
