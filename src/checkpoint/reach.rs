//! Where a manifest may lead.
//!
//! A manifest is a stranger's text, and the paths in it are his choice: followed blindly, they would read any file of the
//! user, and say whether it exists. So a manifest leads by itself to its neighbours alone, and within the work folder of the
//! recipe that made its checkpoint. For everything else the user
//! names the folder, or the manifest proves by hashes that it knows the files there.

use std::path::{Component, Path, PathBuf};

use super::filesystem::resolved;
use super::hash::{FileHash, sha256_file};
use super::manifest::SourceRecord;
use super::names::RUN_RECORDS;
use super::recipe::RecipeRecord;
use super::reference::SCHEME;
use crate::Result;

/// The file whose hash proves that a manifest knows a folder: small, and in every checkpoint folder.
const PROOF: &str = "config.json";
/// Entries of a folder that are looked through for links. A larger folder is the user's to name.
const MOST_ENTRIES: usize = 10_000;

/// Whether a recorded place is a path relative to the folder of its manifest.
pub fn is_relative(recorded: &str) -> bool {
    !recorded.is_empty()
        && !recorded.contains('\0')
        && !recorded.starts_with(SCHEME)
        && Path::new(recorded).is_relative()
}

/// Whether `place` is in the folder that holds the manifest's `folder`, itself and all that it holds, with links followed.
///
/// # Errors
/// Where the current folder is unknown.
pub fn is_neighbour(place: &Path, folder: &Path) -> Result<bool> {
    is_neighbour_in(&surroundings(folder, None)?, place)
}

/// The folder around the manifest's `folder`: the one that holds it, or the work folder of the recipe that made it.
///
/// A work folder is one with the records of its runner, at the place that the manifest's recipe says.
///
/// # Errors
/// Where the current folder is unknown.
pub fn surroundings(folder: &Path, recipe: Option<&RecipeRecord>) -> Result<Option<PathBuf>> {
    let folder = resolved(folder)?;
    let work = recipe.and_then(|recipe| {
        let output = Path::new(&recipe.output);
        let goes_down = output
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let work = folder.ancestors().nth(output.components().count())?;
        let is_work = goes_down && folder.ends_with(output) && work.join(RUN_RECORDS).is_dir();
        is_work.then(|| work.to_path_buf())
    });
    Ok(work.or_else(|| folder.parent().map(Path::to_path_buf)))
}

/// Whether `place` is in the folder `around`, itself and all that it holds, with links followed.
///
/// # Errors
/// Where the current folder is unknown.
pub fn is_neighbour_in(around: &Option<PathBuf>, place: &Path) -> Result<bool> {
    let Some(around) = around else {
        return Ok(false);
    };
    let real = resolved(place)?;
    // What does not exist keeps its steps up, which may lead anywhere.
    if !real.starts_with(around) || real.components().any(|part| part.as_os_str() == "..") {
        return Ok(false);
    }
    let (mut open, mut seen) = (vec![real], 0);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            seen += 1;
            let kind = entry.file_type().ok();
            let leads_out = kind.is_some_and(|kind| kind.is_symlink())
                && !entry
                    .path()
                    .canonicalize()
                    .is_ok_and(|target| target.starts_with(around));
            if leads_out || seen > MOST_ENTRIES {
                return Ok(false);
            }
            if kind.is_some_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    Ok(true)
}

/// The folder of a source, as far as the manifest in `folder` may lead there by itself. That is a neighbour, or a folder with
/// the configuration and the sizes that the manifest lists.
///
/// # Errors
/// Where the current folder is unknown.
pub fn source_folder(source: &SourceRecord, folder: &Path) -> Result<Option<PathBuf>> {
    if !is_relative(&source.path) {
        return Ok(None);
    }
    let place = folder.join(&source.path);
    let may_follow = is_neighbour(&place, folder)? || knows(source, &place);
    Ok(may_follow.then_some(place))
}

/// Whether the record has the hash of the configuration in `place`, and the size of every file that it lists there.
fn knows(source: &SourceRecord, place: &Path) -> bool {
    let is_same = |record: &FileHash| {
        let path = place.join(&record.path);
        record.is_plain_name()
            && path
                .metadata()
                .is_ok_and(|found| found.is_file() && found.len() == record.size)
            && (record.path != PROOF
                || sha256_file(&path).is_ok_and(|(sha256, _)| sha256 == record.sha256))
    };
    source.files.iter().any(|record| record.path == PROOF) && source.files.iter().all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::create_dir_all;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_manifest_leads_to_its_neighbours_alone() {
        let work = tempfile::tempdir().unwrap();
        let at = |name: &str| work.path().join(name);
        for folder in [
            "around/bam",
            "around/seed",
            "around/linked",
            "around/deep/er",
            "far",
        ] {
            create_dir_all(at(folder)).unwrap();
        }
        let is = |recorded: &str| {
            let folder = at("around/bam");
            is_neighbour(&folder.join(recorded), &folder).unwrap()
        };
        for inside in ["../seed", "../absent", ".", "..", "../seed/../seed"] {
            assert!(is(inside), "{inside}");
        }
        std::fs::write(at("far/secret"), "").unwrap();
        symlink(at("far"), at("around/link")).unwrap();
        symlink(at("far/secret"), at("around/linked/config.json")).unwrap();
        symlink(at("far"), at("around/deep/er/link")).unwrap();
        for outside in [
            // They hold a link that leads out.
            "..",
            "../deep",
            "../../far",
            "/etc",
            "../link",
            "../linked",
            "../absent/../../../etc",
            "../link/../around/seed/../../..",
        ] {
            assert!(!is(outside), "{outside}");
        }
        assert!(!is_relative("/etc") && !is_relative("") && !is_relative("hf://org/name"));
    }
}
