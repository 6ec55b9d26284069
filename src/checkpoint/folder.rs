//! A checkpoint on disk: a folder in the Hugging Face layout, or a single weight file.
//!
//! Which weight files belong together is decided in `weight_files.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::companions::present;
use super::encoding::{Encoding, TensorEntry};
use super::error::CheckpointError;
use super::expression::{AdapterStep, Expression};
use super::format::Described;
use super::fused::{FusedTensor, PartFault, PartOf};
use super::manifest::MANIFEST;
use super::source_file::{ReadAt, SourceFile, Stamp, changed, stamp_of};
use super::views;
use super::weight_files::WeightFiles;
use super::{dtype, foreign, format};
use crate::Result;
use crate::error::nearest;

pub use super::companions::{COMPANIONS, companion_name, companions, is_companion};
pub use super::names::{CARD, INDEX, PYTORCH_INDEX, SINGLE};

/// The tokenizer that this program and transformers read.
pub const TOKENIZER: &str = "tokenizer.json";

/// Numbers that are decoded together: whole blocks of every quantised encoding.
const AT_ONCE: u64 = 1 << 16;

/// The weights of a checkpoint, opened: headers read and checked, no tensor data touched.
#[derive(Debug)]
pub struct Checkpoint {
    /// Folder or file, as it was given.
    pub path: PathBuf,
    /// The weight files.
    pub files: Vec<SourceFile>,
    /// Every tensor by name.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// `total_size` of the index, in bytes, where there is one.
    pub index_total_size: Option<u64>,
    /// What a weight file says of its model, in formats whose files do; tensors then have the names of that format.
    pub described: Option<Described>,
    /// Tensors of the files that [`Self::tensors`] has in parts.
    pub(super) wholes: BTreeMap<String, TensorEntry>,
    /// These parts, by their names in [`Self::tensors`].
    parts: BTreeMap<String, PartOf>,
    /// What the files beside the weights were when the folder was opened.
    pub(super) beside: Vec<(PathBuf, Stamp)>,
    /// Adapters whose changes readers see, in order.
    pub(super) adapters: Vec<Checkpoint>,
    /// What these do to each stored tensor that they change.
    pub(super) steps: BTreeMap<String, Vec<AdapterStep>>,
    /// The tensors that they change, as their files have them, by file and offset.
    pub(super) changed: BTreeMap<(usize, u64), (String, TensorEntry)>,
}

impl Checkpoint {
    /// Opens a folder (one file, or shards with or without an index), or a weight file of any format in [`mod@format`].
    ///
    /// ```
    /// use bam_convert::checkpoint::Checkpoint;
    ///
    /// let checkpoint = Checkpoint::open("fixtures/llama/seed".as_ref())?;
    /// let embedding = checkpoint.tensor("model.embed_tokens.weight")?;
    /// assert_eq!(embedding.shape, [384, 32]);
    /// # Ok::<(), bam_convert::Error>(())
    /// ```
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(view) = views::of(path) {
            return Self::open_view(path, &view);
        }
        let metadata = foreign::stat(path)?;
        let mut found = Self::empty(path);
        if !metadata.is_dir() {
            found.add(path)?;
            return Ok(found);
        }
        let mut beside = existing(path, &["config.json", INDEX, PYTORCH_INDEX, MANIFEST]);
        beside.extend(present(path)?);
        for file in beside {
            let stamp = stamp_of(&file)?;
            found.beside.push((file, stamp));
        }
        let weights = WeightFiles::of(path)?;
        for name in &weights.names {
            found.add(&path.join(name))?;
        }
        if let Some(index) = weights.index {
            found.index_total_size = index.total_size();
            index.compare(path, &found.holders())?;
        }
        Ok(found)
    }

    /// A checkpoint without files.
    pub(super) fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            index_total_size: None,
            described: None,
            wholes: BTreeMap::new(),
            parts: BTreeMap::new(),
            beside: Vec::new(),
            adapters: Vec::new(),
            steps: BTreeMap::new(),
            changed: BTreeMap::new(),
        }
    }

    /// The folder, where the checkpoint is one.
    pub fn folder(&self) -> Option<&Path> {
        self.path.is_dir().then_some(&self.path)
    }

    /// The entry of a tensor, also of one that was taken apart; an unknown name is an error that suggests the nearest one.
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry> {
        let entry = self.tensors.get(name).or_else(|| self.wholes.get(name));
        let entry = entry.ok_or_else(|| {
            let near = nearest(name, self.tensors.keys().map(String::as_str));
            CheckpointError::NoTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                nearest: near.map(str::to_owned),
            }
        })?;
        Ok(entry)
    }

    /// Replaces a tensor by its parts, which take their bytes from its place in the file.
    ///
    /// # Errors
    /// What cannot be taken apart; the tensors are then incomplete.
    pub(crate) fn take_apart(&mut self, whole: &FusedTensor) -> Result<(), PartFault> {
        let Some(entry) = self.tensors.remove(&whole.name) else {
            return Ok(());
        };
        // It may have another name in the file.
        let renamed = self.parts.remove(&whole.name);
        let stored = renamed.map_or_else(|| whole.name.clone(), |renamed| renamed.whole);
        for (place, (name, shape)) in whole.places(&stored).zip(&whole.parts) {
            let part = entry.rows(whole.blocks, place.start, place.rows, shape.clone());
            let part = part.ok_or(PartFault::Uneven)?;
            if self.tensors.insert(name.clone(), part).is_some() {
                return Err(PartFault::Twice {
                    tensor: name.clone(),
                });
            }
            self.parts.insert(name.clone(), place);
        }
        self.wholes.insert(stored, entry);
        Ok(())
    }

    /// Every tensor as the files have it, by name.
    pub(crate) fn stored(&self) -> BTreeMap<&str, &TensorEntry> {
        let whole = |name: &&String| !self.parts.contains_key(*name);
        let others = self.tensors.iter().filter(|(name, _)| whole(name));
        let stored = others.chain(&self.wholes);
        stored.map(|(name, entry)| (name.as_str(), entry)).collect()
    }

    /// The parts of each stored tensor that was taken apart, in order, with the bytes of each in a block.
    pub(crate) fn fused(&self) -> BTreeMap<&str, Vec<(&str, u64)>> {
        let mut found: BTreeMap<&str, Vec<(&PartOf, &str, u64)>> = BTreeMap::new();
        for (name, part) in &self.parts {
            let length = self.tensors.get(name).map_or(0, |entry| entry.length);
            let parts = found.entry(&part.whole).or_default();
            parts.push((part, name, length / part.blocks));
        }
        let sorted = found.into_iter().map(|(whole, mut parts)| {
            parts.sort_by_key(|(part, ..)| part.start);
            let parts = parts.into_iter().map(|(_, name, length)| (name, length));
            (whole, parts.collect())
        });
        sorted.collect()
    }

    /// Gives a tensor another name, under which it is a part of itself.
    pub(crate) fn rename(&mut self, stored: &str, name: String) {
        if let Some(entry) = self.tensors.remove(stored) {
            let rows = entry.shape.first().copied().unwrap_or(1);
            self.parts.insert(name.clone(), PartOf::all(stored, rows));
            self.wholes.insert(stored.to_owned(), entry.clone());
            self.tensors.insert(name, entry);
        }
    }

    /// The expression of a tensor, of this checkpoint as the source of that name: of a part, by the tensor that the file has.
    pub fn expression(&self, source: &str, tensor: &str) -> Expression {
        let part = self.parts.get(tensor);
        let whole = part.and_then(|part| Some((part, self.wholes.get(&part.whole)?)));
        whole.map_or_else(
            || self.stored_expression(source, tensor),
            |(part, whole)| {
                let of = self.stored_expression(source, &part.whole);
                part.expression(of, &whole.shape)
            },
        )
    }

    /// Reads `buf.len()` bytes of a tensor from byte `start` on.
    pub fn read_bytes(&self, entry: &TensorEntry, start: u64, buf: &mut [u8]) -> Result<()> {
        // The parts of a tensor of several lie in its bytes, so their place says which sums they are.
        let Some((name, whole)) = self.changed_at(entry.file, entry.offset) else {
            return self.read_stored_bytes(entry, start, buf);
        };
        let adapted = self.adapted(name, whole)?;
        let mut rest = buf;
        for (offset, length) in entry.pieces(start, rest.len() as u64) {
            let (piece, others) = rest.split_at_mut(length as usize);
            adapted.bytes(offset - whole.offset, piece)?;
            rest = others;
        }
        Ok(())
    }

    /// As [`Self::read_bytes`], of what the files hold whatever adapters make of it.
    fn read_stored_bytes(&self, entry: &TensorEntry, start: u64, buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        for (offset, length) in entry.pieces(start, rest.len() as u64) {
            let (piece, others) = rest.split_at_mut(length as usize);
            self.files[entry.file].read_exact_at(piece, offset)?;
            rest = others;
        }
        Ok(())
    }

    /// Whether these bytes of a tensor are zeros of which the file system stores none.
    pub fn is_hole(&self, entry: &TensorEntry, start: u64, length: u64) -> bool {
        let file = &self.files[entry.file];
        !self.is_adapted(entry)
            && entry
                .pieces(start, length)
                .all(|(offset, length)| file.is_hole(offset, length))
    }

    /// Decodes `out.len()` values of a tensor from `first` on, in row-major order.
    ///
    /// `scratch` is working space that can be kept between calls. Complex and sub-byte dtypes are refused.
    pub fn read_values(
        &self,
        entry: &TensorEntry,
        first: u64,
        out: &mut [f64],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        self.decode(entry, first, out, scratch, Self::read_bytes)
    }

    /// As [`Self::read_values`], of what the files hold whatever adapters make of it.
    pub(super) fn read_stored_values(
        &self,
        entry: &TensorEntry,
        first: u64,
        out: &mut [f64],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        self.decode(entry, first, out, scratch, Self::read_stored_bytes)
    }

    /// Decodes values of a tensor whose bytes `read` reads.
    fn decode(
        &self,
        entry: &TensorEntry,
        first: u64,
        out: &mut [f64],
        scratch: &mut Vec<u8>,
        read: impl Fn(&Self, &TensorEntry, u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        match entry.encoding {
            Encoding::Plain(dtype) => {
                let size = (dtype.bitsize() / 8) as u64;
                scratch.resize(out.len() * size as usize, 0);
                read(self, entry, first * size, scratch)?;
                if !dtype::decode(dtype, scratch, out) {
                    let path = self.files[entry.file].path().to_path_buf();
                    return Err(CheckpointError::NotNumbers { path, dtype }.into());
                }
            }
            Encoding::Ggml(ggml) => {
                let block = ggml.block_size() as u64;
                let (begin, end) = (first / block, (first + out.len() as u64).div_ceil(block));
                scratch.resize(((end - begin) as usize) * ggml.type_size(), 0);
                read(self, entry, begin * ggml.type_size() as u64, scratch)?;
                let mut values = vec![0f32; ((end - begin) * block) as usize];
                ggml.dequantise(scratch, &mut values).map_err(|error| {
                    CheckpointError::NotDequantised {
                        path: self.files[entry.file].path().to_path_buf(),
                        error,
                    }
                })?;
                let skip = (first - begin * block) as usize;
                for (value, decoded) in out.iter_mut().zip(&values[skip..]) {
                    *value = f64::from(*decoded);
                }
            }
        }
        Ok(())
    }

    /// Whether two tensors have the same shape, encoding and bytes.
    pub fn same_bytes(&self, a: &TensorEntry, b: &TensorEntry) -> Result<bool> {
        Ok(a.shape == b.shape
            && a.encoding == b.encoding
            && self.same_beginning(a, self, b, a.length)?)
    }

    /// Whether two tensors have the same shape and values, whatever their encodings.
    pub fn same_values(&self, a: &TensorEntry, b: &TensorEntry) -> Result<bool> {
        if a.shape != b.shape || a.encoding == b.encoding {
            return self.same_bytes(a, b);
        }
        let (mut left, mut right, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let elements = a.elements();
        for first in (0..elements).step_by(AT_ONCE as usize) {
            let count = (elements - first).min(AT_ONCE) as usize;
            left.resize(count, 0.0);
            right.resize(count, 0.0);
            self.read_values(a, first, &mut left, &mut scratch)?;
            self.read_values(b, first, &mut right, &mut scratch)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every number of a tensor is zero. Numbers are read up to the first that is not.
    ///
    /// False for a tensor that cannot be read; whoever needs its values says why.
    pub fn holds_zeros(&self, entry: &TensorEntry) -> bool {
        let (mut values, mut scratch) = (Vec::new(), Vec::new());
        let elements = entry.elements();
        (0..elements).step_by(AT_ONCE as usize).all(|first| {
            values.resize((elements - first).min(AT_ONCE) as usize, 0.0);
            let read = self.read_values(entry, first, &mut values, &mut scratch);
            read.is_ok() && values.iter().all(|value| *value == 0.0)
        })
    }

    /// Whether the first `length` bytes of a tensor equal the first bytes of a tensor of another checkpoint.
    pub fn same_beginning(
        &self,
        a: &TensorEntry,
        other: &Self,
        b: &TensorEntry,
        length: u64,
    ) -> Result<bool> {
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for start in (0..length).step_by(1 << 20) {
            let count = (length - start).min(1 << 20) as usize;
            self.read_bytes(a, start, &mut left[..count])?;
            other.read_bytes(b, start, &mut right[..count])?;
            if left[..count] != right[..count] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Refuses a checkpoint one of whose files, be it weights, configuration or tokenizer, has changed since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files
            .iter()
            .try_for_each(SourceFile::check_unchanged)?;
        for (path, stamp) in &self.beside {
            if stamp_of(path)? != *stamp {
                return Err(changed(path));
            }
        }
        self.adapters.iter().try_for_each(Self::check_unchanged)
    }

    /// Refuses weights that are not in the Hugging Face layout, with its names and beside a configuration; `place` names them.
    ///
    /// # Errors
    /// Where a weight file describes its model itself.
    pub fn expect_layout(&self, place: &Path) -> Result<()> {
        self.described
            .as_ref()
            .map_or(Ok(()), |described| Err(described.refusal(place)))
    }

    /// Bytes of all tensors.
    pub fn data_length(&self) -> u64 {
        self.tensors.values().map(|entry| entry.length).sum()
    }

    /// The file that holds each tensor.
    fn holders(&self) -> BTreeMap<&str, &Path> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), self.files[entry.file].path()))
            .collect()
    }

    /// Adds one weight file; a name that another file holds already is refused.
    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let source = SourceFile::open(path)?;
        let number = self.files.len();
        let (tensors, described) = format::read(&source, number)?;
        if described.is_some() {
            self.described = described;
        }
        for (name, entry) in tensors {
            if let Some(earlier) = self.tensors.get(&name) {
                return Err(CheckpointError::RepeatedTensor {
                    path: path.to_path_buf(),
                    tensor: name,
                    other: self.files[earlier.file].path().to_path_buf(),
                }
                .into());
            }
            self.tensors.insert(name, entry);
        }
        self.files.push(source);
        Ok(())
    }
}

/// Paths of those files that the folder has.
pub fn existing(folder: &Path, names: &[&str]) -> Vec<PathBuf> {
    names
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.is_file())
        .collect()
}
