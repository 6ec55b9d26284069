//! Licences of the models that a checkpoint is made of, and where they conflict.
//!
//! A conflict is named and never an error: whether a use is allowed is for people to say, not for a program.

use std::collections::BTreeMap;

use super::front_matter::FrontMatter;
use super::licence_text::{OTHER, UNKNOWN};
use super::source::SourceFacts;

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

/// The licences of all sources of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Licences {
    sources: Vec<SourceLicence>,
}

/// The licences of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SourceLicence {
    source: String,
    /// Identifiers of the Hub; empty where the model names no licence.
    ids: Vec<String>,
    /// Name of a licence that the Hub has no identifier for.
    name: Option<String>,
    /// Where that licence is.
    link: Option<String>,
}

impl Licences {
    /// The licences of these sources, each with its name.
    pub fn of<'a>(sources: impl IntoIterator<Item = (&'a str, &'a SourceFacts)>) -> Self {
        let sources = sources.into_iter().map(|(name, facts)| SourceLicence {
            source: name.to_owned(),
            ids: facts.licences.clone(),
            name: facts.licence_name.clone(),
            link: facts.licence_link.clone(),
        });
        Self {
            sources: sources.collect(),
        }
    }

    /// The licence of a source in a few words.
    pub(super) fn of_source(&self, source: &str) -> String {
        let known = self.sources.iter();
        let mut known = known.filter(|known| known.source == source && !known.ids.is_empty());
        known.next().map_or_else(
            || UNKNOWN.to_owned(),
            |known| {
                let name = known.name.as_ref();
                known.ids.join(", ") + &name.map_or(String::new(), |name| format!(" ({name})"))
            },
        )
    }

    /// Adds the licences to a front matter: one where all sources agree, else a list; none where nothing is known.
    pub(super) fn put(&self, front: &mut FrontMatter) {
        let mut ids: Vec<&str> = Vec::new();
        for source in &self.sources {
            let known = source.ids.iter().map(String::as_str);
            for id in known.chain(source.ids.is_empty().then_some(UNKNOWN)) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        match ids[..] {
            [] | [UNKNOWN] => return,
            [one] => front.text("license", one),
            _ => front.list("license", &ids),
        }
        let named = self.sources.iter().find(|source| source.name.is_some());
        if let Some(SourceLicence { name, link, .. }) = named.filter(|_| ids.contains(&OTHER)) {
            name.iter()
                .for_each(|name| front.text("license_name", name));
            link.iter()
                .for_each(|link| front.text("license_link", link));
        }
    }

    /// What does not go together, a sentence each; empty where all is well.
    pub fn conflicts(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.sources.is_empty() {
            return found;
        }
        let silent = self.sources.iter().filter(|source| source.ids.is_empty());
        let silent: Vec<&str> = silent.map(|source| source.source.as_str()).collect();
        if silent.len() == self.sources.len() {
            found.push("licences: no source names one".to_owned());
            return found;
        }
        if !silent.is_empty() {
            let name = if silent.len() == 1 { "names" } else { "name" };
            found.push(format!("licences: {} {name} none", silent.join(", ")));
        }
        let mut sources: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for source in &self.sources {
            for id in &source.ids {
                sources.entry(id).or_default().push(&source.source);
            }
        }
        if let Some(partly) = sources.remove(UNKNOWN) {
            let (partly, is) = (
                partly.join(", "),
                if partly.len() == 1 { "is" } else { "are" },
            );
            found.push(format!(
                "licences: {partly} {is} made in part of models that name none"
            ));
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
                    "licences: bam-convert does not know {}; read its text",
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

#[cfg(test)]
mod tests {
    use super::*;

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
