//! What mergekit calls a model: `path[@revision][+adapter]`.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::reference::Reference;
use crate::checkpoint::yaml::place;
use crate::error::nearest;
use crate::{Error, Result};

/// Brings `ORG/NAME[@REVISION]` from the Hub, and returns its folder; `None` where there is no Hub.
pub type Fetch<'a> = &'a dyn Fn(&str) -> Result<Option<PathBuf>>;

/// The folder that a reference names, as seen from the current folder; else that of the Hub's repository of this name.
pub(super) fn folder(
    file: &Path,
    key: &str,
    reference: &Spanned<String>,
    fetch: Fetch,
) -> Result<PathBuf> {
    let path = PathBuf::from(&reference.value);
    if path.is_dir() {
        return Ok(path);
    }
    let fault = |problem: String| Error::key(place(file, reference.referenced), key, problem);
    if let Some((model, adapter)) = reference.value.split_once('+') {
        let problem =
            format!("names the adapter `{adapter}` on top of `{model}`, expected a whole model");
        return Err(fault(problem).with_hint(
            "merge the adapter into its model first, and name the folder of the result",
        ));
    }
    if path.exists() {
        return Err(fault(format!(
            "`{}` is a file, expected a folder with config.json and weights",
            path.display()
        )));
    }
    if reference.value.contains('/')
        && Reference::parse(&reference.value).is_ok()
        && let Some(folder) = fetch(&reference.value)?
    {
        return Ok(folder);
    }
    Err(fault(format!("there is no folder `{}`", path.display()))
        .with_hint("paths are seen from the current folder; a repository of the Hub is named as in org/name"))
}

/// A dtype under the names of torch.
pub(super) fn float(file: &Path, key: &str, name: &Spanned<String>) -> Result<Dtype> {
    let plain = name.value.strip_prefix("torch.").unwrap_or(&name.value);
    dtype::parse(plain)
        .filter(|dtype| dtype::is_float(*dtype))
        .ok_or_else(|| {
            let known = ["bfloat16", "float16", "float32", "float64"];
            let problem = format!(
                "expected one of {}, found `{}`",
                known.join(", "),
                name.value
            );
            let error = Error::key(place(file, name.referenced), key, problem);
            match nearest(plain, known) {
                Some(near) => error.with_hint(format!("the nearest is `{near}`")),
                None => error,
            }
        })
}
