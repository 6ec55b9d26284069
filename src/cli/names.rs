//! Names, paths, weights, counts and sizes as they are typed: `NAME=DIR`, `DIR:WEIGHT`, `128MiB`. A path that exists as a
//! whole wins over every other reading.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::builder::RangedU64ValueParser;

/// More working memory than any machine has.
const MOST_MEMORY: ByteSize = ByteSize::tib(64);

/// `NAME=DIR`.
pub fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err(format!("expected NAME=DIR, found `{text}`")),
    }
}

/// `DIR` or `DIR:WEIGHT`; a folder whose whole name ends in a colon and a number wins.
pub fn weighted_path(text: &str) -> Result<(PathBuf, f64), String> {
    let whole = PathBuf::from(text);
    match text.rsplit_once(':') {
        // What follows the colon of `hf://` is no weight.
        Some((path, weight))
            if !path.is_empty() && !weight.starts_with("//") && !whole.exists() =>
        {
            match weight.parse::<f64>() {
                Ok(weight) if weight.is_finite() => Ok((PathBuf::from(path), weight)),
                _ => Err(format!(
                    "expected a finite number after the colon, found `{weight}`"
                )),
            }
        }
        _ => Ok((whole, 1.0)),
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

/// A count of one or more.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A size of one byte or more.
pub fn size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>()? {
        ByteSize(0) => Err("expected at least one byte".to_owned()),
        size => Ok(size),
    }
}

/// A size that a machine's memory can have.
pub fn memory(text: &str) -> Result<ByteSize, String> {
    let size = size(text)?;
    if size <= MOST_MEMORY {
        Ok(size)
    } else {
        Err(format!("expected at most {MOST_MEMORY}, found {size}"))
    }
}
