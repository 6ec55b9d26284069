//! The sources of a manifest: where they are, whether their files are those that it lists, and their weights.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::error::VerifyError;
use super::manifest::{Outcome, compare_files, outcomes};
use super::report::{FindingPlace, Running, ValidationReport};
use super::subject::ValidateOptions;
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::hash::FileHash;
use crate::checkpoint::manifest::{MANIFEST, Manifest, SourceRecord};
use crate::checkpoint::reach::{is_neighbour, is_relative};
use crate::checkpoint::reference::SCHEME;
use crate::family::{Architecture, Config};
use crate::surgery::plan::Source;
use crate::table;

/// Finds each source, compares its files with the manifest and opens it.
pub(super) fn open_sources(
    report: &mut ValidationReport,
    folder: &Path,
    manifest: &Manifest,
    given: &[Option<PathBuf>],
    options: &ValidateOptions,
) -> Result<Vec<Source>> {
    let mut check = report.check("sources");
    let mut sources = Vec::with_capacity(manifest.sources.len());
    let mut names = BTreeSet::new();
    let mut hashed = 0;
    for (number, record) in manifest.sources.iter().enumerate() {
        if !names.insert(&record.name) {
            check.fault(
                FindingPlace::key(MANIFEST, &format!("sources.{number}")),
                format!("is a second source `{}`", record.name),
            );
            continue;
        }
        let Some(path) = locate(
            &mut check,
            folder,
            manifest,
            record,
            given.get(number).and_then(Option::as_ref),
            options,
        )?
        else {
            continue;
        };
        // The file names of a source that is one file are relative to its folder.
        let root = if path.is_file() {
            path.parent().unwrap_or(Path::new(""))
        } else {
            &path
        };
        hashed += compare_files(&mut check, root, &record.files, Some(&record.name), options)?;
        match open_source(&path) {
            Ok(checkpoint) => {
                for file in &checkpoint.files {
                    let name = file
                        .path()
                        .file_name()
                        .unwrap_or_default()
                        .to_string_lossy();
                    if !record.files.iter().any(|file| file.path == name) {
                        let problem = format!(
                            "holds weights of source `{}`, but {MANIFEST} does not list it",
                            record.name
                        );
                        check.fault(
                            FindingPlace::file(&file.path().display().to_string()),
                            problem,
                        );
                    }
                }
                sources.push(Source {
                    name: record.name.clone(),
                    checkpoint,
                    side_files: Vec::new(),
                    kept: false,
                });
            }
            Err(error) => check.fault_of(error)?,
        }
    }
    let (found, all) = (sources.len(), manifest.sources.len());
    check.done(format!(
        "{found} of {} found, {} hashed",
        table::counted(all as u64, "source"),
        table::bytes(hashed)
    ));
    Ok(sources)
}

/// Opens a source. A plan may read the one matrix of a tied model under either of its names.
fn open_source(path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    // A source may have no configuration that is understood, as plans that only copy need none.
    let known = checkpoint
        .folder()
        .and_then(|folder| Architecture::of(&Config::read(folder).ok()?).ok());
    let Some(known) = known else {
        return Ok(checkpoint);
    };
    let stored = checkpoint.tensors.clone();
    let mut checkpoint = known.with_tied_embedding(checkpoint)?;
    checkpoint.tensors.extend(stored);
    Ok(checkpoint)
}

/// Where a source is: what was given, else the first neighbour of the manifest's folder that holds the recorded files, else
/// one that exists.
fn locate(
    check: &mut Running,
    folder: &Path,
    manifest: &Manifest,
    record: &SourceRecord,
    given: Option<&PathBuf>,
    options: &ValidateOptions,
) -> Result<Option<PathBuf>> {
    let name = &record.name;
    if let Some(path) = given {
        if path.exists() {
            return Ok(Some(path.clone()));
        }
        check.fault(
            FindingPlace::file(&path.display().to_string()),
            format!("is missing; it was given for source `{name}`"),
        );
        return Ok(None);
    }
    let recorded = Path::new(&record.path);
    let mut places = Vec::new();
    for place in [recorded.to_path_buf(), folder.join(recorded)] {
        if is_relative(&record.path) && is_neighbour(&place, folder)? {
            places.push(place);
        }
    }
    if places.is_empty() && !record.path.starts_with(SCHEME) {
        check.fault_of(VerifyError::SourceElsewhere {
            path: folder.join(MANIFEST),
            name: name.clone(),
            recorded: record.path.clone(),
            command: with_sources(folder, manifest),
        })?;
        return Ok(None);
    }
    places.retain(|place| place.exists());
    places.dedup_by_key(|place| place.canonicalize().ok());
    if let [first, _] = &places[..] {
        let root = if first.is_file() {
            first.parent().unwrap_or(Path::new(""))
        } else {
            first
        };
        let wanted: Vec<(PathBuf, &FileHash)> = record
            .files
            .iter()
            .filter(|file| file.is_plain_name())
            .map(|file| (root.join(&file.path), file))
            .collect();
        let silent = ValidateOptions {
            progress: &|_| {},
            ..*options
        };
        if !outcomes(&wanted, &silent)?
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Equal))
        {
            places.remove(0);
        }
    }
    if places.is_empty() {
        let origin = match (&record.repository, &record.commit) {
            (Some(repository), Some(commit)) => format!(" (from {repository} at {commit})"),
            _ => String::new(),
        };
        check.fault_of(VerifyError::NoSource {
            path: folder.join(recorded),
            name: format!("`{name}`{origin}"),
            recorded: record.path.clone(),
            command: with_sources(folder, manifest),
        })?;
    }
    Ok(places.into_iter().next())
}

/// The command that names every source where the manifest has it, for the user to judge and to run.
fn with_sources(folder: &Path, manifest: &Manifest) -> String {
    let place = |source: &SourceRecord| {
        if source.path.starts_with(SCHEME) {
            table::quoted(&source.path)
        } else {
            table::quoted(&short(&folder.join(&source.path)).to_string_lossy())
        }
    };
    let places: Vec<String> = manifest.sources.iter().map(place).collect();
    let folder = table::quoted(&folder.to_string_lossy());
    format!(
        "bam-convert validate {folder} --against {}",
        places.join(" ")
    )
}

/// A path without steps down and up again, where it leads to the same place.
fn short(path: &Path) -> PathBuf {
    let mut short = PathBuf::new();
    for part in path.components() {
        let is_name = matches!(short.components().next_back(), Some(Component::Normal(_)));
        if part == Component::ParentDir && is_name {
            short.pop();
        } else {
            short.push(part);
        }
    }
    let real = path.canonicalize();
    if real.is_ok_and(|real| short.canonicalize().is_ok_and(|short| short == real)) {
        short
    } else {
        path.to_path_buf()
    }
}
