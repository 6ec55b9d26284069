//! The hash of a content as the Hub takes it, and whether a file on disk has it.

use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::tree::{ContentHash, FileEntry};
use crate::Result;
use crate::checkpoint::hash::hex;
use crate::checkpoint::known_hashes;
use crate::checkpoint::source_file::{ReadAt, SourceFile};

/// A hash being taken, of either kind.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// For a content that must have the hash of an entry.
    pub(super) fn of(entry: &FileEntry) -> Self {
        match entry.hash {
            ContentHash::Sha256(_) | ContentHash::Unknown => Self::Sha256(Sha256::new()),
            ContentHash::GitBlob(_) => Self::git_blob(entry.size),
        }
    }

    /// For the id of a git blob of so many bytes.
    pub(super) fn git_blob(size: u64) -> Self {
        Self::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0")))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::GitBlob(state) => state.update(bytes),
        }
    }

    /// The hexadecimal digits.
    pub(super) fn finish(self) -> String {
        match self {
            Self::Sha256(state) => hex(&state.finalize()),
            Self::GitBlob(state) => hex(&state.finalize()),
        }
    }

    /// The digits for a whole file.
    pub(super) fn of_file(mut self, file: &SourceFile) -> Result<String> {
        let mut buf = vec![0; 1 << 20];
        for start in (0..file.len()).step_by(1 << 20) {
            let count = (file.len() - start).min(1 << 20) as usize;
            file.read_exact_at(&mut buf[..count], start)?;
            self.update(&buf[..count]);
        }
        file.check_unchanged()?;
        Ok(self.finish())
    }
}

/// Whether there is a file at `path` with the size and the hash of an entry.
pub fn has_content(path: &Path, entry: &FileEntry) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let file = SourceFile::open(path)?;
    if file.len() != entry.size {
        return Ok(false);
    }
    if let ContentHash::Sha256(expected) = &entry.hash
        && let Some(known) = known_hashes::lookup(&file)
    {
        return Ok(known == *expected);
    }
    let found = Hasher::of(entry).of_file(&file)?;
    if matches!(entry.hash, ContentHash::Sha256(_)) {
        known_hashes::remember(&file, &found);
    }
    Ok(found == entry.hash.digits())
}
