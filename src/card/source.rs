//! What a model says of itself: on its card, in its licence file, or in the metadata of a GGUF file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::front_matter;
use super::licence_text::{OTHER, UNKNOWN, identified, is_plain, plain};
use crate::checkpoint::folder::CARD;
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::manifest::{Manifest, Origin};
use crate::checkpoint::reach::source_folder;
use crate::checkpoint::{ReadAt, SourceFile, views};

/// Bytes of a model card that are read: more than any card on the Hub has.
const CARD_BYTES: u64 = 1 << 20;
/// Bytes of a licence file that are read: the longest that is recognised, the GPL, has 35 kB.
const LICENCE_BYTES: u64 = 64 << 10;
/// Folders that are looked into for one source: it, and those that manifests lead to.
pub(super) const MOST_FOLDERS: usize = 64;
/// Bytes of the name of a model in a GGUF file at most.
const LONGEST_TITLE: usize = 100;
/// Languages, or data sets, of one source at most: a card with more says nothing of use.
const MOST_LISTED: usize = 256;

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

/// Keys under which a GGUF file names the repository of its model, the nearest first.
const GGUF_REPOSITORIES: [&str; 3] = [
    "general.source.repo_url",
    "general.repo_url",
    "general.base_model.0.repo_url",
];
/// What comes before a repository's name in those values.
const HUB: &str = "https://huggingface.co/";

/// What a model says of itself; every text is a plain identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFacts {
    /// Licences by the Hub's identifiers; empty where the model names none.
    pub licences: Vec<String>,
    /// The name of a licence that the Hub has no identifier for.
    pub licence_name: Option<String>,
    /// Where that licence is.
    pub licence_link: Option<String>,
    /// Languages by their codes.
    pub languages: Vec<String>,
    /// Data sets on the Hub that it was trained on.
    pub datasets: Vec<String>,
    /// Its repository on the Hub, or the repositories of the nearest models that it was made of.
    pub repositories: Vec<String>,
    /// What a GGUF file calls its model.
    pub title: Option<String>,
}

impl SourceFacts {
    /// Reads the facts of the model at `path`, a folder or a file. What the model does not say, the models say that its
    /// manifest names as sources, the nearest first.
    pub fn of(path: &Path) -> Self {
        let mut facts = Self::default();
        for place in lineage(path) {
            let found = Self::said_in(&place);
            if facts.licences.is_empty() {
                facts.licences = found.licences;
                facts.licence_name = found.licence_name;
                facts.licence_link = found.licence_link;
            }
            if facts.languages.is_empty() {
                facts.languages = found.languages;
            }
            if facts.datasets.is_empty() {
                facts.datasets = found.datasets;
            }
            facts.title = facts.title.or(found.title);
        }
        facts.repositories = repositories(path);
        facts
    }

    /// What this folder or file says by itself.
    fn said_in(place: &Path) -> Self {
        if place.is_file() {
            // A file that is no GGUF, or one that cannot be read, says nothing; its reader says why.
            let gguf = Gguf::open(place).ok();
            return gguf.map(|gguf| Self::of_gguf(&gguf)).unwrap_or_default();
        }

        let mut facts = card_keys(place).map_or_else(Self::default, |keys| Self::of_card(&keys));
        if facts.licences.is_empty() {
            let mut files = FILES.iter();
            let text = files.find_map(|name| beginning(&place.join(name), LICENCE_BYTES));
            facts.licences = text.iter().map(|text| identified(text)).collect();
        }
        facts
    }

    fn of_card(keys: &Map<String, Value>) -> Self {
        let list = |key: &str| texts(keys.get(key));
        let text = |key: &str| list(key).into_iter().next();
        let mut licences: Vec<String> = list("license").iter().map(|id| plain(id)).collect();
        // Beside others it says that a part has none that is known.
        if licences == [UNKNOWN] {
            licences.clear();
        }
        let is_other = licences.iter().any(|id| id == OTHER);
        let spelled = list("license").into_iter().find(|id| plain(id) == OTHER);
        let spelled = spelled.as_deref().and_then(slug);
        Self {
            licences,
            licence_name: text("license_name")
                .filter(|name| is_other && is_plain(name))
                .or(spelled),
            licence_link: text("license_link").filter(|link| is_other && is_address(link)),
            languages: listed(languages(keys.get("language")), is_plain),
            datasets: listed(list("datasets"), |name| {
                is_plain(name) || is_repository(name)
            }),
            ..Self::default()
        }
    }

    fn of_gguf(gguf: &Gguf) -> Self {
        let text = |key: &str| gguf.text(key).ok().flatten().map(str::to_owned);
        let list = |key: &str| gguf.texts(key).ok().flatten().unwrap_or_default().to_vec();
        let licences: Vec<String> = text("general.license").iter().map(|id| plain(id)).collect();
        let is_other = licences.iter().any(|id| id == OTHER);
        let title = text("general.name").map(|name| name.trim().to_owned());
        Self {
            licence_name: text("general.license.name").filter(|name| is_other && is_plain(name)),
            licence_link: text("general.license.link").filter(|link| is_other && is_address(link)),
            licences,
            languages: listed(list("general.languages"), is_plain),
            datasets: listed(list("general.datasets"), is_repository),
            title: title.filter(|name| (1..=LONGEST_TITLE).contains(&name.len())),
            ..Self::default()
        }
    }
}

/// The repository that a GGUF file names for its model.
fn named_in(file: &Path) -> Option<String> {
    let gguf = Gguf::open(file).ok()?;
    let addresses = GGUF_REPOSITORIES
        .iter()
        .filter_map(|key| gguf.text(key).ok().flatten());
    let mut names = addresses.filter_map(|address| {
        let name = address.strip_prefix(HUB)?.trim_end_matches('/').to_owned();
        is_repository(&name).then_some(name)
    });
    names.next()
}

/// The repository of a model, or the repositories of the nearest models that it was made of.
fn repositories(path: &Path) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(place) = open.pop() {
        if seen.len() == MOST_FOLDERS || !seen.insert(place.clone()) {
            continue;
        }
        let own = if place.is_file() {
            let folder = place.parent().and_then(repository_of);
            folder.or_else(|| named_in(&place))
        } else {
            repository_of(&place)
        };
        match own {
            Some(repository) if !found.contains(&repository) => found.push(repository),
            Some(_) => {}
            // The last one is looked at first.
            None => open.extend(made_of(&place).into_iter().rev()),
        }
    }
    found
}

/// The keys of a folder's card; `None` where there is no card, or its front matter is no YAML: it then says nothing.
fn card_keys(folder: &Path) -> Option<Map<String, Value>> {
    let path = folder.join(CARD);
    let text = beginning(&path, CARD_BYTES)?;
    let (lines, _) = front_matter::split(&path, &text).ok()?;
    front_matter::keys(&path, lines).ok()
}

/// The text of a folder's card, if it has one.
pub(super) fn card_of(folder: &Path) -> Option<String> {
    beginning(&folder.join(CARD), CARD_BYTES)
}

/// One text, or the texts of a list.
fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(items)) => {
            let texts = items.iter().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// Codes of languages. The code of Norwegian, `no`, is false to a parser of YAML 1.1.
fn languages(value: Option<&Value>) -> Vec<String> {
    let code = |value: &Value| match value {
        Value::Bool(false) => Value::from("no"),
        other => other.clone(),
    };
    match value {
        Some(Value::Array(items)) => texts(Some(&items.iter().map(code).collect())),
        Some(one) => texts(Some(&code(one))),
        None => Vec::new(),
    }
}

/// The first so many that fit, each once.
fn listed(values: Vec<String>, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for value in values {
        if fits(&value) && !found.contains(&value) && found.len() < MOST_LISTED {
            found.push(value);
        }
    }
    found
}

/// The name of a licence that is no plain word, as one; none of the word that says that there is no name, and of several
/// lines.
fn slug(name: &str) -> Option<String> {
    if name.chars().any(|c| !c.is_ascii_graphic() && c != ' ') {
        return None;
    }
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let slug = words.join("-").to_lowercase();
    (slug != OTHER && is_plain(&slug)).then_some(slug)
}

/// Whether a name is `ORG/NAME`.
fn is_repository(name: &str) -> bool {
    let parts = name.split_once('/');
    parts.is_some_and(|(organisation, name)| is_plain(organisation) && is_plain(name))
}

/// Whether a text is a web address or the name of a file, without characters that need escapes.
fn is_address(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+/:~%#?=&".contains(c);
    (1..=256).contains(&text.len()) && text.chars().all(fits)
}

fn repository_of(folder: &Path) -> Option<String> {
    Origin::of(folder, &[]).map(|(repository, _)| repository)
}

/// The model, and those that its manifests say it was made of, near ones first.
pub(super) fn lineage(path: &Path) -> Vec<PathBuf> {
    let mut found = views::places(path);
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        for path in made_of(&folder) {
            if found.len() < MOST_FOLDERS && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

/// The places of the models that the manifest of a folder names.
fn made_of(folder: &Path) -> Vec<PathBuf> {
    // A manifest that cannot be read leads nowhere; whoever needs it says so.
    let manifest = Manifest::read(folder).ok().flatten();
    manifest.map_or_else(Vec::new, |manifest| folders_of(&manifest, folder))
}

/// The places of the sources of the manifest in `folder`, as far as it may lead there by itself.
pub(super) fn folders_of(manifest: &Manifest, folder: &Path) -> Vec<PathBuf> {
    let places = manifest.sources.iter();
    let places = places.filter_map(|source| source_folder(source, folder).ok().flatten());
    places.filter(|place| place.exists()).collect()
}

/// The first bytes of a file as text, if there is one.
fn beginning(path: &Path, most: u64) -> Option<String> {
    let file = path.is_file().then(|| SourceFile::open(path).ok())??;
    let mut bytes = vec![0; file.len().min(most) as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
