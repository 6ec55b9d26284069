//! The documents of many files in batches, the next one read while the last is worked on.

use std::path::{Path, PathBuf};

use super::documents::{Document, DocumentForm, Documents};
use super::error::DocumentPlace;
use crate::Result;
use crate::checkpoint::SourceFile;
use crate::checkpoint::source_file::{Stamp, changed};

/// Bytes of text in a batch; one document more than that is one batch.
const BATCH: usize = 8 << 20;
/// Bytes that a document counts for beside its text: its fingerprint and its tokens take as much, however short it is.
const DOCUMENT: usize = 256;

/// A document that has text.
pub(super) struct ReadDocument<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Where it is in the file.
    pub place: DocumentPlace,
    /// Its text.
    pub text: String,
}

/// How many documents there were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// All.
    pub documents: u64,
    /// Those without text, left out.
    pub empty: u64,
    /// Those whose text cannot be read, left out.
    pub unreadable: u64,
}

/// The documents of all files, one after the other.
pub(super) struct Reader<'a> {
    files: std::slice::Iter<'a, (PathBuf, Stamp)>,
    form: &'a DocumentForm,
    open: Option<(&'a Path, &'a Stamp, Documents)>,
    counts: Counts,
    /// Called with the length of each file that has been read.
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Reader<'a> {
    /// All documents of `files`, none of which may have changed since its stamp was taken.
    pub fn new(
        files: &'a [(PathBuf, Stamp)],
        form: &'a DocumentForm,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self {
            files: files.iter(),
            form,
            open: None,
            counts: Counts::default(),
            progress,
        }
    }

    /// The next document that has text, without a batch.
    pub fn next_document(&mut self) -> Result<Option<ReadDocument<'a>>> {
        loop {
            if let Some((path, stamp, documents)) = &mut self.open {
                if let Some(document) = documents.next() {
                    self.counts.documents += 1;
                    match document? {
                        Document::Text(text) => {
                            let (path, place) = (*path, documents.place());
                            return Ok(Some(ReadDocument { path, place, text }));
                        }
                        Document::Empty => self.counts.empty += 1,
                        Document::Unreadable(_) => self.counts.unreadable += 1,
                    }
                    continue;
                }
                // Here and not only at the next opening: no opening follows the last pass.
                check_unchanged(path, stamp)?;
                (self.progress)(stamp.length);
                self.open = None;
            }
            let Some((path, stamp)) = self.files.next() else {
                return Ok(None);
            };
            check_unchanged(path, stamp)?;
            self.open = Some((path, stamp, Documents::open_as(path, self.form)?));
        }
    }

    /// Hands all documents that have text to `work` in batches, and reads the next batch meanwhile.
    /// Returns how many documents there were.
    pub fn batches(
        mut self,
        work: &mut (dyn FnMut(Vec<ReadDocument<'a>>) -> Result<()> + Send),
    ) -> Result<Counts> {
        let mut batch = self.next_batch()?;
        while !batch.is_empty() {
            let (done, next) = rayon::join(|| work(batch), || self.next_batch());
            done?;
            batch = next?;
        }
        Ok(self.counts)
    }

    fn next_batch(&mut self) -> Result<Vec<ReadDocument<'a>>> {
        let (mut documents, mut length) = (Vec::new(), 0);
        while length < BATCH {
            let Some(document) = self.next_document()? else {
                break;
            };
            length += document.text.len() + DOCUMENT;
            documents.push(document);
        }
        Ok(documents)
    }
}

fn check_unchanged(path: &Path, stamp: &Stamp) -> Result<()> {
    if SourceFile::open(path)?.stamp() == *stamp {
        Ok(())
    } else {
        Err(changed(path))
    }
}
