//! Which GGUF files are read: a family with a section `gguf` names their architecture.

use std::path::Path;
use std::sync::Arc;

use super::format::Family;
use super::gguf_error::{ARCHITECTURE, GgufModelError};
use super::keys::Field;
use super::known::{brought, families};
use super::names::GgufNames;
use crate::checkpoint::Gguf;
use crate::error::{Error, InputError, Result, one_of};

/// The families that llama.cpp computes, and what it calls their parts: one that a user brought comes first.
pub(super) fn written() -> Result<impl Iterator<Item = (&'static Arc<Family>, &'static GgufNames)>>
{
    let known = brought().into_iter().chain(families()?);
    Ok(known.filter_map(|family| Some((family, family.gguf.as_ref()?))))
}

/// Values of `general.architecture` that are read, each once.
pub(super) fn architectures() -> Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for (_, gguf) in written()? {
        if !names.contains(&gguf.architecture.as_str()) {
            names.push(gguf.architecture.as_str());
        }
    }
    Ok(names)
}

/// The family of a file: the first of its architecture, with experts if the file has any and without if it has none.
///
/// # Errors
/// An architecture that is not read.
pub(super) fn family(gguf: &Gguf) -> Result<Arc<Family>> {
    if let Some(error) = other_architecture(gguf)? {
        return Err(error);
    }
    let found = gguf.text(ARCHITECTURE)?.unwrap_or_default();
    let of_architecture =
        || written().map(|families| families.filter(|(_, names)| names.architecture == found));
    let mut has_experts = false;
    for (_, names) in of_architecture()?.filter(|(family, _)| family.is_mixture()) {
        let count = gguf.unsigned(&names.key(Field::NumExperts)?)?;
        has_experts |= count.is_some_and(|count| count > 0);
    }
    let family = of_architecture()?.find(|(family, _)| family.is_mixture() == has_experts);
    family.map(|(family, _)| Arc::clone(family)).ok_or_else(|| {
        GgufModelError::OtherExperts {
            path: gguf.path.clone(),
            has_experts,
        }
        .into()
    })
}

/// The refusal of a file whose architecture is not read; `None` for one that is read.
///
/// # Errors
/// Where the file does not say its architecture.
pub fn other_architecture(gguf: &Gguf) -> Result<Option<Error>> {
    let architectures = architectures()?;
    let found = gguf.text(ARCHITECTURE)?.ok_or_else(|| {
        let known = one_of(architectures.iter().copied());
        InputError::missing_key(&gguf.path, ARCHITECTURE, known)
    })?;
    if architectures.contains(&found) {
        return Ok(None);
    }
    Ok(Some(
        GgufModelError::OtherArchitecture {
            path: gguf.path.clone(),
            known: architectures,
            found: found.to_owned(),
        }
        .into(),
    ))
}

/// Why `convert` would refuse a file; `None` for one that is no GGUF file, or of an architecture that is read.
pub(super) fn refusal(path: &Path) -> Option<Error> {
    let gguf = Gguf::open(path).ok()?;
    other_architecture(&gguf).ok().flatten()
}
