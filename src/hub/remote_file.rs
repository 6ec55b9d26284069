//! A file of a commit, and its bytes as one connection brings them.

use std::time::{Duration, Instant};

use super::client::HubClient;
use super::error::HubError;
use super::retry::Failure;
use super::tree::{FileEntry, Snapshot};
use crate::Result;

/// A transfer slower than so many bytes a second, over [`WINDOW`] times the transfer's time-out, is given up.
const SLOWEST: u64 = 1024;
const WINDOW: u32 = 3;

/// A file of a commit.
#[derive(Clone, Copy)]
pub(super) struct RemoteFile<'a> {
    pub client: &'a HubClient,
    pub snapshot: &'a Snapshot,
    pub path: &'a str,
    pub entry: &'a FileEntry,
}

impl RemoteFile<'_> {
    /// How errors and people name it.
    pub(super) fn place(&self) -> String {
        format!("{}: {}", self.snapshot.place(), self.path)
    }

    /// Hands over the bytes from `begin` on, up to and without `end` (the end of the file where none is given), each once,
    /// whatever the server sends beside them. The outer error is one of `write`; the inner one says why not all came.
    pub(super) fn stream(
        &self,
        begin: u64,
        end: Option<u64>,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Result<(), Failure>> {
        let place = self.place();
        let address = self.snapshot.address(self.client, self.path);
        let mut answer = match self.client.range(&place, address, begin, end) {
            Ok(answer) => answer,
            Err(failure) => return Ok(Err(failure)),
        };
        let broken = |error: HubError| Ok(Err(Failure::passing(error)));
        let end = end.unwrap_or(self.entry.size);
        let window = self.client.settings.transfer_timeout * WINDOW;
        let mut position = answer.begins;
        let (mut since, mut at_since) = (Instant::now(), position);
        while position < end {
            let piece = match answer.next() {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    return broken(HubError::CutOff {
                        place,
                        size: self.entry.size,
                        received: position,
                    });
                }
                Err(failure) => return Ok(Err(failure)),
            };
            // A server without ranges sends what is had already, and a faulty one more than there can be.
            let skipped = begin.saturating_sub(position).min(piece.len() as u64);
            let wanted = (end - position).min(piece.len() as u64);
            write(&piece[skipped as usize..wanted.max(skipped) as usize])?;
            position += wanted;
            if since.elapsed() > window {
                let bytes = position - at_since;
                if is_slow(bytes, since.elapsed()) {
                    return broken(HubError::SlowDownload {
                        place,
                        slowest: SLOWEST,
                        bytes,
                        window,
                    });
                }
                (since, at_since) = (Instant::now(), position);
            }
        }
        Ok(Ok(()))
    }
}

fn is_slow(bytes: u64, time: Duration) -> bool {
    (bytes as f64) < SLOWEST as f64 * time.as_secs_f64()
}
