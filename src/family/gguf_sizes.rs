//! Sizes in the metadata of a GGUF file, each within its bounds.

use super::gguf_metadata::Metadata;
use super::keys::Field;
use super::names::{ROTATED, VALUE_LENGTH};
use super::role::Role;
use crate::checkpoint::GgufValue;
use crate::error::{InputError, Result};

impl Metadata<'_> {
    /// Heads of queries, and of keys and values.
    pub(super) fn heads(&self) -> Result<(u64, u64)> {
        let heads = self.size(Field::NumHeads)?;
        let key = self.names()?.key(Field::NumKvHeads)?;
        let kv_heads = if self.gguf.metadata.contains_key(&key) {
            self.size(Field::NumKvHeads)?
        } else {
            heads
        };
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(self.unexpected(&key, expected, kv_heads));
        }
        Ok((heads, kv_heads))
    }

    /// The width of a head, and how much of it rotates.
    pub(super) fn head_dim(&self, hidden: u64, heads: u64) -> Result<(u64, u64)> {
        let names = self.names()?;
        let (key, values) = (names.key(Field::HeadDim)?, names.own_key(VALUE_LENGTH));
        let rotated_key = names.own_key(ROTATED);
        let rotated = self.gguf.unsigned(&rotated_key)?;
        let rotates_in_part = names.keys.contains_key(&Field::PartialRotaryFactor);
        let (said_by, head_dim) = match (self.gguf.unsigned(&key)?, rotated) {
            (None, Some(rotated)) if !rotates_in_part => (&rotated_key, rotated),
            (said, _) => (&key, said.unwrap_or(hidden / heads)),
        };
        // A head is one row of attn_q at least, and attn_q is in the file: more is nonsense.
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 20 {
            return Err(self.unexpected(said_by, "an even head dimension", head_dim));
        }
        let rotated = rotated.unwrap_or(head_dim);
        if rotates_in_part && (rotated == 0 || !rotated.is_multiple_of(2) || rotated > head_dim) {
            let expected = format!("an even number up to the head dimension {head_dim}");
            return Err(self.unexpected(&rotated_key, expected, rotated));
        }
        let whole = (!rotates_in_part).then_some(rotated_key);
        for key in [values].into_iter().chain(whole) {
            let found = self.gguf.unsigned(&key)?;
            if let Some(found) = found.filter(|found| *found != head_dim) {
                let expected = format!("the head dimension {head_dim}");
                return Err(self.unexpected(&key, expected, found));
            }
        }
        Ok((head_dim, rotated))
    }

    /// Rows of the embedding, with which the metadata agrees where it says them.
    pub(super) fn vocabulary(&self) -> Result<u64> {
        let names = self.names()?;
        let embedding = names.tensors.get(Role::Embedding).unwrap_or_default();
        let shape = &self.gguf.tensor(embedding)?.shape;
        let rows = shape.first().copied().unwrap_or_default();
        let key = names.key(Field::VocabSize)?;
        let said = self.gguf.unsigned(&key)?;
        match said.filter(|said| *said != rows) {
            Some(said) => {
                let expected = format!("{rows}, the rows of `{embedding}`");
                Err(self.unexpected(&key, expected, said))
            }
            None => Ok(rows),
        }
    }

    /// Number of layers: no more than the file has tensors.
    pub(super) fn layers(&self) -> Result<u64> {
        let (layers, tensors) = (self.size(Field::NumLayers)?, self.gguf.tensors.len());
        if layers > tensors as u64 {
            let key = self.names()?.key(Field::NumLayers)?;
            let found = format!("{layers} layers, {tensors} tensors");
            return Err(self.unexpected(&key, "at least one tensor per layer", found));
        }
        Ok(layers)
    }

    /// Experts of a layer, and how many a token goes to; none in a dense model.
    pub(super) fn experts(&self) -> Result<Option<(u64, u64)>> {
        if !self.family.is_mixture() {
            return Ok(None);
        }
        let names = self.names()?;
        let count_key = names.key(Field::NumExperts)?;
        let used_key = names.key(Field::NumExpertsPerTok)?;
        let count = self.gguf.unsigned(&count_key)?.unwrap_or(0);
        // Each expert has rows of its own in the router of each layer.
        if count > 1 << 16 {
            return Err(self.unexpected(&count_key, "at most 65536 experts", count));
        }
        let used = self.gguf.unsigned(&used_key)?.unwrap_or(0);
        if used == 0 || used > count {
            let expected = format!("1 to {count_key} = {count}");
            return Err(self.unexpected(&used_key, expected, used));
        }
        Ok(Some((count, used)))
    }

    /// A size above zero; a list of one a layer counts where all are equal.
    pub(super) fn size(&self, field: Field) -> Result<u64> {
        let key = self.names()?.key(field)?;
        let value = match self.gguf.integers(&key) {
            Ok(Some(values)) => match values.split_first() {
                Some((first, rest)) if rest.iter().all(|value| value == first) => {
                    u64::try_from(*first).ok()
                }
                _ => {
                    let found = self.gguf.metadata.get(&key).map(GgufValue::describe);
                    let found = found.unwrap_or_default();
                    return Err(self.unexpected(&key, "one size for all layers", found));
                }
            },
            _ => self.gguf.unsigned(&key)?,
        };
        const EXPECTED: &str = "a whole number above 0";
        let value =
            value.ok_or_else(|| InputError::missing_key(&self.gguf.path, &key, EXPECTED))?;
        // No file holds a tensor with a larger dimension, and products of two sizes fit a `u64`.
        if value == 0 || value > u64::from(u32::MAX) {
            return Err(self.unexpected(&key, EXPECTED, value));
        }
        Ok(value)
    }
}
