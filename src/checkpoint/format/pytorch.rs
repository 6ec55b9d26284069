//! Files of `torch.save`: a pickle that names tensors, and their values, in a zip file or (before PyTorch 1.6) one after the
//! other.

use std::collections::BTreeMap;
use std::path::Path;

use super::zip_directory::{Directory, Entry, LOCAL};
use super::{WeightFile, WeightFormat};
use crate::checkpoint::dtype;
use crate::checkpoint::encoding::{Axis, Encoding, MOST_AXES, Runs, TensorEntry};
use crate::checkpoint::pickle::Pickle;
use crate::checkpoint::pickle_value::{PickleRule, PickleValue, StoredTensor, ValueId};
use crate::checkpoint::pytorch_error::PytorchError;
use crate::checkpoint::source_file::{ReadAt, SourceFile};
use crate::{Error, Result, notice};

/// A file of `torch.save`.
#[derive(Debug)]
pub(super) struct PytorchFile;

/// The number that old files begin with, as a pickle of any version has it.
const OLD: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// Bytes within which it is.
const OLD_START: usize = 32;

/// Bytes of a pickle at most; 50,000 tensors take some 10 million.
const LONGEST_PICKLE: u64 = 64 << 20;
/// Bytes of an old file that are read first for its pickles.
const FIRST_BYTES: u64 = 1 << 20;
/// How many times the file's length its tensors may take together, where they share storages.
const MOST_SHARED: u64 = 16;
/// Keys under which training programs keep the tensors of the model.
const MODEL_KEYS: [&str; 3] = ["state_dict", "model", "module"];

impl WeightFormat for PytorchFile {
    fn name(&self) -> &'static str {
        "PyTorch file"
    }

    fn is_in_folder(&self, name: &str) -> bool {
        name.starts_with("pytorch_model") && name.ends_with(".bin")
    }

    fn recognises(&self, head: &[u8]) -> bool {
        let is_archive = head.starts_with(LOCAL)
            && head
                .windows(PICKLE.len())
                .any(|part| part == PICKLE.as_bytes());
        let start = &head[..head.len().min(OLD_START)];
        let is_old = start.starts_with(b"\x80") && start.windows(OLD.len()).any(|part| part == OLD);
        is_archive || is_old
    }

    fn read(&self, file: &SourceFile, number: usize) -> Result<WeightFile> {
        let head = super::head(file)?;
        let tensors = if head.starts_with(LOCAL) {
            read_archive(file, number)?
        } else {
            read_old(file, number)?
        };
        Ok(WeightFile {
            tensors,
            description: None,
        })
    }
}

/// The entry with the pickle, without the archive's name in front.
const PICKLE: &str = "/data.pkl";

/// Where a storage is in the file: its first byte and the one after its last.
type Places = BTreeMap<String, (u64, u64)>;

/// The tensors of a zip file.
fn read_archive(file: &SourceFile, number: usize) -> Result<BTreeMap<String, TensorEntry>> {
    let path = file.path();
    let directory = Directory::find(file)?;
    let entries = directory.entries(file)?;
    let mut places = BTreeMap::new();
    for entry in &entries {
        let place = directory.data_of(file, entry)?;
        let damaged = || PytorchError::Damaged {
            path: path.to_path_buf(),
            name: shown(entry),
        };
        let place = place.ok_or_else(damaged)?;
        if places.insert(entry.name.as_str(), place).is_some() {
            return Err(damaged().into());
        }
    }
    let no_entry = |name: &str| PytorchError::NoEntry {
        path: path.to_path_buf(),
        name: name.to_owned(),
    };
    let (name, place) = places
        .iter()
        .find(|(name, _)| name.ends_with(PICKLE))
        .ok_or_else(|| no_entry(PICKLE))?;
    let root = &name[..name.len() - PICKLE.len()];

    if let Some(order) = places.get(format!("{root}/byteorder").as_str()) {
        let text = bytes(file, (order.0, order.1.min(order.0 + 16)))?;
        if text.trim_ascii() != b"little" {
            return Err(refused(path, PickleRule::BigEndian));
        }
    }
    let bytes = bytes(file, *place)?;
    let pickle = Pickle::read(&bytes).map_err(|rule| refused(path, rule))?;
    let prefix = format!("{root}/data/");
    let storages = places.iter().filter_map(|(name, place)| {
        let key = name.strip_prefix(prefix.as_str())?;
        Some((key.to_owned(), *place))
    });
    tensors(file, number, &pickle, &storages.collect())
}

/// The tensors of a file of PyTorch before 1.6: five pickles, then each storage after its length.
fn read_old(file: &SourceFile, number: usize) -> Result<BTreeMap<String, TensorEntry>> {
    let path = file.path();
    let most = file.len().min(LONGEST_PICKLE);
    let mut wanted = FIRST_BYTES.min(most);
    loop {
        let read = bytes(file, (0, wanted))?;
        match old_pickles(&read) {
            Ok((pickle, keys, end)) => {
                let places = old_places(file, &pickle, &keys, end)?;
                return tensors(file, number, &pickle, &places);
            }
            Err(PickleRule::Truncated) if wanted < most => wanted = (4 * wanted).min(most),
            Err(rule) => return Err(refused(path, rule)),
        }
    }
}

/// The pickle of the tensors, the keys of the storages in their order, and where the pickles end.
fn old_pickles(read: &[u8]) -> std::result::Result<(Pickle<'_>, Vec<String>, u64), PickleRule> {
    // A number, the version, what machine it was, the tensors, the keys.
    let mut at = 0;
    for _ in 0..2 {
        at += Pickle::read(&read[at..])?.length;
    }
    let machine = Pickle::read(&read[at..])?;
    at += machine.length;
    if is_big_endian(&machine) {
        return Err(PickleRule::BigEndian);
    }
    let tensors = Pickle::read(&read[at..])?;
    at += tensors.length;
    let listed = Pickle::read(&read[at..])?;
    at += listed.length;
    let PickleValue::Sequence(keys) = listed.value(listed.root) else {
        return Err(PickleRule::StorageForm);
    };
    let keys = keys.iter().map(|key| Some(listed.text(*key)?.to_owned()));
    let keys = keys.collect::<Option<Vec<_>>>();
    Ok((tensors, keys.ok_or(PickleRule::StorageForm)?, at as u64))
}

/// Whether a file was written on a machine with the other order of bytes.
fn is_big_endian(machine: &Pickle) -> bool {
    let PickleValue::Dict(pairs) = machine.value(machine.root) else {
        return false;
    };
    let is_little = pairs
        .iter()
        .find(|(key, _)| machine.text(*key) == Some("little_endian"));
    is_little.is_some_and(|(_, value)| matches!(machine.value(*value), PickleValue::Bool(false)))
}

/// Where the storages of an old file are.
fn old_places(file: &SourceFile, pickle: &Pickle, keys: &[String], end: u64) -> Result<Places> {
    let path = file.path();
    let sizes = pickle.storage_sizes();
    let mut places = BTreeMap::new();
    let mut at = end;
    for key in keys {
        let damaged = || PytorchError::Damaged {
            path: path.to_path_buf(),
            name: key.clone(),
        };
        let mut length = [0; 8];
        let begin = at.checked_add(8).filter(|begin| *begin <= file.len());
        let begin = begin.ok_or_else(damaged)?;
        file.read_exact_at(&mut length, at)?;
        // A storage that no tensor of the pickle has cannot be passed over: its values have no known size.
        let size = *sizes.get(key.as_str()).ok_or_else(damaged)?;
        let length = u64::from_le_bytes(length).checked_mul(size);
        let past = length.and_then(|length| begin.checked_add(length));
        let past = past
            .filter(|past| *past <= file.len())
            .ok_or_else(damaged)?;
        if places.insert(key.clone(), (begin, past)).is_some() {
            return Err(damaged().into());
        }
        at = past;
    }
    Ok(places)
}

/// The tensors of a pickle whose storages are at `places`.
fn tensors(
    file: &SourceFile,
    number: usize,
    pickle: &Pickle,
    places: &Places,
) -> Result<BTreeMap<String, TensorEntry>> {
    let path = file.path();
    let mut found = BTreeMap::new();
    let mut total: u64 = 0;
    for (name, tensor) in named(path, pickle)? {
        let entry = place(path, name, tensor, places)?;
        total = total.saturating_add(entry.length);
        if total > MOST_SHARED.saturating_mul(file.len()) {
            return Err(PytorchError::ManyViews {
                path: path.to_path_buf(),
                found: total,
                length: file.len(),
            }
            .into());
        }
        let entry = TensorEntry {
            file: number,
            ..entry
        };
        if found.insert(name.to_owned(), entry).is_some() {
            return Err(PytorchError::Repeated {
                path: path.to_path_buf(),
                tensor: name.to_owned(),
            }
            .into());
        }
    }
    Ok(found)
}

/// The tensors of the dictionary by name, or of a dictionary in it under a key for the model.
fn named<'a>(path: &Path, pickle: &'a Pickle) -> Result<Vec<(&'a str, &'a StoredTensor)>> {
    let not = |found| PytorchError::NotTensors {
        path: path.to_path_buf(),
        found,
    };
    let dict = |id: ValueId| match pickle.value(id) {
        PickleValue::Dict(pairs) => Some(pairs),
        _ => None,
    };
    let is_tensor = |id: ValueId| matches!(pickle.value(id), PickleValue::Tensor(_));
    let mut pairs = dict(pickle.root).ok_or_else(|| match pickle.value(pickle.root) {
        PickleValue::Tensor(_) => not("one tensor without a name"),
        PickleValue::Sequence(_) => not("a list"),
        _ => not("something else"),
    })?;
    let mut has_tensors = pairs.iter().any(|(_, value)| is_tensor(*value));
    let mut others = Vec::new();
    for level in (0..MODEL_KEYS.len()).rev() {
        if has_tensors {
            break;
        }
        let (inner, beside): (Vec<_>, Vec<_>) = pairs.iter().partition(|(key, value)| {
            let key = pickle.text(*key);
            key.is_some_and(|key| MODEL_KEYS.contains(&key)) && holds(pickle, *value, level)
        });
        if let [_, (key, _), ..] = inner[..] {
            let (path, key) = (path.to_path_buf(), pickle.text(key).unwrap_or_default());
            let key = key.to_owned();
            return Err(PytorchError::Nested { path, key }.into());
        }
        let model = inner.first().and_then(|(_, value)| dict(*value));
        pairs = model.ok_or_else(|| not("a dictionary without tensors"))?;
        others.extend(beside.iter().filter_map(|(key, _)| pickle.text(*key)));
        has_tensors = pairs.iter().any(|(_, value)| is_tensor(*value));
    }
    if !has_tensors {
        return Err(not("a dictionary without tensors").into());
    }

    let mut found = Vec::new();
    for (key, value) in pairs {
        let name = pickle
            .text(*key)
            .ok_or_else(|| not("a key that is no text"))?;
        match pickle.value(*value) {
            PickleValue::Tensor(tensor) => found.push((name, tensor)),
            PickleValue::Dict(inner) if inner.iter().any(|(_, value)| is_tensor(*value)) => {
                let (path, key) = (path.to_path_buf(), name.to_owned());
                return Err(PytorchError::Nested { path, key }.into());
            }
            _ => others.push(name),
        }
    }
    if let Some(first) = others.first() {
        notice::once(format!(
            "{}: {} value(s) beside the model's tensors are left out, such as `{}`",
            path.display(),
            others.len(),
            first.chars().take(60).collect::<String>()
        ));
    }
    Ok(found)
}

/// Whether a dictionary holds tensors, or a dictionary that does under a key for the model, so many levels down.
fn holds(pickle: &Pickle, id: ValueId, levels: usize) -> bool {
    let PickleValue::Dict(pairs) = pickle.value(id) else {
        return false;
    };
    pairs.iter().any(|(key, value)| {
        let is_model = || {
            pickle
                .text(*key)
                .is_some_and(|key| MODEL_KEYS.contains(&key))
        };
        matches!(pickle.value(*value), PickleValue::Tensor(_))
            || levels > 0 && is_model() && holds(pickle, *value, levels - 1)
    })
}

/// Where a tensor is in the file, its number left open.
fn place(path: &Path, name: &str, tensor: &StoredTensor, places: &Places) -> Result<TensorEntry> {
    let StoredTensor {
        storage,
        dtype,
        offset,
        shape,
        strides,
    } = tensor;
    let size = (dtype.bitsize() / 8) as u64;
    let unit = storage
        .dtype
        .map_or(1, |dtype| (dtype.bitsize() / 8) as u64);
    let (path, name) = (|| path.to_path_buf(), || name.to_owned());
    let (begin, end) = *places
        .get(&storage.key)
        .ok_or_else(|| PytorchError::NoEntry {
            path: path(),
            name: format!("data/{}", storage.key.escape_default()),
        })?;

    // A part of another storage begins within it.
    let skipped = storage.begin.checked_mul(unit);
    let needed = storage.length.checked_mul(unit);
    let reach = skipped
        .zip(needed)
        .and_then(|(skipped, needed)| skipped.checked_add(needed));
    let needed = needed.filter(|_| reach.is_some_and(|reach| reach <= end - begin));
    let bytes = needed.ok_or_else(|| PytorchError::Storage {
        path: path(),
        tensor: name(),
        needed: reach.unwrap_or(u64::MAX),
        found: end - begin,
    })?;

    let outside = || PytorchError::Outside {
        path: path(),
        tensor: name(),
        shape: shape.as_slice().into(),
        strides: strides.as_slice().into(),
    };
    // Of a tensor without values, the other extents may not overflow, either.
    let counted = shape.iter().try_fold(1_u64, |product, extent| {
        product.checked_mul((*extent).max(1))
    });
    let elements = counted.map(|counted| if shape.contains(&0) { 0 } else { counted });
    let length = elements.and_then(|elements| dtype::byte_length(*dtype, elements));
    let length = length.ok_or_else(outside)?;
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(*offset, |last, (extent, stride)| {
            last.checked_add(extent.saturating_sub(1).checked_mul(*stride)?)
        });
    let past = last.and_then(|last| last.checked_add(1)?.checked_mul(size));
    if length > 0 && past.is_none_or(|past| past > bytes) {
        return Err(outside().into());
    }
    let runs = if length == 0 {
        Some(None)
    } else {
        runs(shape, strides, size).filter(|_| length <= bytes)
    };
    let Some(runs) = runs else {
        return Err(PytorchError::Strides {
            path: path(),
            tensor: name(),
            strides: strides.as_slice().into(),
            dtype: *dtype,
        }
        .into());
    };
    let first = offset.saturating_mul(size);
    Ok(TensorEntry {
        file: 0,
        offset: begin + skipped.unwrap_or(0) + if length > 0 { first } else { 0 },
        length,
        encoding: Encoding::Plain(*dtype),
        shape: shape.clone(),
        runs,
    })
}

/// The runs of bytes of a tensor with these strides, of values of `size` bytes; none inside where they lie together. `None`
/// where there are more axes of steps than are read.
fn runs(shape: &[u64], strides: &[u64], size: u64) -> Option<Option<Runs>> {
    // From the last axis to the first: what continues the bytes before it grows the run, all else is a step.
    let mut length = 1;
    let mut axes: Vec<Axis> = Vec::new();
    for (extent, stride) in shape.iter().zip(strides).rev() {
        if *extent == 1 {
            continue;
        }
        match axes.last_mut() {
            None if *stride == length => length *= extent,
            Some(axis) if *stride * size == axis.count.checked_mul(axis.stride)? => {
                axis.count *= extent;
            }
            _ => axes.push(Axis {
                count: *extent,
                stride: stride.checked_mul(size)?,
            }),
        }
    }
    if axes.is_empty() {
        return Some(None);
    }
    if axes.len() > MOST_AXES {
        return None;
    }
    Some(Some(Runs::new(length * size, &axes)))
}

/// The bytes of a place, which a pickle takes.
fn bytes(file: &SourceFile, (begin, end): (u64, u64)) -> Result<Vec<u8>> {
    let length = end - begin;
    if length > LONGEST_PICKLE {
        return Err(PytorchError::LongPickle {
            path: file.path().to_path_buf(),
            most: LONGEST_PICKLE,
            found: length,
        }
        .into());
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, begin)?;
    Ok(bytes)
}

fn refused(path: &Path, rule: PickleRule) -> Error {
    let path = path.to_path_buf();
    PytorchError::Pickle { path, rule }.into()
}

/// The name of an entry, as an error shows it.
fn shown(entry: &Entry) -> String {
    entry.name.chars().take(60).collect()
}
