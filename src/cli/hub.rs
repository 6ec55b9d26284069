//! `hf://ORG/NAME@REVISION` wherever a checkpoint is accepted: such an argument is replaced by the folder it was pulled to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bam_convert::checkpoint::Manifest;
use bam_convert::checkpoint::manifest::{MANIFEST, SourceRecord};
use bam_convert::checkpoint::reference::{Reference, SCHEME};
use bam_convert::hub::{FileSelection, HubClient, HubSettings, Pull, cached, headers};
use bam_convert::pipeline::names_files;
use bam_convert::table;
use bam_convert::{Error, Result};

use super::printer::Printer;

/// Commands that take references as such.
const OWN: [&str; 3] = ["pull", "push", "run"];
/// Commands that look at headers only, as `--dry-run` does everywhere.
const LOOKING: [&str; 2] = ["inspect", "cost"];
/// What makes every command look only.
const DRY_RUN: [&str; 2] = ["--dry-run", "--outline"];
/// What makes one of them read weights.
const READING: &str = "--divergence";
/// Files that are pulled at a time.
pub const WORKERS: usize = 8;

/// The Hub that the environment names.
pub fn client() -> Result<HubClient> {
    HubClient::new(HubSettings::from_environment()?)
}

/// The command line with folders in the place of references, each pulled if it is not here; `None` where it has none.
pub fn resolve(
    program: impl FnOnce() -> clap::Command,
    line: &[OsString],
    printer: &Printer,
) -> Result<Option<Vec<OsString>>> {
    if !line
        .iter()
        .any(|word| word.to_str().and_then(split).is_some())
    {
        return Ok(None);
    }
    let program = program();
    let is_command = |word: &OsString| word.to_str().and_then(|word| program.find_subcommand(word));
    let Some((at, command)) = line
        .iter()
        .enumerate()
        .skip(1)
        .find_map(|(at, word)| Some((at, is_command(word)?)))
    else {
        return Ok(None);
    };
    let name = command.get_name();
    if OWN.contains(&name) {
        return Ok(None);
    }
    let only_headers = looks(line) || LOOKING.contains(&name) && !has(line, READING);
    // The subcommand of a command with several, as in `expert add`.
    let inner = line
        .get(at + 1)
        .and_then(|word| command.find_subcommand(word))
        .unwrap_or(command);
    let mut found: Option<Vec<OsString>> = None;
    for (place, word) in line.iter().enumerate().skip(at + 1) {
        let Some((before, reference, after)) = word.to_str().and_then(split) else {
            continue;
        };
        let flag = match before.split_once('=') {
            Some((flag, _)) if flag.starts_with("--") => Some(flag),
            _ => line[place - 1].to_str(),
        };
        let flag = flag.and_then(|flag| flag.strip_prefix("--"));
        let argument = flag.and_then(|flag| {
            inner
                .get_arguments()
                .find(|argument| argument.get_long() == Some(flag))
        });
        if argument
            .is_some_and(|argument| argument.get_action().takes_values() && !names_files(argument))
        {
            continue;
        }
        let folder = folder(&Reference::parse(reference)?, only_headers, printer)?;
        let mut word = OsString::from(before);
        word.push(folder);
        word.push(after);
        found.get_or_insert_with(|| line.to_vec())[place] = word;
    }
    Ok(found)
}

fn looks(line: &[OsString]) -> bool {
    DRY_RUN.iter().any(|flag| has(line, flag))
}

fn has(line: &[OsString], flag: &str) -> bool {
    line.iter().any(|word| word == flag)
}

/// Brings what a file of settings takes from the Hub, for this command line.
pub fn fetch(line: &[OsString]) -> impl Fn(&str) -> Result<Option<PathBuf>> + use<> {
    let (only_headers, quiet) = (looks(line), has(line, "--quiet") || has(line, "-q"));
    move |name| folder(&Reference::parse(name)?, only_headers, &Printer::new(quiet)).map(Some)
}

/// What stands before a reference (`--seed=`, `NAME=`), the reference, and what follows it (`:WEIGHT`).
fn split(word: &str) -> Option<(&str, &str, &str)> {
    let begin = word.find(SCHEME)?;
    if begin > 0 && !word[..begin].ends_with('=') {
        return None;
    }
    let rest = &word[begin + SCHEME.len()..];
    let end = rest
        .find(':')
        .map_or(word.len(), |colon| begin + SCHEME.len() + colon);
    Some((&word[..begin], &word[begin..end], &word[end..]))
}

/// The folder of a checkpoint on the Hub: with its headers alone, or whole.
pub fn folder(reference: &Reference, only_headers: bool, printer: &Printer) -> Result<PathBuf> {
    let client = client()?;
    if let Some(folder) = cached(&client, reference).filter(|_| client.settings.offline) {
        return Ok(folder);
    }
    if only_headers {
        return headers(&client, reference);
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

/// Where the sources of a checkpoint's recipe lie now, by their names: as `given`, or where they were pulled to. Those that
/// the manifest has elsewhere are left out, and nothing is pulled for names that it does not have.
pub fn recipe_sources(
    checkpoint: &Path,
    given: &[(String, String)],
    printer: &Printer,
) -> Result<Vec<(String, PathBuf)>> {
    let Ok(Some(Manifest {
        recipe: Some(recipe),
        ..
    })) = Manifest::read(checkpoint)
    else {
        return Ok(Vec::new());
    };
    let is_given = |name: &String| given.iter().any(|(given, _)| given == name);
    let remote = recipe
        .sources
        .iter()
        .filter(|(name, place)| place.starts_with(SCHEME) && !is_given(name));
    let place = |(name, place): (&String, &String)| {
        let place = match place.starts_with(SCHEME) && recipe.sources.contains_key(name) {
            true if is_given(name) => folder(&Reference::parse(place)?, false, printer)?,
            true => {
                let key = format!("recipe.sources.{name}");
                folder(&recorded(checkpoint, &key, place)?, false, printer)?
            }
            false => PathBuf::from(place),
        };
        Ok((name.clone(), place))
    };
    remote
        .chain(given.iter().map(|(name, place)| (name, place)))
        .map(place)
        .collect()
}

/// What the sources of a checkpoint that lie on the Hub have been pulled to, in the order of its manifest; `None` for the
/// others, and nothing where no manifest can be read.
pub fn sources(checkpoint: &Path, printer: &Printer) -> Result<Vec<Option<PathBuf>>> {
    let Ok(Some(manifest)) = Manifest::read(checkpoint) else {
        return Ok(Vec::new());
    };
    let fetch = |(number, source): (usize, SourceRecord)| match source.path.starts_with(SCHEME) {
        true => {
            let key = format!("sources.{number}.path");
            folder(&recorded(checkpoint, &key, &source.path)?, false, printer).map(Some)
        }
        false => Ok(None),
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
fn recorded(checkpoint: &Path, key: &str, text: &str) -> Result<Reference> {
    let reference = Reference::parse(text)?;
    let is_commit = |revision: &str| {
        revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if reference.revision.as_deref().is_some_and(is_commit) {
        return Ok(reference);
    }
    let problem = format!("expected a reference to a commit, hf://ORG/NAME@COMMIT, found {text}");
    Err(Error::key(checkpoint.join(MANIFEST), key, problem)
        .with_hint("name it yourself: `validate --against hf://…`, or `run --source NAME=hf://…`"))
}
