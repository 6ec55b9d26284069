//! Pulling a checkpoint: into the cache that Python shares, or into a folder that is complete or absent.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::Value;

use super::cache::{Cache, make_folder};
use super::client::HubClient;
use super::content::has_content;
use super::download::Download;
use super::parallel::each;
use super::remote_file::RemoteFile;
use super::request_error::HubRequestError;
use super::selection::FileSelection;
use super::tree::{FileEntry, Snapshot};
use crate::checkpoint::filesystem::{folder_of, sync_folder, temporary_folder};
use crate::checkpoint::hash::FileHash;
use crate::checkpoint::hash::sha256_file;
use crate::checkpoint::json;
use crate::checkpoint::manifest::Origin;
use crate::checkpoint::names::{INDEX, ORIGIN, SINGLE};
use crate::checkpoint::output::{OutputFolder, check_free_space, check_target, reserved};
use crate::checkpoint::reference::Reference;
use crate::checkpoint::weight_names::{has_several_sets, is_model_file};
use crate::{Error, Result, notice};

/// A pull that has been worked out, and can be shown or carried out.
pub struct Pull<'a> {
    client: &'a HubClient,
    reference: Reference,
    /// The commit and its files.
    pub snapshot: Snapshot,
    /// The files that are wanted.
    pub files: Vec<PullFile>,
    cache: Cache,
    folder: Option<&'a Path>,
    received: AtomicU64,
}

/// A file of a pull.
#[derive(Clone, Debug, Serialize)]
pub struct PullFile {
    /// Path in the repository.
    pub path: String,
    /// Size and hash.
    #[serde(flatten)]
    pub entry: FileEntry,
    /// A file on this machine that has the content already.
    pub here: Option<PathBuf>,
}

/// What a pull has come to.
#[derive(Debug, Serialize)]
pub struct Pulled {
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit.
    pub commit: String,
    /// Where the files are.
    pub folder: PathBuf,
    /// Files pulled or found.
    pub files: usize,
    /// Their length in bytes.
    pub bytes: u64,
    /// Bytes that were transferred.
    pub transferred: u64,
}

impl<'a> Pull<'a> {
    /// Asks the Hub what a revision is now, chooses files, and looks which are here already.
    ///
    /// # Errors
    /// A repository, revision or file that does not exist; see [`Snapshot::of`] and [`FileSelection::choose`].
    pub fn new(
        client: &'a HubClient,
        reference: &Reference,
        selection: &FileSelection,
        folder: Option<&'a Path>,
    ) -> Result<Self> {
        let snapshot = Snapshot::of(client, reference)?;
        let cache = Cache::of(&client.settings, &reference.repository);
        let chosen = selection.choose(&snapshot)?;
        let chosen = if selection.is_default() {
            without_other_sets(client, &snapshot, chosen)?
        } else {
            chosen
        };
        if folder.is_some() {
            check_names(&snapshot, &chosen)?;
        }
        let mut files = Vec::new();
        for path in chosen {
            let entry = snapshot.files[path].clone();
            let mut places = vec![cache.blob(&entry)];
            if let Some(folder) = folder {
                places.insert(0, folder.join(path));
            }
            let mut here = None;
            for place in places {
                if has_content(&place, &entry)? {
                    here = Some(place);
                    break;
                }
            }
            files.push(PullFile {
                path: path.to_owned(),
                entry,
                here,
            });
        }
        Ok(Self {
            client,
            reference: reference.clone(),
            snapshot,
            files,
            cache,
            folder,
            received: AtomicU64::new(0),
        })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.entry.size).sum()
    }

    /// Bytes that are still to be transferred.
    pub fn missing(&self) -> u64 {
        self.files
            .iter()
            .filter(|file| file.here.is_none())
            .map(|file| file.entry.size)
            .sum()
    }

    /// Fetches what is missing, `workers` files at a time; `progress` is called with numbers of bytes that arrived.
    pub fn run(
        &self,
        force: bool,
        workers: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Pulled> {
        let folder = match self.folder {
            None => self.fill_cache(workers, progress)?,
            Some(folder) => self.fill_folder(folder, force, workers, progress)?,
        };
        Ok(Pulled {
            repository: self.snapshot.repository.clone(),
            commit: self.snapshot.commit.clone(),
            folder,
            files: self.files.len(),
            bytes: self.bytes(),
            transferred: self.received.load(Ordering::Relaxed),
        })
    }

    fn fill_cache(&self, workers: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<PathBuf> {
        check_free_space(&self.client.settings.cache, self.missing())?;
        let commit = &self.snapshot.commit;
        each(&self.by_size(), workers, |file| {
            let blob = self.cache.blob(&file.entry);
            if file.here.is_none() {
                let _lock = self.cache.lock(&file.entry)?;
                // Another pull may have brought it while this one waited.
                if !has_content(&blob, &file.entry)? {
                    let partial = self.cache.partial(&file.entry);
                    self.download(file, progress).fetch(&partial)?;
                    fs::rename(&partial, &blob).map_err(|e| Error::io("rename to", &blob, e))?;
                    sync_folder(folder_of(&blob))?;
                }
            }
            self.cache.link(commit, &file.path, &file.entry)
        })?;
        self.cache.set_revision(self.reference.revision(), commit)?;
        Ok(self.cache.snapshot(commit))
    }

    fn fill_folder(
        &self,
        folder: &Path,
        force: bool,
        workers: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<PathBuf> {
        if self
            .files
            .iter()
            .all(|file| file.here.as_deref() == Some(&folder.join(&file.path)))
        {
            return Ok(folder.to_path_buf());
        }
        check_target(folder, force, &[])?;
        check_free_space(folder, self.bytes())?;
        let output = OutputFolder::begin(folder, force, &[])?;
        let filled = self.fill(&output, workers, progress);
        if filled.is_err() {
            // What has been transferred is kept for the next attempt.
            output.keep();
            return filled.map(|()| folder.to_path_buf());
        }
        output.commit().map(|()| folder.to_path_buf())
    }

    fn fill(
        &self,
        output: &OutputFolder,
        workers: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let keep = |name: &str| {
            self.files
                .iter()
                .any(|file| name == file.path || name == grows(&file.path))
        };
        output.clear_but(&keep)?;
        let records = Mutex::new(Vec::new());
        each(&self.by_size(), workers, |file| {
            let place = output.path().join(&file.path);
            make_folder(folder_of(&place))?;
            if !has_content(&place, &file.entry)? {
                match &file.here {
                    Some(here) => drop(output.copy(here, &file.path, false)?),
                    None => {
                        let partial = output.path().join(grows(&file.path));
                        self.download(file, progress).fetch(&partial)?;
                        fs::rename(&partial, &place)
                            .map_err(|e| Error::io("rename to", &place, e))?;
                    }
                }
                sync_folder(folder_of(&place))?;
            } else {
                progress(file.entry.size);
            }
            let sha256 = match &file.entry.hash {
                super::tree::ContentHash::Sha256(digits) => digits.clone(),
                _ => sha256_file(&place)?.0,
            };
            let record = FileHash {
                path: file.path.clone(),
                size: file.entry.size,
                sha256,
            };
            records
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .push(record);
            Ok(())
        })?;
        let mut files = records
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        files.sort();
        let (repository, commit) = (
            self.snapshot.repository.clone(),
            self.snapshot.commit.clone(),
        );
        let origin = Origin {
            repository,
            commit,
            files,
        };
        output.write(ORIGIN, origin.text().as_bytes()).map(drop)
    }

    /// The files, the largest first: what begins last should be soon done.
    fn by_size(&self) -> Vec<&PullFile> {
        let mut files: Vec<&PullFile> = self.files.iter().collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.entry.size));
        files
    }

    fn download<'b>(
        &'b self,
        file: &'b PullFile,
        progress: &'b (dyn Fn(u64) + Sync),
    ) -> Download<'b> {
        let (client, snapshot, path, entry) =
            (self.client, &self.snapshot, &file.path, &file.entry);
        Download {
            file: RemoteFile {
                client,
                snapshot,
                path,
                entry,
            },
            progress,
            received: &self.received,
        }
    }
}

/// Leaves out shards that the index does not list, where the repository holds several sets. Readers do not open them.
fn without_other_sets<'a>(
    client: &HubClient,
    snapshot: &Snapshot,
    chosen: Vec<&'a str>,
) -> Result<Vec<&'a str>> {
    // Beside one file of all weights, no reader takes shards; it is for the reader to say so.
    let is_plain = !chosen.contains(&INDEX) || chosen.contains(&SINGLE);
    if is_plain || !has_several_sets(chosen.iter().copied()) {
        return Ok(chosen);
    }
    let folder = temporary_folder("bam-convert-")?;
    let index = folder.path().join(INDEX);
    Download {
        file: RemoteFile {
            client,
            snapshot,
            path: INDEX,
            entry: &snapshot.files[INDEX],
        },
        progress: &|_| {},
        received: &AtomicU64::new(0),
    }
    .fetch(&index)?;
    let index = json::read_object(&index)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let shards = map.into_iter().flatten();
    let listed: BTreeSet<&str> = shards.filter_map(|(_, file)| file.as_str()).collect();
    // An index that does not lead to its shards chooses nothing.
    if listed.is_empty() || !listed.iter().all(|shard| chosen.contains(shard)) {
        return Ok(chosen);
    }
    let is_other = |path: &&str| is_model_file(path) && !listed.contains(path);
    let (others, chosen): (Vec<&str>, Vec<&str>) = chosen.into_iter().partition(is_other);
    notice::once(format!(
        "{}: {INDEX} does not list {}, which {} not pulled",
        snapshot.place(),
        others.join(", "),
        if others.len() == 1 { "is" } else { "are" }
    ));
    Ok(chosen)
}

/// The folder of a snapshot that was pulled before, by the cache alone.
pub fn cached(client: &HubClient, reference: &Reference) -> Option<PathBuf> {
    let cache = Cache::of(&client.settings, &reference.repository);
    let folder = cache.snapshot(&cache.revision(reference.revision())?);
    folder.is_dir().then_some(folder)
}

/// The name of a file of a folder while it grows.
fn grows(path: &str) -> String {
    format!("{path}.incomplete")
}

/// Refuses files that would take the place of this program's own in a folder. The cache has room for any name.
fn check_names(snapshot: &Snapshot, paths: &[&str]) -> Result<()> {
    for path in paths {
        let place = snapshot.place();
        if let Some(own) = reserved(path) {
            return Err(HubRequestError::ReservedName {
                place,
                path: (*path).to_owned(),
                own: own.to_owned(),
            }
            .into());
        }
        let growing = path.strip_suffix(&grows(""));
        if growing.is_some_and(|growing| paths.contains(&growing)) {
            let path = (*path).to_owned();
            return Err(HubRequestError::PartialName { place, path }.into());
        }
    }
    Ok(())
}
