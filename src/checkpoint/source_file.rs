//! Reading files at offsets, and noticing when one changes underneath.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::elsewhere::{self, Elsewhere};
use super::error::CheckpointError;
use super::open_files::Key;
pub use super::read_at::ReadAt;
use crate::{Error, Result};

/// What identifies a file's content without reading it: two equal stamps mean an unchanged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// Length in bytes.
    pub length: u64,
    /// Modification time in nanoseconds since the epoch.
    pub modified: i128,
    /// Inode number.
    pub inode: u64,
}

impl Stamp {
    /// The stamp of a file with this metadata.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        let modified =
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self {
            length: metadata.len(),
            modified,
            inode: metadata.ino(),
        }
    }
}

/// A regular file opened for reading, which must not change while it is in use.
///
/// It is closed while the process has too many others open, and opened again where it is read.
#[derive(Debug)]
pub struct SourceFile {
    path: PathBuf,
    key: Key,
    stamp: Stamp,
    /// Where its bytes are, if only its header is here.
    elsewhere: Option<Elsewhere>,
}

impl SourceFile {
    /// Opens a regular file; folders, pipes and devices are refused without being opened.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if !metadata.is_file() {
            let path = path.to_path_buf();
            return Err(CheckpointError::NotRegular { path }.into());
        }
        let fault = |e| Error::io("read", path, e);
        let key = Key::new();
        let file = key.file(|| File::open(path)).map_err(fault)?;
        let stamp = Stamp::of(&file.metadata().map_err(fault)?);
        Ok(Self {
            path: path.to_path_buf(),
            key,
            stamp,
            elsewhere: elsewhere::of(path),
        })
    }

    /// The open file; one that was opened again must be the one that it was.
    fn file(&self) -> Result<Arc<File>> {
        let mut now = None;
        let open = || {
            let file = File::open(&self.path)?;
            now = Some(Stamp::of(&file.metadata()?));
            Ok(file)
        };
        let file = self
            .key
            .file(open)
            .map_err(|e| Error::io("read", &self.path, e))?;
        if now.is_none_or(|now| now == self.stamp) {
            Ok(file)
        } else {
            Err(changed(&self.path))
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.stamp.length
    }

    /// Whether it had no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.stamp.length == 0
    }

    /// Whether the file system stores nothing for these bytes, so that they read as zeros; false where it does not tell.
    pub fn is_hole(&self, offset: u64, length: u64) -> bool {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        if self.elsewhere.is_some() {
            return false;
        }
        // Reading is at offsets, so nobody else uses the position. Beyond the last data, seeking finds no further data.
        let Ok(file) = self.file() else {
            return false;
        };
        match seek(&*file, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset + length,
            // By the length that the file has now: what was cut off is no hole.
            Err(Errno::NXIO) => file
                .metadata()
                .is_ok_and(|now| offset + length <= now.len()),
            Err(_) => false,
        }
    }

    /// What it was when it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Refuses a file whose length, time or identity differs from when it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        if stamp_of(&self.path)? == self.stamp {
            Ok(())
        } else {
            Err(changed(&self.path))
        }
    }
}

/// What the file at `path` is now.
pub(crate) fn stamp_of(path: &Path) -> Result<Stamp> {
    Ok(Stamp::of(
        &std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?,
    ))
}

/// The error for a file that is not what it was.
pub(crate) fn changed(path: &Path) -> Error {
    let path = path.to_path_buf();
    CheckpointError::Changed { path }.into()
}

impl ReadAt for SourceFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if let Some(elsewhere) = &self.elsewhere {
            return elsewhere.read_exact_at(buf, offset);
        }
        self.file()?
            .read_exact_at(buf, offset)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => changed(&self.path),
                _ => Error::io("read", &self.path, e),
            })
    }
}
