//! Folders that show a base checkpoint with adapters added: `BASE+ADAPTER`, as commands take it.
//!
//! A view is a folder of links to the files beside the base's weights, without weights of its own. [`Checkpoint::open`] reads
//! the weights from the base and adds the adapters, so whoever reads a checkpoint need not know. A view belongs to this process.
//!
//! [`Checkpoint::open`]: super::Checkpoint::open

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::adapter_error::AdapterError;
use super::format::is_weight_file;
use super::manifest::model_name;
use super::names::{INDEX, MANIFEST, ORIGIN, PYTORCH_INDEX};
use super::{foreign, reference};
use crate::{Error, Result};

static VIEWS: Mutex<BTreeMap<PathBuf, View>> = Mutex::new(BTreeMap::new());

/// Most adapters of one base.
const MOST_ADAPTERS: usize = 16;
/// Bytes of the name of a view's folder at most; file systems take 255.
const LONGEST_NAME: usize = 200;
/// Most `+` in a text that is taken apart.
const MOST_SIGNS: usize = 16;

/// A base and its adapters, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The folder of the base.
    pub base: PathBuf,
    /// The folders of the adapters.
    pub adapters: Vec<PathBuf>,
}

impl View {
    /// Makes the folder of the view in `work`, and remembers what it is.
    ///
    /// # Errors
    /// A base or an adapter that is not there, or of another kind; a folder that cannot be made.
    pub fn make(self, work: &Path) -> Result<PathBuf> {
        if !foreign::stat(&self.base)?.is_dir() {
            let path = self.base;
            return Err(AdapterError::Base { path }.into());
        }
        for adapter in &self.adapters {
            foreign::stat(adapter)?;
        }
        let name = std::iter::once(&self.base).chain(&self.adapters);
        let name: Vec<_> = name.map(|path| model_name(&real(path))).collect();
        let mut name = name.join("+");
        while name.len() > LONGEST_NAME {
            name.pop();
        }
        let folder = work.join(name);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;

        let base = std::path::absolute(&self.base).map_err(|e| Error::io("find", &self.base, e))?;
        for entry in std::fs::read_dir(&base).map_err(|e| Error::io("list", &base, e))? {
            let entry = entry.map_err(|e| Error::io("list", &base, e))?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            // What says which weights there are, and how they were made, is true of the base alone.
            if is_weight_file(&text) || [INDEX, PYTORCH_INDEX, MANIFEST, ORIGIN].contains(&&*text) {
                continue;
            }
            let link = folder.join(&name);
            std::os::unix::fs::symlink(entry.path(), &link)
                .map_err(|e| Error::io("link", &link, e))?;
        }
        let mut views = VIEWS.lock().unwrap_or_else(PoisonError::into_inner);
        views.insert(folder.clone(), self);
        Ok(folder)
    }
}

/// The view at `path`, if it is one.
pub fn of(path: &Path) -> Option<View> {
    let views = VIEWS.lock().unwrap_or_else(PoisonError::into_inner);
    views.get(path).cloned()
}

/// Where the files of the checkpoint at `path` are: of a view, the base and the adapters.
pub fn places(path: &Path) -> Vec<PathBuf> {
    match of(path) {
        None => vec![path.to_path_buf()],
        Some(view) => std::iter::once(view.base).chain(view.adapters).collect(),
    }
}

/// A path as people know it: of a view, the base and the adapters with `+` between.
pub fn shown(path: &Path) -> PathBuf {
    let places = places(path);
    let names: Vec<&OsStr> = places.iter().map(|place| place.as_os_str()).collect();
    names.join(OsStr::new("+")).into()
}

/// The parts of `BASE+ADAPTER…`, if a text is one. A path that exists is not taken apart, and a part that exists wins over its
/// own parts.
pub fn parts(text: &str) -> Option<Vec<&str>> {
    let signs = text.matches('+').count();
    if signs == 0 || signs > MOST_SIGNS || is_there(text) {
        return None;
    }
    let parts = existing(text).unwrap_or_else(|| text.split('+').collect());
    let is_whole = parts.iter().all(|part| !part.is_empty());
    (is_whole && (2..=MOST_ADAPTERS + 1).contains(&parts.len())).then_some(parts)
}

/// The first way to take a text apart into parts that are all there.
fn existing(text: &str) -> Option<Vec<&str>> {
    if is_there(text) {
        return Some(vec![text]);
    }
    text.match_indices('+').find_map(|(sign, _)| {
        let (first, rest) = (&text[..sign], &text[sign + 1..]);
        if !is_there(first) {
            return None;
        }
        let mut parts = existing(rest)?;
        parts.insert(0, first);
        Some(parts)
    })
}

/// Whether a part is a path that exists, or a reference to the Hub.
fn is_there(part: &str) -> bool {
    match part.strip_prefix(reference::SCHEME) {
        Some(rest) => !rest.contains('+'),
        None => Path::new(part).exists(),
    }
}

/// The path without links and steps up, whose last part is a name.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_taken_apart_where_their_parts_are() {
        let work = tempfile::tempdir().unwrap();
        let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
        for name in ["base", "a", "c++"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let (base, a, odd) = (path("base"), path("a"), path("c++"));
        let both = format!("{base}+{a}");
        assert_eq!(parts(&both), Some(vec![&*base, &*a]));
        assert_eq!(parts(&odd), None);
        let with_odd = format!("{odd}+{a}+hf://o/n@v");
        assert_eq!(parts(&with_odd), Some(vec![&*odd, &*a, "hf://o/n@v"]));
        assert_eq!(
            parts("hf://o/n+hf://o/m"),
            Some(vec!["hf://o/n", "hf://o/m"])
        );
        assert_eq!(parts("${seed}+${code}"), Some(vec!["${seed}", "${code}"]));
        for whole in ["base", "base+", "+base", "a++b"] {
            assert_eq!(parts(whole), None, "{whole}");
        }
    }
}
