//! A checkpoint made again from its manifest alone, and compared with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::confine::{check_links, check_settings, leads_below, stays_within};
use super::error::PipelineError;
use super::lines::setting;
use super::program::{Program, SHELL, StageUse};
use super::recipe::Recipe;
use super::recipe_text;
use super::stage::Stage;
use crate::arguments::ArgumentRole;
use crate::checkpoint::folder::CARD;
use crate::checkpoint::hash::sha256_file;
use crate::checkpoint::json;
use crate::checkpoint::known_hashes;
use crate::checkpoint::manifest::{MANIFEST, Manifest, relative_to};
use crate::checkpoint::reach::{is_neighbour, is_relative};
use crate::checkpoint::recipe::{RecipeRecord, StageRecord};
use crate::table::{self, Align};
use crate::{Error, Result};

/// What the work folder is called where none is chosen: the first one's name, and this.
const AGAIN: &str = ".again";

/// The file of a tokenizer's settings, to which versions of this program have added.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// A checkpoint to make again.
#[derive(Debug)]
pub struct Rebuild {
    folder: PathBuf,
    manifest: Manifest,
    record: RecipeRecord,
    work: PathBuf,
    recipe: Recipe,
}

/// How a file that was made again compares with the first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The stage that made it.
    pub stage: String,
    /// The file, as seen from the work folder.
    pub file: PathBuf,
    /// Its SHA-256 as recorded.
    pub expected: String,
    /// Its SHA-256 now; none where it was not made.
    pub found: Option<String>,
}

impl Compared {
    /// Whether it has the same bytes.
    pub fn is_equal(&self) -> bool {
        self.found.as_ref() == Some(&self.expected)
    }
}

impl Rebuild {
    /// Reads the recipe of the checkpoint in `folder`, to run it in `work`, else beside the folder that it ran in first.
    ///
    /// Sources are where the manifest says, or where `moved` says by their names. `verify` reads them again, whatever is
    /// known of them. `program` is the command line that the stages are written for.
    ///
    /// # Errors
    /// Where there is no recipe, or a source is unknown or not what it was. Where a stage would write outside the work
    /// folder, or is a command of the shell and `allow_shell` is not set.
    pub fn read(
        folder: &Path,
        work: Option<&Path>,
        moved: &[(String, PathBuf)],
        allow_shell: bool,
        verify: bool,
        program: &Program,
    ) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let manifest = Manifest::read(folder)?.ok_or_else(|| {
            let path = path.clone();
            PipelineError::NoManifest { path }
        })?;
        let mut record = manifest.recipe.clone().ok_or_else(|| {
            let path = path.clone();
            PipelineError::NoRecipe { path }
        })?;
        check(&path, &record, allow_shell, program)?;
        let built = program.built();
        for (number, stage) in record.stages.iter().enumerate() {
            check_settings(&path, number, stage, &built)?;
        }
        keep_defaults(&mut record, &manifest.tool.version, program);
        check_moved(folder, &record, moved)?;

        let absolute = std::path::absolute(folder).map_err(|e| Error::io("find", folder, e))?;
        let work = match work {
            Some(work) => work.to_path_buf(),
            None => beside(&absolute, &record)?,
        };
        let places = places(folder, &record, moved)?;
        let mut sources = BTreeMap::new();
        for (name, place) in &places {
            sources.insert((*name).to_owned(), relative_to(place, &work)?);
        }
        check_sources(&path, &record, &places, verify)?;
        check_links(&work)?;
        let recipe = Recipe::parse(&path, &recipe_text::of(&record.stages, &sources)?)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            manifest,
            record,
            work,
            recipe,
        })
    }

    /// The recipe, with the sources where they lie.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The folder to work in.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The stages, as they were when the checkpoint was made.
    ///
    /// # Errors
    /// Where this program does not know a command or a setting.
    pub fn stages(&self, program: &Program) -> Result<Vec<Stage>> {
        let path = self.folder.join(MANIFEST);
        let mut stages = self.recipe.stages(&[], &self.work, program)?;
        for (stage, record) in stages.iter_mut().zip(&self.record.stages) {
            stage.after.clone_from(&record.needs);
            // What settings make a stage write, `stdout`, and what a command of the shell says that it makes.
            if let Some(output) = stage.outputs.iter().find(|output| !leads_below(output)) {
                let error = PipelineError::OutputOutside {
                    path,
                    stage: stage.name.clone(),
                    output: output.clone(),
                };
                return Err(error.into());
            }
        }
        Ok(stages)
    }

    /// Compares what was made again with what the manifest says: the files of the stages before in order, then the files
    /// of the checkpoint. Cards and manifests are left out, because they say where sources are.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn compare(&self) -> Result<Vec<Compared>> {
        let Some((last, before)) = self.record.stages.split_last() else {
            return Ok(Vec::new());
        };
        let output = Path::new(&self.record.output);
        let made = before.iter().flat_map(|stage| {
            stage
                .outputs
                .iter()
                .map(|(file, sha256)| (&stage.name, PathBuf::from(file), sha256))
        });
        let made = made.filter(|(_, file, _)| !file.ends_with(MANIFEST) && !file.ends_with(CARD));
        let files = self.manifest.files.iter();
        let files = files.map(|file| (&last.name, output.join(&file.path), &file.sha256));
        let compare = |(stage, file, expected): (&String, PathBuf, &String)| {
            let path = self.work.join(&file);
            let is_inside = stays_within(&file) && path.is_file();
            let found = is_inside
                .then(|| sha256_file(&path))
                .transpose()?
                .map(|(sha256, _)| sha256);
            Ok(Compared {
                stage: stage.clone(),
                file,
                expected: expected.clone(),
                found,
            })
        };
        made.chain(files).map(compare).collect()
    }

    /// Whether a compared file is one of the checkpoint itself. What each version writes in its own way is not: the model's code, and
    /// further settings of a tokenizer that the program made.
    pub fn is_result(&self, compared: &Compared) -> bool {
        let is_code = compared.file.extension().is_some_and(|kind| kind == "py");
        let is_last = self
            .record
            .stages
            .last()
            .is_some_and(|stage| stage.name == compared.stage);
        is_last && !is_code && !self.only_adds_settings(&compared.file)
    }

    /// Whether `file` holds the settings of a tokenizer: all that the first one has, and more.
    fn only_adds_settings(&self, file: &Path) -> bool {
        let Ok(inside) = file.strip_prefix(&self.record.output) else {
            return false;
        };
        if inside != Path::new(TOKENIZER_CONFIG) {
            return false;
        }
        let settings = |folder: &Path| json::read_object(&folder.join(inside)).ok();
        let first = settings(&self.folder);
        let now = settings(&self.work.join(&self.record.output));
        first.zip(now).is_some_and(|(first, now)| {
            let is_kept = |(key, value): (&String, &Value)| now.get(key) == Some(value);
            now.len() > first.len() && first.iter().all(is_kept)
        })
    }
}

/// What is not as it was, and how much is.
pub fn comparison_table(compared: &[Compared]) -> String {
    let columns = ["stage", "file", "expected SHA-256", "found"].map(|title| (title, Align::Left));
    let differing = compared.iter().filter(|file| !file.is_equal());
    let rows: Vec<Vec<String>> = differing
        .map(|file| {
            let found = file.found.clone().unwrap_or_else(|| "nothing".to_owned());
            vec![
                file.stage.clone(),
                file.file.display().to_string(),
                file.expected.clone(),
                found,
            ]
        })
        .collect();
    let equal = format!(
        "{} of {} files have the same bytes",
        compared.len() - rows.len(),
        compared.len()
    );
    if rows.is_empty() {
        equal
    } else {
        format!("{}\n{equal}", table::render(&columns, rows))
    }
}

/// A manifest is hostile input: what its recipe may do is less than what one's own may.
fn check(path: &Path, record: &RecipeRecord, allow_shell: bool, program: &Program) -> Result<()> {
    let path = path.to_path_buf();
    if record.stages.is_empty() {
        return Err(PipelineError::NoStages { path }.into());
    }
    if !stays_within(Path::new(&record.output)) {
        return Err(PipelineError::OutputElsewhere { path }.into());
    }
    for stage in &record.stages {
        let name = stage.name.clone();
        if program.stage_use(&stage.command) == StageUse::Publishes {
            return Err(PipelineError::Pushes { path, stage: name }.into());
        }
        if stage.command == SHELL && !allow_shell {
            let command = stage
                .settings
                .get("command")
                .map(|words| words.join(" "))
                .unwrap_or_default();
            let error = PipelineError::Shell {
                path,
                stage: name,
                command,
            };
            return Err(error.into());
        }
        if let Some((key, value)) = trusted(stage, program).filter(|_| !allow_shell) {
            let error = PipelineError::Trusted {
                path,
                stage: name,
                key: key.to_owned(),
                value: value.to_owned(),
            };
            return Err(error.into());
        }
    }
    Ok(())
}

/// A setting of a stage that chooses a program to run or a machine to connect to, with its value.
fn trusted<'a>(stage: &'a StageRecord, program: &Program) -> Option<(&'a str, &'a str)> {
    let command = program.stage_definition(&stage.command)?;
    let arguments = command.get_arguments().filter_map(setting);
    let mut keys = arguments
        .filter(|(_, argument)| program.role(argument) == Some(ArgumentRole::Trusted))
        .map(|(key, _)| key);
    keys.find_map(|key| {
        let (key, values) = stage.settings.get_key_value(key)?;
        Some((key.as_str(), values.first()?.as_str()))
    })
}

/// Spells out what the version that wrote the manifest took for granted, where this one has another default.
fn keep_defaults(record: &mut RecipeRecord, version: &str, program: &Program) {
    for stage in &mut record.stages {
        let Some(declaration) = program.declaration(&stage.command) else {
            continue;
        };
        for (key, value) in (declaration.former_settings)(version, &stage.settings) {
            stage.settings.insert(key.to_owned(), vec![value]);
        }
    }
}

/// Refuses the place of a source that the recipe does not have.
fn check_moved(folder: &Path, record: &RecipeRecord, moved: &[(String, PathBuf)]) -> Result<()> {
    let unknown = moved
        .iter()
        .find(|(name, _)| !record.sources.contains_key(name));
    let Some((name, _)) = unknown else {
        return Ok(());
    };
    let error = PipelineError::NoSource {
        folder: folder.to_path_buf(),
        name: name.clone(),
        known: record.sources.keys().cloned().collect(),
    };
    Err(error.into())
}

/// Every file that the stages read from a source must be what it was.
fn check_sources(
    path: &Path,
    record: &RecipeRecord,
    places: &BTreeMap<&str, PathBuf>,
    verify: bool,
) -> Result<()> {
    for stage in &record.stages {
        for (input, expected) in &stage.inputs {
            let named = input
                .strip_prefix("${")
                .and_then(|input| input.split_once('}'));
            let Some((name, rest)) = named else { continue };
            let rest = Path::new(rest.trim_start_matches('/'));
            let Some(place) = places.get(name).filter(|_| stays_within(rest)) else {
                let error = PipelineError::InputElsewhere {
                    path: path.to_path_buf(),
                    stage: stage.name.clone(),
                    input: input.clone(),
                };
                return Err(error.into());
            };
            let file = if rest.as_os_str().is_empty() {
                place.clone()
            } else {
                place.join(rest)
            };
            // One message for whatever is wrong: a manifest must not tell its author which files this machine has.
            let found = known_hashes::sha256_of(&file, verify);
            if !found.is_ok_and(|found| found == *expected) {
                let error = PipelineError::SourceChanged {
                    path: file,
                    name: name.to_owned(),
                    sha256: expected.clone(),
                };
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// The place of each source: as the user says, else as the manifest says, if that is a neighbour of its folder.
fn places<'a>(
    folder: &Path,
    record: &'a RecipeRecord,
    moved: &[(String, PathBuf)],
) -> Result<BTreeMap<&'a str, PathBuf>> {
    let mut places = BTreeMap::new();
    let mut far = Vec::new();
    for (name, place) in &record.sources {
        if let Some((_, given)) = moved.iter().rev().find(|(moved, _)| moved == name) {
            if !given.exists() {
                return Err(missing(given, name));
            }
            places.insert(name.as_str(), given.clone());
            continue;
        }
        let path = folder.join(place);
        if !is_relative(place) || !is_neighbour(&path, folder)? {
            far.push((name, place));
        } else if !path.exists() {
            return Err(missing(&path, name));
        } else {
            places.insert(name.as_str(), path);
        }
    }
    let Some((name, place)) = far.first() else {
        return Ok(places);
    };
    let flag = |(name, place): &(&String, &String)| {
        let path = folder.join(place);
        format!(
            "--source {}",
            table::quoted(&format!("{name}={}", path.display()))
        )
    };
    let flags: Vec<String> = far.iter().map(flag).collect();
    let error = PipelineError::FarSource {
        path: folder.join(MANIFEST),
        key: format!("recipe.sources.{name}").into(),
        name: name.as_str().into(),
        recorded: place.as_str().into(),
        flags: flags.join(" ").into(),
    };
    Err(error.into())
}

fn missing(place: &Path, name: &str) -> Error {
    let (path, name) = (place.to_path_buf(), name.to_owned());
    PipelineError::MissingSource { path, name }.into()
}

/// A folder beside the one that the recipe ran in, if the checkpoint is still where it was made, else beside the checkpoint.
fn beside(folder: &Path, record: &RecipeRecord) -> Result<PathBuf> {
    let depth = Path::new(&record.output).components().count();
    let first = folder
        .ancestors()
        .nth(depth)
        .filter(|_| folder.ends_with(&record.output))
        .unwrap_or(folder);
    let mut name = first.file_name().unwrap_or_default().to_owned();
    name.push(AGAIN);
    let work = first.with_file_name(name);
    if work.is_symlink() {
        // Nobody chose where it leads but whoever made the link, and it may have come with the manifest.
        return Err(PipelineError::WorkIsLink { path: work }.into());
    }
    Ok(work)
}
