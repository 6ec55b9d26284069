//! The documents: every relative link, and every document that code or a help text cites, leads to a file that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Where citations of documents are looked for.
const CITING: [&str; 12] = [
    ".ci",
    ".github",
    "Cargo.toml",
    "benches",
    "docs",
    "examples",
    "fixtures",
    "formats",
    "fuzz",
    "recipes",
    "src",
    "tests",
];

/// Text files of these kinds can cite a document.
const CITING_KINDS: [&str; 11] = [
    "css", "html", "js", "json", "md", "py", "rs", "sh", "toml", "yaml", "yml",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `path` that `wanted` accepts; build outputs are not walked.
fn files(path: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        if path.file_name().is_some_and(|name| name == "target") {
            return;
        }

        let mut entries: Vec<PathBuf> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for entry in entries {
            files(&entry, wanted, found);
        }
    } else if path.is_file() && wanted(path) {
        found.push(path.to_path_buf());
    }
}

fn has_kind(path: &Path, kinds: &[&str]) -> bool {
    path.extension()
        .and_then(|kind| kind.to_str())
        .is_some_and(|kind| kinds.contains(&kind))
}

/// The Markdown files that people read: at the top of the repository, and below `docs/` and `recipes/`.
fn pages() -> Vec<PathBuf> {
    let is_page = |path: &Path| has_kind(path, &["md"]);
    let mut found = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && is_page(&path) {
            found.push(path);
        }
    }
    for folder in ["docs", "recipes"] {
        files(&root().join(folder), &is_page, &mut found);
    }
    found
}

/// Lines of a page outside its code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Targets of the links and pictures of a page: the text in `](…)`.
fn links(text: &str) -> Vec<&str> {
    prose(text)
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

/// The anchors that GitHub gives to the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let slug: String = line
                .trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|&letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
                .map(|letter| if letter == ' ' { '-' } else { letter })
                .collect();
            let count = seen.entry(slug.clone()).or_default();
            *count += 1;
            if *count > 1 {
                format!("{slug}-{}", *count - 1)
            } else {
                slug
            }
        })
        .collect()
}

/// `path` without `.` and `..`, so that a link cannot leave the repository and come back.
fn plain(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut dead = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }

            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                plain(&page.parent().unwrap().join(path))
            };
            let has_anchor = anchor.is_empty()
                || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor));
            if !target.exists() || !has_anchor {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

/// Paths of the form `docs/….md` (or a schema or picture) in a text, each as the whole path that is written there.
fn cited(text: &str) -> Vec<&str> {
    let is_path = |letter: char| letter.is_ascii_alphanumeric() || "/._-*".contains(letter);
    text.match_indices("docs/")
        .filter(|&(at, _)| !text[..at].ends_with(is_path))
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|letter| !is_path(letter)).unwrap_or(rest.len());
            rest[..end].trim_end_matches('.')
        })
        .filter(|path| !path.contains('*') && has_kind(Path::new(path), &["md", "json", "svg"]))
        .collect()
}

#[test]
fn every_cited_document_exists() {
    let mut found = Vec::new();
    for place in CITING {
        let cites = |path: &Path| has_kind(path, &CITING_KINDS);
        files(&root().join(place), &cites, &mut found);
    }
    assert!(found.len() > 100, "too few files: {}", found.len());

    let mut dead = Vec::new();
    for file in found {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        for path in cited(&text) {
            if !root().join(path).exists() {
                dead.push(format!("{}: {path}", file.display()));
            }
        }
    }
    assert!(
        dead.is_empty(),
        "documents that are gone:\n{}",
        dead.join("\n")
    );
}

#[test]
fn the_index_lists_every_page() {
    let docs = root().join("docs");
    let index = fs::read_to_string(docs.join("README.md")).unwrap();
    let listed: BTreeSet<PathBuf> = links(&index)
        .into_iter()
        .map(|link| plain(&docs.join(link)))
        .collect();

    let mut pages = Vec::new();
    files(&docs, &|path| has_kind(path, &["md"]), &mut pages);
    pages.retain(|page| *page != docs.join("README.md"));
    let missing: Vec<&PathBuf> = pages
        .iter()
        .filter(|page| !listed.contains(*page))
        .collect();
    assert!(missing.is_empty(), "docs/README.md lists no {missing:?}");
}

/// What a reader sees of a line, as words: code counts as one word, and addresses of links do not count.
fn words(line: &str) -> Vec<String> {
    let mut text = String::new();
    for (number, part) in line.split('`').enumerate() {
        text.push_str(if number % 2 == 1 { "code" } else { part });
    }
    while let Some(start) = text.find("](") {
        let end = text[start..]
            .find(')')
            .map_or(text.len(), |end| start + end + 1);
        text.replace_range(start..end, "");
    }
    text.split_whitespace().map(str::to_owned).collect()
}

/// Whether a line has a second sentence: a word that ends one, and then a word that begins one.
fn has_two_sentences(words: &[String]) -> bool {
    words.windows(2).any(|pair| {
        let ends = pair[0].ends_with(['.', '!', '?']) && pair[0].len() > 2;
        let begins = pair[1]
            .trim_start_matches(['[', '(', '"', '*'])
            .starts_with(char::is_uppercase);
        ends && begins
    })
}

#[test]
fn each_line_of_a_page_is_one_sentence() {
    let log = root().join("docs/design/log.md");
    let mut faults = Vec::new();
    for page in pages().iter().filter(|page| **page != log) {
        let text = fs::read_to_string(page).unwrap();
        for line in prose(&text) {
            let is_sentence = !line.starts_with(['#', '|', '!']) && !line.starts_with("    ");
            // A bold word that leads a paragraph is its heading.
            let sentence = line
                .rsplit_once(".** ")
                .map_or(line, |(_, sentence)| sentence)
                .trim_start_matches([
                    ' ', '-', '*', '1', '2', '3', '4', '5', '6', '7', '8', '9', '.',
                ]);
            let words = words(sentence);
            if is_sentence && has_two_sentences(&words) {
                faults.push(format!("{}: {line}", page.display()));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "several sentences:\n{}",
        faults.join("\n")
    );
}

#[test]
fn every_source_file_that_a_page_names_exists() {
    let log = root().join("docs/design/log.md");
    let mut gone = Vec::new();
    for page in pages().iter().filter(|page| **page != log) {
        let text = fs::read_to_string(page).unwrap();
        for line in prose(&text) {
            let code = line.split('`').skip(1).step_by(2);
            for path in code.filter(|code| {
                let is_plain = |letter: char| {
                    letter.is_ascii_lowercase()
                        || letter.is_ascii_digit()
                        || "/._-".contains(letter)
                };
                code.contains('/')
                    && code.chars().all(is_plain)
                    && has_kind(Path::new(code), &["rs", "py", "sh"])
            }) {
                if !root().join(path).exists() && !root().join("src").join(path).exists() {
                    gone.push(format!("{}: {path}", page.display()));
                }
            }
        }
    }
    assert!(
        gone.is_empty(),
        "sources that are gone:\n{}",
        gone.join("\n")
    );
}
