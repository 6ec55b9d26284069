//! Outlines: folders that look like a checkpoint to whoever reads its configuration and headers, and take no space.
//!
//! `run --dry-run` has each command leave the outline of its output in a folder for temporary files, so that the next one
//! can tell what it would make of it. Nothing in them is synced or hashed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::names::INDEX;
use super::open_shard::OpenShard;
use super::shards::{TensorLayout, index, split};
use crate::{Error, Result};

/// Makes the folder and in it the weight files of `tensors`, with their headers and holes for data; their bytes, with the
/// index where there is one.
///
/// # Errors
/// Where the folder cannot be written.
pub fn weights(folder: &Path, tensors: &[TensorLayout], max_shard_size: u64) -> Result<u64> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let shards = split(tensors, max_shard_size);
    let mut bytes = 0;
    for shard in &shards {
        let shard = OpenShard::new(folder, shard, tensors);
        shard.file()?;
        bytes += shard.length;
    }
    if shards.len() > 1 {
        bytes += file(folder, INDEX, &index(&shards, tensors))?;
    }
    Ok(bytes)
}

/// Makes a file in the folder; its bytes.
///
/// # Errors
/// Where it cannot be written.
pub fn file(folder: &Path, name: &str, bytes: &[u8]) -> Result<u64> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
    Ok(bytes.len() as u64)
}

/// Makes `at` another name for the file or folder `of`, as a copy of it would look.
///
/// # Errors
/// Where `of` is not there, or `at` cannot be made.
pub fn copy(of: &Path, at: &Path) -> Result<()> {
    let real = of.canonicalize().map_err(|e| Error::io("read", of, e))?;
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    symlink(real, at).map_err(|e| Error::io("link to", at, e))
}
