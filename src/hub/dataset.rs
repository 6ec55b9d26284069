//! Pulling the files of a dataset's rows into the cache.

use std::path::PathBuf;

use super::client::HubClient;
use super::dataset_files::{CONVERTED, DatasetFiles, README, Wanted};
use super::pull::Pull;
use super::request_error::HubRequestError;
use super::selection::FileSelection;
use super::tree::Snapshot;
use crate::Result;
use crate::checkpoint::json;
use crate::checkpoint::reference::{DatasetReference, Reference};

/// Bytes of the longest `README.md` whose front matter is read.
const LONGEST_README: u64 = 1 << 20;

/// The files of a dataset's rows, which can be pulled.
pub struct DatasetPull<'a> {
    pull: Pull<'a>,
    name: String,
}

impl<'a> DatasetPull<'a> {
    /// Asks the Hub which commit a reference means, and chooses the files of its configuration and split. `holds_rows` says
    /// whether a file can be read, by its name.
    ///
    /// # Errors
    /// A repository, revision, configuration or split that does not exist, or a split that cannot be read.
    pub fn new(
        client: &'a HubClient,
        dataset: &DatasetReference,
        holds_rows: fn(&str) -> bool,
    ) -> Result<Self> {
        let snapshot = Snapshot::of(client, &dataset.reference)?;
        let pinned = Reference {
            repository: snapshot.repository.clone(),
            revision: Some(snapshot.commit.clone()),
        };
        let readme = readme(client, &snapshot, &pinned)?;
        let place = snapshot.place();
        let files = DatasetFiles {
            place: &place,
            paths: snapshot.files.keys().map(String::as_str).collect(),
            readme: readme.as_deref(),
            is_converted: dataset.reference.revision() == CONVERTED,
            holds_rows,
        };
        let chosen = files.choose(Wanted {
            config: dataset.config.as_deref(),
            split: dataset.split.as_deref(),
        })?;
        Ok(Self {
            pull: Pull::new(client, &pinned, &FileSelection::of_paths(chosen), None)?,
            name: dataset.pinned(&snapshot.commit),
        })
    }

    /// The reference to the same rows at the commit.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that are still to be transferred.
    pub fn missing(&self) -> u64 {
        self.pull.missing()
    }

    /// The files in the repository with their lengths.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        let files = self.pull.files.iter();
        files.map(|file| (file.path.as_str(), file.entry.size))
    }

    /// Fetches what is missing, `workers` files at a time; `progress` is called with numbers of bytes that arrived. Returns
    /// where the files are.
    pub fn run(&self, workers: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<PathBuf>> {
        let folder = self.pull.run(false, workers, progress)?.folder;
        Ok(self.files().map(|(path, _)| folder.join(path)).collect())
    }
}

/// The text of the repository's `README.md`, where it has one.
fn readme(client: &HubClient, snapshot: &Snapshot, pinned: &Reference) -> Result<Option<String>> {
    let Some(entry) = snapshot.files.get(README) else {
        return Ok(None);
    };
    let refused = |problem: String| HubRequestError::FrontMatter {
        place: snapshot.place(),
        problem,
    };
    if entry.size > LONGEST_README {
        let problem = format!(
            "expected at most {LONGEST_README} bytes, found {}",
            entry.size
        );
        return Err(refused(problem).into());
    }
    let selection = FileSelection::of_paths(vec![README.to_owned()]);
    let pull = Pull::new(client, pinned, &selection, None)?;
    let path = pull.run(false, 1, &|_| {})?.folder.join(README);
    let bytes = json::read_bytes_up_to(&path, LONGEST_README)?;
    let text = String::from_utf8(bytes).map_err(|e| refused(e.to_string()))?;
    Ok(Some(text))
}
