//! A shadow of the work folder: what is there under the same names, and outlines where stages have not made their outputs yet.
//!
//! It is in a folder for temporary files, at the path that the work folder has in the whole file system. So paths out of
//! it (`../texts`) lead to the same places. Folders that hold an output are folders there; everything else is a
//! link to itself. Nothing is written through the links: an output that would be replaced has none.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use super::graph::whole;
use super::stage::Stage;
use crate::arguments::ArgumentRole;
use crate::checkpoint::filesystem::resolved;
use crate::checkpoint::filesystem::temporary_folder;
use crate::{Error, Result};

/// The shadow; it goes when this does.
pub(super) struct Shadow {
    root: PathBuf,
    /// Held, not read: the folder goes with it.
    _folder: TempDir,
    /// The work folder, its whole path.
    work: PathBuf,
    /// What stages would make, whole paths.
    made: BTreeSet<PathBuf>,
    /// Folders above these, and the work folder with those above it.
    open: BTreeSet<PathBuf>,
}

impl Shadow {
    /// Of the folder `work`, without the `outputs`.
    pub(super) fn new<'a>(work: &Path, outputs: impl Iterator<Item = &'a PathBuf>) -> Result<Self> {
        let work = resolved(work)?;
        let made: BTreeSet<PathBuf> = outputs.map(|output| whole(&work, output)).collect();
        let above = made.iter().flat_map(|output| output.ancestors().skip(1));
        let open = above
            .chain(work.ancestors())
            .map(Path::to_path_buf)
            .collect();
        let folder = temporary_folder("bam-convert-outlines-")?;
        let root = folder.path();
        let root = std::path::absolute(root).map_err(|e| Error::io("find", root, e))?;
        let shadow = Self {
            root,
            _folder: folder,
            work,
            made,
            open,
        };
        // Folders come before what they hold.
        for folder in &shadow.open {
            let place = shadow.of(folder);
            fs::create_dir_all(&place).map_err(|e| Error::io("create", &place, e))?;
        }
        for folder in shadow
            .open
            .iter()
            .filter(|folder| folder.starts_with(&shadow.work))
        {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    shadow.link(&entry.path())?;
                }
            }
        }
        Ok(shadow)
    }

    /// Where commands run.
    pub(super) fn work(&self) -> PathBuf {
        self.of(&self.work)
    }

    /// Lets commands see a place outside the work folder, if there is anything.
    pub(super) fn show(&self, place: &str) -> Result<()> {
        let mut path = PathBuf::new();
        for part in self.work.join(place).components() {
            match part {
                Component::ParentDir => drop(path.pop()),
                part => path.push(part),
            }
            if !self.open.contains(&path) {
                // Everything below a link is real, and so is everything above it.
                return self.link(&path);
            }
        }
        Ok(())
    }

    /// The words of a stage's command. A path to an output that does not simply go down from the work folder would lead out
    /// of the shadow, so the path of its outline replaces it.
    pub(super) fn words(&self, stage: &Stage) -> Vec<String> {
        let paths = stage
            .settings
            .iter()
            .filter(|setting| setting.role.is_some_and(ArgumentRole::is_path));
        let values: Vec<_> = paths.flat_map(|setting| &setting.values).collect();
        let is_made = |place: &Path| self.made.iter().any(|made| place.starts_with(made));
        let goes_down = |place: &Path| {
            place
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        };
        let replaced = |word: &String| {
            let values = values.iter().filter(|value| value.text == *word);
            let places = values.flat_map(|value| &value.places);
            let mut astray = places.filter(|place| !goes_down(Path::new(place)));
            let found = astray.find(|place| is_made(&whole(&self.work, Path::new(place))));
            found.map(|place| {
                let outline = self.of(&whole(&self.work, Path::new(place)));
                word.replacen(place, &outline.to_string_lossy(), 1)
            })
        };
        stage
            .command
            .iter()
            .map(|word| replaced(word).unwrap_or_else(|| word.clone()))
            .collect()
    }

    /// The place in the shadow of a whole path.
    fn of(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn link(&self, path: &Path) -> Result<()> {
        let place = self.of(path);
        if self.open.contains(path)
            || self.made.contains(path)
            || !path.exists()
            || place.symlink_metadata().is_ok()
        {
            return Ok(());
        }
        symlink(path, &place).map_err(|e| Error::io("link to", &place, e))
    }
}
