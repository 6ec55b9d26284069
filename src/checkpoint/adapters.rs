//! A checkpoint with LoRA adapters: readers of its tensors see the sums.

use std::path::{Path, PathBuf};

use super::adapted::{AdaptedTensor, OpenTensor};
use super::adapter;
use super::adapter_config::ADAPTER_CONFIG;
use super::adapter_error::AdapterError;
use super::encoding::TensorEntry;
use super::expression::Expression;
use super::folder::Checkpoint;
use super::foreign;
use super::source_file::{SourceFile, stamp_of};
use super::views::{self, View};
use crate::{Error, Result};

/// The name of an adapter of the source `of`, counted from 0.
pub fn adapter_name(of: &str, number: usize) -> String {
    format!("{of}+{}", number + 1)
}

impl Checkpoint {
    /// Opens the weights of the LoRA adapter in `folder`, which have the names that PEFT gives them.
    ///
    /// # Errors
    /// A folder without adapter, or with weights that break a rule of their format.
    pub fn open_adapter(folder: &Path) -> Result<Self> {
        let config = folder.join(ADAPTER_CONFIG);
        if !foreign::stat(folder)?.is_dir() || !config.is_file() {
            let path = folder.to_path_buf();
            return Err(AdapterError::NotAdapter { path }.into());
        }
        let mut found = Self::empty(folder);
        let stamp = stamp_of(&config)?;
        found.beside.push((config, stamp));
        found.add(&adapter::weights_of(folder)?)?;
        Ok(found)
    }

    /// Opens a base and the adapters of a view, so that readers see the sums.
    pub(super) fn open_view(path: &Path, view: &View) -> Result<Self> {
        let mut found = Self::open(&view.base)?;
        let is_layout = found.described.is_none() && view.base.join("config.json").is_file();
        if !is_layout {
            let path = view.base.clone();
            return Err(AdapterError::Base { path }.into());
        }
        found.path = path.to_path_buf();
        for (number, folder) in view.adapters.iter().enumerate() {
            let adapter = Self::open_adapter(folder)?;
            let label = adapter_name("", number);
            for (name, steps) in adapter::steps(&found, &adapter, &label)? {
                found.steps.entry(name).or_default().extend(steps);
            }
            found.adapters.push(adapter);
        }
        for name in found.steps.keys() {
            let entry = found.tensor(name)?.clone();
            found.adapted(name, &entry)?;
            // A tensor without bytes has no place of its own.
            if entry.length == 0 {
                continue;
            }
            let place = (entry.file, entry.offset);
            let before = found.changed.insert(place, (name.clone(), entry));
            if let Some((_, before)) = before {
                return Err(found.shared(name, &before));
            }
        }
        found.refuse_shared()?;
        Ok(found)
    }

    fn shared(&self, name: &str, entry: &TensorEntry) -> Error {
        AdapterError::SharedBytes {
            path: self.files[entry.file].path().to_path_buf(),
            tensor: name.to_owned(),
        }
        .into()
    }

    /// Refuses changed tensors whose bytes are another's, too, or do not lie together: their place would not say whose sum is
    /// read. Files of PyTorch may have both.
    fn refuse_shared(&self) -> Result<()> {
        let is_scattered = |name: &String, entry: &TensorEntry| {
            self.steps.contains_key(name) && entry.runs.is_some()
        };
        let is_shared = |name: &String, entry: &TensorEntry| {
            !self.steps.contains_key(name) && entry.length > 0 && self.is_adapted(entry)
        };
        let mut tensors = self.tensors.iter();
        let found =
            tensors.find(|(name, entry)| is_scattered(name, entry) || is_shared(name, entry));
        if let Some((name, entry)) = found {
            return Err(self.shared(name, entry));
        }
        // Two changed tensors may overlap, too.
        let mut past = (0, 0);
        for ((file, offset), (name, entry)) in &self.changed {
            if (*file, *offset) < past {
                return Err(self.shared(name, entry));
            }
            past = (*file, offset + entry.length);
        }
        Ok(())
    }

    /// The adapters whose changes readers see, in order.
    pub fn adapters(&self) -> &[Self] {
        &self.adapters
    }

    /// Its weight files, and the weight files of its adapters.
    pub fn all_files(&self) -> impl Iterator<Item = &SourceFile> {
        let adapters = self.adapters.iter().flat_map(|adapter| &adapter.files);
        self.files.iter().chain(adapters)
    }

    /// Where its files are: the path that it was opened by or, with adapters, the folder of the base.
    pub fn place(&self) -> PathBuf {
        views::of(&self.path).map_or_else(|| self.path.clone(), |view| view.base)
    }

    /// Whether readers see other bytes of a tensor than its file has.
    pub fn is_adapted(&self, entry: &TensorEntry) -> bool {
        self.changed_at(entry.file, entry.offset).is_some()
    }

    /// The changed tensor that has the byte at `offset` of a file.
    pub(super) fn changed_at(&self, file: usize, offset: u64) -> Option<(&str, &TensorEntry)> {
        let before = self.changed.range(..=(file, offset)).next_back();
        let (name, entry) = before.map(|(_, found)| found)?;
        let is_in = entry.file == file && offset - entry.offset < entry.length;
        is_in.then_some((name.as_str(), entry))
    }

    /// The sums of a changed tensor, which is stored as `entry`.
    pub(super) fn adapted<'a>(
        &'a self,
        name: &'a str,
        entry: &'a TensorEntry,
    ) -> Result<AdaptedTensor<'a>> {
        let base = OpenTensor {
            checkpoint: self,
            entry,
            name,
        };
        let steps = self.steps.get(name).map_or(&[][..], Vec::as_slice);
        AdaptedTensor::new(base, steps, |label| {
            self.adapter(label)
                .ok_or_else(|| AdapterError::NotAdapter { path: label.into() }.into())
        })
    }

    /// The adapter whose name ends with this `label`, such as `+1`.
    pub fn adapter(&self, label: &str) -> Option<&Self> {
        let number: usize = label.strip_prefix('+')?.parse().ok()?;
        self.adapters.get(number.checked_sub(1)?)
    }

    /// The expression of a tensor as the file has it, with what adapters make of it. Its place says what they make: readers may
    /// know the one matrix of a tied model by another name than its file.
    pub(super) fn stored_expression(&self, source: &str, tensor: &str) -> Expression {
        let entry = self.tensors.get(tensor).or_else(|| self.wholes.get(tensor));
        let changed = entry
            .filter(|entry| entry.length > 0)
            .and_then(|entry| self.changed.get(&(entry.file, entry.offset)));
        let Some(steps) = changed.and_then(|(name, _)| self.steps.get(name)) else {
            return Expression::copy(source, tensor);
        };
        Expression::Adapted {
            source: source.to_owned(),
            tensor: tensor.to_owned(),
            steps: steps.iter().map(|step| step.clone().of(source)).collect(),
        }
    }
}
