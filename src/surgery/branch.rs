//! Branching: a seed copied into as many folders as there are domains.

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::error::SurgeryError;
use super::execute::{OutputFile, Target, execute, finish, record_source};
use super::fit_error::FitError;
use super::model::Model;
use super::neutral::has_neutral_shared_expert;
use super::plan::{Plan, PlannedTensor};
use super::side_files;
use crate::Result;
use crate::card::{CardModel, CopyOf, ModelCard};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::manifest::{MANIFEST, Manifest};
use crate::checkpoint::output::{OutputFolder, check_free_space, check_target};
use crate::checkpoint::{outline, views};
use crate::family::{Config, drop_leftover, expert_names};

/// Where the branches go.
pub struct Branching {
    /// The folder to make for each name.
    pub targets: Vec<PathBuf>,
    /// The plan that every branch follows.
    pub plan: Plan,
    /// Files beside the weights.
    pub files: Vec<OutputFile>,
}

/// Plans copies of `seed` under `out`, one for each name.
pub fn plan(mut seed: Model, names: &[String], out: &Path) -> Result<Branching> {
    let targets = targets(names, out)?;
    // Branches are copies of files, so that names are those that the files hold.
    seed.source.checkpoint = Checkpoint::open(&seed.source.checkpoint.path)?;
    let tensors = copies(&seed)?;
    let (mut files, note) = files_beside(&seed)?;

    let architecture = seed.architecture;
    let mut settings = Map::new();
    settings.insert("into".to_owned(), json!(names));
    let plan = Plan {
        method: "branch".to_owned(),
        settings,
        sources: vec![seed.source],
        tensors,
        notes: note.into_iter().collect(),
        carries_non_finite: false,
    };
    let source = &plan.sources[0];
    let has_adapters = !source.checkpoint.adapters().is_empty();
    let card = ModelCard {
        title: "Copy of a seed",
        about: if has_adapters {
            "The seed with its adapters, to be trained further.".to_owned()
        } else {
            "A copy of the seed, byte for byte, to be trained further.".to_owned()
        },
        tags: &[],
        relation: None,
        sources: side_files::named([source]),
        settings: &plan.settings,
        model: Some(CardModel {
            experts: expert_names(&source.checkpoint.path, &architecture)?,
            architecture: &architecture,
            has_tokenizer: side_files::has_tokenizer(&files),
            has_neutral_shared_expert: has_neutral_shared_expert(
                &architecture,
                &plan.tensors,
                [source],
            )?,
        }),
        training: None,
        copy_of: Some(CopyOf {
            path: &source.checkpoint.path,
            same_values: !has_adapters,
        }),
        notes: &plan.notes,
        prompts: &[],
    };
    side_files::add_card(&mut files, &card)?;
    Ok(Branching {
        targets,
        plan,
        files,
    })
}

/// The folder of each name.
///
/// # Errors
/// Names that are none of a folder, and those that are there twice.
fn targets(names: &[String], out: &Path) -> Result<Vec<PathBuf>> {
    let mut targets: Vec<PathBuf> = Vec::with_capacity(names.len());
    for name in names {
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        if !plain {
            let name = name.clone();
            return Err(SurgeryError::BranchName { name }.into());
        }
        let target = out.join(name);
        if targets.contains(&target) {
            return Err(SurgeryError::NamedTwice {
                flag: "--into",
                named: format!("`{name}`"),
                expected: "each name",
            }
            .into());
        }
        targets.push(target);
    }
    Ok(targets)
}

/// Every tensor of the seed as a copy of itself.
fn copies(seed: &Model) -> Result<Vec<PlannedTensor>> {
    let mut tensors = Vec::with_capacity(seed.source.checkpoint.tensors.len());
    for (name, entry) in &seed.source.checkpoint.tensors {
        let Some(dtype) = entry.encoding.plain() else {
            return Err(FitError::WrongEncoding {
                path: seed.source.checkpoint.path.clone(),
                tensor: name.clone(),
                found: entry.encoding.to_string(),
                expected: "plain numbers",
            }
            .into());
        };
        let copy = seed.source.copy(name);
        let shape = entry.shape.clone();
        tensors.push(PlannedTensor::new(name, dtype, shape, copy));
    }
    Ok(tensors)
}

/// The files beside the seed's weights, and a note about what their configuration does not take over.
fn files_beside(seed: &Model) -> Result<(Vec<OutputFile>, Option<String>)> {
    let mut kept = seed.source.side_files.clone();
    kept.retain(|path| path.file_name().is_none_or(|name| name != MANIFEST));
    let mut files: Vec<OutputFile> = side_files::copies(kept).collect();
    let stored = Config::read(&seed.config.path)?;
    let mut config = stored.json.clone();
    let note = drop_leftover(&stored, &seed.source.checkpoint, &mut config);
    if note.is_some() {
        files.retain(|file| file.name != "config.json");
        files.push(side_files::json_file("config.json", &config));
    }
    Ok((files, note))
}

impl Branching {
    /// Bytes that the branches will take together.
    pub fn needed(&self, link: bool) -> u64 {
        let one: u64 = self
            .plan
            .sources
            .iter()
            .flat_map(|source| &source.checkpoint.files)
            .map(|file| file.len())
            .sum();
        if link {
            0
        } else {
            one * self.targets.len() as u64
        }
    }

    /// Bytes of the files beside the weights, of all branches together, but for manifests.
    pub fn side_length(&self) -> Result<u64> {
        let one: u64 = self
            .files
            .iter()
            .map(OutputFile::length)
            .sum::<Result<_>>()?;
        Ok(one * self.targets.len() as u64)
    }

    /// Makes the outline of each branch.
    pub fn outline(&self) -> Result<()> {
        let seed = &self.plan.sources[0].checkpoint;
        if seed.adapters().is_empty() {
            let copy = |target: &PathBuf| outline::copy(&seed.path, target);
            return self.targets.iter().try_for_each(copy);
        }
        self.targets.iter().try_for_each(|target| {
            let most = Target::new(target).max_shard_size;
            super::execute::outline(&self.plan, &self.files, target, most).map(drop)
        })
    }

    /// Refuses what cannot be written, before anything is.
    pub fn check(&self, force: bool, link: bool) -> Result<()> {
        let seed = &self.plan.sources[0].checkpoint;
        if link && !seed.adapters().is_empty() {
            return Err(SurgeryError::LinkedSum {
                path: seed.path.clone(),
            }
            .into());
        }
        let places = views::places(&seed.path);
        let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
        for target in &self.targets {
            check_target(target, force, &places)?;
            check_free_space(target, self.needed(link))?;
        }
        Ok(())
    }

    /// Copies (or, with `link`, hard-links) the seed's files into each branch, byte for byte.
    pub fn execute(
        &self,
        force: bool,
        link: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<Manifest>> {
        self.check(force, link)?;
        let source = &self.plan.sources[0];
        if !source.checkpoint.adapters().is_empty() {
            return self.compute(force, progress);
        }
        let mut manifests = Vec::with_capacity(self.targets.len());
        for target in &self.targets {
            let folder = OutputFolder::begin(target, force, &[&source.checkpoint.path])?;
            folder.clear()?;
            let mut weights = Vec::new();
            for file in &source.checkpoint.files {
                let name = file
                    .path()
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy();
                weights.push(folder.copy(file.path(), &name, link)?);
                progress(file.len());
            }
            let hashes = weights.iter().map(|file| file.sha256.clone()).collect();
            let records = record_source(source, hashes, target)?;
            manifests.push(finish(folder, &self.plan, records, weights, &self.files)?);
        }
        Ok(manifests)
    }

    /// Writes branches of a seed with adapters, whose weights are in no file.
    fn compute(&self, force: bool, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<Manifest>> {
        let write = |target: &PathBuf| {
            let target = Target {
                force,
                progress,
                ..Target::new(target)
            };
            execute(&self.plan, &self.files, &target)
        };
        self.targets.iter().map(write).collect()
    }
}
