//! SHA-256 of large files that were hashed before, so that a source is read for its hash once.
//!
//! `$XDG_CACHE_HOME/bam-convert/hashes` (else `~/.cache/…`) has a small file for each: what identifies the content
//! without reading it (size, times of modification and change, device, inode), and the hash. A file that was modified
//! too short a time before is not remembered: it could change again within the resolution of its times.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::hash::{sha256, sha256_source};
use super::single;
use super::source_file::{SourceFile, Stamp};
use crate::Result;

/// Smaller files are hashed as fast as they are looked up.
const LEAST_SIZE: u64 = 1 << 20;
/// The coarsest resolution of file times that is in use.
const SETTLED: Duration = Duration::from_secs(2);

/// What is remembered of a file.
#[derive(Serialize, Deserialize)]
struct Known {
    identity: Identity,
    sha256: String,
}

/// What a file's content is known by.
#[derive(PartialEq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    stamp: Stamp,
    /// Time of the last change of data or attributes, which no program can set, in nanoseconds since the epoch.
    changed: i128,
    device: u64,
}

/// This program's own cache: `$XDG_CACHE_HOME/bam-convert`, else in `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
    let not_empty = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = not_empty("XDG_CACHE_HOME").or_else(|| Some(not_empty("HOME")?.join(".cache")))?;
    Some(cache.join("bam-convert"))
}

/// The identity of a file as it is now, and where its hash is kept; `None` where none is.
fn place(source: &SourceFile) -> Option<(Identity, PathBuf, SystemTime)> {
    let path = source.path().canonicalize().ok()?;
    let metadata = fs::metadata(&path).ok()?;
    let stamp = Stamp::of(&metadata);
    if stamp != source.stamp() || stamp.length < LEAST_SIZE {
        return None;
    }
    let name = sha256(path.as_os_str().as_encoded_bytes());
    let kept = cache_folder()?.join("hashes").join(format!("{name}.json"));
    let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    let latest = u64::try_from(changed.max(stamp.modified)).ok()?;
    let latest = SystemTime::UNIX_EPOCH + Duration::from_nanos(latest);
    Some((
        Identity {
            path,
            stamp,
            changed,
            device: metadata.dev(),
        },
        kept,
        latest,
    ))
}

/// SHA-256 (hexadecimal) of a file: the one that is known, unless it is to be taken `anew`.
pub fn sha256_of(path: &Path, anew: bool) -> Result<String> {
    sha256_of_source(&SourceFile::open(path)?, anew)
}

/// SHA-256 (hexadecimal) of an open file: the one that is known, unless it is to be taken `anew`.
pub fn sha256_of_source(source: &SourceFile, anew: bool) -> Result<String> {
    if let Some(known) = lookup(source).filter(|_| !anew) {
        return Ok(known);
    }
    let sha256 = sha256_source(source)?;
    source.check_unchanged()?;
    remember(source, &sha256);
    Ok(sha256)
}

/// The hash (hexadecimal) of a file that has not changed since it was [remembered](remember).
pub fn lookup(source: &SourceFile) -> Option<String> {
    let (identity, kept, _) = place(source)?;
    let known: Known = serde_json::from_slice(&fs::read(kept).ok()?).ok()?;
    (known.identity == identity).then_some(known.sha256)
}

/// Keeps the hash of a file that was read whole since it was opened; does nothing where that is not possible.
pub fn remember(source: &SourceFile, sha256: &str) {
    let Some((identity, kept, latest)) = place(source) else {
        return;
    };
    let is_settled = latest.elapsed().is_ok_and(|age| age > SETTLED);
    let Some(folder) = kept.parent().filter(|_| is_settled) else {
        return;
    };
    let known = Known {
        identity,
        sha256: sha256.to_owned(),
    };
    if fs::create_dir_all(folder).is_ok()
        && let Ok(text) = serde_json::to_vec(&known)
    {
        // It only saves time: a full or read-only disk is no reason to fail.
        let _ = single::write(&kept, &[&text]);
    }
}
