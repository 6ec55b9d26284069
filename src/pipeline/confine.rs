//! What a recipe out of a manifest may touch: nothing but its work folder, and the sources that it was given.
//!
//! A manifest is a stranger's. Its recipe may name paths in every setting, and the archive that it came in may hold a work
//! folder full of links. So paths are checked as the manifest has them, by the definition of each command, and links in
//! the work folder are followed before anything runs.

use std::fs;
use std::path::{Component, Path};

use super::error::PipelineError;
use super::lines::setting;
use super::program::{Program, SHELL};
use crate::arguments::{ArgumentKind, ArgumentRole};
use crate::checkpoint::filesystem::resolved;
use crate::checkpoint::recipe::StageRecord;
use crate::{Error, Result};

/// Whether a path, seen from a folder, leads to something in it or to the folder itself.
pub(super) fn stays_within(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Whether a path, seen from a folder, leads to something below it.
pub(super) fn leads_below(path: &Path) -> bool {
    stays_within(path)
        && path
            .components()
            .any(|part| matches!(part, Component::Normal(_)))
}

/// Refuses a stage of the manifest at `path` whose settings name a path outside the work folder. `program` is built.
///
/// # Errors
/// Names the setting as `recipe.stages.NUMBER.settings.KEY`.
pub(super) fn check_settings(
    path: &Path,
    number: usize,
    stage: &StageRecord,
    program: &Program,
) -> Result<()> {
    if stage.command == SHELL {
        // The user has read it, and allowed it.
        return Ok(());
    }
    let Some(command) = program.stage_definition(&stage.command) else {
        // Whoever resolves the recipe names the nearest command.
        return Ok(());
    };
    let arguments = command.get_arguments().filter_map(setting);
    for (key, argument) in arguments {
        let values = stage.settings.get(key).into_iter().flatten();
        let Some(kind) = program.kind(argument) else {
            continue;
        };
        for value in values {
            let writes = kind.role == ArgumentRole::Output && !leads_below(Path::new(value));
            let reads = kind.role.is_read() && !reads_within(kind, value);
            if !writes && !reads {
                continue;
            }
            let path = path.to_path_buf();
            let key = format!("recipe.stages.{number}.settings.{key}").into();
            let (stage, value) = (stage.name.as_str().into(), value.as_str().into());
            let error = if writes {
                PipelineError::WritesOutside {
                    path,
                    key,
                    stage,
                    value,
                }
            } else {
                PipelineError::ReadsOutside {
                    path,
                    key,
                    stage,
                    value,
                }
            };
            return Err(error.into());
        }
    }
    Ok(())
}

/// Whether every path of a value is in the work folder, or in a source, which the value names as `${NAME}`.
fn reads_within(kind: ArgumentKind, value: &str) -> bool {
    // A reference is no path. But a build without the Hub opens it as one, and `..` in it would lead out.
    if !kind.references(value).is_empty() && !stays_within(Path::new(value)) {
        return false;
    }
    kind.places(value).into_iter().all(|place| {
        let Some((before, after)) = place.split_once("${") else {
            return stays_within(Path::new(place));
        };
        // `NAME=${SOURCE}/…`: anything else in front would make another path of the source's.
        let is_prefix = before.is_empty() || before.ends_with(['=', ':']);
        let rest = after.split_once('}').map_or("", |(_, rest)| rest);
        // `${SOURCE}x` would be a sibling of the source, but `${SOURCE}:0.5` has its weight.
        let ends = rest.is_empty() || rest.starts_with(['/', ':']);
        let rest = rest.trim_start_matches('/');
        is_prefix
            && ends
            && !rest.contains("${")
            && [before, rest]
                .iter()
                .all(|part| stays_within(Path::new(part)))
    })
}

/// Refuses a work folder that holds a link which leads out of it, be it into a source: a stage would write there.
///
/// # Errors
/// Names the link.
pub(super) fn check_links(work: &Path) -> Result<()> {
    if !work.exists() {
        return Ok(());
    }
    let root = resolved(work)?;
    let mut open = vec![work.to_path_buf()];
    while let Some(folder) = open.pop() {
        let failed = |e| Error::io("list", &folder, e);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_symlink() {
                let target = entry.path().canonicalize();
                if !target.is_ok_and(|target| target.starts_with(&root)) {
                    let path = entry.path();
                    return Err(PipelineError::LinkOut { path }.into());
                }
            } else if kind.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}
