//! Counts and sizes as they are typed (`128MiB`), and lists of paths.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::builder::RangedU64ValueParser;

/// More working memory than any machine has.
const MOST_MEMORY: ByteSize = ByteSize::tib(64);

/// The paths of values that are one each.
pub fn paths<P: Deref<Target = Path>>(values: &[P]) -> Vec<PathBuf> {
    values.iter().map(|value| value.to_path_buf()).collect()
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
