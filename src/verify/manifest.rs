//! The folder against its manifest: hashes of files, names, dtypes and shapes of tensors.
//!
//! A manifest is hostile input like any other: a file that it lists is opened only under a plain name.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::pieces::{self, Piece};
use super::recipe;
use super::report::{FindingPlace, Running, ValidationReport};
use super::subject::{Subject, ValidateOptions, is_own_file};
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::hash::{FileHash, FileHasher};
use crate::checkpoint::manifest::{MANIFEST, Manifest};
use crate::checkpoint::source_file::SourceFile;
use crate::table;
use crate::{Error, Result};

/// Adds the row `manifest`, and `hashes` where there is a manifest.
pub(super) fn check(
    report: &mut ValidationReport,
    subject: &mut Subject,
    options: &ValidateOptions,
) -> Result<()> {
    if !subject.is_folder() {
        report.skip("manifest", "a single file");
        return Ok(());
    }
    let manifest = match Manifest::read(subject.path) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => {
            report.skip(
                "manifest",
                format!("no {MANIFEST}: nothing says how this checkpoint was made"),
            );
            return Ok(());
        }
        Err(error) => {
            let mut check = report.check("manifest");
            check.fault_of(error)?;
            check.done(MANIFEST);
            return Ok(());
        }
    };
    let mut check = report.check("manifest");
    match &subject.checkpoint {
        Some(checkpoint) => compare_tensors(&mut check, &manifest, checkpoint),
        None => check.warn(
            FindingPlace::default(),
            "the weights could not be opened, so its tensors are not compared",
        ),
    }
    let listed = table::counted(manifest.tensors.len() as u64, "tensor");
    check.done(format!(
        "method {}, {listed}, {}",
        manifest.method,
        table::counted(manifest.sources.len() as u64, "source")
    ));

    let mut check = report.check("hashes");
    let hashed = compare_files(&mut check, subject.path, &manifest.files, None, options)?;
    unlisted(&mut check, subject, &manifest)?;
    check.done(format!(
        "SHA-256 of {}, {}",
        table::counted(manifest.files.len() as u64, "file"),
        table::bytes(hashed)
    ));
    recipe::check(report, &manifest);
    subject.manifest = Some(manifest);
    Ok(())
}

/// Every tensor must be listed, as it is stored, and no other.
fn compare_tensors(check: &mut Running, manifest: &Manifest, checkpoint: &Checkpoint) {
    for (name, record) in &manifest.tensors {
        match checkpoint.tensors.get(name) {
            None => check.fault(
                FindingPlace::tensor(name),
                format!("is listed in {MANIFEST}, but no file holds it"),
            ),
            Some(entry)
                if entry.encoding.plain() != Some(record.dtype) || entry.shape != record.shape =>
            {
                let (dtype, shape) = (record.dtype, &record.shape);
                let problem = format!(
                    "is {} {:?}, but {MANIFEST} says {dtype} {shape:?}",
                    entry.encoding, entry.shape
                );
                check.fault(FindingPlace::tensor(name), problem);
            }
            Some(_) => {}
        }
    }
    for name in checkpoint
        .tensors
        .keys()
        .filter(|name| !manifest.tensors.contains_key(*name))
    {
        check.fault(
            FindingPlace::tensor(name),
            format!("is not listed in {MANIFEST}"),
        );
    }
}

/// Files of the folder that the manifest does not know, and those that it lists unhashed and are gone.
fn unlisted(check: &mut Running, subject: &Subject, manifest: &Manifest) -> Result<()> {
    let known: BTreeSet<&str> = manifest
        .files
        .iter()
        .map(|file| file.path.as_str())
        .chain(manifest.unhashed_files.iter().map(String::as_str))
        .collect();
    let weights: BTreeSet<&Path> = subject
        .checkpoint
        .iter()
        .flat_map(|checkpoint| &checkpoint.files)
        .map(SourceFile::path)
        .collect();
    let folder = subject.path;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let path = entry.map_err(|e| Error::io("list", folder, e))?.path();
        if path.is_file()
            && let Some(name) = path.file_name()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    for name in names
        .iter()
        .filter(|name| !known.contains(name.as_str()) && !is_own_file(name))
    {
        if weights.contains(folder.join(name).as_path()) {
            check.fault(
                FindingPlace::file(name),
                format!("holds weights, but is not listed in {MANIFEST}"),
            );
        } else {
            check.warn(
                FindingPlace::file(name),
                format!("is not listed in {MANIFEST}"),
            );
        }
    }
    for name in manifest
        .unhashed_files
        .iter()
        .filter(|name| !names.contains(name))
    {
        check.warn(
            FindingPlace::file(name),
            format!("is listed in {MANIFEST}, but is missing"),
        );
    }
    Ok(())
}

/// Compares files of `folder` with their recorded sizes and hashes, in parallel; returns the bytes hashed.
///
/// `source` is the name of the source whose folder it is; none for the output itself.
pub(super) fn compare_files(
    check: &mut Running,
    folder: &Path,
    records: &[FileHash],
    source: Option<&str>,
    options: &ValidateOptions,
) -> Result<u64> {
    let of = source.map_or(String::new(), |name| format!("of source `{name}` "));
    let place = |name: &str| match source {
        Some(_) => FindingPlace::file(&folder.join(name).display().to_string()),
        None => FindingPlace::file(name),
    };
    let mut seen = BTreeSet::new();
    let mut wanted: Vec<(PathBuf, &FileHash)> = Vec::new();
    for record in records {
        if !record.is_plain_name() {
            let problem = format!(
                "{of}is listed, expected the name of a file in its folder; it is not opened"
            );
            check.fault(FindingPlace::file(&record.path), problem);
        } else if !seen.insert(&record.path) {
            check.fault(place(&record.path), format!("{of}is listed twice"));
        } else {
            wanted.push((folder.join(&record.path), record));
        }
    }
    let mut hashed = 0;
    for ((_, record), outcome) in wanted.iter().zip(outcomes(&wanted, options)?) {
        let FileHash { path, size, sha256 } = *record;
        let problem = match outcome {
            Outcome::Equal => {
                hashed += size;
                continue;
            }
            // One message: the author of a manifest must not learn from a report which files this machine has.
            _ if source.is_some() => {
                format!("is missing or differs: expected the file with SHA-256 {sha256}")
            }
            Outcome::Missing => "is missing".to_owned(),
            Outcome::NoFile => "is not a regular file".to_owned(),
            Outcome::Size(found) => format!("has {found} bytes, but {MANIFEST} says {size}"),
            Outcome::Hash(found) => {
                hashed += size;
                format!("has SHA-256 {found}, but {MANIFEST} says {sha256}")
            }
        };
        check.fault(place(path), format!("{of}{problem}"));
    }
    Ok(hashed)
}

/// How a file compares with its record.
pub(super) enum Outcome {
    Equal,
    Missing,
    NoFile,
    Size(u64),
    Hash(String),
}

/// How each file compares with its record; the whole content is read only where the size is right.
pub(super) fn outcomes(
    wanted: &[(PathBuf, &FileHash)],
    options: &ValidateOptions,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(wanted.len());
    let files = (0..wanted.len()).map(|item| Piece {
        item,
        first: 0,
        count: 1,
    });
    let hash = |piece: &Piece, buf: &mut Vec<u8>| {
        let (path, record) = &wanted[piece.item];
        match std::fs::metadata(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Outcome::Missing);
            }
            Err(e) => return Err(Error::io("read", path, e)),
            Ok(metadata) if !metadata.is_file() => return Ok(Outcome::NoFile),
            Ok(metadata) if metadata.len() != record.size => {
                return Ok(Outcome::Size(metadata.len()));
            }
            Ok(_) => {}
        }
        let source = SourceFile::open(path)?;
        let mut hasher = FileHasher::new(&source);
        let mut left = source.len();
        let found = loop {
            if let Some(hash) = hasher.advance(buf)? {
                break hash;
            }
            let step = left.min(buf.len() as u64);
            (options.progress)(step);
            left -= step;
        };
        source.check_unchanged()?;
        Ok(if found == record.sha256 {
            Outcome::Equal
        } else {
            Outcome::Hash(found)
        })
    };
    let threads = options.threads_of(1 << 20);
    pieces::for_each(
        files,
        threads,
        || vec![0; 1 << 20],
        hash,
        |_, outcome| outcomes.push(outcome),
    )?;
    Ok(outcomes)
}
