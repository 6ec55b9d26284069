//! What mergekit calls a model: `path[@revision][+adapter]`.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::error::MergekitError;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::reference::Reference;
use crate::checkpoint::yaml::place;

/// Brings `ORG/NAME[@REVISION]` from the Hub, and returns its folder; `None` where there is no Hub.
pub type Fetch<'a> = &'a dyn Fn(&str) -> Result<Option<PathBuf>>;

/// The folder that a reference names, relative to the current folder; else the folder of the Hub's repository of this
/// name.
pub(super) fn folder(
    file: &Path,
    key: &'static str,
    reference: &Spanned<String>,
    fetch: Fetch,
) -> Result<PathBuf> {
    let path = PathBuf::from(&reference.value);
    if path.is_dir() {
        return Ok(path);
    }
    let at = place(file, reference.referenced);
    if let Some((model, adapter)) = reference.value.split_once('+') {
        return Err(MergekitError::Adapter {
            at,
            key,
            adapter: adapter.to_owned(),
            model: model.to_owned(),
        }
        .into());
    }
    if path.exists() {
        return Err(MergekitError::FileAsModel { at, key, path }.into());
    }
    if reference.value.contains('/')
        && Reference::parse(&reference.value).is_ok()
        && let Some(folder) = fetch(&reference.value)?
    {
        return Ok(folder);
    }
    Err(MergekitError::NoFolder { at, key, path }.into())
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
