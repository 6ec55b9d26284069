//! `BASE+ADAPTER` wherever a command takes a checkpoint: the command sees a folder that shows the base with its adapters.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use bam_convert::Result;
use bam_convert::checkpoint::filesystem::temporary_folder;
use bam_convert::checkpoint::views::{self, View};
use bam_convert::pipeline::Program;
use clap::ArgMatches;
use tempfile::TempDir;

use super::verb::HubUse;

/// `folders`, which are the places of references to the Hub, with the views of the bases with adapters among the arguments.
/// Also the folder that the views are in, if there are any.
///
/// A command that resolves references itself starts others, or takes no adapters.
pub fn resolve(
    program: &Program,
    matches: &ArgMatches,
    hub_use: HubUse,
    mut folders: BTreeMap<String, PathBuf>,
) -> Result<(BTreeMap<String, PathBuf>, Option<TempDir>)> {
    let mut work = None;
    if hub_use == HubUse::Own {
        return Ok((folders, work));
    }
    let (command, matches) = program.innermost(matches);
    for argument in command.get_arguments() {
        let Some(kind) = program.kind(argument) else {
            continue;
        };
        let values = matches.get_raw(argument.get_id().as_str());
        for text in values.into_iter().flatten().filter_map(OsStr::to_str) {
            let Some(text) = kind.adapted(text).map(|place| &text[place]) else {
                continue;
            };
            if folders.contains_key(text) {
                continue;
            }
            let parts = views::parts(text).unwrap_or_default();
            let place = |part: &str| folders.get(part).map_or_else(|| part.into(), Clone::clone);
            let mut places = parts.into_iter().map(place);
            let Some(base) = places.next() else {
                continue;
            };
            let view = View {
                base,
                adapters: places.collect(),
            };
            if work.is_none() {
                work = Some(temporary_folder("bam-convert-")?);
            }
            let Some(work) = &work else {
                continue;
            };
            // Each in a folder of its own, as two may have one name.
            let inside = work.path().join(folders.len().to_string());
            folders.insert(text.to_owned(), view.make(&inside)?);
        }
    }
    Ok((folders, work))
}
