//! What mergekit calls a model: `path[@revision][+adapter]`.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::error::MergekitError;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::reference::Reference;
use crate::checkpoint::views;
use crate::checkpoint::yaml::place;
use crate::error::Location;

/// Brings `ORG/NAME[@REVISION]` from the Hub, and returns its folder; `None` where there is no Hub.
pub type Fetch<'a> = &'a dyn Fn(&str) -> Result<Option<PathBuf>>;

/// The folder that a reference names, relative to the current folder; else the folder of the Hub's repository of this
/// name. A model with an adapter is `FOLDER+FOLDER`.
pub(super) fn folder(
    file: &Path,
    key: &'static str,
    reference: &Spanned<String>,
    fetch: Fetch,
) -> Result<PathBuf> {
    let at = place(file, reference.referenced);
    let name = &reference.value;
    match name.split_once('+').filter(|_| !Path::new(name).is_dir()) {
        None => folder_of(&at, key, name, fetch),
        Some((model, adapter)) => {
            let mut both = folder_of(&at, key, model, fetch)?.into_os_string();
            both.push("+");
            both.push(folder_of(&at, key, adapter, fetch)?);
            Ok(both.into())
        }
    }
}

/// The folder of a model, or of an adapter.
fn folder_of(at: &Location, key: &'static str, name: &str, fetch: Fetch) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_dir() {
        return Ok(path);
    }
    let at = at.clone();
    if path.exists() {
        return Err(MergekitError::FileAsModel { at, key, path }.into());
    }
    if name.contains('/')
        && Reference::parse(name).is_ok()
        && let Some(folder) = fetch(name)?
    {
        return Ok(folder);
    }
    Err(MergekitError::NoFolder { at, key, path }.into())
}

/// The model of a model with an adapter.
pub(super) fn model_in(folder: &Path) -> PathBuf {
    let text = folder.to_string_lossy();
    let model = views::parts(&text).and_then(|parts| parts.first().map(PathBuf::from));
    model.unwrap_or_else(|| folder.to_path_buf())
}

/// A dtype under the names of torch.
pub(super) fn float(file: &Path, key: &'static str, name: &Spanned<String>) -> Result<Dtype> {
    let plain = name.value.strip_prefix("torch.").unwrap_or(&name.value);
    let dtype = dtype::parse(plain).filter(|dtype| dtype::is_float(*dtype));
    Ok(dtype.ok_or_else(|| MergekitError::Dtype {
        at: place(file, name.referenced),
        key,
        found: name.value.clone(),
    })?)
}
