//! Names and folders as they are typed: `NAME=DIR`.

use std::path::{Path, PathBuf};

/// `NAME=DIR`.
pub fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err(format!("expected NAME=DIR, found `{text}`")),
    }
}

/// `NAME=DIR` or `DIR`; a folder whose whole name has a `=` wins.
pub fn named(path: &Path) -> (Option<String>, PathBuf) {
    match path.to_string_lossy().split_once('=') {
        Some((name, folder)) if !path.exists() && !name.is_empty() => {
            (Some(name.to_owned()), PathBuf::from(folder))
        }
        _ => (None, path.to_path_buf()),
    }
}
