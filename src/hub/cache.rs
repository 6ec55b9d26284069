//! The Hub's cache on disk, in the layout that `huggingface_hub` shares: `models--ORG--NAME/{blobs,snapshots,refs}`, and `datasets--…`.
//!
//! A blob is named by its hash and put in its place when it is whole and checked; a snapshot is a folder of links to blobs.
//! Whoever fetches a blob holds the lock that Python takes too.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::content::has_content;
use super::settings::HubSettings;
use super::tree::{FileEntry, is_commit};
use crate::checkpoint::filesystem::{folder_of, sync_folder};
use crate::checkpoint::reference::DATASETS;
use crate::checkpoint::{filesystem, single};
use crate::{Error, Result};

/// The part of a cache that is about one repository.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// The cache of a repository, in the folder that the settings name; nothing is created yet.
    pub fn of(settings: &HubSettings, repository: &str) -> Self {
        Self::within(&settings.cache, repository)
    }

    /// As [`of`](Self::of), below any folder.
    pub(super) fn within(root: &Path, repository: &str) -> Self {
        let kind = if repository.starts_with(DATASETS) {
            ""
        } else {
            "models--"
        };
        let name = format!("{kind}{}", repository.replace('/', "--"));
        Self {
            folder: root.join(&name),
            locks: root.join(".locks").join(name),
        }
    }

    /// Where the files of a commit are linked together.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The file of a content once it is whole.
    pub(super) fn blob(&self, entry: &FileEntry) -> PathBuf {
        self.folder.join("blobs").join(entry.hash.digits())
    }

    /// Where a content grows.
    pub(super) fn partial(&self, entry: &FileEntry) -> PathBuf {
        self.folder
            .join("blobs")
            .join(format!("{}.incomplete", entry.hash.digits()))
    }

    /// Waits until nobody else fetches this content, and keeps others from it until the file is dropped.
    pub(super) fn lock(&self, entry: &FileEntry) -> Result<File> {
        make_folder(&self.locks)?;
        make_folder(&self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{}.lock", entry.hash.digits()));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        filesystem::lock(&file).map_err(|e| Error::io("lock", &path, e))?;
        Ok(file)
    }

    /// Links the file of a snapshot to its blob.
    pub(super) fn link(&self, commit: &str, path: &str, entry: &FileEntry) -> Result<()> {
        let link = self.snapshot(commit).join(path);
        let up = "../".repeat(path.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{}", entry.hash.digits()));
        let leads_there = || fs::read_link(&link).is_ok_and(|found| found == target);
        let is_copy = || Ok::<_, Error>(!link.is_symlink() && has_content(&link, entry)?);
        if leads_there() || is_copy()? {
            return Ok(());
        }
        make_folder(folder_of(&link))?;
        let fault = |e| Error::io("link", &link, e);
        match symlink(&target, &link) {
            Ok(()) => return sync_folder(folder_of(&link)),
            // Another pull has made it.
            Err(_) if leads_there() => return Ok(()),
            Err(e)
                if e.kind() == std::io::ErrorKind::AlreadyExists
                    || filesystem::has_no_links(&e) => {}
            Err(e) => return Err(fault(e)),
        }
        // What is there leads elsewhere, or a copy is made: beside, to take its place in one step.
        let beside = tempfile::Builder::new()
            .prefix(".link-")
            .make_in(folder_of(&link), |beside| {
                filesystem::link_or_copy(&target, beside)
            })
            .map_err(fault)?;
        beside
            .into_temp_path()
            .persist(&link)
            .map_err(|e| fault(e.error))?;
        sync_folder(folder_of(&link))
    }

    /// Remembers which commit a branch or tag is.
    pub(super) fn set_revision(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|found| found == commit) {
            return Ok(());
        }
        make_folder(folder_of(&path))?;
        single::write(&path, &[commit.as_bytes()])
    }

    /// The commit that a revision was when it was last asked for.
    pub(super) fn revision(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }
}

pub(super) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))
}
