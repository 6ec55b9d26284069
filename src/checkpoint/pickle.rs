//! Pickles of PyTorch, read without running anything: dictionaries, lists, numbers, texts, and tensors by their places.
//!
//! Python's pickles are programs that may call any function. This interpreter knows a handful of names, none of which is a
//! call: they say what a tensor is. Every other name ends the reading. Values are entries of one list of bounded length,
//! so that no pickle can nest deeply, grow by copies, or hold itself to any effect.
//!
//! The crates `pytorch-reader` and `candle_core::pickle` are not used. The first hands out each tensor whole, while our readers
//! need its place in the file to read ranges. The second reserves memory for as many bytes as a text claims to have.

use std::collections::HashMap;

use super::pickle_machine::PickleMachine;
use super::pickle_value::{Outcome, PickleValue, ValueId};

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    bytes: &'a [u8],
    values: Vec<PickleValue>,
    /// What it holds at the end.
    pub(crate) root: ValueId,
    /// Bytes that it takes.
    pub(crate) length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the beginning of `bytes`.
    pub(crate) fn read(bytes: &'a [u8]) -> Outcome<Self> {
        let (values, root, length) = PickleMachine::run(bytes)?;
        Ok(Self {
            bytes,
            values,
            root,
            length,
        })
    }

    /// A value.
    pub(crate) fn value(&self, id: ValueId) -> &PickleValue {
        &self.values[id.0 as usize]
    }

    /// Bytes of a value in each storage that a tensor may be in.
    pub(crate) fn storage_sizes(&self) -> HashMap<&str, u64> {
        let storages = self.values.iter().filter_map(|value| match value {
            PickleValue::Storage(storage) => Some(storage),
            _ => None,
        });
        let sizes = storages.map(|storage| {
            let size = storage.dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8);
            (storage.key.as_str(), size)
        });
        sizes.collect()
    }

    /// A text, if a value is one.
    pub(crate) fn text(&self, id: ValueId) -> Option<&'a str> {
        match self.value(id) {
            PickleValue::Text(from, to) => std::str::from_utf8(&self.bytes[*from..*to]).ok(),
            _ => None,
        }
    }
}
