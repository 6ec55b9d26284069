//! A checkpoint as it lies on disk: a folder in the Hugging Face layout, or a single weight file.
//!
//! Which weight files belong together is decided once, here. An index and its shards are checked
//! against each other both ways, so that a stale index, a missing shard or a name in two files is
//! refused by name instead of being resolved by whichever file is read last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::encoding::{Encoding, TensorEntry};
use super::format::Described;
use super::manifest::MANIFEST;
use super::source_file::{ReadAt, SourceFile, Stamp, changed, stamp_of};
use super::{dtype, foreign, format, json};
use crate::error::nearest;
use crate::{Error, Result};

/// The single weight file of an unsharded folder.
pub const SINGLE: &str = "model.safetensors";
/// The index of a sharded folder.
pub const INDEX: &str = "model.safetensors.index.json";

/// The model card.
pub const CARD: &str = "README.md";

/// Files that describe a tokenizer or its use, copied byte for byte.
pub const COMPANIONS: [&str; 14] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
];

/// The files of [`COMPANIONS`] that a folder has.
///
/// # Errors
/// A `generation_config.json` that no reader could use: a copy of it would be refused by whoever opens the output.
pub fn companions(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = existing(folder, &COMPANIONS);
    if let Some(path) = paths.first().filter(|path| path.ends_with(COMPANIONS[0])) {
        json::read_object(path)?;
    }
    Ok(paths)
}

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
    /// What the files beside the weights were when the folder was opened.
    beside: Vec<(PathBuf, Stamp)>,
}

impl Checkpoint {
    /// Opens a folder (one file, or shards with or without an index), or a weight file of any format in [`format`].
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = foreign::stat(path)?;
        let mut found = Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            index_total_size: None,
            described: None,
            beside: Vec::new(),
        };
        if !metadata.is_dir() {
            found.add(path)?;
            return Ok(found);
        }
        for file in [&["config.json", INDEX, MANIFEST][..], &COMPANIONS]
            .iter()
            .flat_map(|names| existing(path, names))
        {
            let stamp = stamp_of(&file)?;
            found.beside.push((file, stamp));
        }
        let names = weight_files(path)?;
        let index = path.join(INDEX);
        if index.exists() {
            found.open_index(path, &index, &names)?;
            return Ok(found);
        }
        match &names[..] {
            [] => return Err(foreign::folder(path).unwrap_or_else(|| no_weights(path))),
            [one] if one.starts_with("adapter_model") => {
                return Err(foreign::folder(path).unwrap_or_else(|| no_weights(path)));
            }
            [one] if shard_number(one).is_none() => {}
            several => complete_set(path, several)?,
        }
        for name in &names {
            found.add(&path.join(name))?;
        }
        Ok(found)
    }

    /// The folder, where the checkpoint is one.
    pub fn folder(&self) -> Option<&Path> {
        self.path.is_dir().then_some(&self.path)
    }

    /// The entry of a tensor; an unknown name is an error that suggests the nearest one.
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry> {
        self.tensors.get(name).ok_or_else(|| {
            let error = Error::tensor(&self.path, name, "is missing");
            match nearest(name, self.tensors.keys().map(String::as_str)) {
                Some(other) => {
                    error.with_hint(format!("the nearest name in this checkpoint is `{other}`"))
                }
                None => error,
            }
        })
    }

    /// Reads `buf.len()` bytes of a tensor from byte `start` on.
    pub fn read_bytes(&self, entry: &TensorEntry, start: u64, buf: &mut [u8]) -> Result<()> {
        self.files[entry.file].read_exact_at(buf, entry.offset + start)
    }

    /// Whether these bytes of a tensor are zeros of which the file system stores none.
    pub fn is_hole(&self, entry: &TensorEntry, start: u64, length: u64) -> bool {
        self.files[entry.file].is_hole(entry.offset + start, length)
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
        match entry.encoding {
            Encoding::Plain(dtype) => {
                let size = (dtype.bitsize() / 8) as u64;
                scratch.resize(out.len() * size as usize, 0);
                self.read_bytes(entry, first * size, scratch)?;
                if !dtype::decode(dtype, scratch, out) {
                    let problem =
                        format!("expected a dtype that holds real numbers, found {dtype}");
                    return Err(Error::file(self.files[entry.file].path(), problem));
                }
            }
            Encoding::Ggml(ggml) => {
                let block = ggml.block_size() as u64;
                let (begin, end) = (first / block, (first + out.len() as u64).div_ceil(block));
                scratch.resize(((end - begin) as usize) * ggml.type_size(), 0);
                self.read_bytes(entry, begin * ggml.type_size() as u64, scratch)?;
                let mut values = vec![0f32; ((end - begin) * block) as usize];
                ggml.dequantise(scratch, &mut values)
                    .map_err(|problem| Error::file(self.files[entry.file].path(), problem))?;
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
        /// Whole blocks of every quantised encoding.
        const AT_ONCE: u64 = 1 << 16;
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

    /// Whether the first `length` bytes of a tensor are those of a tensor of another checkpoint.
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
        Ok(())
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

    /// Adds one weight file; a name that another file holds already is refused.
    fn add(&mut self, path: &Path) -> Result<()> {
        let source = SourceFile::open(path)?;
        let number = self.files.len();
        let (tensors, described) = format::read(&source, number)?;
        if described.is_some() {
            self.described = described;
        }
        for (name, entry) in tensors {
            if let Some(earlier) = self.tensors.get(&name) {
                let other = self.files[earlier.file].path().display().to_string();
                return Err(Error::tensor(
                    path,
                    &name,
                    format!("is in {other} too; expected each name in one file"),
                ));
            }
            self.tensors.insert(name, entry);
        }
        self.files.push(source);
        Ok(())
    }

    /// Opens the shards that the index lists and compares the two.
    fn open_index(&mut self, folder: &Path, index: &Path, present: &[String]) -> Result<()> {
        let object = json::read_object(index)?;
        let Some(Value::Object(map)) = object.get("weight_map") else {
            return Err(Error::key(
                index,
                "weight_map",
                "expected an object of tensor names and file names",
            ));
        };
        self.index_total_size = object
            .get("metadata")
            .and_then(|metadata| metadata.get("total_size"))
            .and_then(Value::as_u64);
        let mut shards = BTreeSet::new();
        for (tensor, file) in map {
            let Value::String(file) = file else {
                return Err(Error::key(
                    index,
                    &format!("weight_map.{tensor}"),
                    "expected a file name",
                ));
            };
            if file.contains(['/', '\\', '\0']) || file == ".." || file == "." || file.is_empty() {
                let problem =
                    format!("expected the name of a file in this folder, found \"{file}\"");
                return Err(Error::key(index, &format!("weight_map.{tensor}"), problem)
                    .with_hint("an index must not point outside its folder"));
            }
            shards.insert(file.clone());
        }
        if let Some(stray) = present
            .iter()
            .find(|name| !shards.contains(*name))
            .filter(|name| is_model_file(name))
        {
            return Err(Error::file(
                folder.join(stray),
                format!("is not listed in {INDEX}, which names other files"),
            )
            .with_hint(
                "remove the stale one of the two, so that only one model is in the folder",
            ));
        }
        for shard in &shards {
            let path = folder.join(shard);
            if !path.exists() {
                return Err(Error::file(
                    &path,
                    format!("this shard is missing, but {INDEX} lists it"),
                )
                .with_hint("copy or download the missing shard"));
            }
            self.add(&path)?;
        }
        for (name, entry) in &self.tensors {
            let held = self.files[entry.file].path();
            let listed = map.get(name).and_then(Value::as_str);
            if listed.map(|file| folder.join(file)).as_deref() != Some(held) {
                let listed = listed.unwrap_or("nowhere");
                return Err(Error::tensor(
                    held,
                    name,
                    format!("is in this file, but {INDEX} lists it in {listed}"),
                ));
            }
        }
        if let Some((name, file)) = map
            .iter()
            .find(|(name, _)| !self.tensors.contains_key(*name))
        {
            let file = file.as_str().unwrap_or_default();
            return Err(Error::tensor(
                folder.join(file),
                name,
                format!("is missing from this file, but {INDEX} lists it"),
            ));
        }
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

/// Weight files of a folder that we read, sorted by name.
fn weight_files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    let wanted = wanted_weights(&names.iter().map(String::as_str).collect::<Vec<_>>());
    Ok(wanted.into_iter().map(str::to_owned).collect())
}

/// Those of a folder's files that hold the weights of its model.
pub fn wanted_weights<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut weights: Vec<&str> = names.to_vec();
    weights.retain(|name| format::is_weight_file(name));
    // Some repositories carry a second copy of the weights in their vendor's layout beside the usual one.
    if weights.iter().any(|name| is_model_file(name)) {
        weights.retain(|name| is_model_file(name));
    }
    weights
}

/// `model.safetensors` or one shard of a set.
pub fn is_model_file(name: &str) -> bool {
    name == SINGLE || (name.starts_with("model-") && shard_number(name).is_some())
}

/// `(2, 5)` for `…-00002-of-00005.safetensors`.
fn shard_number(name: &str) -> Option<(u64, u64)> {
    let (stem, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (_, number) = stem.rsplit_once('-')?;
    Some((number.parse().ok()?, count.parse().ok()?))
}

/// Refuses several weight files that are not the shards 1..=N of one set.
fn complete_set(folder: &Path, names: &[String]) -> Result<()> {
    if names.iter().any(|name| !name.ends_with(".safetensors"))
        && let Some(error) = foreign::folder(folder)
    {
        return Err(error);
    }
    let ambiguous = |problem: String| {
        Err(Error::file(folder, problem)
            .with_hint("keep one model in the folder, or add its model.safetensors.index.json"))
    };
    let mut numbers = BTreeMap::new();
    for name in names {
        match shard_number(name) {
            Some((number, count)) => numbers.insert(number, (count, name)),
            None => {
                return ambiguous(format!(
                    "expected one model, found {name} beside other weight files: {}",
                    names.join(", ")
                ));
            }
        };
    }
    let count = numbers.values().next().map_or(0, |(count, _)| *count);
    if let Some((_, (other, name))) = numbers.iter().find(|(_, (c, _))| *c != count) {
        return ambiguous(format!(
            "expected shards of one set of {count}, found {name} of a set of {other}"
        ));
    }
    if numbers.len() != names.len() {
        return ambiguous(format!(
            "expected each shard once, found {}",
            names.join(", ")
        ));
    }
    match (1..=count).find(|number| !numbers.contains_key(number)) {
        Some(missing) => Err(Error::file(
            folder,
            format!(
                "shard {missing} of {count} is missing; found {}",
                names.join(", ")
            ),
        )
        .with_hint("copy or download the missing shard")),
        None => Ok(()),
    }
}

fn no_weights(folder: &Path) -> Error {
    Error::file(
        folder,
        format!("no weights: expected {SINGLE}, {INDEX} with its shards, or one .gguf file"),
    )
}
