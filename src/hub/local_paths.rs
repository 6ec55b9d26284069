//! Paths of this machine, which what is pushed must not tell: they name people, clients and disks.
//!
//! In text files that go up, the last part of a path replaces the path. Weights, vocabularies and code go up as they
//! are: what looks like a path there is data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::outgoing::paths;
use crate::Result;
use crate::checkpoint::filesystem::resolved;
use crate::checkpoint::hash::sha256;
use crate::checkpoint::json::read_bytes;
use crate::checkpoint::manifest::{MANIFEST, Manifest};

/// Ends of the names of text files in which programs and people write paths; also looked into is what has no extension.
const TEXTS: [&str; 15] = [
    "cfg", "csv", "html", "ini", "json", "jsonl", "log", "md", "ndjson", "svg", "toml", "tsv",
    "txt", "yaml", "yml",
];
/// Text files whose words are the model's.
const VOCABULARIES: [&str; 4] = ["merges.txt", "tokenizer.json", "vocab.json", "vocab.txt"];
/// Larger text files are not looked into.
const LARGEST: u64 = 64 << 20;
/// Folders that are the same on every machine.
const COMMON: [&str; 9] = [
    "/bin", "/dev", "/etc", "/lib", "/opt", "/proc", "/sbin", "/sys", "/usr",
];
/// Where a path ends in a text, beside white space and controls.
const ENDS: &str = "\"'`,;:<>|(){}[]*?\\";

/// What tells a path of this machine from other words.
pub struct LocalPaths {
    home: Option<String>,
    /// Folders below which every path is one.
    roots: BTreeSet<String>,
}

impl LocalPaths {
    /// The paths that files of a checkpoint in `folder` may hold: below the home, the current folder and the folder
    /// that holds it, and the sources that its manifest names.
    pub fn of(folder: &Path, manifest: Option<&Manifest>) -> Self {
        let home = std::env::home_dir().map(|home| home.to_string_lossy().into_owned());
        let mut places: Vec<PathBuf> = std::env::home_dir().into_iter().collect();
        places.extend(std::env::current_dir());
        let mut made_of = vec![folder.to_path_buf()];
        if let Some(manifest) = manifest {
            let recipe = manifest.recipe.iter();
            let sources = recipe.clone().flat_map(|recipe| recipe.sources.values());
            let sources = sources.chain(manifest.sources.iter().map(|source| &source.path));
            made_of.extend(sources.map(|place| folder.join(place)));
            // The work folder, out of which the path of the output leads.
            let up = |output: &String| "../".repeat(Path::new(output).components().count());
            places.extend(recipe.map(|recipe| folder.join(up(&recipe.output))));
        }
        let forms = |place: PathBuf| {
            let absolute = std::path::absolute(&place);
            [absolute.ok(), resolved(&place).ok()].into_iter().flatten()
        };
        let made_of: Vec<PathBuf> = made_of.into_iter().flat_map(forms).collect();
        let around = made_of
            .iter()
            .filter_map(|place| Some(place.parent()?.into()));
        let around: Vec<PathBuf> = around.collect();
        let roots = places.into_iter().flat_map(forms);
        // `/tmp` or `/home` says nothing of anybody.
        let roots = roots
            .chain(around)
            .chain(made_of)
            .filter(|root| root.components().count() > 2);
        Self {
            home,
            roots: roots
                .map(|root| root.to_string_lossy().into_owned())
                .collect(),
        }
    }

    /// The text with the last part of each path of this machine in its place; `None` where it holds none.
    fn removed(&self, text: &str) -> Option<String> {
        let (mut out, mut from) = (String::new(), 0);
        for (at, _) in text.match_indices('/') {
            let (before, rest) = text.split_at(at);
            let joins = |c: char| c.is_alphanumeric() || "_-.~/".contains(c);
            let is_begin = !before.ends_with(joins) || before.ends_with("://");
            if at < from || !is_begin || rest.starts_with("//") {
                continue;
            }
            let Some(length) = self.length(before.chars().next_back(), rest) else {
                continue;
            };
            let path = text[at..at + length].trim_end_matches('/');
            out.push_str(&text[from..at]);
            out.push_str(match &self.home {
                Some(home) if home.trim_end_matches('/') == path => "~",
                _ => path.rsplit('/').next().unwrap_or_default(),
            });
            from = at + length;
        }
        (from > 0).then(|| out + &text[from..])
    }

    /// Length of the path of this machine that the text begins with, after the character `before`.
    fn length(&self, before: Option<char>, text: &str) -> Option<usize> {
        let is_end = |c: char| c.is_whitespace() || c.is_control() || ENDS.contains(c);
        let end = |from: usize| text[from..].find(is_end).map_or(text.len(), |at| from + at);
        let goes_on = |root: &&String| {
            text.strip_prefix(root.as_str()).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('/') || rest.starts_with(is_end)
            })
        };
        // Its own name may hold what ends others.
        let root = self.roots.iter().filter(goes_on).map(String::len).max();
        if let Some(root) = root {
            return Some(end(root));
        }
        let path = Path::new(&text[..end(0)]);
        if COMMON.iter().any(|common| path.starts_with(common)) {
            return None;
        }
        // A path of another machine can only be recognised by its looks.
        let depth = path.components().count() - 1;
        let is_value = before.is_none_or(|c| c.is_whitespace() || "\"'=:".contains(c));
        let looks_so = is_value && (depth > 2 || depth == 2 && before == Some('"'));
        (looks_so || depth > 1 && path.exists()).then(|| end(0))
    }

    /// Takes paths of this machine out of the contents in `replaced`, the manifest among them, and out of the folder's
    /// text files. These text files are then replaced, too, and the manifest lists them as they are sent. Returns the
    /// names of the files that held any.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn remove(
        &self,
        folder: &Path,
        manifest: Option<&mut Manifest>,
        replaced: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<Vec<String>> {
        let mut held = Vec::new();
        let mut texts = replaced.clone();
        for (name, place) in paths(folder)? {
            let length = || std::fs::metadata(&place).map_or(u64::MAX, |found| found.len());
            if !texts.contains_key(&name) && is_text(&name) && length() <= LARGEST {
                texts.insert(name, read_bytes(&place)?);
            }
        }
        // The manifest comes last: it lists the others.
        texts.remove(MANIFEST);
        for (name, bytes) in texts {
            let text = String::from_utf8(bytes).ok();
            if let Some(text) = text.and_then(|text| self.removed(&text)) {
                replaced.insert(name.clone(), text.into_bytes());
                held.push(name);
            }
        }
        let Some(manifest) = manifest else {
            return Ok(held);
        };
        for file in &mut manifest.files {
            if let Some(bytes) = replaced.get(&file.path) {
                (file.size, file.sha256) = (bytes.len() as u64, sha256(bytes));
            }
        }
        let text = String::from_utf8_lossy(&manifest.to_bytes()).into_owned();
        let removed = self.removed(&text);
        held.extend(removed.is_some().then(|| MANIFEST.to_owned()));
        replaced.insert(MANIFEST.to_owned(), removed.unwrap_or(text).into_bytes());
        Ok(held)
    }
}

fn is_text(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or_default();
    let extension = Path::new(name).extension();
    let is_known = |extension: &std::ffi::OsStr| TEXTS.iter().any(|text| extension == *text);
    !VOCABULARIES.contains(&name) && extension.is_none_or(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_path_stays() {
        let local = LocalPaths {
            home: Some("/home/me".to_owned()),
            roots: ["/home/me", "/data/a b"].map(str::to_owned).into(),
        };
        for (text, expected) in [
            (
                r#"{"seed": "/home/me/models/seed"}"#,
                Some(r#"{"seed": "seed"}"#),
            ),
            ("code=/home/me/code:0.5", Some("code=code:0.5")),
            (
                "cd /home/me; ls file:///home/me/x/",
                Some("cd ~; ls file://x"),
            ),
            ("'/data/a b/c'", Some("'c'")),
            (
                r#"{"path": "/scratch/mixture"}"#,
                Some(r#"{"path": "mixture"}"#),
            ),
            ("from /scratch/runs/3, once", Some("from 3, once")),
            ("/home/melon org/home/me https://hub/home/me/x", None),
            ("/usr/bin/env a/b 1/2 </s> \"/think\" [x](/docs/a/b)", None),
        ] {
            assert_eq!(local.removed(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn only_texts_are_looked_into() {
        for (name, expected) in [
            ("a/run.json", true),
            ("LICENSE", true),
            ("tokenizer.json", false),
            ("modeling_bam.py", false),
            ("model.safetensors", false),
        ] {
            assert_eq!(is_text(name), expected, "{name}");
        }
    }
}
