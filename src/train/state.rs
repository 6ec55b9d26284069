//! The optimiser's state of a checkpoint: float32 master weights and both moments of each parameter that trains.
//!
//! Our own trainer writes one file, and PyTorch one file a process. Tensors have the same names and meaning in both, so
//! that either engine resumes from either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::parameters::Parameters;
use super::run_error::RunError;
use super::save_bytes::{Bytes, Source};
use crate::checkpoint::hash::FileHash;
use crate::checkpoint::output::OutputFolder;
use crate::checkpoint::writer::{TensorLayout, WriteOptions, write_file};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::model::{OptimiserState, StatePart};
use crate::{Error, Result};

/// Tensors of the optimiser beside the weights, where one process wrote them.
pub(super) const STATE_TENSORS: &str = "training-state.safetensors";
/// What the name of every file of these tensors begins and ends with.
const STATE_NAME: (&str, &str) = ("training-state", ".safetensors");
/// Bytes of a trained parameter's master weight and moments.
pub(super) const STATE_BYTES: u64 = 12;

/// What the state of a parameter is made of, and what tensors of it are called.
pub(super) const PARTS: [(StatePart, &str); 3] = [
    (StatePart::Master, "master"),
    (StatePart::First, "first"),
    (StatePart::Second, "second"),
];

/// Whether a file of a checkpoint has tensors of the optimiser.
pub(super) fn is_state_file(name: &str) -> bool {
    name.starts_with(STATE_NAME.0) && name.ends_with(STATE_NAME.1)
}

/// The optimiser's state after a step.
pub(super) enum State<'a> {
    /// In the memory of this process.
    Held(&'a Parameters, &'a [Box<dyn OptimiserState>]),
    /// In files that other processes have written.
    Files(&'a StateFiles),
}

impl State<'_> {
    /// Bytes that writing it takes, at most; files only move.
    pub(super) fn bytes_to_write(&self) -> u64 {
        match self {
            Self::Held(parameters, _) => {
                let elements = parameters.all.iter().map(|one| one.var.elem_count() as u64);
                STATE_BYTES * elements.sum::<u64>()
            }
            Self::Files(_) => 0,
        }
    }

    /// Master weights by the names of their parameters.
    pub(super) fn masters(&self) -> Result<BTreeMap<&str, Source<'_>>> {
        match self {
            Self::Held(parameters, states) => {
                let held = parameters.all.iter().zip(*states);
                held.map(|(parameter, state)| {
                    let values = state.download(StatePart::Master).map_err(unreadable)?;
                    Ok((parameter.spec.name.as_str(), Source::Held(values)))
                })
                .collect()
            }
            Self::Files(files) => Ok(files.part(PARTS[0].1).collect()),
        }
    }

    /// Removes its files, where no checkpoint needs them.
    pub(super) fn discard(&self) -> Result<()> {
        let paths: &[PathBuf] = match self {
            Self::Held(..) => &[],
            Self::Files(files) => &files.paths,
        };
        paths.iter().try_for_each(|path| {
            std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
        })
    }

    /// Puts its files into the folder of a checkpoint.
    pub(super) fn write(
        &self,
        folder: &OutputFolder,
        options: &WriteOptions,
    ) -> Result<Vec<FileHash>> {
        match self {
            Self::Held(parameters, states) => {
                let (layouts, tensors) = held_tensors(parameters, states).map_err(unreadable)?;
                let file = write_file(folder, STATE_TENSORS, &layouts, &tensors, options)?;
                Ok(file.into_iter().collect())
            }
            Self::Files(files) => {
                let names = files.paths.iter().map(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    folder.take(path, &name)
                });
                names.collect()
            }
        }
    }
}

fn unreadable(error: candle_core::Error) -> Error {
    Error::compute("read the parameters", error)
}

/// Master weights and moments, under `master.`, `first.` and `second.` with the parameter's name.
fn held_tensors<'a>(
    parameters: &Parameters,
    states: &'a [Box<dyn OptimiserState>],
) -> candle_core::Result<(Vec<TensorLayout>, Bytes<'a>)> {
    let (mut layouts, mut sources) = (Vec::new(), Vec::new());
    for (parameter, state) in parameters.all.iter().zip(states) {
        for (part, prefix) in PARTS {
            layouts.push(TensorLayout {
                name: format!("{prefix}.{}", parameter.spec.name),
                dtype: Dtype::F32,
                shape: parameter.spec.shape.clone(),
            });
            sources.push(Source::Held(state.download(part)?));
        }
    }
    Ok((layouts.clone(), Bytes { layouts, sources }))
}

/// Files of the optimiser's state, opened.
#[derive(Debug)]
pub(super) struct StateFiles {
    folder: PathBuf,
    paths: Vec<PathBuf>,
    stored: Vec<Checkpoint>,
}

impl StateFiles {
    /// Those in `folder`.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let failed = |e| Error::io("list", folder, e);
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if is_state_file(&entry.file_name().to_string_lossy()) {
                paths.push(entry.path());
            }
        }
        paths.sort();
        let stored = paths.iter().map(|path| Checkpoint::open(path));
        Ok(Self {
            folder: folder.to_path_buf(),
            stored: stored.collect::<Result<_>>()?,
            paths,
        })
    }

    /// Their names.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let names = self.paths.iter().filter_map(|path| path.file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// One part of the state, by the names of the parameters.
    fn part(&self, part: &'static str) -> impl Iterator<Item = (&str, Source<'_>)> {
        self.stored.iter().flat_map(move |file| {
            let tensors = file.tensors.iter();
            tensors.filter_map(move |(name, entry)| {
                let parameter = name.strip_prefix(part)?.strip_prefix('.')?;
                Some((parameter, Source::Stored(file, entry)))
            })
        })
    }

    /// The tensor of a parameter's state, in float32 and in the parameter's shape.
    fn tensor(&self, name: &str, shape: &[u64]) -> Result<(&Checkpoint, &TensorEntry)> {
        let holds = |file: &&Checkpoint| file.tensors.contains_key(name);
        let mut files = self.stored.iter().zip(&self.paths);
        let Some((file, path)) = files.find(|(file, _)| holds(file)) else {
            return Err(RunError::NoStateTensor {
                path: self.folder.clone(),
                tensor: name.to_owned(),
            }
            .into());
        };
        let entry = file.tensor(name)?;
        if entry.encoding.plain() == Some(Dtype::F32) && entry.shape == shape {
            return Ok((file, entry));
        }
        Err(RunError::StateTensor {
            path: path.clone(),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
            found: format!("{} {:?}", entry.encoding, entry.shape),
        }
        .into())
    }

    /// Refuses files that lack a tensor of these parameters, each with its shape, or have it in another form.
    pub(super) fn check<'a>(
        &self,
        parameters: impl IntoIterator<Item = (&'a str, &'a [u64])>,
    ) -> Result<()> {
        for (parameter, shape) in parameters {
            for (_, part) in PARTS {
                self.tensor(&format!("{part}.{parameter}"), shape)?;
            }
        }
        Ok(())
    }

    /// Puts the state back into the optimiser of our own trainer.
    pub(super) fn restore(
        &self,
        parameters: &Parameters,
        states: &mut [Box<dyn OptimiserState>],
    ) -> Result<()> {
        for (parameter, state) in parameters.all.iter().zip(states) {
            for (part, prefix) in PARTS {
                let name = format!("{prefix}.{}", parameter.spec.name);
                let (file, entry) = self.tensor(&name, &parameter.spec.shape)?;
                let mut bytes = vec![0; entry.length as usize];
                file.read_bytes(entry, 0, &mut bytes)?;
                let values = bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                state
                    .upload(part, values)
                    .map_err(|e| Error::compute(format!("restore `{name}`"), e))?;
            }
        }
        Ok(())
    }
}
