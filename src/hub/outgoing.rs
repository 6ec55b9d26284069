//! What of a folder goes up: its files, hashed, and nothing that should not leave this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memchr::memmem::Finder;
use sha2::{Digest, Sha256};

use super::content::Hasher;
use super::request_error::HubRequestError;
use super::settings::Token;
use super::tree::{ContentHash, FileEntry, is_path};
use crate::checkpoint::hash::hex;
use crate::checkpoint::known_hashes;
use crate::checkpoint::output::reserved;
use crate::checkpoint::source_file::{ReadAt, SourceFile};
use crate::{Error, Result};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Bytes at the beginning of a file from which the Hub tells what it is.
const SAMPLE: usize = 512;

/// Folders that git and Python's client keep beside the files of a repository.
const KEPT_BESIDE: [&str; 2] = [".cache", ".git"];

/// A file that is to be in the repository.
#[derive(Debug)]
pub struct Outgoing {
    /// Its path there.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    pub(super) content: Content,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// In a file, which must not change until it is there.
    File(Arc<SourceFile>),
    /// In memory, in place of a file of the folder.
    Bytes(Arc<Vec<u8>>),
}

impl ReadAt for Content {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buf, offset),
            Self::Bytes(bytes) => {
                let start = offset as usize;
                let wanted = bytes.get(start..start + buf.len());
                buf.copy_from_slice(wanted.ok_or(HubRequestError::BeyondEnd)?);
                Ok(())
            }
        }
    }
}

impl Outgoing {
    fn new(
        path: String,
        content: Content,
        secret: Option<&Finder>,
        progress: &dyn Fn(u64),
    ) -> Result<Self> {
        let (size, known) = match &content {
            Content::File(file) => (file.len(), known_hashes::lookup(file)),
            Content::Bytes(bytes) => (bytes.len() as u64, None),
        };
        let mut state = known.is_none().then(Sha256::new);
        let kept = secret.map_or(0, |secret| secret.needle().len() - 1);
        // The end of the last piece precedes each piece, because a match may span two.
        let (mut buf, mut before) = (vec![0; kept + PIECE], 0);
        for start in (0..size).step_by(PIECE) {
            let count = (size - start).min(PIECE as u64) as usize;
            content.read_exact_at(&mut buf[before..before + count], start)?;
            if let Some(state) = &mut state {
                state.update(&buf[before..before + count]);
            }
            let end = before + count;
            if secret.is_some_and(|secret| secret.find(&buf[..end]).is_some()) {
                return Err(HubRequestError::HoldsToken { path }.into());
            }
            let rest = kept.min(end);
            buf.copy_within(end - rest..end, 0);
            before = rest;
            progress(count as u64);
        }
        let sha256 = match (state, known) {
            (Some(state), _) => hex(&state.finalize()),
            (None, known) => known.unwrap_or_default(),
        };
        if let Content::File(file) = &content {
            file.check_unchanged()?;
            known_hashes::remember(file, &sha256);
        }
        Ok(Self {
            path,
            size,
            sha256,
            content,
        })
    }

    /// Whether an entry has the same content.
    pub(super) fn is(&self, entry: &FileEntry) -> Result<bool> {
        if self.size != entry.size {
            return Ok(false);
        }
        match &entry.hash {
            ContentHash::Sha256(digits) => Ok(self.sha256 == *digits),
            ContentHash::GitBlob(digits) => Ok(self.git_blob()? == *digits),
            ContentHash::Unknown => Ok(false),
        }
    }

    /// The id that git gives to its content.
    fn git_blob(&self) -> Result<String> {
        let mut hasher = Hasher::git_blob(self.size);
        match &self.content {
            Content::File(file) => hasher.of_file(file),
            Content::Bytes(bytes) => {
                hasher.update(bytes);
                Ok(hasher.finish())
            }
        }
    }

    /// Its first bytes.
    pub(super) fn sample(&self) -> Result<Vec<u8>> {
        self.read(self.size.min(SAMPLE as u64))
    }

    /// All of it, which must not be large.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        self.read(self.size)
    }

    fn read(&self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.content.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Refuses a file that has changed since it was hashed.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        match &self.content {
            Content::File(file) => file.check_unchanged(),
            Content::Bytes(_) => Ok(()),
        }
    }
}

/// The files of a folder that go up, by path; `replaced` holds contents that go up in the place of its own.
///
/// Names that begin with a dot are left out, and what is not complete. `progress` is called with numbers of bytes that
/// were read.
///
/// # Errors
/// Links to folders or to files outside; a file that holds the token; names that no repository can have.
pub(super) fn collect(
    folder: &Path,
    mut replaced: BTreeMap<String, Vec<u8>>,
    token: Option<&Token>,
    progress: &dyn Fn(u64),
) -> Result<Vec<Outgoing>> {
    let secret = token.map(|token| Finder::new(token.secret().as_bytes()));
    let mut files = Vec::new();
    for (path, place) in paths(folder)? {
        let content = match replaced.remove(&path) {
            Some(bytes) => Content::Bytes(Arc::new(bytes)),
            None => Content::File(Arc::new(SourceFile::open(&place)?)),
        };
        files.push(Outgoing::new(path, content, secret.as_ref(), progress)?);
    }
    for (path, bytes) in replaced {
        files.push(Outgoing::new(
            path,
            Content::Bytes(Arc::new(bytes)),
            secret.as_ref(),
            progress,
        )?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Bytes of the files that go up.
pub fn length(folder: &Path) -> Result<u64> {
    let lengths = paths(folder)?.into_iter().map(|(_, place)| {
        let metadata = fs::metadata(&place).map_err(|e| Error::io("read", &place, e))?;
        Ok(metadata.len())
    });
    lengths.sum()
}

/// Names of files and folders that stay, beside those that this program and others keep about a folder for themselves.
pub fn left_out(folder: &Path) -> Result<Vec<String>> {
    Ok(contents(folder)?.left_out)
}

/// Paths in the repository, and where the files are.
pub(super) fn paths(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    Ok(contents(folder)?.files)
}

/// What is in a folder.
struct Contents {
    /// Files that go up: path in the repository, and path here.
    files: Vec<(String, PathBuf)>,
    /// Paths of what stays.
    left_out: Vec<String>,
}

/// Looks through a folder.
fn contents(folder: &Path) -> Result<Contents> {
    let root = resolved(folder)?;
    // A snapshot of a cache is made of links to blobs beside it.
    let blobs = root
        .parent()
        .filter(|parent| parent.ends_with("snapshots"))
        .and_then(Path::parent);
    let blobs = blobs.map(|repository| repository.join("blobs"));

    let (mut files, mut left_out) = (Vec::new(), Vec::new());
    let mut open = vec![(String::new(), folder.to_path_buf())];
    while let Some((above, folder)) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("read", &folder, e))? {
            let entry = entry.map_err(|e| Error::io("read", &folder, e))?;
            let place = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(HubRequestError::NameNotUtf8 { path: place }.into());
            };
            let path = format!("{above}{name}");
            if stays(&name) {
                if reserved(&name).is_none() && !KEPT_BESIDE.contains(&&*name) {
                    left_out.push(path);
                }
                continue;
            }
            if !is_path(&path) {
                return Err(HubRequestError::InvalidName { path: place }.into());
            }

            let kind = entry
                .file_type()
                .map_err(|e| Error::io("read", &place, e))?;
            if kind.is_symlink() {
                check_link(&place, &root, blobs.as_deref())?;
            } else if kind.is_dir() {
                open.push((format!("{path}/"), place));
                continue;
            }
            files.push((path, place));
        }
    }
    files.sort();
    left_out.sort();
    Ok(Contents { files, left_out })
}

fn resolved(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::io("read", path, e))
}

/// Whether a file or folder of this name is not pushed: hidden ones, and downloads and outputs that are not complete.
fn stays(name: &str) -> bool {
    let is_incomplete = [".partial", ".incomplete"]
        .iter()
        .any(|end| name.ends_with(end));
    name.starts_with('.') || is_incomplete
}

/// Refuses a link that leads to a folder, or out of the folder `root` and the `blobs` of its cache.
fn check_link(link: &Path, root: &Path, blobs: Option<&Path>) -> Result<()> {
    let target = resolved(link)?;
    let path = link.to_path_buf();
    if target.is_dir() {
        return Err(HubRequestError::LinkToFolder { path }.into());
    }
    let is_inside =
        target.starts_with(root) || blobs.is_some_and(|blobs| target.starts_with(blobs));
    if is_inside {
        Ok(())
    } else {
        Err(HubRequestError::LinkOutside { path }.into())
    }
}
