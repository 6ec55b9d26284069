//! A checkpoint on the Hub without its data: configuration and headers by range requests. Weight files have their real
//! length, but are empty after their headers.
//!
//! Commands that only look at headers (`inspect`, `cost`, `--dry-run`) open this folder like any other. It is in this
//! program's own cache, in the layout of the Hub's cache, so that its path says where it came from. The parts of a file
//! that are fetched cannot be checked against the hash of the whole: they are shown, never built upon.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::cache::{Cache, make_folder};
use super::client::HubClient;
use super::content::has_content;
use super::download::Download;
use super::parallel::each;
use super::remote_file::RemoteFile;
use super::request_error::HubRequestError;
use super::retry::RetryPolicy;
use super::selection::FileSelection;
use super::tree::Snapshot;
use crate::checkpoint::format::is_pytorch_file;
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::reference::Reference;
use crate::checkpoint::{header, known_hashes, single};
use crate::{Error, Result};

/// Files that are asked for at a time.
const WORKERS: usize = 8;
/// Bytes of a weight file that are asked for first; most headers are shorter.
const FIRST: u64 = 256 << 10;
/// Bytes that are asked for at once at most.
const LARGEST: u64 = 8 << 20;
/// Bytes of metadata of a GGUF file; vocabularies of 260,000 tokens take some ten million.
const LONGEST_GGUF: u64 = 256 << 20;
/// Tokenizers and the like that are larger are left out.
const LARGEST_BESIDE: u64 = 64 << 20;

/// A folder with the headers of a revision.
///
/// # Errors
/// The errors of a pull, and weight files that do not begin as their format does.
pub fn headers(client: &HubClient, reference: &Reference) -> Result<PathBuf> {
    fetch_headers(client, &Snapshot::of(client, reference)?)
}

/// As [`headers`], of a revision whose files are known.
pub(super) fn fetch_headers(client: &HubClient, snapshot: &Snapshot) -> Result<PathBuf> {
    let root = known_hashes::cache_folder().ok_or(HubRequestError::NoHeaderCache)?;
    let folder =
        Cache::within(&root.join("headers"), &snapshot.repository).snapshot(&snapshot.commit);
    make_folder(&folder)?;
    each(
        &FileSelection::default().choose(snapshot)?,
        WORKERS,
        |path| {
            let file = RemoteFile {
                client,
                snapshot,
                path,
                entry: &snapshot.files[*path],
            };
            fetch_file(file, &folder)
        },
    )?;
    Ok(folder)
}

/// Whether a file of a repository is fetched by its header alone.
pub(super) fn is_weight_file(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".gguf")
}

/// Puts a file into the folder: a weight file by its header, a small file whole, a large one not at all.
fn fetch_file(file: RemoteFile, folder: &Path) -> Result<()> {
    let (path, entry) = (file.path, file.entry);
    let place = folder.join(path);
    if is_weight_file(path) {
        if place.is_file() {
            return Ok(());
        }
        let mut remote = Remote {
            file,
            fetched: VecDeque::new(),
            position: 0,
            failed: None,
        };
        let written = write_header(&mut remote, &place);
        // An error of the network is the cause, whatever the reader made of it.
        return remote.failed.map_or(written, Err);
    }
    // The pickle of a file of PyTorch may lie anywhere in it.
    let is_large = entry.size > LARGEST_BESIDE && !is_pytorch_file(path);
    if is_large || has_content(&place, entry)? {
        return Ok(());
    }

    // Random letters: process ids are not unique in a cache that several containers share.
    let partial = tempfile::Builder::new()
        .prefix(&format!(".{path}."))
        .make_in(folder, |path| File::create_new(path))
        .map_err(|e| Error::io("create", &place, e))?
        .into_temp_path();
    Download {
        file,
        progress: &|_| {},
        received: &AtomicU64::new(0),
    }
    .fetch(&partial)?;
    partial
        .persist(&place)
        .map_err(|e| Error::io("rename to", &place, e.error))
}

/// Makes a weight file at `place` with its header, and nothing after it.
fn write_header(remote: &mut Remote, place: &Path) -> Result<()> {
    single::write_with(place, |file| {
        let fault = |e| Error::io("write", place, e);
        let size = remote.file.entry.size;
        let mut reader = Copying {
            remote,
            file: &*file,
        };
        if place
            .extension()
            .is_some_and(|extension| extension == "gguf")
        {
            Gguf::read(place, reader.take(LONGEST_GGUF), size)?;
        } else {
            let mut length = [0; 8];
            let cut = |_| HubRequestError::NotSafetensors {
                path: place.to_path_buf(),
                size,
            };
            reader.read_exact(&mut length).map_err(cut)?;
            let length = u64::from_le_bytes(length).min(header::LONGEST);
            std::io::copy(&mut reader.take(length), &mut std::io::sink()).map_err(cut)?;
        }
        file.set_len(size).map_err(fault)
    })
}

/// A weight file on the Hub, read from its beginning by ranges that grow.
struct Remote<'a> {
    file: RemoteFile<'a>,
    /// What has been fetched and not yet read.
    fetched: VecDeque<u8>,
    position: u64,
    /// Why there is no more, where it is not the end of the file.
    failed: Option<Error>,
}

impl Remote<'_> {
    fn fetch(&mut self) -> Result<()> {
        let end = self.file.entry.size.min(
            (2 * self.position)
                .max(self.position + FIRST)
                .min(self.position + LARGEST),
        );
        let mut retries = RetryPolicy::new();
        while self.position < end {
            let found = self.file.stream(self.position, Some(end), &mut |bytes| {
                self.fetched.extend(bytes);
                self.position += bytes.len() as u64;
                Ok(())
            })?;
            if let Err(failure) = found {
                retries.wait(failure)?;
            }
        }
        Ok(())
    }
}

impl Read for Remote<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.fetched.is_empty() && self.position < self.file.entry.size {
            self.fetch().map_err(|error| {
                let text = error.to_string();
                self.failed = Some(error);
                std::io::Error::other(text)
            })?;
        }
        self.fetched.read(buf)
    }
}

/// Reads, and writes what was read to a file.
struct Copying<'a, 'b> {
    remote: &'a mut Remote<'b>,
    file: &'a File,
}

impl Read for Copying<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.remote.read(buf)?;
        self.file.write_all(&buf[..count])?;
        Ok(count)
    }
}
