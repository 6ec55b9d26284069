//! Licences of the models that a checkpoint is made of: what their cards and licence files say, and where that conflicts.
//!
//! A conflict is named and never an error: whether a use is allowed is for people to say, not for a program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::Deserialize;
use spdx::detection::{Store, TextData};

use super::plan::Plan;
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::reach::source_folder;
use crate::checkpoint::{ReadAt, SourceFile, yaml};

/// Bytes of a model card that are read: its front matter comes first.
const CARD_BYTES: u64 = 64 << 10;
/// Bytes of a licence file that are read: the longest that is recognised, the GPL, has 35 kB.
const LICENCE_BYTES: u64 = 64 << 10;
/// Folders that are looked into for one source: it, and those that manifests lead to.
const MOST_FOLDERS: usize = 64;
/// What the Hub calls a licence that is not known, and one that is none of its list.
const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

/// Identifiers of the Hub that are not SPDX's, in lower case as the Hub spells them.
const HUB_ONLY: [&str; 30] = [
    "apple-amlr",
    "apple-ascl",
    "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m",
    "bsd",
    "c-uda",
    "creativeml-openrail-m",
    "deepfloyd-if-license",
    "fair-noncommercial-research-license",
    "gemma",
    "gfdl",
    "gpl",
    "grok2-community",
    "h-research",
    "intel-research",
    "lgpl",
    "lgpl-lr",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "llama4",
    "odbl",
    "odc-by",
    "open-mdw",
    "openrail",
    "openrail++",
    "pddl",
];

/// Licences that forbid commercial use, beside those whose names say so.
const NON_COMMERCIAL: [&str; 4] = [
    "apple-amlr",
    "deepfloyd-if-license",
    "h-research",
    "intel-research",
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

/// Words near the beginning of licences of model makers, which SPDX does not have; the first that fit count.
const MAKERS: [(&str, &str); 6] = [
    ("llama 2 community license", "llama2"),
    ("llama 3.1 community license", "llama3.1"),
    ("llama 3.2 community license", "llama3.2"),
    ("llama 3.3 community license", "llama3.3"),
    ("meta llama 3 community license", "llama3"),
    ("gemma terms of use", "gemma"),
];

/// Licences whose texts are recognised, as SPDX names them: those that models on the Hub have.
const RECOGNISED: [&str; 28] = [
    "AGPL-3.0",
    "Apache-2.0",
    "Artistic-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSL-1.0",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-ND-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "EPL-2.0",
    "EUPL-1.2",
    "GPL-2.0",
    "GPL-3.0",
    "ISC",
    "LGPL-2.1",
    "LGPL-3.0",
    "MIT",
    "MPL-2.0",
    "OFL-1.1",
    "OpenMDW-1.0",
    "Unlicense",
    "Zlib",
];

/// The least likeness, from 0 to 1, at which a text counts as a licence's text: the default of the crate's own scanner.
const LIKENESS: f32 = 0.9;
/// Characters at the beginning of a text in which a short notice names its licence.
const NOTICE: usize = 200;

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
    /// Identifiers of the Hub; empty where the model names no licence.
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
    /// Reads the licences of the models in these folders, each with its name. A folder that names no licence has the licences
    /// of the sources in its manifest.
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
            let allows = Allows::of(id);
            if !allows.commercial_use {
                found.push(format!("licences: {} forbids commercial use", of(id)));
            }
            if !allows.derivatives {
                found.push(format!(
                    "licences: {} forbids derivatives, which this is",
                    of(id)
                ));
            }
            if !allows.is_known {
                found.push(format!(
                    "licences: {} is none that is known here; read its text",
                    of(id)
                ));
            }
        }
        found
    }
}

/// What a licence allows, as far as its name says.
struct Allows {
    commercial_use: bool,
    derivatives: bool,
    /// Whether the licence is one of SPDX's or of the Hub's.
    is_known: bool,
}

impl Allows {
    fn of(id: &str) -> Self {
        let parts: Vec<&str> = id.split('-').collect();
        let is_creative_commons = parts[0] == "cc";
        let names_no_commerce =
            parts.contains(&"noncommercial") || (is_creative_commons && parts.contains(&"nc"));
        // The Hub also has identifiers of Creative Commons that SPDX lacks, such as `cc`.
        let is_spdx = || {
            let mut licences = spdx::identifiers::LICENSES.iter();
            licences.any(|licence| licence.name.eq_ignore_ascii_case(id))
        };
        Self {
            commercial_use: !names_no_commerce && !NON_COMMERCIAL.contains(&id),
            derivatives: !(is_creative_commons && parts.contains(&"nd")),
            is_known: is_creative_commons || HUB_ONLY.contains(&id) || is_spdx(),
        }
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
    Some((vec![identified(&text)], None))
}

/// The Hub's identifier of the licence with this text, or [`OTHER`].
fn identified(text: &str) -> String {
    let words = words_of(text);
    if let Some((_, id)) = MAKERS.iter().find(|(title, _)| words.contains(title)) {
        return (*id).to_owned();
    }

    let text = TextData::new(text);
    let best = STORE.analyze(&text);
    if best.score >= LIKENESS {
        return best.name.to_lowercase();
    }

    // A notice names its licence alone, in SPDX's words but for `version`.
    let beginning: String = words.chars().take(NOTICE).collect();
    let named = RECOGNISED.iter().find(|name| {
        spdx::license_id(name).is_some_and(|id| beginning.contains(&words_of(id.full_name)))
    });
    named.map_or_else(|| OTHER.to_owned(), |name| name.to_lowercase())
}

/// The texts of [`RECOGNISED`]: preparing every text that SPDX has would delay each surgery.
static STORE: LazyLock<Store> = LazyLock::new(|| {
    let mut store = Store::new();
    for (name, text) in spdx::text::LICENSE_TEXTS {
        if RECOGNISED.contains(name) {
            store.add_license((*name).to_owned(), TextData::new(text));
        }
    }
    store
});

/// The words of a text in lower case, one space between them, without `version`.
fn words_of(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split_whitespace().filter(|word| *word != "version");
    words.collect::<Vec<_>>().join(" ")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_the_list_is_identified_as_itself() {
        for name in RECOGNISED {
            let found = spdx::text::LICENSE_TEXTS
                .iter()
                .find(|(known, _)| *known == name);
            let (_, text) = found.unwrap_or_else(|| panic!("SPDX has no text of {name}"));
            assert_eq!(identified(text), name.to_lowercase());
            assert!(Allows::of(&name.to_lowercase()).is_known, "{name}");
        }
    }

    #[test]
    fn texts_that_only_resemble_a_licence_are_other() {
        let mit = "Permission is hereby granted, free of charge, to any person, for research only.";
        assert_eq!(identified(mit), OTHER);
        assert_eq!(identified(""), OTHER);
        assert_eq!(
            identified("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta"),
            "llama3"
        );
        assert_eq!(identified("MIT License\n\nCopyright 2024 A"), "mit");
    }

    #[test]
    fn terms_follow_from_names() {
        let terms = |id: &str| {
            let allows = Allows::of(id);
            (allows.commercial_use, allows.derivatives, allows.is_known)
        };
        assert_eq!(terms("apache-2.0"), (true, true, true));
        assert_eq!(terms("cc-by-nc-nd-4.0"), (false, false, true));
        assert_eq!(
            terms("fair-noncommercial-research-license"),
            (false, true, true)
        );
        assert_eq!(terms("apple-amlr"), (false, true, true));
        assert_eq!(terms("my-licence"), (true, true, false));
        for id in NON_COMMERCIAL {
            assert!(HUB_ONLY.contains(&id), "{id}");
        }
    }
}
