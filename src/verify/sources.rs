//! The sources of a manifest, for its replay: where they are, and whether they hold what the manifest lists.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::error::VerifyError;
use super::manifest::{Outcome, compare_files, outcomes};
use super::report::{FindingPlace, Running, ValidationReport};
use super::subject::ValidateOptions;
use crate::Result;
use crate::checkpoint::adapter::is_adapter;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::hash::FileHash;
use crate::checkpoint::manifest::{MANIFEST, Manifest, SourceRecord};
use crate::checkpoint::reach::{is_neighbour_in, is_relative, source_folder, surroundings};
use crate::checkpoint::reference::SCHEME;
use crate::checkpoint::{elsewhere, known_hashes};
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
    let given = Given::of(manifest, given);
    given.unknown.iter().for_each(|path| {
        let problem = "holds the files of no source of the manifest";
        check.fault(FindingPlace::file(&path.display().to_string()), problem);
    });
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
            (number, &given),
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
                unlisted(&mut check, &checkpoint, record);
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
        "{found} of {} found, {} hashed{}",
        table::counted(all as u64, "source"),
        table::bytes(hashed),
        given.recognised(manifest)
    ));
    Ok(sources)
}

/// Reports weights of a source that the manifest does not list.
fn unlisted(check: &mut Running, source: &Checkpoint, record: &SourceRecord) {
    for file in &source.files {
        let path = file.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if record.files.iter().any(|file| file.path == name) {
            continue;
        }
        let problem = format!(
            "holds weights of source `{}`, but {MANIFEST} does not list it",
            record.name
        );
        check.fault(FindingPlace::file(&path.display().to_string()), problem);
    }
}

/// Opens a source. A plan may read the one matrix of a tied model under either of its names.
fn open_source(path: &Path) -> Result<Checkpoint> {
    if is_adapter(path) {
        return Checkpoint::open_adapter(path);
    }
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
    (number, given): (usize, &Given),
    options: &ValidateOptions,
) -> Result<Option<PathBuf>> {
    let name = &record.name;
    if let Some(path) = &given.of_source[number] {
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
    let around = surroundings(folder, manifest.recipe.as_ref())?;
    let mut places = Vec::new();
    for place in [recorded.to_path_buf(), folder.join(recorded)] {
        if is_relative(&record.path) && is_neighbour_in(&around, &place)? {
            places.push(place);
        }
    }
    if places.is_empty() && !record.path.starts_with(SCHEME) {
        check.fault_of(VerifyError::SourceElsewhere {
            path: folder.join(MANIFEST),
            name: name.clone(),
            recorded: record.path.clone(),
            command: with_sources(folder, manifest, given),
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
            command: with_sources(folder, manifest, given),
        })?;
    }
    Ok(places.into_iter().next())
}

/// The command that names every source: its place where the manifest proves that it knows the files there, else words for
/// the user to replace.
fn with_sources(folder: &Path, manifest: &Manifest, given: &Given) -> String {
    let place = |(source, given): (&SourceRecord, &Option<PathBuf>)| {
        if let Some(given) = given {
            return table::quoted(&given.to_string_lossy());
        }
        if source.path.starts_with(SCHEME) {
            return table::quoted(&source.path);
        }
        let known = source_folder(source, folder).ok().flatten();
        match known.filter(|place| place.exists()) {
            Some(place) => table::quoted(&short(&place).to_string_lossy()),
            None => table::quoted(&format!("FOLDER-OF-{}", source.name)),
        }
    };
    let sources = manifest.sources.iter().zip(&given.of_source);
    let places: Vec<String> = sources.map(place).collect();
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

/// The folders that a user named, and the sources that they are.
struct Given {
    /// The folder of each source, where one was named.
    of_source: Vec<Option<PathBuf>>,
    /// Sources whose folders the user named in another order, by their numbers.
    out_of_order: Vec<usize>,
    /// Folders that are no source.
    unknown: Vec<PathBuf>,
}

impl Given {
    /// A folder that holds the files of a source is that source; any other is the source at its place in the order.
    fn of(manifest: &Manifest, given: &[Option<PathBuf>]) -> Self {
        let sources = &manifest.sources;
        let mut found = Self {
            of_source: vec![None; sources.len()],
            out_of_order: Vec::new(),
            unknown: Vec::new(),
        };
        let mut left = Vec::new();
        for (number, path) in given.iter().enumerate() {
            let Some(path) = path else {
                continue;
            };
            let fits = |at: &usize| found.of_source[*at].is_none() && holds(path, &sources[*at]);
            // The place in the order counts where two sources are the same files.
            let mut places = std::iter::once(number).chain(0..sources.len());
            match places.find(fits) {
                Some(at) => {
                    found.of_source[at] = Some(path.clone());
                    if at != number {
                        found.out_of_order.push(at);
                    }
                }
                None => left.push((number, path)),
            }
        }
        for (number, path) in left {
            match &mut found.of_source[number] {
                free @ None => *free = Some(path.clone()),
                Some(_) => found.unknown.push(path.clone()),
            }
        }
        found
    }

    /// Which source is which folder, where the order did not say it.
    fn recognised(&self, manifest: &Manifest) -> String {
        let named = |at: &usize| {
            let path = self.of_source[*at].as_ref()?;
            Some(format!(
                "`{}` is {}",
                manifest.sources[*at].name,
                path.display()
            ))
        };
        let named: Vec<String> = self.out_of_order.iter().filter_map(named).collect();
        if named.is_empty() {
            String::new()
        } else {
            format!("; by their hashes, {}", named.join(", "))
        }
    }
}

/// Whether a folder, or a file, holds the files of a source, by their hashes.
///
/// Files that cannot be read, and files whose bytes are not on this machine, say nothing.
fn holds(path: &Path, source: &SourceRecord) -> bool {
    let root = if path.is_file() {
        path.parent().unwrap_or(Path::new(""))
    } else {
        path
    };
    let is_same = |record: &FileHash| {
        let place = root.join(&record.path);
        record.is_plain_name()
            && std::fs::metadata(&place)
                .is_ok_and(|facts| facts.is_file() && facts.len() == record.size)
            && !elsewhere::holds(&place)
            && known_hashes::sha256_of(&place, false).is_ok_and(|found| found == record.sha256)
    };
    // A single file is not the one beside it.
    let names_it = !path.is_file()
        || path.file_name().is_some_and(|name| {
            let mut files = source.files.iter();
            files.any(|file| *file.path == *name.to_string_lossy())
        });
    names_it && !source.files.is_empty() && source.files.iter().all(is_same)
}
