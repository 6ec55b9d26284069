//! SHA-256 of files.

use std::io::ErrorKind;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::companions::is_companion;
use super::error::CheckpointError;
use super::source_file::{ReadAt, SourceFile};
use crate::Result;

/// A file's name within its folder, its size and its SHA-256, as manifests list it.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct FileHash {
    /// Path relative to the folder of the checkpoint.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl FileHash {
    /// Whether its path is the name of a file in its folder and nothing else, or a further chat template.
    pub fn is_plain_name(&self) -> bool {
        let name = self.path.as_str();
        if name.contains('/') && is_companion(name) {
            return !name.contains(['\\', '\0']);
        }
        !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
    }

    /// Refuses a file of `folder` that is missing, or has another length or content than recorded. It is read whole.
    pub fn check(&self, folder: &Path) -> Result<()> {
        if !self.is_plain_name() {
            return Err(CheckpointError::RecordedPath {
                path: folder.to_path_buf(),
                found: self.path.clone(),
            }
            .into());
        }
        let path = folder.join(&self.path);
        if std::fs::metadata(&path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Err(CheckpointError::Missing { path }.into());
        }
        let found = SourceFile::open(&path)?.len();
        if found != self.size {
            return Err(CheckpointError::WrongLength {
                path,
                expected: self.size,
                found,
            }
            .into());
        }
        let (found, _) = sha256_file(&path)?;
        if found == self.sha256 {
            return Ok(());
        }
        Err(CheckpointError::WrongHash {
            path,
            expected: self.sha256.clone(),
            found,
        }
        .into())
    }
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// SHA-256 of bytes in memory, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A hash being taken of a file, a slice at a time, so that it can share a thread with other work.
pub struct FileHasher<'a> {
    source: &'a SourceFile,
    state: Sha256,
    position: u64,
}

impl<'a> FileHasher<'a> {
    /// Nothing read yet.
    pub fn new(source: &'a SourceFile) -> Self {
        Self {
            source,
            state: Sha256::new(),
            position: 0,
        }
    }

    /// Reads and hashes up to `buf.len()` bytes; the hash in hexadecimal once the file has ended.
    pub fn advance(&mut self, buf: &mut [u8]) -> Result<Option<String>> {
        let length = (self.source.len() - self.position).min(buf.len() as u64) as usize;
        if length == 0 {
            return Ok(Some(hex(&self.state.clone().finalize())));
        }
        self.source
            .read_exact_at(&mut buf[..length], self.position)?;
        self.state.update(&buf[..length]);
        self.position += length as u64;
        Ok(None)
    }
}

/// SHA-256 (hexadecimal) and length in bytes of a file.
pub fn sha256_file(path: &Path) -> Result<(String, u64)> {
    let source = SourceFile::open(path)?;
    let sha256 = sha256_source(&source)?;
    source.check_unchanged()?;
    Ok((sha256, source.len()))
}

/// SHA-256 (hexadecimal) of an open file.
pub fn sha256_source(source: &SourceFile) -> Result<String> {
    let mut hasher = FileHasher::new(source);
    let mut buf = vec![0; 1 << 20];
    loop {
        if let Some(hash) = hasher.advance(&mut buf)? {
            return Ok(hash);
        }
    }
}
