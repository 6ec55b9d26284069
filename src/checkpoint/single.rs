//! A single file that is either complete or absent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::output::{folder_of, sync_name};
use super::{SourceFile, header};
use crate::{Error, Result};

/// Writes `parts`, one behind the other, to a sibling of `path` that then takes its place.
pub fn write(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let fault = |e| Error::io("write", path, e);
    write_with(path, |file| {
        parts
            .iter()
            .try_for_each(|part| file.write_all(part))
            .map_err(fault)
    })
}

/// As [`write()`], of what `fill` puts into the file.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "expected the name of a file to write"));
    };
    let folder = folder_of(path);
    // The process in the name keeps two runs apart.
    let partial = folder.join(format!(
        ".{}.partial-{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let written = Removed(&partial);
    let fault = |e| Error::io("write", path, e);
    let mut file = File::create(&partial).map_err(fault)?;
    fill(&mut file)?;
    file.sync_all().map_err(fault)?;
    fs::rename(&partial, path).map_err(fault)?;
    std::mem::forget(written);
    sync_name(path)
}

/// First bytes of an SVG file of ours.
pub const SVG: &[u8] = b"<svg";

/// Whether a file that can be read begins so.
pub fn starts_with(path: &Path, start: &[u8]) -> bool {
    let mut found = vec![0; start.len()];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut found))
        .is_ok()
        && found == start
}

/// Refuses to replace a file that does not begin as those of its `kind` do.
pub fn check_kind(path: &Path, start: &[u8], kind: &str) -> Result<()> {
    if path.exists() && !starts_with(path, start) {
        return Err(
            Error::file(path, format!("exists already, and is no {kind}"))
                .with_hint("choose another output"),
        );
    }
    Ok(())
}

/// Writes one float32 tensor as a safetensors file.
///
/// An existing file is replaced only if it is one that this function wrote: it holds that one tensor, and nothing else.
pub fn write_tensor(path: &Path, name: &str, shape: &[u64], values: &[f32]) -> Result<()> {
    check_tensor_target(path, name)?;
    let header = header::write([(name, Dtype::F32, shape)]);
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    write(path, &[&header, &data])
}

/// Refuses a target that [`write_tensor`] would not replace.
pub fn check_tensor_target(path: &Path, name: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let same = SourceFile::open(path).and_then(|file| header::read(&file, 0));
    match same {
        Ok(header) if header.tensors.len() == 1 && header.tensors.contains_key(name) => Ok(()),
        _ => Err(Error::file(
            path,
            format!("exists already, and is no file of the one tensor `{name}`"),
        )
        .with_hint("choose another output, or remove it first")),
    }
}

/// A partial file, removed unless it was renamed.
struct Removed<'a>(&'a PathBuf);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // The error that brought us here is what the user must see, not that of the cleaning.
        let _ = fs::remove_file(self.0);
    }
}
