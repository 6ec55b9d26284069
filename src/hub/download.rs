//! One file of a commit, fetched until its size and hash are right.
//!
//! The file grows at its end, so that its length says where to resume after a cut connection, a kill or a full disk.
//! Another thread hashes what has been written, from the page cache.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use super::answer_error::HubAnswerError;
use super::content::Hasher;
use super::error::HubFault;
use super::remote_file::RemoteFile;
use super::request_error::HubRequestError;
use super::retry::RetryPolicy;
use super::xet;
use crate::checkpoint::filesystem;
use crate::{Error, Result, threads};

/// Bytes after which a connection has been good enough to forget earlier failures.
const PROGRESS: u64 = 1 << 16;
/// How often a content may be wrong from its first byte on.
const WRONG_CONTENTS: u32 = 3;

/// A file to fetch.
pub(super) struct Download<'a> {
    pub file: RemoteFile<'a>,
    /// Called with each number of bytes that arrived.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Counts bytes that were transferred, again if they had to be.
    pub received: &'a AtomicU64,
}

impl Download<'_> {
    /// Fills the file at `partial`, going on where it ends, and makes it durable.
    ///
    /// # Errors
    /// The bytes do not arrive after several attempts, or they differ from the commit's. Then `partial` is removed.
    pub(super) fn fetch(&self, partial: &Path) -> Result<()> {
        let fault = |e| Error::io("write", partial, e);
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(partial)
            .map_err(fault)?;
        let expected = self.file.entry.hash.digits();
        let mut reported = 0;
        let mut found = String::new();

        for _ in 0..WRONG_CONTENTS {
            let had = file.metadata().map_err(fault)?.len();
            let had = if had > self.file.entry.size { 0 } else { had };
            file.set_len(had).map_err(fault)?;
            found = self.complete(&file, partial, had, &mut reported)?;
            if found == expected {
                return filesystem::sync(&file).map_err(|e| Error::io("sync", partial, e));
            }
            file.set_len(0).map_err(fault)?;
        }

        // Best effort: nobody resumes from it.
        let _ = std::fs::remove_file(partial);
        Err(HubAnswerError::WrongContent {
            place: self.file.place(),
            expected: expected.to_owned(),
            found,
        }
        .into())
    }

    /// Appends what is missing while another thread hashes the file; returns the hash.
    fn complete(
        &self,
        file: &File,
        partial: &Path,
        had: u64,
        reported: &mut u64,
    ) -> Result<String> {
        std::thread::scope(|scope| {
            let (grown, lengths) = mpsc::channel();
            let hashing = std::thread::Builder::new()
                .spawn_scoped(scope, || follow(file, Hasher::of(self.file.entry), lengths))
                .map_err(threads::none)?;
            let transferred = self.transfer(file, partial, had, reported, &grown);
            drop(grown);
            let found = hashing.join().map_err(|_| HubRequestError::HashThread {
                path: partial.to_path_buf(),
            })?;
            transferred.and(found.map_err(|e| Error::io("read", partial, e)))
        })
    }

    /// Appends what is missing; `had` bytes are there.
    fn transfer(
        &self,
        mut file: &File,
        partial: &Path,
        had: u64,
        reported: &mut u64,
        grown: &mpsc::Sender<u64>,
    ) -> Result<()> {
        // The other end waits as long as this one sends.
        let report = |had: u64, reported: &mut u64| {
            let _ = grown.send(had);
            (self.progress)(had.saturating_sub(*reported));
            *reported = had.max(*reported);
        };
        report(had, reported);
        let had = Cell::new(had);
        let mut write = |bytes: &[u8]| {
            file.write_all(bytes)
                .map_err(|e| Error::io("write", partial, e))?;
            self.received
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            had.set(had.get() + bytes.len() as u64);
            report(had.get(), reported);
            Ok(())
        };
        let mut retries = RetryPolicy::new();
        while had.get() < self.file.entry.size {
            let begin = had.get();
            let Err(failure) = self.file.stream(begin, None, &mut write)? else {
                continue;
            };
            if had.get() - begin >= PROGRESS {
                retries = RetryPolicy::new();
            }
            if let Err(error) = retries.wait(failure) {
                return if self.may_use_xet(&error) {
                    xet::download(&self.file, had.get(), &mut write)
                } else {
                    Err(error)
                };
            }
        }
        Ok(())
    }

    /// Whether the bytes can come from the Xet storage, after their address has failed for good.
    fn may_use_xet(&self, error: &Error) -> bool {
        let Some(fault) = error.hub_fault() else {
            return false;
        };
        let is_refusal = matches!(
            fault,
            HubFault::NoRepository
                | HubFault::NoRevision
                | HubFault::Gated
                | HubFault::BadToken
                | HubFault::Offline
        );
        self.file.entry.xet.is_some() && !self.file.client.settings.no_xet && !is_refusal
    }
}

/// The hash of a file that grows to the lengths that come, the last of which is its end.
fn follow(
    file: &File,
    mut hasher: Hasher,
    lengths: mpsc::Receiver<u64>,
) -> std::io::Result<String> {
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    while let Ok(length) = lengths.recv() {
        // Only the latest matters.
        let length = lengths.try_iter().last().unwrap_or(length);
        while done < length {
            let count = (length - done).min(buf.len() as u64) as usize;
            file.read_exact_at(&mut buf[..count], done)?;
            hasher.update(&buf[..count]);
            done += count as u64;
        }
    }
    Ok(hasher.finish())
}
