//! Which stages wait for which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::stage::Stage;
use crate::{Error, Result};

/// Who makes what.
#[derive(Debug)]
pub(super) struct Makers {
    work: PathBuf,
    made: BTreeMap<PathBuf, usize>,
}

impl Makers {
    /// Nobody yet; relative paths are seen from `work`.
    pub(super) fn new(work: &Path) -> Result<Self> {
        let work = std::path::absolute(work).map_err(|e| Error::io("find", work, e))?;
        Ok(Self {
            work,
            made: BTreeMap::new(),
        })
    }

    /// Who makes what of these stages.
    pub(super) fn of_stages(stages: &[Stage], work: &Path) -> Result<Self> {
        let mut makers = Self::new(work)?;
        let outputs = stages
            .iter()
            .enumerate()
            .flat_map(|(number, stage)| stage.outputs.iter().map(move |o| (o, number)));
        outputs.for_each(|(output, number)| makers.insert(output, number));
        Ok(makers)
    }

    /// The work folder, as a whole path.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Records that a stage makes a file or folder.
    pub(super) fn insert(&mut self, output: &Path, stage: usize) {
        let output = self.place(output);
        self.made.insert(output, stage);
    }

    /// The stages that make the path, something below it, or a folder above it.
    pub(super) fn of(&self, path: &Path) -> BTreeSet<usize> {
        let place = self.place(path);
        let above = place.ancestors().filter_map(|folder| self.made.get(folder));
        // Paths are ordered by their parts, so that the content of a folder follows it.
        let below = self
            .made
            .range(place.clone()..)
            .take_while(|(made, _)| made.starts_with(&place));
        above
            .chain(below.map(|(_, stage)| stage))
            .copied()
            .collect()
    }

    fn place(&self, path: &Path) -> PathBuf {
        whole(&self.work, path)
    }
}

/// The whole path of one seen from `work`, without steps up and down.
pub(super) fn whole(work: &Path, path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in work.join(path).components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            Component::CurDir => {}
            other => whole.push(other),
        }
    }
    whole
}

/// Stages by their numbers, and what each of them waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    needs: Vec<BTreeSet<usize>>,
    waits: Vec<BTreeSet<usize>>,
}

impl Graph {
    /// The graph of a recipe's stages. A stage needs the stages that make what it reads or names. It waits for the stages
    /// above it that read what it replaces.
    ///
    /// # Errors
    /// Where the current folder cannot be found.
    pub fn of(stages: &[Stage], work: &Path) -> Result<Self> {
        let makers = Makers::of_stages(stages, work)?;
        let numbers: BTreeMap<&str, usize> = stages
            .iter()
            .enumerate()
            .map(|(number, stage)| (stage.name.as_str(), number))
            .collect();
        let mut graph = Self {
            needs: vec![BTreeSet::new(); stages.len()],
            waits: vec![BTreeSet::new(); stages.len()],
        };
        for (number, stage) in stages.iter().enumerate() {
            graph.needs[number].extend(
                stage
                    .after
                    .iter()
                    .filter_map(|name| numbers.get(name.as_str()).copied()),
            );
            for maker in stage.reads().flat_map(|place| makers.of(Path::new(place))) {
                if maker < number {
                    graph.needs[number].insert(maker);
                } else if maker > number {
                    graph.waits[maker].insert(number);
                }
            }
        }
        Ok(graph)
    }

    /// The stages whose results a stage needs, all of them above it.
    pub fn needs(&self, stage: usize) -> &BTreeSet<usize> {
        &self.needs[stage]
    }

    /// The stages above it that must have ended, well or not, before it starts.
    pub(super) fn waits(&self, stage: usize) -> impl Iterator<Item = usize> {
        self.needs[stage].iter().chain(&self.waits[stage]).copied()
    }
}
