//! `hf://ORG/NAME@REVISION` wherever a command takes a checkpoint: the command sees the folder that it was pulled to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use bam_convert::Result;
use bam_convert::arguments::{ArgumentRole, ArgumentValue, CheckpointPath, Named};
use bam_convert::checkpoint::Manifest;
use bam_convert::checkpoint::manifest::{MANIFEST, SourceRecord};
use bam_convert::checkpoint::reference::{Reference, SCHEME};
use bam_convert::hub::{FileSelection, HubClient, HubSettings, Pull, cached, headers, ranges};
use bam_convert::pipeline::Program;
use bam_convert::table;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::error::{self, CliError};
use super::printer::{Printer, Style};
use super::verb::HubUse;

/// Files that are pulled at a time.
pub const WORKERS: usize = 8;

/// The Hub that the environment names.
pub fn client() -> Result<HubClient> {
    HubClient::new(HubSettings::from_environment()?)
}

/// A repository of the Hub, and perhaps a revision of it, as a command takes it by name.
#[derive(Clone, Debug)]
pub struct Repository(String);

impl Deref for Repository {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl ArgumentValue for Repository {
    const ROLE: ArgumentRole = ArgumentRole::Repository;

    fn read(text: &OsStr) -> Result<Self, String> {
        let text = text.to_str().ok_or("expected UTF-8")?;
        Ok(Self(text.to_owned()))
    }

    fn form() -> String {
        "REPO".to_owned()
    }

    fn places(_: &str) -> Vec<&str> {
        Vec::new()
    }
}

/// `clap` reads values by this.
impl From<String> for Repository {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The folders of the references among the arguments, each pulled if it is not here.
pub fn resolve(
    program: &Program,
    matches: &ArgMatches,
    needed: HubUse,
    printer: &Printer,
) -> Result<BTreeMap<String, PathBuf>> {
    if needed == HubUse::Own {
        return Ok(BTreeMap::new());
    }
    let (command, matches) = program.innermost(matches);
    let needed = if looks(program, command, matches) {
        HubUse::Headers
    } else {
        needed
    };
    let mut folders = BTreeMap::new();
    for argument in command.get_arguments() {
        let Some(kind) = program.kind(argument) else {
            continue;
        };
        let values = matches.get_raw(argument.get_id().as_str());
        for text in values.into_iter().flatten().filter_map(OsStr::to_str) {
            let is_adapted = kind.adapted(text).is_some();
            for (number, place) in kind.references(text).into_iter().enumerate() {
                let reference = &text[place.clone()];
                // Adapters are small, and their configuration is no header.
                let is_adapter = is_adapted && (number > 0 || text[..place.start].ends_with('+'));
                let needed = if is_adapter { HubUse::Whole } else { needed };
                if !folders.contains_key(reference) {
                    let found = folder(&Reference::parse(reference)?, needed, printer)?;
                    folders.insert(reference.to_owned(), found);
                }
            }
        }
    }
    Ok(folders)
}

/// Whether a command shows only what it would do: then headers are enough.
fn looks(program: &Program, command: &Command, matches: &ArgMatches) -> bool {
    command.get_arguments().any(|argument| {
        let is_look = matches!(
            program.role(argument),
            Some(ArgumentRole::DryRun | ArgumentRole::Outline)
        );
        let id = argument.get_id().as_str();
        is_look && matches.value_source(id) == Some(ValueSource::CommandLine)
    })
}

/// Brings what a file of settings takes from the Hub, for the command line that names the file.
pub fn fetch(
    program: &Program,
    matches: &ArgMatches,
    style: Style,
) -> impl Fn(&str) -> Result<Option<PathBuf>> + use<> {
    let (command, inner) = program.innermost(matches);
    let needed = if looks(program, command, inner) {
        HubUse::Headers
    } else {
        HubUse::Whole
    };
    move |name| folder(&Reference::parse(name)?, needed, &Printer::new(style)).map(Some)
}

/// The folder of a checkpoint on the Hub, with as much of it as is needed.
pub fn folder(reference: &Reference, needed: HubUse, printer: &Printer) -> Result<PathBuf> {
    let client = client()?;
    if let Some(folder) = cached(&client, reference).filter(|_| client.settings.offline) {
        return Ok(folder);
    }
    match needed {
        HubUse::Headers => return headers(&client, reference),
        HubUse::Ranges => return ranges(client, reference),
        HubUse::Whole | HubUse::Own => {}
    }
    let pull = Pull::new(&client, reference, &FileSelection::default(), None)?;
    let missing = pull.missing();
    if missing > 0 {
        printer.note(&format!(
            "pulling {reference} at {}: {}",
            pull.snapshot.commit,
            table::bytes(missing)
        ));
    }
    let bar = printer.bytes_bar(missing, "pulling");
    let pulled = pull.run(false, WORKERS, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(pulled.folder)
}

/// The places of the sources of a checkpoint's recipe, by their names: as `given`, or where they were pulled to. Those that
/// the manifest has elsewhere are left out, and nothing is pulled for names that it does not have.
pub fn recipe_sources(
    checkpoint: &Path,
    given: &[Named<CheckpointPath>],
    printer: &Printer,
) -> error::Result<Vec<(String, PathBuf)>> {
    let Ok(Some(Manifest {
        recipe: Some(recipe),
        ..
    })) = Manifest::read(checkpoint)
    else {
        return Ok(Vec::new());
    };
    let is_given = |name: &String| given.iter().any(|given| given.name == *name);
    let remote = recipe
        .sources
        .iter()
        .filter(|(name, place)| place.starts_with(SCHEME) && !is_given(name));
    let recorded = remote.map(|(name, place)| {
        let key = format!("recipe.sources.{name}");
        let reference = recorded(checkpoint, &key, place)?;
        Ok((name.clone(), folder(&reference, HubUse::Whole, printer)?))
    });
    let given = given.iter().map(|Named { name, value }| {
        let reference = value
            .to_str()
            .filter(|text| text.starts_with(SCHEME) && recipe.sources.contains_key(name));
        let place = match reference {
            Some(text) => folder(&Reference::parse(text)?, HubUse::Whole, printer)?,
            None => value.to_path_buf(),
        };
        Ok((name.clone(), place))
    });
    recorded.chain(given).collect()
}

/// The folders of the sources of a checkpoint, whose weights are read by ranges, in the order of its manifest. A source that
/// is not on the Hub has `None`. The list is empty where no manifest can be read.
pub fn sources(checkpoint: &Path, printer: &Printer) -> error::Result<Vec<Option<PathBuf>>> {
    let Ok(Some(manifest)) = Manifest::read(checkpoint) else {
        return Ok(Vec::new());
    };
    let fetch = |(number, source): (usize, SourceRecord)| {
        if !source.path.starts_with(SCHEME) {
            return Ok(None);
        }
        let key = format!("sources.{number}.path");
        let reference = recorded(checkpoint, &key, &source.path)?;
        Ok(Some(folder(&reference, HubUse::Ranges, printer)?))
    };
    manifest
        .sources
        .into_iter()
        .enumerate()
        .map(fetch)
        .collect()
}

/// The reference that a manifest records under `key`. It must name a commit: whoever knows one has seen the repository,
/// while names of branches would let a stranger's manifest reach for private repositories.
fn recorded(checkpoint: &Path, key: &str, text: &str) -> error::Result<Reference> {
    let reference = Reference::parse(text)?;
    let is_commit = |revision: &str| {
        revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if reference.revision.as_deref().is_some_and(is_commit) {
        return Ok(reference);
    }
    Err(CliError::NoCommit {
        path: checkpoint.join(MANIFEST),
        key: key.to_owned(),
        found: text.to_owned(),
    })
}
