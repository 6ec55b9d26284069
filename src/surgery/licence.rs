//! Licences of the models that a checkpoint is made of: what their cards and licence files say, and where that conflicts.
//!
//! A conflict is named and never an error: whether a use is allowed is for people to say, not for a program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::plan::Plan;
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::reach::source_folder;
use crate::checkpoint::{ReadAt, SourceFile, yaml};

/// Bytes of a model card that are read: its front matter stands first.
const CARD_BYTES: u64 = 64 << 10;
/// Bytes of a licence file that are read: its title stands first.
const LICENCE_BYTES: u64 = 4 << 10;
/// Folders that are looked into for one source: it, and those that manifests lead to.
const MOST_FOLDERS: usize = 64;
/// What the Hub calls a licence that is not known, and one that is none of its list.
const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

/// What a licence asks, as far as it matters to a model made of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terms {
    /// Nothing that another licence could contradict.
    Free,
    /// Works made of it keep the licence.
    ShareAlike,
    /// Terms of its own, such as uses that it excludes.
    Own,
    /// No commercial use.
    NonCommercial,
}

/// Identifiers of the Hub, in lower case as it spells them, beside those of Creative Commons, whose names say their terms.
const KNOWN: [(&str, Terms); 62] = [
    ("afl-3.0", Terms::Free),
    ("agpl-3.0", Terms::ShareAlike),
    ("apache-2.0", Terms::Free),
    ("apple-amlr", Terms::NonCommercial),
    ("apple-ascl", Terms::Own),
    ("artistic-2.0", Terms::Free),
    ("bigcode-openrail-m", Terms::Own),
    ("bigscience-bloom-rail-1.0", Terms::Own),
    ("bigscience-openrail-m", Terms::Own),
    ("bsd", Terms::Free),
    ("bsd-2-clause", Terms::Free),
    ("bsd-3-clause", Terms::Free),
    ("bsd-3-clause-clear", Terms::Free),
    ("bsl-1.0", Terms::Free),
    ("c-uda", Terms::Own),
    ("cdla-permissive-1.0", Terms::Free),
    ("cdla-permissive-2.0", Terms::Free),
    ("cdla-sharing-1.0", Terms::ShareAlike),
    ("creativeml-openrail-m", Terms::Own),
    ("deepfloyd-if-license", Terms::NonCommercial),
    ("ecl-2.0", Terms::Free),
    ("epl-1.0", Terms::ShareAlike),
    ("epl-2.0", Terms::ShareAlike),
    ("etalab-2.0", Terms::Free),
    ("eupl-1.1", Terms::ShareAlike),
    ("eupl-1.2", Terms::ShareAlike),
    ("fair-noncommercial-research-license", Terms::NonCommercial),
    ("gemma", Terms::Own),
    ("gfdl", Terms::ShareAlike),
    ("gpl", Terms::ShareAlike),
    ("gpl-2.0", Terms::ShareAlike),
    ("gpl-3.0", Terms::ShareAlike),
    ("grok2-community", Terms::Own),
    ("h-research", Terms::NonCommercial),
    ("intel-research", Terms::NonCommercial),
    ("isc", Terms::Free),
    ("lgpl", Terms::ShareAlike),
    ("lgpl-2.1", Terms::ShareAlike),
    ("lgpl-3.0", Terms::ShareAlike),
    ("lgpl-lr", Terms::ShareAlike),
    ("llama2", Terms::Own),
    ("llama3", Terms::Own),
    ("llama3.1", Terms::Own),
    ("llama3.2", Terms::Own),
    ("llama3.3", Terms::Own),
    ("llama4", Terms::Own),
    ("lppl-1.3c", Terms::Free),
    ("mit", Terms::Free),
    ("mpl-2.0", Terms::ShareAlike),
    ("ms-pl", Terms::Free),
    ("ncsa", Terms::Free),
    ("odbl", Terms::ShareAlike),
    ("odc-by", Terms::Free),
    ("ofl-1.1", Terms::Free),
    ("open-mdw", Terms::Free),
    ("openrail", Terms::Own),
    ("openrail++", Terms::Own),
    ("osl-3.0", Terms::ShareAlike),
    ("pddl", Terms::Free),
    ("postgresql", Terms::Free),
    ("unlicense", Terms::Free),
    ("zlib", Terms::Free),
];

/// Names under which folders keep a licence's text.
const FILES: [&str; 7] = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "LICENCE.txt",
    "LICENCE.md",
    "COPYING",
];

/// Words near the beginning of a licence's text, with its identifier; the first that fit count.
const TITLES: [(&[&str], &str); 22] = [
    (&["apache license", "version 2.0"], "apache-2.0"),
    (
        &["attribution-noncommercial-sharealike 4.0"],
        "cc-by-nc-sa-4.0",
    ),
    (
        &["attribution-noncommercial-noderivatives 4.0"],
        "cc-by-nc-nd-4.0",
    ),
    (&["attribution-noncommercial 4.0"], "cc-by-nc-4.0"),
    (&["attribution-noderivatives 4.0"], "cc-by-nd-4.0"),
    (&["attribution-sharealike 4.0"], "cc-by-sa-4.0"),
    (&["attribution 4.0 international"], "cc-by-4.0"),
    (&["cc0 1.0 universal"], "cc0-1.0"),
    (
        &["gnu affero general public license", "version 3"],
        "agpl-3.0",
    ),
    (
        &["gnu lesser general public license", "version 3"],
        "lgpl-3.0",
    ),
    (
        &["gnu lesser general public license", "version 2.1"],
        "lgpl-2.1",
    ),
    (&["gnu general public license", "version 3"], "gpl-3.0"),
    (&["gnu general public license", "version 2"], "gpl-2.0"),
    (&["mozilla public license", "version 2.0"], "mpl-2.0"),
    (&["llama 2 community license"], "llama2"),
    (&["llama 3.1 community license"], "llama3.1"),
    (&["llama 3.2 community license"], "llama3.2"),
    (&["llama 3.3 community license"], "llama3.3"),
    (&["meta llama 3 community license"], "llama3"),
    (&["gemma terms of use"], "gemma"),
    (
        &[
            "redistribution and use in source and binary forms",
            "neither the name",
        ],
        "bsd-3-clause",
    ),
    (&["permission is hereby granted, free of charge"], "mit"),
];

/// The part of a model card's front matter that tells of licences.
#[derive(Debug, Default, Deserialize)]
struct FrontMatter {
    license: Option<OneOrMore>,
    license_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// The licences of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    source: String,
    /// Identifiers of the Hub; empty where nothing is told.
    ids: Vec<String>,
    /// What `other` is called.
    name: Option<String>,
}

/// The licences of all sources of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Licences {
    told: Vec<Told>,
}

/// What a person should know of the licences of a plan's models, where there are several.
pub fn notes(plan: &Plan) -> Vec<String> {
    let models = plan
        .sources
        .iter()
        .map(|source| (source.name.as_str(), source.checkpoint.path.as_path()));
    let models: Vec<(&str, &Path)> = models.filter(|(_, path)| path.is_dir()).collect();
    if models.len() < 2 {
        Vec::new()
    } else {
        Licences::of(models).conflicts()
    }
}

/// The folder, and those that its manifests say it was made of, near ones first.
pub(super) fn lineage(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        // A manifest that cannot be read tells nothing; whoever needs it says so.
        for source in Manifest::read(&folder)
            .ok()
            .flatten()
            .into_iter()
            .flat_map(|manifest| manifest.sources)
        {
            let Ok(Some(path)) = source_folder(&source, &folder) else {
                continue;
            };
            if path.is_dir() && found.len() < MOST_FOLDERS && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

impl Licences {
    /// Reads those of the models in these folders, each with its name; a folder that tells none has those of the models that
    /// its manifest says it was made of.
    pub fn of<'a>(models: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Self {
        let told = models.into_iter().map(|(source, folder)| {
            let (ids, name) = lineage(folder)
                .iter()
                .find_map(|folder| told_in(folder))
                .unwrap_or_default();
            Told {
                source: source.to_owned(),
                ids,
                name,
            }
        });
        Self {
            told: told.collect(),
        }
    }

    /// The licence of a source in a few words.
    pub(super) fn of_source(&self, source: &str) -> String {
        let told = self
            .told
            .iter()
            .find(|told| told.source == source && !told.ids.is_empty());
        told.map_or_else(
            || UNKNOWN.to_owned(),
            |told| {
                let name = told
                    .name
                    .as_ref()
                    .map_or_else(String::new, |name| format!(" ({name})"));
                told.ids.join(", ") + &name
            },
        )
    }

    /// Lines of a model card's front matter, each with its end; none where nothing is known.
    pub(super) fn front_matter(&self) -> String {
        let mut ids: Vec<&str> = Vec::new();
        for told in &self.told {
            let known = told.ids.iter().map(String::as_str);
            for id in known.chain(told.ids.is_empty().then_some(UNKNOWN)) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        match ids[..] {
            [] | [UNKNOWN] => String::new(),
            [OTHER] => match self.told.iter().find_map(|told| told.name.as_ref()) {
                Some(name) => format!("license: {OTHER}\nlicense_name: {name}\n"),
                None => format!("license: {OTHER}\n"),
            },
            [one] => format!("license: {one}\n"),
            _ => format!(
                "license:\n{}",
                ids.iter().map(|id| format!("- {id}\n")).collect::<String>()
            ),
        }
    }

    /// What does not go together, a sentence each; empty where all is well.
    pub fn conflicts(&self) -> Vec<String> {
        let mut found = Vec::new();
        let silent: Vec<&str> = self
            .told
            .iter()
            .filter(|told| told.ids.is_empty())
            .map(|told| told.source.as_str())
            .collect();
        if silent.len() == self.told.len() {
            found.push("licences: no source says under which licence it is".to_owned());
            return found;
        }
        if !silent.is_empty() {
            let say = if silent.len() == 1 { "says" } else { "say" };
            found.push(format!(
                "licences: {} {say} nothing of one",
                silent.join(", ")
            ));
        }
        let mut sources: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for told in &self.told {
            for id in &told.ids {
                sources.entry(id).or_default().push(&told.source);
            }
        }
        let of = |id: &str| format!("{id} ({})", sources[id].join(", "));
        let every: Vec<String> = sources.keys().map(|id| of(id)).collect();
        if every.len() > 1 {
            found.push(format!("licences differ: {}", every.join(", ")));
        }
        for id in sources.keys() {
            let (commercial, derivatives, known) = allowed(id);
            if !commercial {
                found.push(format!("licences: {} forbids commercial use", of(id)));
            }
            if !derivatives {
                found.push(format!(
                    "licences: {} forbids derivatives, which this is",
                    of(id)
                ));
            }
            if !known {
                found.push(format!(
                    "licences: {} is none that is known here; read its text",
                    of(id)
                ));
            }
        }
        found
    }
}

/// Whether a licence allows commercial use and derivatives, and whether it is known at all.
fn allowed(id: &str) -> (bool, bool, bool) {
    let parts: Vec<&str> = id.split('-').collect();
    if parts[0] == "cc" || id == "cc0-1.0" {
        return (!parts.contains(&"nc"), !parts.contains(&"nd"), true);
    }
    match KNOWN.iter().find(|(known, _)| *known == id) {
        Some((_, terms)) => (*terms != Terms::NonCommercial, true, true),
        None => (true, true, false),
    }
}

/// What the folder's card or licence file tells.
fn told_in(folder: &Path) -> Option<(Vec<String>, Option<String>)> {
    let card =
        beginning(&folder.join(CARD), CARD_BYTES).and_then(|text| front_matter(folder, &text));
    if let Some(FrontMatter {
        license: Some(license),
        license_name,
    }) = card
    {
        let ids = match license {
            OneOrMore::One(id) => vec![id],
            OneOrMore::More(ids) => ids,
        };
        let mut ids: Vec<String> = ids.iter().map(|id| plain(id)).collect();
        ids.retain(|id| id != UNKNOWN);
        if !ids.is_empty() {
            return Some((ids, license_name.filter(|name| is_plain(name))));
        }
    }
    let text = FILES
        .iter()
        .find_map(|name| beginning(&folder.join(name), LICENCE_BYTES))?;
    let words = text
        .to_lowercase()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let title = TITLES
        .iter()
        .find(|(parts, _)| parts.iter().all(|part| words.contains(part)));
    Some((vec![title.map_or(OTHER, |(_, id)| id).to_owned()], None))
}

fn front_matter(folder: &Path, text: &str) -> Option<FrontMatter> {
    let rest = text
        .strip_prefix("---")?
        .trim_start_matches('\r')
        .strip_prefix('\n')?;
    let end = rest.find("\n---")?;
    // A card that is no YAML tells nothing.
    yaml::parse(&folder.join(CARD), &rest[..end]).ok()
}

/// The first bytes of a file as text, if there is one.
fn beginning(path: &Path, most: u64) -> Option<String> {
    let file = path.is_file().then(|| SourceFile::open(path).ok())??;
    let mut bytes = vec![0; file.len().min(most) as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The Hub's spelling of an identifier, or [`OTHER`] for what could not stand in a card as it is.
fn plain(id: &str) -> String {
    let id = id.trim().to_lowercase();
    let id = id
        .strip_suffix("-only")
        .or_else(|| id.strip_suffix("-or-later"))
        .unwrap_or(&id);
    if is_plain(id) {
        id.to_owned()
    } else {
        OTHER.to_owned()
    }
}

/// Whether a word can stand in a card as it is.
fn is_plain(word: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    (1..=64).contains(&word.len()) && word.chars().all(fits)
}
